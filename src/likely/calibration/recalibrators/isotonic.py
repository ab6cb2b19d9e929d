"""Isotonic regression (pool adjacent violators), and the Venn-Abers predictors that are made of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from likely.calibration.recalibrators.protocol import Fitted, Input, Learned
from likely.metrics.checks import Floats

REFUSED, RELIABLE = 50, 1000  # rows


@dataclass(kw_only=True, eq=False)
class Isotonic(Fitted):
    """The never decreasing map with the least squared error; straight between the values seen, clipped outside them.

    It has as many parameters as the data ask for: fewer than 50 rows are refused, fewer than 1000 warned about.
    input  "confidence" (N,) in [0, 1], or "score" (N,), higher = more confident
    Learned: `x_`, `y_` (M,): the corners of the map.
    Zadrozny and Elkan 2002, "Transforming classifier scores".
    """

    name: ClassVar[str] = "isotonic"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence", "score")
    learns: ClassVar[dict[str, Learned]] = {"x_": Learned("M", increasing=True), "y_": Learned("M", low=0, high=1)}

    input: Input = "confidence"

    def fit(self, x: Any, labels: Any) -> Self:
        from scipy.optimize import isotonic_regression  # here: a model is opened without

        values, correct = self.checked_binary(x, labels)
        if len(values) < REFUSED:
            raise ValueError(f"isotonic needs at least {REFUSED} rows, got {len(values)}: use platt or beta")
        if len(values) < RELIABLE:
            warnings.warn(
                f"isotonic was fitted on {len(values)} rows: below {RELIABLE} it follows noise (platt, beta do less)",
                stacklevel=2,
            )
        x_, mean, count = grouped(values, correct.astype(np.float64))
        y_ = np.clip(isotonic_regression(mean, weights=count).x, 0, 1)
        corner = np.ones(len(x_), bool)  # what lies between two equal neighbours adds nothing
        corner[1:-1] = (y_[1:-1] != y_[:-2]) | (y_[1:-1] != y_[2:])
        self.x_, self.y_ = x_[corner], y_[corner]
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return np.interp(self.checked(x), self.x_, self.y_)


def grouped(values: Floats, correct: Floats) -> tuple[Floats, Floats, Floats]:
    """(distinct values, rising; the mean of `correct` at each; how many rows), each (M,)."""
    distinct, where, count = np.unique(values, return_inverse=True, return_counts=True)
    return distinct, np.bincount(where, weights=correct) / count, count.astype(np.float64)


@dataclass(kw_only=True, eq=False)
class VennAbers(Fitted):
    """For each value two isotonic fits: p0 as if its row were wrong, p1 as if it were right.

    One of the two is perfectly calibrated, whatever the data; p = p1 / (1 − p0 + p1) is the single probability that
    minimises the largest log-loss regret.  Each distinct value costs two fits over all distinct values seen.
    input  "confidence" (N,) in [0, 1], or "score" (N,), higher = more confident
    Vovk, Petej and Fedorova 2015, arXiv:1511.00213.
    Learned: `x_` (M,) the distinct values seen, `means_` and `counts_` (M,): share of right rows, and rows, at each.
    """

    name: ClassVar[str] = "venn_abers"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence", "score")
    learns: ClassVar[dict[str, Learned]] = {
        "x_": Learned("M", increasing=True), "means_": Learned("M", low=0, high=1), "counts_": Learned("M", low=1),
    }  # fmt: skip

    input: Input = "confidence"

    def fit(self, x: Any, labels: Any) -> Self:
        values, correct = self.checked_binary(x, labels)
        self.x_, self.means_, self.counts_ = grouped(values, correct.astype(np.float64))
        return self

    def predict_proba(self, x: Any) -> Floats:
        low, high = self.interval(x)
        return high / (1 - low + high)

    def interval(self, x: Any) -> tuple[Floats, Floats]:
        """(p0, p1), each (N,), p0 < p1; narrow where many rows were seen."""
        self.learned()
        distinct, where = np.unique(self.checked(x), return_inverse=True)
        low, high = np.array([[self._with(value, label) for label in (0.0, 1.0)] for value in distinct]).T
        return low[where], high[where]

    def _with(self, value: float, label: float) -> float:
        """The isotonic fit at `value` once (value, label) is one of the rows."""
        from scipy.optimize import isotonic_regression

        at = int(np.searchsorted(self.x_, value))
        means, counts = self.means_, self.counts_
        if at < len(self.x_) and self.x_[at] == value:
            means, counts = means.copy(), counts.copy()
            means[at] = (means[at] * counts[at] + label) / (counts[at] + 1)
            counts[at] += 1
        else:
            means, counts = np.insert(means, at, label), np.insert(counts, at, 1.0)
        return float(np.clip(isotonic_regression(means, weights=counts).x[at], 0, 1))
