"""How many drafted tokens to verify: as many as pay, by what calls cost and drafts achieved on this machine.

Emitted tokens per second with n drafted ones are (1 + expected kept of n) / (seconds of a call on n + 1 positions +
drafting); the choice is the n that maximises it over all requests of the call, 0 included (goodput).  Both factors
are learned while running; whatever is chosen, the text is the same.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from likely.decoding.drafting.protocol import Draft
from likely.runtimes.cost_curve import CostCurve

LIMIT = 64  # most drafted tokens per sequence and call
MARGIN = 1.05  # a predicted gain below this is noise
FORGET = 0.98  # per recorded draft
# a new text is trusted less than usual, and the beginnings of its own drafts soon decide
DOUBT, WEIGHT, FADE, BEGINNING = 0.7, 2.0, 0.8, 8
ANY = 0  # the class of drafts whose size is decided before they are seen
TRIES = 3  # of a call size before its measured cost is believed
SMALL, PAUSE = 8, 2  # size of a draft while none pays; tokens between two of them
PROBES, PROBE_EVERY, PROBE_SIZE = 6, 64, 4  # trials of a drafter that is not free
_RANKS = np.arange(LIMIT)
_NOTHING = np.zeros(LIMIT)
CAUTION = 0.5  # standard errors


class CallCosts:
    """Seconds of a call on n positions, linear between the sizes seen.

    Each size counts with the 30 % quantile of its recent calls: what disturbs a call only adds time.  Sizes not yet
    seen take a stored cost curve, and the largest prefill, which computes fewer rows of logits.
    """

    def __init__(self, curve: CostCurve | None = None):
        self._recent: dict[int, deque[float]] = {}
        self._typical: dict[int, float] = {}
        self._prior: dict[int, float] = {}
        self._points: tuple[np.ndarray, np.ndarray] | None = None
        if curve is not None:
            for n in sorted({r.positions for r in curve.rows if r.sequences == 1 and r.kind == "decode"}):
                self._prior[n] = curve.seconds(n)

    def record(self, positions: int, seconds: float) -> None:
        """A call that computed logits for each of its positions."""
        times = self._recent.setdefault(positions, deque(maxlen=15))
        times.append(seconds)
        typical = sorted(times)[3 * len(times) // 10]
        if typical != self._typical.get(positions):
            self._typical[positions] = typical
            self._points = None

    def record_prefill(self, positions: int, seconds: float) -> None:
        if positions > max(self._prior, default=8):
            self._prior[positions] = seconds
            self._points = None

    @property
    def known(self) -> bool:
        return len(self._recent.get(1, ())) >= 3 or 1 in self._prior or len(self._recent) > 1

    def tries(self, positions: int) -> int:
        """Calls seen of about this size."""
        return sum(len(t) for n, t in self._recent.items() if 3 * n >= 2 * positions and 2 * n <= 3 * positions)

    def seconds(self, positions: np.ndarray) -> np.ndarray:
        """Predicted seconds, one per entry, increasing in the size."""
        if self._points is None:
            known = self._prior | self._typical
            sizes = np.array(sorted(known))
            times = np.array([known[n] for n in sizes.tolist()])
            # a size seen a few times only may have been disturbed: what a larger call did, it can
            reachable = np.minimum.accumulate(times[::-1])[::-1]
            settled = np.array([len(self._recent.get(n, ())) >= TRIES for n in sizes.tolist()])
            self._points = sizes, np.where(settled, times, reachable)
        sizes, times = self._points
        out = np.interp(positions, sizes, times)
        slope = times[0] / 4 if len(sizes) == 1 else (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
        return out + np.maximum(positions - sizes[-1], 0) * max(slope, times[-1] / sizes[-1] / 4)


@dataclass(eq=False)
class Acceptance:
    """How often the i-th node of a drafter's drafts was kept, by how well the origin of the guess matched."""

    seconds_per_node: float | None = None
    rounds: int = 0
    _hits: dict[int, np.ndarray] = field(default_factory=dict)
    _tries: dict[int, np.ndarray] = field(default_factory=dict)
    _known: dict[int, np.ndarray] = field(default_factory=dict)  # results of `expected` since the last record

    def record(self, key: int, kept: Sequence[int], judged: int) -> None:
        """Of a draft of class `key`, `kept` nodes of the first `judged` ones were what the target said."""
        hits = self._hits.setdefault(key, np.zeros(LIMIT))
        tries = self._tries.setdefault(key, np.zeros(LIMIT))
        hits *= FORGET
        tries *= FORGET
        tries[:judged] += 1
        self._known.pop(key, None)
        hits[[k for k in kept if k < LIMIT]] += 1

    def expected(self, key: int) -> np.ndarray:
        """(LIMIT + 1,) expected number of kept nodes among the first n, n = 0.. ."""
        known = self._known.get(key)
        if known is not None:
            return known
        first = min(0.25 + 0.08 * key, 0.9) if key <= 8 else 0.2 * (key - 15)
        prior = first * (0.5 + first / 2) ** _RANKS  # two imagined drafts; real ones soon outweigh them
        hits, tries = self._hits.get(key, _NOTHING), self._tries.get(key, _NOTHING)
        rate = (hits + 2 * prior) / (tries + 2)
        # the best of many uncertain sizes is mostly the luckiest one: count what is nearly certain
        rate = np.maximum(rate - CAUTION * np.sqrt(rate * (1 - rate) / (tries + 2)), 0.0)
        self._known[key] = known = np.concatenate([[0.0], np.cumsum(rate)])
        return known

    def time(self, nodes: int, seconds: float) -> None:
        each = seconds / max(nodes, 1)
        self.seconds_per_node = each if self.seconds_per_node is None else 0.9 * self.seconds_per_node + 0.1 * each


def match_class(draft: Draft) -> int:
    """How much a guess can be trusted before it was tried: 0 unknown, 1..8 by the match, 16..20 by its own estimate."""
    if draft.match:
        return draft.match if draft.match < 4 else min(1 + draft.match.bit_length(), 8)
    if draft.expected is not None and len(draft):
        return 16 + int(4 * min(draft.expected / len(draft), 1.0))
    return 0


class Controller:
    """What one model has learned about calls and drafters; shared by its loops."""

    def __init__(self, curve: CostCurve | None = None):
        self.costs = CallCosts(curve)
        self._by_source: dict[str, Acceptance] = {}
        self._lock = threading.Lock()

    def of(self, source: str) -> Acceptance:
        with self._lock:
            return self._by_source.setdefault(source, Acceptance())

    def verify(
        self, source: str, draft: Draft, limit: int, *, positions: int, emitted: float, trust: float = 1.0
    ) -> tuple[int, float]:
        """(how many nodes of a free draft to verify, how many of them will be kept by expectation).

        positions, emitted  of the call so far, all requests, without this draft
        trust               of this text's drafts, beside what is usual
        """
        most = min(len(draft), limit, LIMIT)
        if most <= 0 or not self.costs.known:
            return 0, 0.0
        kept = trust * self.of(source).expected(match_class(draft))[: most + 1]
        best, expected = _best(kept, self.costs.seconds(positions + np.arange(most + 1)), emitted)
        if not best:  # a promising draft of a size whose cost is hardly known is tried a few times
            promising = np.flatnonzero(kept >= np.maximum(0.6 * np.arange(most + 1), 2.0))
            if len(promising) and self.costs.tries(positions + int(promising[-1])) < TRIES:
                best = int(promising[-1])
                expected = float(kept[best])
        return best, expected

    def draft(self, source: str, limit: int, *, positions: int, emitted: float) -> tuple[int, float]:
        """As `verify`, for a drafter that costs time: how many tokens it shall draft."""
        record = self.of(source)
        record.rounds += 1
        most = min(limit, LIMIT)
        if most <= 0 or not self.costs.known:
            return 0, 0.0
        if record.rounds <= PROBES or record.seconds_per_node is None or record.rounds % PROBE_EVERY == 0:
            return min(PROBE_SIZE, most), 0.0
        n = np.arange(most + 1)
        kept = record.expected(ANY)[: most + 1]
        return _best(kept, self.costs.seconds(positions + n) + n * record.seconds_per_node, emitted)


def _best(kept: np.ndarray, seconds: np.ndarray, emitted: float) -> tuple[int, float]:
    rate = (emitted + kept) / seconds
    best = int(rate.argmax())
    if rate[best] < MARGIN * rate[0]:
        return 0, 0.0
    return best, float(kept[best])


class AcceptanceTracker:
    """Compares drafts of a free drafter with what is emitted, verified or not: its acceptance is known without a call.

    One draft at a time is followed until the text leaves it.
    trust  how the drafts of this text did so far, as a share of what was expected of them, the last ones most
    """

    def __init__(self, record: Acceptance):
        self._record = record
        self._kept, self._expected = DOUBT * WEIGHT, WEIGHT
        self._draft: Draft | None = None
        self._children: dict[int, dict[int, int]] = {}
        self._path: list[int] = []
        self._size, self._rest, self._pause = SMALL, 0, 0

    def wish(self) -> int:
        """How long a draft to ask for now: short ones while nothing is verified, and not at every token."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._size

    def verified(self, n: int) -> None:
        """n nodes of the last draft go to the model."""
        self._size = min(max(SMALL, 4 * n), LIMIT)
        self._pause = 0 if n else min(2 * self._pause + 1, PAUSE)
        self._rest = self._pause

    def propose(self, draft: Draft) -> None:
        if self._draft is None and len(draft):
            self._draft, self._path = draft, []
            self._children = draft.children()

    def observe(self, tokens: Sequence[int]) -> None:
        if self._draft is None:
            return
        for token in tokens:
            node = self._children.get(self._path[-1] if self._path else -1, {}).get(token)
            if node is not None:
                self._path.append(node)
            if node is None or node not in self._children:
                self._judge(self._draft)
                self._draft = None
                return

    @property
    def trust(self) -> float:
        return min(self._kept / self._expected, 1.0)

    def _judge(self, draft: Draft) -> None:
        key, judged = match_class(draft), min(len(draft), LIMIT)
        first = min(judged, BEGINNING)
        self._kept = FADE * self._kept + sum(node < first for node in self._path)
        self._expected = FADE * self._expected + float(self._record.expected(key)[first])
        self._record.record(key, self._path, judged)
