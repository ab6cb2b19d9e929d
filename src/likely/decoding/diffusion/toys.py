"""Predictors without weights, of which everything is known: for tests, and to try a decoder on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.decoding.diffusion.canvas import BoolArray
from likely.metrics.checks import Floats
from likely.runtimes.protocol import FloatArray, IntArray

Words = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: Words) -> Words:
    """The finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@dataclass(frozen=True)
class HashPredictor:
    """Logits that are hashes of the canvas: each prompt is, so to speak, a model of its own.

    seed         of the hashes
    sensitivity  0: logits depend on prompt, position and token; 1: on the whole canvas; between: a mixture
    scale        of the logits
    block        None: every position sees all; (prompt, length): none sees blocks behind its own, the first of which
                 begins behind the prompt

    Two layers, as in a small model: a position's state is a hash of the tokens that it sees, a logit one of the states.
    So states can be kept (`freeze`), with the effect that they have in a model.
    """

    vocab_size: int
    seed: int = 0
    sensitivity: float = 0.5
    scale: float = 4.0
    prompt_length: int = 1
    block: tuple[int, int] | None = None

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    @property
    def block_causal(self) -> bool:
        return self.block is not None

    def logits(self, ids: IntArray) -> FloatArray:
        return self._logits(ids, self._tokens(ids), None)

    def freeze(self, ids: IntArray, window: tuple[int, int], *, suffix: bool) -> tuple[FloatArray, FrozenHashes]:
        tokens = self._tokens(ids)
        start, end = window
        outside = np.ones(ids.shape[1], np.bool_)
        outside[start : end if suffix or self.block else ids.shape[1]] = False
        if self.block:
            outside[end:] = False
        keeps = FrozenHashes(ids, tokens, self._states(tokens), outside, start)
        return self.logits(ids), keeps

    def window_logits(self, ids: IntArray, frozen: FrozenHashes) -> FloatArray:
        rows, versions, length = ids.shape
        kept = frozen.rows(np.repeat(np.arange(rows), versions))
        whole = kept.ids.copy()
        at = slice(frozen.start, frozen.start + length)
        whole[:, at] = ids.reshape(-1, length)
        tokens = self._tokens(whole)
        tokens[:, frozen.outside] = kept.tokens[:, frozen.outside]
        found = self._logits(whole, tokens, kept)[:, at]
        return found.reshape(rows, versions, length, -1)

    def _sees(self, length: int) -> BoolArray:
        """[i, j]: position i sees j."""
        if self.block is None:
            return np.ones((length, length), np.bool_)
        prompt, block = self.block
        number = np.maximum(np.arange(length) - prompt, -1) // block
        return np.asarray(number[:, None] >= number)

    def _tokens(self, ids: IntArray) -> Words:
        with np.errstate(over="ignore"):
            place = np.arange(ids.shape[1], dtype=np.uint64) * _GOLDEN
            return _mix(ids.astype(np.uint64) + place + np.uint64(self.seed) * np.uint64(0xD1B54A32D192ED03))

    def _states(self, tokens: Words) -> Words:
        with np.errstate(over="ignore"):
            return _mix(tokens + tokens @ self._sees(tokens.shape[1]).T.astype(np.uint64))

    def _logits(self, ids: IntArray, tokens: Words, kept: FrozenHashes | None) -> FloatArray:
        states = self._states(tokens)
        if kept is not None:
            states[:, kept.outside] = kept.states[:, kept.outside]
        sees = self._sees(ids.shape[1])
        with np.errstate(over="ignore"):
            seen = states @ sees.T.astype(np.uint64)
            own = tokens[:, : self.prompt_length].sum(axis=1, dtype=np.uint64)[:, None]
            place = np.arange(ids.shape[1], dtype=np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
            token = np.arange(self.vocab_size, dtype=np.uint64) * _GOLDEN
            moving = _mix(_mix(seen + place)[..., None] + token)
            fixed = _mix(_mix(own + place)[..., None] + token)
        share = self.sensitivity
        mixed = share * _uniform(moving) + (1 - share) * _uniform(fixed)
        return np.asarray(self.scale * mixed, np.float32)


@dataclass(frozen=True)
class FrozenHashes:
    """What HashPredictor keeps: tokens and states (B, T) of positions `outside` the window, which begins at start."""

    ids: IntArray
    tokens: Words
    states: Words
    outside: BoolArray
    start: int

    def rows(self, rows: IntArray) -> FrozenHashes:
        return FrozenHashes(self.ids[rows], self.tokens[rows], self.states[rows], self.outside, self.start)


def _uniform(words: Words) -> Floats:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class JointPredictor:
    """The exact conditionals of a known joint distribution of answers: a diffusion model without an error.

    joint  (V - 1,) * L probabilities of all answers;  the mask is token V - 1.  Prompts do not matter.
    p(x_i = v | what is not masked) for every position, whether it is masked or not; even odds under an impossible rest.
    """

    joint: Floats

    @property
    def vocab_size(self) -> int:
        return int(self.joint.shape[0]) + 1

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    def logits(self, ids: IntArray) -> FloatArray:
        length = self.joint.ndim
        found = np.zeros((*ids.shape, self.vocab_size), np.float32)
        known: dict[bytes, FloatArray] = {}
        for row, answer in zip(found, ids[:, ids.shape[1] - length :], strict=True):
            key = answer.tobytes()
            if key not in known:
                known[key] = np.stack([self._conditional(answer, i) for i in range(length)])
            row[ids.shape[1] - length :] = known[key]
        return found

    def _conditional(self, answer: IntArray, position: int) -> Any:
        """(V,) log p of the position given the others that are not masked; the mask's own is -inf."""
        index = tuple(
            slice(None) if i == position or token == self.mask_id else int(token) for i, token in enumerate(answer)
        )
        table = self.joint[index]
        axis = sum(isinstance(part, slice) for part in index[:position])
        weight = table.sum(axis=tuple(a for a in range(table.ndim) if a != axis))
        weight = weight if weight.any() else np.ones(len(weight))
        with np.errstate(divide="ignore"):
            return np.append(np.log(weight / weight.sum()), -np.inf)
