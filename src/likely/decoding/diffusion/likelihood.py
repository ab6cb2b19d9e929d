"""How likely an answer is under a masked diffusion model: a lower bound of log p, and the likelihood of one order.

The model gives p(x_i | any other positions).  Taking positions in a uniformly random order, the expected sum of
log-probabilities is at most log p (Jensen):

    bound = Σ_{l=1..L} 1/l · mean over |S| = l of Σ_{i in S} log p(x_i | x outside S)  <=  log p(x).

It is exact if the model's conditionals are those of one distribution.  Nie et al. 2025, arXiv:2502.09992, eq. 6.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from likely.decoding.diffusion.canvas import BoolArray, Canvas, new_canvas
from likely.decoding.diffusion.predictor import FullForward, Predictor
from likely.errors import check_choice
from likely.metrics.checks import Floats
from likely.runtimes.protocol import IntArray

LONGEST = 14  # of an answer whose masks are all enumerated


@dataclass(frozen=True)
class LikelihoodBound:
    """value  a lower bound of log p(answer | prompt) in nats, or the estimate of one

    standard_error  of the estimate; 0: exact;  None: one sample, or an impossible token, says nothing of it
    samples         masks that were predicted;  tokens: of the answer
    """

    value: float
    standard_error: float | None
    samples: int
    tokens: int
    kind: Literal["lower_bound"] = "lower_bound"


@dataclass(frozen=True)
class PathLikelihood:
    """value  log-probability of committing this answer in this order, in nats: exact for the order, no bound of log p

    logprobs  (L,) of each token when it was committed; 0 where it was pinned
    """

    value: float
    logprobs: Floats
    kind: Literal["path"] = "path"


def likelihood_bound(
    predictor: Predictor, prompt_ids: Any, answer_ids: Any, *, samples: int = 128,
    form: Literal["count", "time"] = "count", seed: int = 0, batch: int = 32,
) -> LikelihoodBound:  # fmt: skip
    """Monte-Carlo estimate of the bound from masked copies of the answer; the prompt is never masked.

    form   "count": a number l of masked tokens, evenly over 1..L, and as many positions at random, weight L/l.
           "time": each position masked with probability t, evenly over (0, 1], weight 1/t: the same mean, but a
           variance without bound, since masks at small t are rare and weigh much
    batch  masks in one call

    Both are stratified with a random start; the standard error, from differences of neighbouring strata, is cautious.
    """
    check_choice("form", form, ("count", "time"))
    if samples < 1 or batch < 1:
        raise ValueError(f"samples and batch must be >= 1, got {samples} and {batch}")
    canvas, answer = _canvas(predictor, prompt_ids, answer_ids)
    rng, length = np.random.default_rng(seed), len(answer)
    if length == 1:
        samples = 1  # the only mask, with weight 1
    even = (rng.random() + np.arange(samples)) / samples
    if form == "count" or length == 1:
        counts = 1 + np.minimum((even * length).astype(np.int64), length - 1)
        masks = rng.random((samples, length)).argsort(axis=1).argsort(axis=1) < counts[:, None]
        weights = length / counts
    else:
        times = np.maximum(even, np.finfo(np.float64).tiny)
        masks, weights = rng.random((samples, length)) < times[:, None], 1 / times
    found = np.concatenate([_masked_sums(predictor, canvas, answer, part) for part in _parts(masks, batch)]) * weights
    error = None
    if length == 1:
        error = 0.0
    elif samples > 1 and np.isfinite(found).all():
        error = math.sqrt(float((np.diff(found) ** 2).mean()) / 2 / samples)
    return LikelihoodBound(float(found.mean()), error, samples, length)


def exact_bound(predictor: Predictor, prompt_ids: Any, answer_ids: Any, *, batch: int = 256) -> LikelihoodBound:
    """The bound itself, from all 2^L - 1 masks: for answers of at most LONGEST tokens."""
    canvas, answer = _canvas(predictor, prompt_ids, answer_ids)
    length = len(answer)
    if length > LONGEST:
        raise ValueError(f"all masks of {length} tokens are too many (at most {LONGEST}): use likelihood_bound")
    masks = np.array(list(itertools.product((False, True), repeat=length))[1:])
    sums = np.concatenate([_masked_sums(predictor, canvas, answer, part) for part in _parts(masks, batch)])
    counts = masks.sum(axis=1)
    weights = 1 / (counts * np.array([math.comb(length, int(n)) for n in counts]))
    return LikelihoodBound(float((weights * sums).sum()), 0.0, len(masks), length)


def path_likelihood(
    predictor: Predictor, prompt_ids: Any, answer_ids: Any, order: IntArray, *, batch: int = 32
) -> PathLikelihood:
    """Σ log p(token | prompt and the tokens of earlier steps).

    order  (L,) step in which each token is committed, as in `DiffusionOutput.order`; -1: pinned, part of the condition.
           Tokens of one step are predicted together, as in decoding.
    """
    canvas, answer = _canvas(predictor, prompt_ids, answer_ids)
    order = np.asarray(order, np.int64)
    if order.shape != answer.shape:
        raise ValueError(f"order must hold one step for each of {len(answer)} tokens, got {order.shape}")
    steps = np.unique(order[order >= 0])
    logprobs = np.zeros(len(answer))
    for part in _parts(steps, batch):
        found = _logprobs(predictor, canvas, answer, order >= part[:, None])
        for step, row in zip(part, found, strict=True):
            logprobs[order == step] = row[order == step]
    return PathLikelihood(float(logprobs.sum()), logprobs)


def _canvas(predictor: Predictor, prompt_ids: Any, answer_ids: Any) -> tuple[Canvas, IntArray]:
    answer = np.asarray(answer_ids, np.int64)
    if answer.ndim != 1 or not len(answer):
        raise ValueError(f"an answer must be a sequence of at least one token, got shape {answer.shape}")
    canvas = new_canvas(
        np.asarray(prompt_ids, np.int64), length=len(answer), block_length=len(answer), mask_id=predictor.mask_id,
        vocab_size=predictor.vocab_size, pinned=dict(enumerate(answer.tolist())),
    )  # fmt: skip
    return canvas, answer


def _parts(rows: Any, batch: int) -> Iterator[Any]:
    for at in range(0, len(rows), batch):
        yield rows[at : at + batch]


def _logprobs(predictor: Predictor, canvas: Canvas, answer: IntArray, masks: BoolArray) -> Floats:
    """(N, L) log p of each token of the answer where these masks (N, L) cover it; fp64, of all tokens but the mask."""
    states = np.where(masks, predictor.mask_id, answer)
    logits = FullForward(predictor).predict(canvas.select(np.zeros(len(masks), np.int64), states)).astype(np.float64)
    top = logits.max(axis=2)
    norm = top + np.log(np.exp(logits - top[..., None]).sum(axis=2))
    return np.asarray(np.take_along_axis(logits, np.broadcast_to(answer, masks.shape)[..., None], 2)[..., 0] - norm)


def _masked_sums(predictor: Predictor, canvas: Canvas, answer: IntArray, masks: BoolArray) -> Floats:
    """(N,) Σ log p over the masked tokens."""
    return np.asarray(np.where(masks, _logprobs(predictor, canvas, answer, masks), 0.0).sum(axis=1))
