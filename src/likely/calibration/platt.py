"""Platt scaling: a sigmoid of one number.  Platt 1999, "Probabilistic outputs for support vector machines"."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import expit

from likely.calibration.inputs import Floats, log_probs
from likely.calibration.learned import Learned
from likely.calibration.logistic import logistic
from likely.calibration.recalibrator import Fitted, Input


class Platt(Fitted):
    """σ(a·s + b): s is log(c / (1 − c)) of a confidence c (clipped at 1e-12), or a score as it is.

    Logistic regression on Platt's smoothed targets, (n₁ + 1) / (n₁ + 2) for right and 1 / (n₀ + 2) for wrong ones, so
    that a, b stay finite on separable data and on data that are all right.
    input  "confidence" (N,) in [0, 1], or "score" (N,), whose sign may be either
    Learned: `a_`, `b_`.  a < 0: higher means less certain.
    """

    name: ClassVar[str] = "platt"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence", "score")
    learns: ClassVar[dict[str, Learned]] = {"a_": Learned(), "b_": Learned()}
    input: Input = "confidence"

    def __init__(self, *, input: Input = "confidence"):
        self.input = input

    def fit(self, x: Any, labels: Any) -> Self:
        values, correct = self.checked_binary(x, labels)
        self.a_, self.b_ = fit_platt(self._score(values), correct.astype(np.float64))
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return expit(self.a_ * self._score(self.checked(x)) + self.b_)

    def _score(self, values: Floats) -> Floats:
        return log_odds(values) if self.input == "confidence" else values


def log_odds(confidence: Floats) -> Floats:
    """log c − log(1 − c), both clipped at log 1e-12."""
    return log_probs(confidence) - log_probs(1 - confidence)


def fit_platt(score: Floats, correct: Floats) -> tuple[float, float]:
    """(a, b) of σ(a·s + b) on smoothed targets; a score that never varies gets a = 0."""
    ones = correct.sum()
    targets = np.where(correct == 1, (ones + 1) / (ones + 2), 1 / (len(correct) - ones + 2))
    middle, width = score.mean(), score.std()
    if width <= 1e-12 * np.abs(score).max():
        mean = targets.mean()
        return 0.0, float(np.log(mean) - np.log1p(-mean))
    features = np.column_stack([(score - middle) / width, np.ones_like(score)])
    (slope, offset), _ = logistic(features, targets, start=np.zeros(2))
    return float(slope / width), float(offset - slope * middle / width)
