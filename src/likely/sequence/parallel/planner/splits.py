"""Splits of sorted lengths: a global batch into micro-batches, and lengths into few buckets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from likely.metrics.checks import Ints


def split_batch(lengths: ArrayLike, parts: int) -> list[Ints]:
    """Positions of the sequences in each of `parts` micro-batches: longest first, the largest token sum least.

    Consecutive runs of the lengths in falling order: short sequences meet short ones, long meet long.
    Wang et al. 2025, section 4.3 ("sequence blaster").  ValueError if there are fewer sequences than parts.
    """
    s = np.asarray(lengths, np.int64)
    if not 1 <= parts <= len(s):
        raise ValueError(f"parts must be between 1 and the number of sequences ({len(s)}), got {parts}")
    order = np.argsort(-s, kind="stable")
    totals = np.concatenate([[0], np.cumsum(s[order])])
    low, high = int(max(s.max(), -(-totals[-1] // parts))), int(totals[-1])
    while low < high:
        middle = (low + high) // 2
        if len(_runs(totals, middle, 1)) - 1 <= parts:
            high = middle
        else:
            low = middle + 1
    ends = _runs(totals, low, parts)
    return [order[a:b] for a, b in pairwise(ends)]


def _runs(totals: Ints, most: int, parts: int) -> list[int]:
    """Ends of runs whose sums are at most `most`, as long as can be, at least `parts` of them."""
    ends, n = [0], len(totals) - 1
    while ends[-1] < n:
        end = int(np.searchsorted(totals, totals[ends[-1]] + most, side="right")) - 1
        still = parts - len(ends)  # runs that must follow this one, one sequence each
        ends.append(max(min(end, n - max(still, 0)), ends[-1] + 1))
    return ends


def bucket_bounds(lengths: ArrayLike, count: int) -> Ints:
    """At most `count` rising bounds, so that Σ (bound of its bucket − length) is least; the last is the longest length.

    Dynamic programming over the distinct lengths, O(distinct² · count).  Wang et al. 2025, section 4.2.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    values, times = np.unique(np.asarray(lengths, np.int64), return_counts=True)
    n = len(values)
    if n <= count:
        return values
    numbers = np.concatenate([[0], np.cumsum(times)])
    # sum of lengths is the same for all bounds: least is Σ bound · (number in its bucket)
    best = values * numbers[1:]
    origins = []
    for _ in range(count - 1):
        # entry (i, j): buckets before end with values[i], this one with values[j]
        whole = best[:, None] + values[None, :] * (numbers[1:][None, :] - numbers[1:][:, None])
        whole[np.tril_indices(n)] = np.iinfo(np.int64).max
        origin = whole.argmin(0)
        shorter = best <= whole[origin, np.arange(n)]
        origins.append(np.where(shorter, -1, origin))
        best = np.where(shorter, best, whole[origin, np.arange(n)])
    bounds, at = [n - 1], n - 1
    for origin in reversed(origins):
        if origin[at] >= 0:
            at = int(origin[at])
            bounds.append(at)
    return values[bounds[::-1]]
