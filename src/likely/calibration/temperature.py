"""Temperature scaling: one number for all logits.  Guo et al. 2017, arXiv:1706.04599, section 4.2."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy.optimize import brentq

from likely.calibration.inputs import Floats, Ints, log_softmax, softmax
from likely.calibration.learned import Learned
from likely.calibration.recalibrator import Fitted, Input

BOUNDS = (1e-3, 1e3)  # of β = 1/T


class Temperature(Fitted):
    """softmax(z / T), T > 0 the one that minimises the NLL; no row's order of classes changes.

    input  "logits" (N, K), or "probs" (N, K), whose logarithms are taken (clipped at 1e-12)
    Learned: `temperature_`;  `at_bound_`: the NLL still fell at the end of the range 0.001 <= T <= 1000 (labels that
    are all right, or that contradict the logits), so T is that end.
    """

    name: ClassVar[str] = "temperature"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "probs")
    learns: ClassVar[dict[str, Learned]] = {
        "temperature_": Learned(low=1 / BOUNDS[1], high=1 / BOUNDS[0]), "at_bound_": Learned(flag=True),
    }  # fmt: skip
    input: Input = "logits"

    def __init__(self, *, input: Input = "logits"):
        self.input = input

    def fit(self, x: Any, labels: Any) -> Self:
        inverse, self.at_bound_ = inverse_temperature(*self.checked_classes(x, labels))
        self.temperature_ = 1 / inverse
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return softmax(self.checked_logprobs(x) / self.temperature_)


def inverse_temperature(logits: Floats, labels: Ints) -> tuple[float, bool]:
    """(β that minimises the mean NLL of softmax(βz), whether it is an end of [1e-3, 1e3]).

    The NLL is convex in β with derivative E[Σ_k p_k(β) z_k − z_y], which rises in β: its root is bracketed, so that no
    step can run away, as line-search-free L-BFGS does on confident logits.  No label may have logit -inf.
    """
    z = logits - logits.max(axis=1, keepdims=True)
    finite = np.where(np.isneginf(z), 0.0, z)  # what has probability 0 adds nothing to the sum
    right = z[np.arange(len(z)), labels].mean()

    def slope(log_beta: float) -> float:
        p = np.exp(log_softmax(np.exp(log_beta) * z))
        return float((p * finite).sum(axis=1).mean() - right)

    low, high = np.log(BOUNDS[0]), np.log(BOUNDS[1])
    if slope(low) >= 0:
        return BOUNDS[0], True
    if slope(high) <= 0:
        return BOUNDS[1], True
    return float(np.exp(brentq(slope, low, high, xtol=1e-12))), False
