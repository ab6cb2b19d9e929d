"""Isotonic regression by pool-adjacent-violators.  Zadrozny and Elkan 2002, "Transforming classifier scores"."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Self

import numpy as np
from scipy.optimize import isotonic_regression

from likely.calibration.inputs import Floats
from likely.calibration.learned import Learned
from likely.calibration.recalibrator import Fitted, Input

REFUSED, RELIABLE = 50, 1000  # rows


class Isotonic(Fitted):
    """The never decreasing map with the least squared error; straight between the values seen, clipped outside them.

    It has as many parameters as the data ask for: fewer than 50 rows are refused, fewer than 1000 warned about.
    input  "confidence" (N,) in [0, 1], or "score" (N,), higher = surer
    Learned: `x_`, `y_` (M,): the corners of the map.
    """

    name: ClassVar[str] = "isotonic"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence", "score")
    learns: ClassVar[dict[str, Learned]] = {"x_": Learned("M", increasing=True), "y_": Learned("M", low=0, high=1)}
    input: Input = "confidence"

    def __init__(self, *, input: Input = "confidence"):
        self.input = input

    def fit(self, x: Any, labels: Any) -> Self:
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
