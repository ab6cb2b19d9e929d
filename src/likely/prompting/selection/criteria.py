"""Choosing among prompts without labels, by what the model's answers look like over many inputs.

All functions are of P[t, i, k] = p(answer k | input i in prompt t), (T, N, K).  The names are the paper's; a G stands
for answers counted as votes (one-hot), an L for a choice of its own for every input.  Yang et al. 2023, "Improving
Probability-based Prompt Selection Through Unified Evaluation and Analysis", sections 2 and 4; entropies in nats, of
log(p + 1e-7) as in the official code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.errors import check_choice
from likely.metrics.checks import Floats, Ints
from likely.prompting.selection.answers import check_answers

EPSILON = 1e-7  # inside the logarithm of an entropy


def entropy(p: Floats) -> Floats:
    """−Σ_k p_k log(p_k + 1e-7) over the last axis, in nats."""
    return -(p * np.log(p + EPSILON)).sum(axis=-1)


def votes(P: Floats) -> Floats:
    """One-hot of the most likely answer; a tie goes to the lowest number."""
    return np.eye(P.shape[-1])[P.argmax(axis=-1)]


def mi(P: Floats) -> Floats:
    """Mutual information of input and answer, H(mean_i p) − mean_i H(p).  Sorensen et al. 2022."""
    return ge_m(P) + mdl_m(P)


def ge(P: Floats) -> Floats:
    """Global entropy: H(mean_i one-hot), high where the prompt's answers are balanced.  Lu et al. 2022."""
    return entropy(votes(P).mean(axis=1))


def ge_m(P: Floats) -> Floats:
    """Global entropy of probabilities, H(mean_i p): the first term of MI."""
    return entropy(P.mean(axis=1))


def le(P: Floats) -> Floats:
    """Local entropy, mean_i H(p): prefers prompts that leave the model unsure.  Lu et al. 2022."""
    return entropy(P).mean(axis=1)


def mdl_m(P: Floats) -> Floats:
    """−mean_i H(p): prefers prompts that make the model sure; the second term of MI."""
    return -le(P)


def mi_g(P: Floats) -> Floats:
    """MI with its first term from votes: H(mean_i one-hot) − mean_i H(p)."""
    return ge(P) + mdl_m(P)


def zlp(P: Floats) -> Floats:
    """Share of answers that agree with the pseudo-labels argmax_k mean_t log p.  Liao et al. 2022 (zero-label)."""
    with np.errstate(divide="ignore"):
        return _agreement(P, np.log(P).mean(axis=0))


def zpm(P: Floats) -> Floats:
    """Agreement with argmax_k mean_t p."""
    return _agreement(P, P.mean(axis=0))


def zmv(P: Floats) -> Floats:
    """Agreement with the majority of the prompts."""
    return _agreement(P, votes(P).mean(axis=0))


def _agreement(P: Floats, pseudo: Floats) -> Floats:
    return (P.argmax(axis=-1) == pseudo.argmax(axis=-1)).mean(axis=1)


def mdl(P: Floats) -> Floats:
    """−H(p): for each input the prompt that makes the model surest.  Wu et al. 2022."""
    return -entropy(P)


def mi_l(P: Floats) -> Floats:
    """H(mean_i p) − H(p of this input)."""
    return ge_m(P)[:, None] - entropy(P)


def mi_gl(P: Floats) -> Floats:
    """H(mean_i one-hot) − H(p of this input): the paper's best before calibration."""
    return ge(P)[:, None] - entropy(P)


PER_PROMPT: dict[str, Callable[[Floats], Floats]] = {
    "MI": mi, "MI_G": mi_g, "GE": ge, "GE_M": ge_m, "LE": le, "MDL_M": mdl_m, "ZLP": zlp, "ZPM": zpm, "ZMV": zmv,
}  # fmt: skip
PER_INPUT: dict[str, Callable[[Floats], Floats]] = {"MI_L": mi_l, "MI_GL": mi_gl, "MDL": mdl}
PERPLEXITY = ("PPL", "PPL_L")
METHODS = (*PER_PROMPT, *PER_INPUT, *PERPLEXITY)


def prompt_values(P: Any, method: str, *, perplexity: Any = None) -> Floats:
    """What each prompt is worth by a method of `METHODS`: (T,), or (T, N) for one that chooses per input; higher wins.

    perplexity  (T, N) of the filled-in prompts, >= 1; for PPL (its mean over inputs) and PPL_L, with a minus sign: the
                *lowest* perplexity wins.  (The official code for whole tasks takes the highest; the paper plots −PPL.)
    """
    check_choice("method", method, METHODS)
    array = check_answers(P)
    if array.ndim != 3:
        raise ValueError(f"P must be (prompts, inputs, answers) to choose among prompts, got shape {array.shape}")
    if method in PERPLEXITY:
        values = -_perplexity(perplexity, array.shape[:2])
        return values if method == "PPL_L" else values.mean(axis=1)
    return (PER_PROMPT.get(method) or PER_INPUT[method])(array)


def best_prompt(values: Floats) -> Ints:
    """The number of the best prompt, () or per input (N,).  Ties: the lowest number."""
    return np.asarray(values.argmax(axis=0), np.int64)


def probs_of_choice(P: Floats, choice: Ints) -> NDArray[np.float64]:
    """(N, K): for each input the answers under the prompt that was chosen, for the task or for it."""
    return P[np.broadcast_to(choice, P.shape[1]), np.arange(P.shape[1])]


def _perplexity(values: Any, shape: tuple[int, ...]) -> Floats:
    if values is None:
        raise ValueError("PPL and PPL_L need the perplexity of the prompts: score the pool with perplexity=True")
    array = np.asarray(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"perplexity must have shape {shape} (prompts, inputs), got {array.shape}")
    if np.isnan(array).any():
        t = int(np.isnan(array).any(axis=1).argmax())
        raise ValueError(f"prompt {t} was scored without its perplexity: score the pool with perplexity=True")
    bad = ~(array >= 1 - 1e-6)
    if bad.any():
        t, i = np.argwhere(bad)[0]
        raise ValueError(f"perplexity: prompt {t}, input {i} is {array[t, i]:g}: a number of at least 1 is needed")
    return array
