"""Logistic regression on a few features: what Platt's and beta calibration are made of."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from likely.calibration.inputs import Floats

STEPS = 100


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
        p = expit(features @ theta)
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
