"""Venn-Abers predictors: two isotonic fits for each point.  Vovk, Petej and Fedorova 2015, arXiv:1511.00213."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy.optimize import isotonic_regression

from likely.calibration.inputs import Floats
from likely.calibration.isotonic import grouped
from likely.calibration.learned import Learned
from likely.calibration.recalibrator import Fitted, Input


class VennAbers(Fitted):
    """Of each value both what isotonic regression says if it were wrong (p0) and if it were right (p1).

    One of the two is perfectly calibrated, whatever the data; p = p1 / (1 − p0 + p1) is the single probability that
    minimises the largest log-loss regret.  Each distinct value costs two fits over all distinct values seen.
    input  "confidence" (N,) in [0, 1], or "score" (N,), higher = surer
    Learned: `x_` (M,) the distinct values seen, `means_` and `counts_` (M,): share of right rows, and rows, at each.
    """

    name: ClassVar[str] = "venn_abers"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence", "score")
    learns: ClassVar[dict[str, Learned]] = {
        "x_": Learned("M", increasing=True), "means_": Learned("M", low=0, high=1), "counts_": Learned("M", low=1),
    }  # fmt: skip
    input: Input = "confidence"

    def __init__(self, *, input: Input = "confidence"):
        self.input = input

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
        at = int(np.searchsorted(self.x_, value))
        means, counts = self.means_, self.counts_
        if at < len(self.x_) and self.x_[at] == value:
            means, counts = means.copy(), counts.copy()
            means[at] = (means[at] * counts[at] + label) / (counts[at] + 1)
            counts[at] += 1
        else:
            means, counts = np.insert(means, at, label), np.insert(counts, at, 1.0)
        return float(np.clip(isotonic_regression(means, weights=counts).x[at], 0, 1))
