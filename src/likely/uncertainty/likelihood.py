"""How likely the model found the one text it wrote: sums, means and extremes over its tokens.

Aichberger et al. 2024, arXiv:2412.15176: the zero-one score gives −log max_y p(y|x) as uncertainty, and the greedy text
stands for the maximum (G-NLL).  All values are in nats and of the model itself: temperature 1, nothing masked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from likely.errors import CapabilityError
from likely.metrics.checks import Floats, Ints
from likely.uncertainty.types import GenerationScores, Uncertainty


def g_nll(greedy: GenerationScores, *, normalise: bool = False) -> Uncertainty:
    """G-NLL: −Σ_t log p(ŷ_t | x, ŷ_<t) of the greedy text, its end token included.

    normalise  divide by the number of tokens: no longer the probability of the text, a baseline (`mean_nll`)
    """
    values = -greedy.mean_logprobs if normalise else -greedy.logprobs
    return _score(greedy, values, "mean_nll" if normalise else "g_nll")


def greedy_probability(greedy: GenerationScores) -> Uncertainty:
    """exp(−G-NLL): the probability that the model itself gives to its greedy text, in [0, 1]."""
    values = np.exp(np.minimum(greedy.logprobs, 0.0))
    return Uncertainty(
        values, "probability", "more_certain", "greedy_probability", truncated=greedy.truncated, note=greedy.note
    )


def m_nll(greedy: GenerationScores, beams: GenerationScores) -> Uncertainty:
    """−log p of the most likely text known: the best of beam search and the greedy text, which a beam may lose.

    Never less than the true minimum −log max_y p(y|x), never more than G-NLL.
    """
    if len(greedy.texts) != len(beams.texts):
        raise ValueError(f"{len(beams.texts)} texts of beam search for {len(greedy.texts)} greedy ones")
    values = np.minimum(-greedy.logprobs, -beams.logprobs)
    cut = np.where(-beams.logprobs < -greedy.logprobs, beams.truncated, greedy.truncated)
    return Uncertainty(values, "score", "less_certain", "m_nll", truncated=cut, note=greedy.note)


def mean_nll(greedy: GenerationScores) -> Uncertainty:
    """−(1/L) Σ_t log p_t: nats per token of the greedy text."""
    return g_nll(greedy, normalise=True)


def perplexity(greedy: GenerationScores) -> Uncertainty:
    """exp of `mean_nll`: the same order, another scale."""
    return _score(greedy, np.exp(-greedy.mean_logprobs), "perplexity")


def max_nll(greedy: GenerationScores) -> Uncertainty:
    """max_t −log p_t: the least expected token of the greedy text."""
    return _score(greedy, np.array([-np.min(row) for row in greedy.token_logprobs]), "max_nll")


def token_entropy(greedy: GenerationScores) -> Uncertainty:
    """(1/L) Σ_t H(p(· | x, ŷ_<t)): mean entropy of the next token, over the whole vocabulary."""
    if greedy.token_entropies is None:
        raise ValueError('no entropies were gathered: gather(..., needs=["token_entropy"])')
    return _score(greedy, np.array([np.mean(row) for row in greedy.token_entropies]), "token_entropy")


def _score(greedy: GenerationScores, values: Floats, name: str) -> Uncertainty:
    return Uncertainty(values, "score", "less_certain", name, truncated=greedy.truncated, note=greedy.note)


def answer_span(scores: GenerationScores, find: str | Callable[[str], tuple[int, int] | None]) -> GenerationScores:
    """The same texts with only the tokens of their answers, so that set phrases around them do not count.

    find  a pattern (its first group, or all of the match), or a function of the text: characters (start, end)

    A token belongs to the answer if it writes at least one byte of it; an end token does not.  A text in which nothing
    is found keeps all its tokens.  Every estimator of this file takes the result.
    """
    if scores.token_sizes is None:
        raise CapabilityError("an answer's tokens are not known here: this server does not show its tokens")
    where = _by_pattern(find) if isinstance(find, str) else find
    keep = []
    for i, (text, sizes) in enumerate(zip(scores.texts, scores.token_sizes, strict=True)):
        span = where(text)
        keep.append(np.ones(len(sizes), bool) if span is None else _tokens_of(span, text, sizes, i))
    return replace(
        scores,
        token_logprobs=[np.asarray(row)[k] for row, k in zip(scores.token_logprobs, keep, strict=True)],
        token_entropies=None
        if scores.token_entropies is None
        else [np.asarray(row)[k] for row, k in zip(scores.token_entropies, keep, strict=True)],
        token_sizes=[np.asarray(row)[k] for row, k in zip(scores.token_sizes, keep, strict=True)],
    )


def _by_pattern(pattern: str) -> Callable[[str], tuple[int, int] | None]:
    compiled = re.compile(pattern)

    def find(text: str) -> tuple[int, int] | None:
        match = compiled.search(text)
        return match.span(1 if compiled.groups else 0) if match else None

    return find


def _tokens_of(span: tuple[int, int], text: str, sizes: Ints, number: int) -> NDArray[np.bool_]:
    """Which tokens write a byte of text[start:end]."""
    start, end = span
    if not 0 <= start < end <= len(text):
        raise ValueError(f"text {number}: the answer's span {span} is not inside its {len(text)} characters")
    low, high = len(text[:start].encode()), len(text[:end].encode())
    ends = np.cumsum(sizes)
    return (ends > low) & (ends - sizes < high)
