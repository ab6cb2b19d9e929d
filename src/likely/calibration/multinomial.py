"""Multinomial regression on log-probabilities: what vector, matrix and Dirichlet scaling are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

from likely.calibration.inputs import SMALLEST, Floats, Ints, log_softmax

STEPS = 1000
TOLERANCE = 1e-6  # of the largest entry of the gradient of the mean NLL


def finite_logprobs(logp: Floats) -> Floats:
    """log p with log 1e-12 in place of -inf, so that it can be multiplied by 0 or by a negative weight."""
    return np.where(np.isneginf(logp), np.log(SMALLEST), logp)


def keep_impossible(scores: Floats, logp: Floats) -> Floats:
    """A class that had probability 0 in a row's logits keeps it."""
    return np.where(np.isneginf(logp), -np.inf, scores)


def nll_and_gradient(scores: Floats, labels: Ints) -> tuple[float, Floats]:
    """(mean NLL of softmax(scores), its gradient (N, K): (p − onehot) / N)."""
    rows = np.arange(len(scores))
    logp = log_softmax(scores)
    gradient = np.exp(logp)
    gradient[rows, labels] -= 1
    return float(-logp[rows, labels].mean()), gradient / len(scores)


def minimised(objective: Callable[[Floats], tuple[float, Floats]], start: Floats) -> Floats:
    """Where a smooth convex function is lowest, by L-BFGS with a line search (without one it can diverge)."""
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "gtol": TOLERANCE, "ftol": 1e-11}
    )
    return np.asarray(found.x, np.float64)
