"""Two systems, or several raters, on the same items: tests and intervals of differences, and how far raters agree."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likely.errors import check_choice
from likely.metrics.bootstrap import check_settings, percentiles, resampled_rows

Distance = Literal["nominal", "ordinal", "interval"]


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


@dataclass(frozen=True)
class PairedDifference:
    """Mean over n items of what the second system has more than the first, and its bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """Where the whole interval lies: 1 above zero, -1 below, 0 if zero is in it."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Mean of second - first over the same items, with a percentile interval over resampled items.

    first, second  (N,) finite numbers of the same items in one order.  Efron & Tibshirani 1993, section 13.3.
    """
    check_settings(resamples, level)
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"both need the same items, one at least, got shapes {a.shape} and {b.shape}")
    gaps = b - a
    if not np.isfinite(gaps).all():
        raise ValueError("values to compare must be finite numbers")
    means = np.concatenate(
        [gaps[rows].mean(axis=1) for rows in resampled_rows(len(gaps), resamples=resamples, seed=seed)]
    )
    found = percentiles(means, level)
    assert found is not None
    return PairedDifference(float(gaps.mean()), *found, len(gaps))


# --- raters -----------------------------------------------------------------------------------------------------------


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance, (p_o - p_e) / (1 - p_e): 1 where they always agree, 0 where by chance.

    p_o is the share of items rated alike, p_e = sum_c p_1(c) p_2(c).  NaN, with a warning, where both used one and the
    same rating throughout: chance alone then agrees.  Cohen 1960.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"both raters need the same items, one at least, got {len(first)} and {len(second)}")
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    counts = Counter(first), Counter(second)
    expected = sum(counts[0][c] * counts[1][c] for c in counts[0]) / n**2
    if expected == 1:
        warnings.warn("kappa is not defined: both raters gave every item the same rating", stacklevel=2)
        return math.nan
    return (observed - expected) / (1 - expected)


def krippendorff_alpha(ratings: Sequence[Sequence[Any]], *, distance: Distance = "nominal") -> float:
    """Agreement of any number of raters beyond chance, 1 - D_o / D_e; None is a rating that is missing.

    ratings   one row per rater, one column per item; items with fewer than two ratings do not count
    distance  squared difference of two ratings: "nominal" 0 or 1; "ordinal" by how many ratings lie between them;
              "interval" of the numbers themselves
    NaN, with a warning, where all ratings are alike or none can be compared.  Krippendorff 2011, "Computing
    Krippendorff's alpha-reliability".
    """
    check_choice("distance", distance, ("nominal", "ordinal", "interval"))
    if not ratings or len({len(row) for row in ratings}) != 1:
        raise ValueError("every rater needs one rating per item, None where there is none")
    units = [[value for value in column if value is not None] for column in zip(*ratings, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in units for value in unit})
    at = {value: i for i, value in enumerate(values)}
    pairs = np.zeros((len(values), len(values)))
    for unit in units:
        for a, b in permutations(unit, 2):
            pairs[at[a], at[b]] += 1 / (len(unit) - 1)
    totals = pairs.sum(axis=1)
    squared = _squared_distances(values, totals, distance)
    by_chance = float(totals @ squared @ totals)
    if by_chance == 0:
        warnings.warn("alpha is not defined: all ratings that can be compared are alike", stacklevel=2)
        return math.nan
    return 1 - (float(totals.sum()) - 1) * float((pairs * squared).sum()) / by_chance


def _squared_distances(values: Sequence[Any], totals: NDArray[np.float64], distance: Distance) -> NDArray[np.float64]:
    count = len(values)
    if distance == "nominal":
        return 1 - np.eye(count)
    if distance == "interval":
        numbers = np.asarray(values, np.float64)
        return (numbers[:, None] - numbers) ** 2
    ranks = np.cumsum(totals) - totals / 2  # the middle of each rating's places
    return (ranks[:, None] - ranks) ** 2
