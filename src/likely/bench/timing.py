"""How time is measured here: interleaved rounds, medians, intervals, and what machine it was.

Alternatives run A B A B, so that drift of the machine hits all alike; a ratio is taken within each round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from likely.errors import LikelyError
from likely.metrics.bootstrap import median_interval

T = TypeVar("T")


class BusyMachine(LikelyError):
    """Another program is using the processor; timings would be wrong."""


def busy_share(seconds: float = 0.5) -> float:
    """Share of the machine's processor time that other programs took during a short wait."""

    def ticks() -> tuple[float, float]:
        values = [float(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return sum(values[:3]) + sum(values[5:8]), sum(values[:8])

    if not Path("/proc/stat").exists():
        return 0.0
    busy, total = ticks()
    time.sleep(seconds)
    busy_after, total_after = ticks()
    return (busy_after - busy) / max(total_after - total, 1e-9)


def refuse_busy(limit: float = 0.15) -> None:
    """Raise BusyMachine if other programs use more than `limit` of the processor (three looks, the best counts)."""
    share = min(busy_share() for _ in range(3))
    if share > limit:
        raise BusyMachine(
            f"other programs use {share:.0%} of the processor (limit {limit:.0%}): stop them and measure again"
        )


def timed(call: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """(what the call gives, the seconds that it takes)."""
    started = time.perf_counter()
    found = call(*arguments)
    return found, time.perf_counter() - started


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one thing."""

    name: str
    seconds: list[float]

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))

    def interval_s(self) -> tuple[float, float]:
        return median_interval(self.seconds)


def interleaved(
    runs: Mapping[str, Callable[[], object]], *, rounds: int = 5, warmup: int = 1, settled: bool = False
) -> dict[str, Timing]:
    """Time each run once per round, after `warmup` rounds that do not count.

    Every round has an order of its own (the same in every process), so that what a run leaves behind meets each of the
    others alike.  settled: a run is called twice and its second call is timed, as in a loop that does nothing else;
    otherwise a short call pays for the cold caches and the spinning threads of the run before it.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, names = np.random.default_rng(0), list(runs)
    for number in range(warmup + rounds):
        for name in order.permutation(names).tolist():
            run = runs[name]
            if settled:
                run()
            _, seconds = timed(run)
            if number >= warmup:
                times[name].append(seconds)
    return {name: Timing(name, found) for name, found in times.items()}


@dataclass(frozen=True)
class Ratio:
    """How many times faster `fast` is than `slow`: median of per-round ratios, with its interval."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f}, {self.high:.2f}] over {self.rounds} rounds"


def speedup(fast: Timing, slow: Timing) -> Ratio:
    ratios = [s / f for s, f in zip(slow.seconds, fast.seconds, strict=True)]
    return Ratio(float(np.median(ratios)), *median_interval(ratios), len(ratios))
