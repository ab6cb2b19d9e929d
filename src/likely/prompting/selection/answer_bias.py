"""Answers of a prompt without its bias: calibration by marginalisation (CBM), contextual calibration (CC), or pointwise
mutual information (PMI).  `CBM` is the first as a recalibrator, from a batch or as inputs come in.

Shapes: T prompts, N inputs, K answers; every function also takes one prompt, (N, K).  Yang et al. 2023, "Improving
Probability-based Prompt Selection Through Unified Evaluation and Analysis", section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from likely.calibration.recalibrators.protocol import Fitted, Input
from likely.errors import check_choice
from likely.metrics.checks import Floats, check_probs, softmax
from likely.prompting.selection.answers import check_answers, check_logprobs

CbmNorm = Literal["mean", "softmax"]
CBM_NORMS = get_args(CbmNorm)


def cbm_ratio(P: Any) -> Floats:
    """r[t,i,k] = P[t,i,k] / mean_j P[t,j,k]: how much more of answer k than usual.  Its mean over inputs is 1."""
    array = check_answers(P)
    return array / _positive(array.mean(axis=-2, keepdims=True))


def cbm(P: Any, *, norm: CbmNorm = "mean") -> Floats:
    """Calibration by marginalisation: P divided by its mean over the inputs, then normalised over the answers.

    mean     ratio / Σ_k ratio (named after the official option); the identity where the marginal is uniform
    softmax  softmax(ratio), the official default: the same order of answers; no probability exceeds e^r/(e^r + K − 1)
    Right where the labels are balanced: it moves the marginal of the answers towards uniform.  Applied again it moves
    further (it is a step of Sinkhorn's iteration), so it is not idempotent.  In a task where each input brings answers
    of its own, the marginal is that of the answers' positions: shuffle them first.
    """
    return normalise_ratio(cbm_ratio(P), norm=norm)


def normalise_ratio(ratio: Floats, *, norm: CbmNorm) -> Floats:
    """Ratios of probability to marginal, (..., K), as probabilities."""
    check_choice("norm", norm, CBM_NORMS)
    return softmax(ratio) if norm == "softmax" else ratio / ratio.sum(axis=-1, keepdims=True)


def contextual(P: Any, content_free: Any) -> Floats:
    """Contextual calibration (CC): P divided by the answers' probabilities for inputs without content, normalised.

    content_free  (C, T, K) or, for one prompt, (C, K): log-probabilities for C such inputs ("", "N/A", "[MASK]"); their
                  probabilities are averaged first and normalised over the answers then
    Zhao et al. 2021, arXiv:2102.09690, eq. 3 with W = diag(p_cf)^-1.
    """
    array = check_answers(P)
    free = _content_free(content_free, array, "content_free", extra=1)
    mean = np.exp(free - free.max(axis=(0, -1), keepdims=True)).mean(axis=0)
    ratio = array / _positive(mean / mean.sum(axis=-1, keepdims=True))[..., None, :]
    return ratio / ratio.sum(axis=-1, keepdims=True)


def pmi(logprobs: Any, unconditional: Any) -> Floats:
    """softmax_k(log p(y_k|x,t) − log p(y_k|"",t)): how much the input raises each answer.

    logprobs (T, N, K) or (N, K); unconditional (T, K) or (K,), of the same kind (both sums, or both means per token).
    Holtzman et al. 2021, arXiv:2104.08315, eq. 2, with the prompt around an empty input as domain premise.
    """
    array = check_logprobs(logprobs)
    free = _content_free(unconditional, array, "unconditional", extra=0)
    return softmax(array - free[..., None, :])


def _content_free(values: Any, array: Floats, name: str, *, extra: int) -> Floats:
    free = np.asarray(values, np.float64)
    wanted = (*array.shape[:-2], array.shape[-1])
    if free.ndim != len(wanted) + extra or free.shape[extra:] != wanted or not free.size:
        shape = ", ".join([*("C",) * extra, *map(str, wanted)])
        raise ValueError(f"{name} must have shape ({shape}) to fit the inputs' {array.shape}, got {free.shape}")
    if not np.isfinite(free).all():
        raise ValueError(f"{name}: entry {tuple(map(int, np.argwhere(~np.isfinite(free))[0]))} is not a finite number")
    return free


def _positive(marginal: Floats) -> Floats:
    rows = marginal.reshape(-1, marginal.shape[-1])
    if (rows <= 0).any():
        t, k = np.argwhere(rows <= 0)[0]
        where = f"answer {k} of prompt {t}" if len(rows) > 1 else f"answer {k}"
        raise ValueError(f"{where} has probability 0 everywhere: nothing can be divided by that, leave the answer out")
    return marginal


@dataclass(kw_only=True, eq=False)
class CBM(Fitted):
    """Calibration by marginalisation without labels: p̃_k ∝ p_k / m_k, m the mean of p over inputs.

    norm   "mean" divides by the sum (the identity where m is uniform); "softmax" is the official code's choice
    prior  count so many inputs with uniform answers before the first one: with prior > 0 the map can be used from
           the first request on, and moves from the identity to CBM as `partial_fit` sees more
    It is right where the labels are balanced; where they are not, it takes a true difference for a bias.
    Learned: `marginal_` (K,), prior included;  `count_`: the inputs seen.
    Yang et al. 2023, section 5; the running mean and its prior are ours.
    """

    inputs: ClassVar[tuple[Input, ...]] = ("probs",)
    name: ClassVar[str] = "cbm"
    input: ClassVar[Input] = "probs"  # type: ignore[misc]  # no parameter: there is one kind of input

    norm: CbmNorm = "mean"
    prior: float = 0.0

    def fit(self, x: Any, labels: Any = None) -> Self:
        """x (N, K): answers' probabilities for N unlabelled inputs; labels are not looked at."""
        for name in ("marginal_", "count_"):
            vars(self).pop(name, None)
        self.partial_fit(x)
        if self.count_ < 2 and not self.prior:
            raise ValueError("probs has 1 row: the marginal is a mean over inputs, give at least 2 (or a prior)")
        return self

    def partial_fit(self, x: Any, labels: Any = None) -> Self:
        """Take these inputs into the running mean, too."""
        if not self.prior >= 0:
            raise ValueError(f"prior must be >= 0 (a number of inputs), got {self.prior}")
        probs = check_probs(x)
        k = probs.shape[1]
        before = vars(self).get("marginal_", np.full(k, 1 / k))
        if len(before) != k:
            raise ValueError(f"probs has {k} answers, so far there were {len(before)}")
        seen = int(vars(self).get("count_", 0))
        weight = self.prior + seen
        self.marginal_ = (weight * before + probs.sum(axis=0)) / (weight + len(probs))
        self.count_ = seen + len(probs)
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        probs = check_probs(x)
        if probs.shape[1] != len(self.marginal_):
            raise ValueError(f"probs has {probs.shape[1]} answers, the marginal {len(self.marginal_)}")
        if self.prior + self.count_ < 2:
            raise ValueError("one input says nothing about the marginal: see more, or set a prior of at least 1")
        if (self.marginal_ <= 0).any():
            raise ValueError(f"answer {int(self.marginal_.argmin())} had probability 0 everywhere: leave it out")
        return normalise_ratio(probs / self.marginal_, norm=self.norm)
