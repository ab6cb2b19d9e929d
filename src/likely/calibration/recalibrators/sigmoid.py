"""Platt scaling and beta calibration: a sigmoid of one number, by logistic regression on a few features of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import scipy

from likely.calibration.recalibrators.protocol import Fitted, Input, Learned
from likely.metrics.checks import Floats, log_probs

STEPS = 100
PULL = 1e-3  # of Beta towards the identity: as much as a thousandth of a row, so that only separable data feel it
ACTIVE = ([True, True, True], [True, False, True], [False, True, True], [False, False, True])  # which of a, b, m


def logistic(features: Floats, targets: Floats, *, start: Floats, pull: float = 0.0) -> tuple[Floats, float]:
    """(coefficients (D,), loss) that minimise Σ_n [log(1 + e^{x·θ}) − t x·θ] + pull/2 ‖θ − start‖².

    features (N, D), a column of ones for an intercept;  targets (N,) in [0, 1], not only 0 and 1
    Newton's method; a step that does not lower the loss is halved, so that it cannot run away.
    """
    theta = start.astype(np.float64)

    def loss(at: Floats) -> float:
        s = features @ at
        return float((np.logaddexp(0, s) - targets * s).sum() + pull / 2 * ((at - start) ** 2).sum())

    now = loss(theta)
    for _ in range(STEPS):
        p = scipy.special.expit(features @ theta)
        gradient = features.T @ (p - targets) + pull * (theta - start)
        hessian = (features * (p * (1 - p))[:, None]).T @ features + pull * np.eye(len(theta))
        step = np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]  # features that say the same share the step
        size = 1.0
        while (after := loss(theta - size * step)) > now and size > 1e-10:
            size /= 2
        if not after < now - 1e-13 * (1 + abs(now)):
            break
        theta, now = theta - size * step, after
    return theta, now


@dataclass(kw_only=True, eq=False)
class Platt(Fitted):
    """σ(a·s + b): s is log(c / (1 − c)) of a confidence c (clipped at 1e-12), or a score as it is.

    Logistic regression on Platt's smoothed targets, (n₁ + 1) / (n₁ + 2) for right and 1 / (n₀ + 2) for wrong ones, so
    that a, b stay finite on separable data and on data that are all right.
    input  "confidence" (N,) in [0, 1], or "score" (N,), whose sign may be either
    Learned: `a_`, `b_`.  a < 0: higher means less certain.
    Platt 1999, "Probabilistic outputs for support vector machines".
    """

    name: ClassVar[str] = "platt"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence", "score")
    learns: ClassVar[dict[str, Learned]] = {"a_": Learned(), "b_": Learned()}

    input: Input = "confidence"

    def fit(self, x: Any, labels: Any) -> Self:
        values, correct = self.checked_binary(x, labels)
        self.a_, self.b_ = fit_platt(as_score(values, self.input), correct.astype(np.float64))
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return scipy.special.expit(self.a_ * as_score(self.checked(x), self.input) + self.b_)


def as_score(values: Floats, kind: Input) -> Floats:
    """Of a confidence log c − log(1 − c), both clipped at log 1e-12; a score as it is."""
    return log_probs(values) - log_probs(1 - values) if kind == "confidence" else values


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


@dataclass(kw_only=True, eq=False)
class Beta(Fitted):
    """σ(a·ln c − b·ln(1 − c) + m), a, b >= 0: never decreasing; the identity is a = b = 1, m = 0.

    Logistic regression on (ln c, −ln(1 − c), 1); where a coefficient comes out negative it is 0 and the others are
    fitted again: of the feasible fits the one with the lowest loss, which is the constrained optimum.
    Learned: `a_`, `b_`, `m_`.
    Kull, Silva Filho and Flach 2017, "Beta calibration", AISTATS, section 4.
    """

    name: ClassVar[str] = "beta"
    inputs: ClassVar[tuple[Input, ...]] = ("confidence",)
    learns: ClassVar[dict[str, Learned]] = {"a_": Learned(low=0), "b_": Learned(low=0), "m_": Learned()}

    input: Input = "confidence"

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
        return scipy.special.expit(_features(self.checked(x)) @ np.array([self.a_, self.b_, self.m_]))


def _features(confidence: Floats) -> Floats:
    return np.column_stack([log_probs(confidence), -log_probs(1 - confidence), np.ones_like(confidence)])
