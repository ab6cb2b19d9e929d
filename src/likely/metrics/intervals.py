"""Intervals of shares: what an accuracy from n questions says about the next ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


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


def upper_bound(errors: int, n: int, delta: float) -> float:
    """Clopper-Pearson upper bound on an error rate at level 1 − delta; 1 if nothing was seen."""
    from scipy.stats import beta

    return 1.0 if errors >= n else float(beta.ppf(1 - delta, errors + 1, n - errors))


@dataclass(frozen=True)
class Accuracy:
    """How many of n were right."""

    correct: int
    n: int

    @property
    def value(self) -> float | None:
        """None if nothing was counted."""
        return self.correct / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)

    def to_dict(self) -> dict[str, float | int | list[float] | None]:
        return {
            "accuracy": self.value, "correct": self.correct, "n": self.n,
            "interval": list(self.interval), "level": 0.95,
        }  # fmt: skip

    def line(self) -> str:
        if self.value is None:
            return "0 of 0: nothing to count"
        low, high = self.interval
        return f"{self.correct} of {self.n} correct: accuracy {self.value:.3f} [{low:.3f}, {high:.3f}] (95 %, Wilson)"
