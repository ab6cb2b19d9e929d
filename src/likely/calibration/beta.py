"""Beta calibration.  Kull, Silva Filho and Flach 2017, "Beta calibration", AISTATS, section 4."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import expit

from likely.calibration.inputs import Floats, log_probs
from likely.calibration.learned import Learned
from likely.calibration.logistic import logistic
from likely.calibration.recalibrator import Fitted, Input

PULL = 1e-3  # towards the identity a = b = 1, m = 0: as much as a thousandth of a row; only separable data feel it
ACTIVE = ([True, True, True], [True, False, True], [False, True, True], [False, False, True])  # which of a, b, m


class Beta(Fitted):
    """σ(a·ln c − b·ln(1 − c) + m), a, b >= 0: never decreasing; the identity is a = b = 1, m = 0.

    Logistic regression on (ln c, −ln(1 − c), 1); where a coefficient comes out negative it is 0 and the others are
    fitted again: of the feasible fits the one with the lowest loss, which is the constrained optimum.
    Learned: `a_`, `b_`, `m_`.
    """

    name: ClassVar[str] = "beta"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence",)
    learns: ClassVar[dict[str, Learned]] = {"a_": Learned(low=0), "b_": Learned(low=0), "m_": Learned()}
    input: Input = "confidence"

    def __init__(self, *, input: Input = "confidence"):
        self.input = input

    def fit(self, x: Any, labels: Any) -> Self:
        values, correct = self.checked_binary(x, labels)
        features, identity = _features(values), np.array([1.0, 1.0, 0.0])
        fits = []
        for active in ACTIVE:
            found, loss = logistic(features[:, active], correct.astype(np.float64), start=identity[active], pull=PULL)
            theta = np.zeros(3)
            theta[active] = found
            if (theta[:2] >= 0).all():
                fits.append((loss + PULL / 2 * (identity[np.invert(active)] ** 2).sum(), theta))
                if all(active):
                    break
        self.a_, self.b_, self.m_ = map(float, min(fits, key=lambda fit: fit[0])[1])
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return expit(_features(self.checked(x)) @ np.array([self.a_, self.b_, self.m_]))


def _features(confidence: Floats) -> Floats:
    return np.column_stack([log_probs(confidence), -log_probs(1 - confidence), np.ones_like(confidence)])
