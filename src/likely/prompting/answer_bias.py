"""Taking out of a prompt's answers what it would say anyway: by the marginal over inputs (CBM), by inputs without
content (CC), or by pointwise mutual information (PMI).

Shapes: T prompts, N inputs, K answers; every function also takes one prompt, (N, K).  Yang et al. 2023, "Improving
Probability-based Prompt Selection Through Unified Evaluation and Analysis", section 5.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from likely.calibration.inputs import Floats, softmax
from likely.errors import nearest
from likely.prompting.answer_tensor import check_answers, check_logprobs

Norm = Literal["mean", "softmax"]
NORMS = ("mean", "softmax")


def cbm_ratio(P: Any) -> Floats:
    """r[t,i,k] = P[t,i,k] / mean_j P[t,j,k]: how much more of answer k than usual.  Its mean over inputs is 1."""
    array = check_answers(P)
    return array / _positive(array.mean(axis=-2, keepdims=True))


def cbm(P: Any, *, norm: Norm = "mean") -> Floats:
    """Calibration by marginalisation: P divided by its mean over the inputs, then normalised over the answers.

    mean     ratio / Σ_k ratio (named after the official option); the identity where the marginal is uniform
    softmax  softmax(ratio), the official default: the same order of answers, and never surer than e^r/(e^r + K − 1)
    Right where the labels are balanced: it moves the marginal of the answers towards uniform.  Applied again it moves
    further (it is a step of Sinkhorn's iteration), so it is not idempotent.  In a task where each input brings answers
    of its own, the marginal is that of the answers' positions: shuffle them first.
    """
    return normalise_ratio(cbm_ratio(P), norm=norm)


def normalise_ratio(ratio: Floats, *, norm: Norm) -> Floats:
    """Ratios of probability to marginal, (..., K), as probabilities."""
    if norm not in NORMS:
        raise ValueError(f'unknown norm "{norm}"{nearest(norm, NORMS)} (allowed: {", ".join(NORMS)})')
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
