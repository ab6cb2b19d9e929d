"""Temperature, vector, matrix and Dirichlet scaling: multinomial regression on log-probabilities of K classes.

Guo et al. 2017, arXiv:1706.04599, section 4.2; Kull et al. 2019, arXiv:1910.12656, sections 3 and 4 (Dirichlet, ODIR).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from likely.calibration.recalibrators.protocol import ACCURACIES, Fitted, Input, Learned
from likely.metrics.checks import SMALLEST, Floats, Ints, log_softmax, softmax

BOUNDS = (1e-3, 1e3)  # of β = 1/T
STEPS = 1000
TOLERANCE = 1e-6  # of the largest entry of the gradient of the mean NLL
PENALTIES = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
FOLDS = 3
Penalty = Callable[[Floats, Floats], tuple[float, Floats, Floats]]  # (W, b) -> value, and its two gradients


@dataclass(kw_only=True, eq=False)
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
    from scipy.optimize import brentq  # here: a model is opened without

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
    from scipy.optimize import minimize

    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "gtol": TOLERANCE, "ftol": 1e-11}
    )
    return np.asarray(found.x, np.float64)


@dataclass(kw_only=True, eq=False)
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

    l2: float = 1e-3
    input: Input = "logits"

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


class Affine(Fitted):
    """softmax(W log p + b), what Matrix and Dirichlet share."""

    inputs: ClassVar[tuple[Input, ...]] = ("logits", "probs")
    learns: ClassVar[dict[str, Learned]] = {
        "weights_": Learned("KK", least=2), "bias_": Learned("K", least=2),
    } | ACCURACIES  # fmt: skip
    weights_: Floats
    bias_: Floats

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return affine(self.checked_logprobs(x, len(self.bias_)), self.weights_, self.bias_)


@dataclass(kw_only=True, eq=False)
class Matrix(Affine):
    """Matrix scaling: softmax(W log p + b), pulled towards temperature scaling.

    Minimises the mean NLL + l2/2 · (‖W − βI‖² + ‖b‖²), β the inverse temperature: convex; K² + K numbers, for few
    classes and many rows.
    input  "logits" (N, K), or "probs" (N, K)
    Learned: `weights_` (K, K), `bias_` (K,); `accuracy_before_`, `accuracy_after_` on the rows it was fitted on.
    """

    name: ClassVar[str] = "matrix"

    l2: float = 1e-3
    input: Input = "logits"

    def fit(self, x: Any, labels: Any) -> Self:
        if not self.l2 >= 0:
            raise ValueError(f"l2 must be >= 0, got {self.l2}")
        logp, classes = self.checked_classes(x, labels)
        start, zero = _start(logp, classes)

        def penalty(w: Floats, b: Floats) -> tuple[float, Floats, Floats]:
            away = w - start
            return self.l2 / 2 * float((away**2).sum() + b @ b), self.l2 * away, self.l2 * b

        self.weights_, self.bias_ = fit_affine(logp, classes, penalty, (start, zero))
        self.keep_accuracies(logp, affine(logp, self.weights_, self.bias_), classes)
        return self


@dataclass(kw_only=True, eq=False)
class Dirichlet(Affine):
    """Dirichlet calibration with off-diagonal and intercept regularisation (ODIR).

    Minimises the mean NLL of softmax(W log p + b) + λ · (mean off-diagonal w² + mean b²): convex.
    penalty  λ > 0;  "auto": by 3-fold cross-validated NLL, from 100 downwards in tenths while it helps
    input    "probs" (N, K), or "logits" (N, K)
    Learned: `weights_` (K, K), `bias_` (K,), `penalty_`; `accuracy_before_`, `accuracy_after_` on the rows fitted.
    The paper chooses two penalties from a grid; one for both is enough here.
    """

    name: ClassVar[str] = "dirichlet"
    learns: ClassVar[dict[str, Learned]] = Affine.learns | {"penalty_": Learned(low=0)}
    inputs: ClassVar[tuple[Input, ...]] = ("probs", "logits")

    penalty: float | Literal["auto"] = "auto"
    seed: int = 0
    input: Input = "probs"

    def fit(self, x: Any, labels: Any) -> Self:
        if self.penalty != "auto" and not (isinstance(self.penalty, int | float) and self.penalty > 0):
            raise ValueError(f'penalty must be > 0 or "auto", got {self.penalty!r}')
        logp, classes = self.checked_classes(x, labels)
        if self.penalty == "auto" and len(logp) < FOLDS:
            raise ValueError(f'penalty="auto" needs at least {FOLDS} rows, got {len(logp)}')
        strength = self._validated(logp, classes) if self.penalty == "auto" else float(self.penalty)
        self.weights_, self.bias_ = fit_affine(logp, classes, odir(strength), _start(logp, classes))
        self.penalty_ = strength
        self.keep_accuracies(logp, affine(logp, self.weights_, self.bias_), classes)
        return self

    def _validated(self, logp: Floats, labels: Ints) -> float:
        """The penalty of the lowest held-out NLL."""
        fold = np.random.default_rng(self.seed).permutation(len(logp)) % FOLDS
        maps = [_start(logp[fold != k], labels[fold != k]) for k in range(FOLDS)]
        best, lowest = PENALTIES[0], np.inf
        for strength in PENALTIES:
            maps = [fit_affine(logp[fold != k], labels[fold != k], odir(strength), maps[k]) for k in range(FOLDS)]
            loss = sum(
                nll_and_gradient(affine_scores(logp[fold == k], *maps[k]), labels[fold == k])[0] * (fold == k).sum()
                for k in range(FOLDS)
            )
            if not loss < lowest:
                break
            best, lowest = strength, loss
        return best


def _start(logp: Floats, labels: Ints) -> tuple[Floats, Floats]:
    return inverse_temperature(logp, labels)[0] * np.eye(logp.shape[1]), np.zeros(logp.shape[1])


def affine_scores(logp: Floats, weights: Floats, bias: Floats) -> Floats:
    return keep_impossible(finite_logprobs(logp) @ weights.T + bias, logp)


def affine(logp: Floats, weights: Floats, bias: Floats) -> Floats:
    """softmax(W log p + b), (N, K); a class with logit -inf keeps probability 0."""
    return softmax(affine_scores(logp, weights, bias))


def odir(strength: float) -> Penalty:
    """λ · (Σ_{i≠j} w_ij² / (K(K−1)) + Σ_j b_j² / K).  Kull et al. 2019, eq. 12."""

    def penalty(w: Floats, b: Floats) -> tuple[float, Floats, Floats]:
        k = len(b)
        off, bias = strength / (k * (k - 1)) * (w - np.diag(np.diag(w))), strength / k * b
        return float((off * w).sum() + bias @ b), 2 * off, 2 * bias

    return penalty


def fit_affine(logp: Floats, labels: Ints, penalty: Penalty, start: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """(W, b) that minimise mean NLL + penalty."""
    z, k = finite_logprobs(logp), logp.shape[1]

    def objective(theta: Floats) -> tuple[float, Floats]:
        w, b = theta[: k * k].reshape(k, k), theta[k * k :]
        loss, back = nll_and_gradient(keep_impossible(z @ w.T + b, logp), labels)
        more, for_w, for_b = penalty(w, b)
        return loss + more, np.concatenate([(back.T @ z + for_w).ravel(), back.sum(axis=0) + for_b])

    theta = minimised(objective, np.concatenate([start[0].ravel(), start[1]]))
    return theta[: k * k].reshape(k, k), theta[k * k :]
