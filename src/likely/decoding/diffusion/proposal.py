"""Which token a masked position would get, and how confident the model is of it: arg-max, or a draw with keyed noise.

Noise is a hash of (seed, prompt, number of tokens already committed, position, token id): whoever computes the
prediction of a state of the canvas, and whenever, draws the same token from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from likely.decoding.diffusion.canvas import BoolArray
from likely.decoding.options import check_number
from likely.decoding.sampling import gumbel, stream_key, uniform_bits
from likely.errors import check_choice
from likely.metrics.checks import Floats
from likely.runtimes.protocol import FloatArray, IntArray

Confidence = Literal["probability", "margin", "entropy", "random", "left_to_right"]
CONFIDENCES = get_args(Confidence)
_TOKENS, _POSITIONS, _ORDER = 0, 1, 2  # what noise is for


@dataclass(frozen=True)
class ProposalRule:
    """How tokens are proposed and compared.

    confidence            of the proposed token, from the logits without noise: its "probability"; the "margin" between
                          the two largest probabilities; minus the "entropy"; "random"; or "left_to_right"
    temperature           of the tokens; 0 takes the most likely one, and of equals the smaller id
    position_temperature  0 commits where confidence is largest; else positions are drawn without replacement from
                          softmax(confidence / position_temperature)
    """

    confidence: Confidence = "probability"
    temperature: float = 0.0
    position_temperature: float = 0.0

    def __post_init__(self) -> None:
        check_choice("confidence", self.confidence, CONFIDENCES)
        check_number("temperature", self.temperature)
        if not (np.isfinite(self.position_temperature) and self.position_temperature >= 0):
            raise ValueError(f"position_temperature must be a number >= 0, got {self.position_temperature}")

    @property
    def needs_noise(self) -> bool:
        return self.temperature > 0 or self.position_temperature > 0 or self.confidence == "random"


def propose(
    logits: FloatArray, wanted: BoolArray, rule: ProposalRule, *, noise: list[int], committed: IntArray
) -> tuple[IntArray, Floats]:
    """(tokens (B, L), confidence (B, L)) at the wanted positions; elsewhere 0 and -inf.

    logits     (B, L, V); -inf is legal
    wanted     (B, L) positions of which something is asked
    noise      of each row, from `likely.decoding.sampling.noise_of`
    committed  (B,) tokens that each row has committed before
    """
    tokens = np.zeros(wanted.shape, np.int64)
    confidence = np.full(wanted.shape, -np.inf)
    rows, positions = np.nonzero(wanted)
    if not len(rows):
        return tokens, confidence
    z = logits[rows, positions].astype(np.float64)  # (M, V)
    best = most_likely(z)
    if rule.temperature > 0:
        g = _noise(noise, committed, rows, positions, z.shape[1])
        chosen = (z / rule.temperature + g).argmax(axis=1)
    else:
        chosen = best
    tokens[rows, positions] = chosen
    match rule.confidence:
        case "random":
            found = _uniforms(noise, committed, rows, positions, _POSITIONS)
        case "left_to_right":
            found = -positions.astype(np.float64)
        case kind:
            found = _confidence(z, chosen, kind)
    if rule.position_temperature > 0:
        u = _uniforms(noise, committed, rows, positions, _ORDER)
        found = found / rule.position_temperature - np.log(-np.log(u))
    confidence[rows, positions] = found
    return tokens, confidence


def most_likely(logits: FloatArray | Floats) -> IntArray:
    """(M,) the arg-max of each row (M, V), of equals the smaller id; FloatingPointError where that is not finite."""
    best = logits.argmax(axis=1)
    if not np.isfinite(logits[np.arange(len(logits)), best]).all():
        raise FloatingPointError("a masked position needs a token that is possible: its largest logit must be finite")
    return np.asarray(best)


def _confidence(z: Floats, chosen: IntArray, kind: str) -> Floats:
    """Of the chosen tokens (M,), from their rows of logits (M, V) in fp64."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    if kind == "probability":
        return np.asarray(p[np.arange(len(z)), chosen])
    if kind == "margin":
        best = np.partition(p, -2, axis=1)[:, -2:]
        return np.asarray(best[:, 1] - best[:, 0])
    return np.asarray((p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1))


def _noise(noise: list[int], committed: IntArray, rows: IntArray, positions: IntArray, vocab: int) -> FloatArray:
    """(M, V) standard Gumbel."""
    ids = positions[:, None] * vocab + np.arange(vocab)
    parts = [
        gumbel(noise[row], int(committed[row]), _TOKENS, ids[here].ravel()).reshape(-1, vocab)
        for row, here in _by_row(rows)
    ]
    return np.concatenate(parts)


def _uniforms(noise: list[int], committed: IntArray, rows: IntArray, positions: IntArray, purpose: int) -> Floats:
    """(M,) uniform in (0, 1)."""
    bits = [
        uniform_bits(stream_key(noise[row], int(committed[row]), purpose), positions[here])
        for row, here in _by_row(rows)
    ]
    return np.asarray((np.concatenate(bits).astype(np.float64) + 0.5) * 2.0**-32)


def _by_row(rows: IntArray) -> Iterator[tuple[int, slice]]:
    """Each row that occurs in rising `rows`, and where."""
    found, first = np.unique(rows, return_index=True)
    for row, begin, end in zip(found, first, [*first[1:], len(rows)], strict=True):
        yield int(row), slice(int(begin), int(end))
