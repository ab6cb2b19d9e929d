"""Counts of rows and of right rows at every distinct confidence: all that calibration and ranking metrics depend on.

Order of rows and ties cannot matter to a metric computed from it.  Leading axes, where there are any, are resamples:
the same values counted with other weights, so that one formula serves a metric and its bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from likely.metrics.checks import Floats, Ints


@dataclass(frozen=True)
class Tally:
    """value (G,) distinct and ascending;  n, right (..., G) how many rows, how many right ones;  rows = n.sum(-1)"""

    value: Floats
    n: Floats
    right: Floats
    rows: int

    # of the values before each place, (..., G + 1), from 0 to the sum of all
    @cached_property
    def n_before(self) -> Floats:
        return _before(self.n)

    @cached_property
    def right_before(self) -> Floats:
        return _before(self.right)

    @cached_property
    def value_before(self) -> Floats:
        """Sums of confidence, each value as often as it has rows."""
        return _before(self.n * self.value)


def _before(what: Floats) -> Floats:
    sums = np.zeros((*what.shape[:-1], what.shape[-1] + 1))
    np.cumsum(what, axis=-1, out=sums[..., 1:])
    return sums


@dataclass(frozen=True)
class Groups:
    """Rows grouped by value: `order` (N,) sorts them, group g begins at `starts[g]`."""

    value: Floats
    order: Ints
    starts: Ints

    def sums(self, weights: Floats) -> Floats:
        """(..., N) -> (..., G)"""
        ordered = weights[..., self.order]
        return ordered if len(self.starts) == len(self.order) else np.add.reduceat(ordered, self.starts, axis=-1)

    def tally(self, correct: Ints, weights: Floats | None = None) -> Tally:
        """correct (N,) of 0 and 1;  weights (..., N): how often each row counts, once if None."""
        times = np.ones(len(self.order)) if weights is None else weights
        return Tally(self.value, self.sums(times), self.sums(times * correct), len(self.order))


def group(values: Floats) -> Groups:
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return Groups(ordered[starts], order, starts)


def tally(values: Floats, correct: Ints) -> Tally:
    return group(values).tally(correct)
