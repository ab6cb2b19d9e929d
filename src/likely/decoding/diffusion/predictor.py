"""What a diffusion model offers to its decoder, and how a decoder asks for predictions: whole canvases, or windows.

Bidirectional attention has no exact cache of keys and values: every committed token changes every position.  A cache
policy says which positions keep the states that they had when the current block began.  "none" is exact; "prefix" keeps
what stands before the block; "dual" keeps both sides of it; "block_causal" keeps what stands before the block, for
models whose attention does not look at later blocks, where this is exact (Wu et al. 2025, arXiv:2505.22618).
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np

from likely.decoding.diffusion.canvas import Canvas
from likely.errors import CapabilityError, check_choice
from likely.runtimes.protocol import FloatArray, IntArray

CachePolicy = Literal["none", "prefix", "dual", "block_causal"]
CACHE_POLICIES = get_args(CachePolicy)


@runtime_checkable
class Predictor(Protocol):
    """A masked diffusion language model: any object with these three names.

    logits  (B, T) token ids, masked where unknown -> (B, T, V) numpy float32, for every position at once

    Optional attributes, with what holds without them:
    shift_logits  False   the prediction for position i stands at i - 1, as in models adapted from autoregressive ones
    block_causal  False   positions do not see later blocks
    freeze, window_logits     as in WindowPredictor; without them cache="none" is the only policy
    """

    @property
    def mask_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def logits(self, ids: IntArray) -> FloatArray: ...


class Frozen(Protocol):
    """States of the positions outside a window, kept by a predictor; opaque to the decoder."""

    def rows(self, rows: IntArray) -> Frozen:
        """Those of these rows (n,), which may repeat."""


@runtime_checkable
class WindowPredictor(Predictor, Protocol):
    """A predictor that can keep the states of positions outside a window."""

    def freeze(self, ids: IntArray, window: tuple[int, int], *, suffix: bool) -> tuple[FloatArray, Frozen]:
        """Logits (B, T, V) of one call on the whole canvas, whose states outside the window [start, end) are kept.

        suffix  keep the states behind the window too; without it the window goes on to its end, which is then T, or
                the end of the block in a block-causal model
        """

    def window_logits(self, ids: IntArray, frozen: Frozen) -> FloatArray:
        """(B, K, t) tokens of K versions of each row's window -> (B, K, t, V).

        Every version sees its row's kept states and itself, and no other version: one call may hold the kept states
        once for all K (a tree).
        """


class FullForward:
    """Predictions from whole canvases.  calls: of the predictor;  branches: canvases in them."""

    exact = True

    def __init__(self, predictor: Predictor):
        self.predictor, self.calls, self.branches = predictor, 0, 0
        self._shift = bool(getattr(predictor, "shift_logits", False))

    def predict(self, canvas: Canvas) -> FloatArray:
        """(B, L, V) logits of the answers; the mask's own are -inf.  One call for each length of prompts."""
        answers = np.empty((*canvas.answers.shape, self.predictor.vocab_size), np.float32)
        for start in np.unique(canvas.starts):
            rows = np.flatnonzero(canvas.starts == start)
            found = self.call(canvas.ids[rows, start:])
            answers[rows] = shifted(found, self._shift)[:, canvas.prompt_length - start :]
        return without_mask(answers, self.predictor.mask_id)

    def call(self, ids: IntArray) -> FloatArray:
        self.calls += 1
        self.branches += len(ids)
        return checked(self.predictor.logits(ids), (*ids.shape, self.predictor.vocab_size))


class WindowForward:
    """Predictions from the window of the current block, beside states that were kept when the block began.

    tree  all versions of a row's window in one row, over its kept states once; else each version is a row of its own
    """

    def __init__(self, predictor: Predictor, policy: CachePolicy, *, tree: bool = False):
        check_choice("cache", policy, CACHE_POLICIES[1:])
        if not isinstance(predictor, WindowPredictor):
            raise CapabilityError(
                f'this predictor keeps no states (it has no "freeze" and "window_logits"): use cache="none", not '
                f'"{policy}", or load the model from a folder, in torch'
            )
        causal = bool(getattr(predictor, "block_causal", False))
        if policy == "block_causal" and not causal:
            raise CapabilityError(
                'cache="block_causal" needs a model whose attention does not look at later blocks; this one does: use '
                '"prefix" or "dual", which are approximations, or "none"'
            )
        self.predictor: WindowPredictor = predictor
        self.policy, self.tree, self.exact = policy, tree, policy == "block_causal"
        self.calls = self.branches = 0
        self._shift = bool(getattr(predictor, "shift_logits", False))

    def freeze(self, canvas: Canvas, block: int) -> FloatArray:
        """(B, L, V) logits of one call on the whole canvas, whose states outside this block are kept from then on."""
        at = canvas.prompt_length + np.flatnonzero(canvas.blocks == block)
        start, end = int(at[0]), int(at[-1]) + 1
        self._window = start, (canvas.ids.shape[1] if self.policy == "prefix" else end)
        self._rows = canvas.rows
        found, self._frozen = self.predictor.freeze(canvas.ids, self._window, suffix=self.policy == "dual")
        self.calls += 1
        self.branches += len(canvas.ids)
        found = checked(found, (*canvas.ids.shape, self.predictor.vocab_size))
        self._before = found[:, start - 1 : start] if start else found[:, :1]
        self._logits = without_mask(shifted(found, self._shift)[:, canvas.prompt_length :], self.predictor.mask_id)
        return self._logits

    def predict(self, canvas: Canvas) -> FloatArray:
        """(B, L, V) logits of versions of rows that were in `freeze`; outside the window they are those of `freeze`."""
        start, end = self._window
        windows = canvas.ids[:, start:end]
        rows = np.searchsorted(self._rows, canvas.rows)
        self.calls += 1
        self.branches += len(rows)
        found = (self._in_one_row if self.tree else self._as_rows)(windows, rows)
        if self._shift:
            found = np.concatenate([self._before[rows], found[:, :-1]], axis=1)
        logits = self._logits[rows]
        logits[:, start - canvas.prompt_length : end - canvas.prompt_length] = found
        return without_mask(logits, self.predictor.mask_id)

    def _as_rows(self, windows: IntArray, rows: IntArray) -> FloatArray:
        found = self.predictor.window_logits(windows[:, None], self._frozen.rows(rows))
        return checked(found, (len(rows), 1, windows.shape[1], self.predictor.vocab_size))[:, 0]

    def _in_one_row(self, windows: IntArray, rows: IntArray) -> FloatArray:
        """Rows with fewer versions than others repeat their last one."""
        which, first, count = np.unique(rows, return_index=True, return_counts=True)
        place = np.arange(count.max())
        index = first[:, None] + np.minimum(place, count[:, None] - 1)  # versions of a row stand side by side
        found = self.predictor.window_logits(windows[index], self._frozen.rows(which))
        found = checked(found, (*index.shape, windows.shape[1], self.predictor.vocab_size))
        return np.concatenate([one[:n] for one, n in zip(found, count, strict=True)])


class GuidedPredictor:
    """Classifier-free guidance: u + (w + 1)(c - u), u being the logits with the prompt masked, c those with it.

    Every canvas is computed twice, in one call.  prompt_length: of all rows.  Ho & Salimans 2022, arXiv:2207.12598
    """

    def __init__(self, predictor: Predictor, *, prompt_length: int, weight: float):
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of the guidance must be a number >= 0, got {weight}")
        self._predictor, self._prompt, self.weight = predictor, prompt_length, weight
        self.mask_id, self.vocab_size = predictor.mask_id, predictor.vocab_size
        self.shift_logits = bool(getattr(predictor, "shift_logits", False))

    def logits(self, ids: IntArray) -> FloatArray:
        blind = ids.copy()
        blind[:, : self._prompt] = self.mask_id
        both = self._predictor.logits(np.concatenate([ids, blind]))
        c, u = both[: len(ids)], both[len(ids) :]
        return cast(FloatArray, u + np.float32(self.weight + 1) * (c - u))


def shifted(logits: FloatArray, shift: bool) -> FloatArray:
    """(B, T, V) so that row i predicts position i; a model that shifts has that at i - 1, and copies the first."""
    return np.concatenate([logits[:, :1], logits[:, :-1]], axis=1) if shift else logits


def without_mask(logits: FloatArray, mask_id: int) -> FloatArray:
    """The mask is never predicted.  Changes a copy."""
    logits = np.array(logits, np.float32)
    logits[..., mask_id] = -np.inf
    return logits


def checked(logits: Any, shape: tuple[int, ...]) -> FloatArray:
    """ValueError for another shape; FloatingPointError for NaN."""
    found = np.asarray(logits, np.float32)
    if found.shape != shape:
        raise ValueError(f"a predictor must return logits {shape}, got {found.shape}")
    if np.isnan(found).any():
        raise FloatingPointError("a predictor returned NaN")
    return found
