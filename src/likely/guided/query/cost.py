"""What a query costs, in the units of the LMQL paper and in those of a local model.

model_queries    next-token distributions asked of the model: one per generated token (also of those that a stop cut
                 off), one per scored token
decoder_calls    requests whose text was not yet held: each sends its whole prompt.  A hole that goes on where the
                 query stands is not a new call; a scored value is one
billable_tokens  over these: prompt tokens that had to be sent, and generated or scored ones
forward_tokens   tokens that the model really computed (prefixes held are computed once; drafts count)
forward_calls    calls of the model;  seconds: wall time inside them and around them
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Cost:
    model_queries: int = 0
    decoder_calls: int = 0
    billable_tokens: int = 0
    forward_tokens: int = 0
    forward_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Cost)))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(eq=False)
class CostMeter:
    """Adds up what was asked; the runtime beside it (`kept.KeptRuntime`) adds what was computed."""

    total: Cost = Cost()
    _fresh: bool = True

    def begin(self) -> None:
        """A new run: its first request is a call of its own, whatever is held from another."""
        self._fresh = True

    def generated(self, prompt: int, held: int, tokens: int) -> None:
        """A request with a prompt of so many tokens, of which `held` were kept from before, wrote `tokens`."""
        held, self._fresh = 0 if self._fresh else held, False
        self.total += Cost(tokens, int(held == 0), prompt - held + tokens)

    def scored(self, prompt: int, tokens: int) -> None:
        """One value of so many tokens was scored after a prompt."""
        self.total += Cost(tokens, 1, prompt + tokens)

    def computed(self, tokens: int) -> None:
        self.total += Cost(forward_tokens=tokens, forward_calls=1)

    @contextmanager
    def timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.total += Cost(seconds=time.perf_counter() - started)
