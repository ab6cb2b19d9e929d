"""Vector scaling: a weight and an offset for each class.  Guo et al. 2017, arXiv:1706.04599, section 4.2."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from likely.calibration.inputs import Floats, softmax
from likely.calibration.learned import Learned
from likely.calibration.multinomial import finite_logprobs, keep_impossible, minimised, nll_and_gradient
from likely.calibration.recalibrator import ACCURACIES, Fitted, Input
from likely.calibration.temperature import inverse_temperature


class Vector(Fitted):
    """softmax(w ∘ log p + b); may change which class is on top.

    Minimises the mean NLL + l2/2 · (‖w − β‖² + ‖b‖²), β the inverse temperature of these data: convex.  It acts on
    log p and not on raw logits, so that a constant added to a row changes nothing, and logits and probs agree.
    l2     >= 0
    input  "logits" (N, K), or "probs" (N, K)
    Learned: `weights_` (K,), `bias_` (K,); `accuracy_before_`, `accuracy_after_` on the rows it was fitted on.
    """

    name: ClassVar[str] = "vector"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "probs")
    learns: ClassVar[dict[str, Learned]] = {
        "weights_": Learned("K", least=2), "bias_": Learned("K", least=2),
    } | ACCURACIES  # fmt: skip
    input: Input = "logits"

    def __init__(self, *, l2: float = 1e-3, input: Input = "logits"):
        self.l2 = l2
        self.input = input

    def fit(self, x: Any, labels: Any) -> Self:
        if not self.l2 >= 0:
            raise ValueError(f"l2 must be >= 0, got {self.l2}")
        logp, classes = self.checked_classes(x, labels)
        z, k = finite_logprobs(logp), logp.shape[1]
        start = np.concatenate([np.full(k, inverse_temperature(logp, classes)[0]), np.zeros(k)])

        def objective(theta: Floats) -> tuple[float, Floats]:
            loss, back = nll_and_gradient(keep_impossible(z * theta[:k] + theta[k:], logp), classes)
            away = theta - start
            gradient = np.concatenate([(back * z).sum(axis=0), back.sum(axis=0)])
            return loss + self.l2 / 2 * float(away @ away), gradient + self.l2 * away

        theta = minimised(objective, start)
        self.weights_, self.bias_ = theta[:k], theta[k:]
        self.keep_accuracies(logp, self._map(logp), classes)
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return self._map(self.checked_logprobs(x, len(self.bias_)))

    def _map(self, logp: Floats) -> Floats:
        return softmax(keep_impossible(finite_logprobs(logp) * self.weights_ + self.bias_, logp))
