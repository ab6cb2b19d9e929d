"""Micro-batches and buckets against every possibility."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from likely.sequence.parallel.planner.splits import bucket_bounds, split_batch


def least_largest_sum(lengths, parts):
    ordered = sorted(lengths, reverse=True)
    cuts = combinations(range(1, len(ordered)), parts - 1)
    return min(max(sum(ordered[a:b]) for a, b in zip((0, *c), (*c, len(ordered)), strict=True)) for c in cuts)


def least_waste(lengths, count):
    values = sorted(set(lengths))
    if len(values) <= count:
        return 0
    found = []
    for inner in combinations(values[:-1], count - 1):
        bounds = [*inner, values[-1]]
        found.append(sum(min(b for b in bounds if b >= s) - s for s in lengths))
    return min(found)


@pytest.mark.parametrize("seed", range(12))
def test_micro_batches_have_the_least_largest_sum(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, rng.integers(3, 11))
    for parts in range(1, len(lengths) + 1):
        split = split_batch(lengths, parts)
        assert len(split) == parts and sorted(np.concatenate(split)) == list(range(len(lengths)))
        assert max(lengths[part].sum() for part in split) == least_largest_sum(lengths.tolist(), parts)
        ends = [lengths[part] for part in split]
        assert all(a.min() >= b.max() for a, b in pairwise(ends))


@pytest.mark.parametrize("seed", range(12))
def test_buckets_waste_least(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, rng.integers(1, 11))
    for count in range(1, 6):
        bounds = bucket_bounds(lengths, count)
        assert len(bounds) <= count and bounds[-1] == lengths.max() and (np.diff(bounds) > 0).all()
        waste = (bounds[np.searchsorted(bounds, lengths)] - lengths).sum()
        assert waste == least_waste(lengths.tolist(), count)


def test_more_parts_than_sequences_are_an_error():
    with pytest.raises(ValueError, match="between 1 and the number of sequences"):
        split_batch([5, 3], 3)
    with pytest.raises(ValueError, match="count must be"):
        bucket_bounds([5, 3], 0)
