"""Two systems on the same items: McNemar's exact test, and p-values of several such tests together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class McNemar:
    """lost: right by the first alone;  gained: right by the second alone;  n items;  p two-sided."""

    lost: int
    gained: int
    n: int
    p: float

    @property
    def odds_ratio(self) -> float:
        """gained / lost: below 1 where the second is worse; inf where nothing was lost, nan where nothing changed."""
        if self.lost == 0:
            return math.inf if self.gained else math.nan
        return self.gained / self.lost


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Whether two systems are right equally often, from what each made of the same items, in one order.

    p is the two-sided binomial probability of a split of the discordant items as uneven as this one, each side equally
    likely; 1 where they agree on every item.  McNemar 1947, "Note on the sampling error of the difference between
    correlated proportions or percentages".
    """
    if len(first) != len(second):
        raise ValueError(f"both need the same items, got {len(first)} and {len(second)}")
    lost = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    gained = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    n = lost + gained
    tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1))
    return McNemar(lost, gained, len(first), min(1.0, 2 * tail / 2**n))


def benjamini_hochberg(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Adjusted p-values: rejecting those up to α keeps the expected share of false rejections at most α.

    The i-th smallest of n becomes min over j >= i of n p_j / j, at most 1.  Benjamini and Hochberg 1995, "Controlling
    the false discovery rate".
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or np.isnan(p).any() or ((p < 0) | (p > 1)).any():
        raise ValueError("p-values must be a list of numbers between 0 and 1")
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    found = np.empty(len(p))
    found[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return found
