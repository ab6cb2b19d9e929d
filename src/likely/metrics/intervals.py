"""Intervals: what an accuracy from n questions, or a ratio of sums over n texts, says about the next ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


def wilson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) for a probability of which `successes` of `n` trials were seen.

    (p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), without continuity correction.  No trials: (0, 1).
    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..{n} (the number of trials), got {successes}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if n == 0:
        return 0.0, 1.0
    z, p = NormalDist().inv_cdf(0.5 + level / 2), successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    # at the ends the two terms are equal; what rounding leaves of their difference is dropped
    return (0.0 if successes == 0 else max(0.0, low)), (1.0 if successes == n else min(1.0, high))


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], *, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """(low, high) for Σ numerators / Σ denominators: percentile bootstrap over their n pairs, with a fixed seed.

    A resample whose denominators sum to 0 is left out.
    """
    if len(numerators) != len(denominators) or not len(numerators):
        raise ValueError(
            f"a ratio needs as many numerators as denominators, and one of each at least, got "
            f"{len(numerators)} and {len(denominators)}"
        )
    rng = np.random.default_rng(0)
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    chosen = rng.integers(0, len(top), (resamples, len(top)))
    if not bottom.sum():
        raise ValueError("the denominators of a ratio must not sum to 0")
    whole = bottom[chosen].sum(axis=1)
    ratios = top[chosen].sum(axis=1)[whole != 0] / whole[whole != 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Accuracy:
    """How many of n were right."""

    correct: int
    n: int
    level: float = 0.95

    @property
    def value(self) -> float | None:
        """None if nothing was counted."""
        return self.correct / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.n, level=self.level)

    def to_dict(self) -> dict[str, float | int | list[float] | None]:
        return {
            "accuracy": self.value, "correct": self.correct, "n": self.n,
            "interval": list(self.interval), "level": self.level,
        }  # fmt: skip

    def line(self) -> str:
        if self.value is None:
            return "0 of 0: nothing to count"
        low, high = self.interval
        return (
            f"{self.correct} of {self.n} correct: accuracy {self.value:.3f} "
            f"[{low:.3f}, {high:.3f}] ({self.level * 100:g} %, Wilson)"
        )
