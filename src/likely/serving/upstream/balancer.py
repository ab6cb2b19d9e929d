"""Which server gets a request: the one that knows its beginning, unless that has too much to do or is out of order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np


@dataclass(eq=False)
class Upstream:
    """A server and what is known of it.

    outstanding  tokens (estimated) of the requests that it is working on
    failures     in a row;  closed_until: nothing is sent before, then one request as a trial (`trying`)
    """

    url: str
    models: frozenset[str] = frozenset()
    outstanding: int = 0
    failures: int = 0
    closed_until: float = 0.0
    trying: bool = False

    def rank(self, prefix: bytes) -> bytes:
        """Rendezvous hashing: of all servers the one of the largest rank is the home of this prefix."""
        return sha256(self.url.encode() + b"\0" + prefix).digest()


@dataclass(eq=False)
class Balancer:
    """A pure policy over some servers; whoever sends requests tells it of their beginning and end.

    bound     the home of a prefix is passed over while it has more than this times the mean load, the request included
    failures  in a row after which a server is left alone for `pause_s`, then twice as long, up to `longest_pause_s`

    Prefix affinity keeps texts that begin alike where their beginning is computed; when a server goes, only the
    prefixes whose home it was move.  (Rendezvous hashing: Thaler and Ravishankar 1998; bounded loads: Mirrokni,
    Thorup and Zadimoghaddam 2018, arXiv:1608.01350.)
    """

    upstreams: Sequence[Upstream]
    bound: float = 1.25
    failures: int = 3
    pause_s: float = 5.0
    longest_pause_s: float = 60.0
    clock: Callable[[], float] = field(default=time.monotonic)

    def __post_init__(self) -> None:
        if len({each.url for each in self.upstreams}) < len(self.upstreams):
            raise ValueError("two upstreams have one address")
        if self.bound < 1:
            raise ValueError(f"bound must be at least 1, got {self.bound}")

    @property
    def models(self) -> list[str]:
        """All that some server has, whether or not it is in order now."""
        return sorted({model for each in self.upstreams for model in each.models})

    def choose(self, model: str, prefix: bytes, tokens: int, tried: Collection[Upstream] = ()) -> Upstream | None:
        """The server for a request of about `tokens` tokens; None where none is left that has the model.

        tried  servers that this request was sent to before
        """
        now = self.clock()
        able = [
            each
            for each in self.upstreams
            if model in each.models and each not in tried and now >= each.closed_until and not each.trying
        ]
        if not able:
            return None
        home = max(able, key=lambda each: each.rank(prefix))
        mean = (sum(each.outstanding for each in able) + tokens) / len(able)
        if home.outstanding + tokens <= max(self.bound * mean, tokens):
            return home
        return min(able, key=lambda each: (each.outstanding, each is not home))

    def begin(self, upstream: Upstream, tokens: int) -> None:
        """A request goes there."""
        upstream.outstanding += tokens
        upstream.trying = upstream.failures >= self.failures

    def end(self, upstream: Upstream, tokens: int, *, worked: bool | None) -> None:
        """It is over.  worked: whether the server did its part (a refusal of a bad request is one); None: not known."""
        upstream.outstanding -= tokens
        upstream.trying = False
        if worked:
            upstream.failures, upstream.closed_until = 0, 0.0
        elif worked is not None:
            upstream.failures += 1
            if (beyond := upstream.failures - self.failures) >= 0:
                pause = min(self.pause_s * 2.0 ** min(beyond, 32), self.longest_pause_s)
                upstream.closed_until = self.clock() + pause

    def opens_in(self, model: str) -> float:
        """Seconds until a server with this model may be tried again."""
        waiting = [each.closed_until for each in self.upstreams if model in each.models]
        return max(0.0, min(waiting, default=0.0) - self.clock())


@dataclass(eq=False)
class Hedging:
    """When a request whose reply has not begun is sent to a second server: later than most replies began lately.

    quantile  of the seconds to the first byte of the last replies, of which `fewest` must be known
    share     of all requests that are sent twice at the most, so that a slow hour does not double its load

    (Dean and Barroso 2013, "The tail at scale".)
    """

    quantile: float = 0.95
    share: float = 0.05
    fewest: int = 20
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    requests: int = 0
    hedged: int = 0

    def after_s(self) -> float | None:
        """Seconds that the next request waits for its first server alone; None: to the end."""
        self.requests += 1
        if len(self.seconds) < self.fewest or self.hedged + 1 > self.share * self.requests:
            return None
        return float(np.quantile(list(self.seconds), self.quantile))
