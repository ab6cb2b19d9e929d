"""The canvas that a diffusion model fills: prompts, then positions that are masked until a token is committed there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.runtimes.protocol import IntArray

BoolArray = NDArray[np.bool_]
Pins = Mapping[int, int] | Sequence[Mapping[int, int]]


@dataclass(frozen=True)
class Canvas:
    """Some rows of a run.  B rows of T = P + L tokens: P of the prompt, L of the answer.

    ids            (B, T); unknown positions hold `mask_id`
    prompt_length  P, of the longest prompt
    starts         (B,) first token of each row: shorter prompts stand at the right, and what is left of them is no
                   token (no predictor sees it)
    blocks         (L,) number of the block of each position: blocks are filled from left to right
    pinned         (B, L) positions whose token was given
    rows           (B,) the numbers of these rows among those of the run
    """

    ids: IntArray
    prompt_length: int
    mask_id: int
    starts: IntArray
    blocks: IntArray
    pinned: BoolArray
    rows: IntArray

    @property
    def answers(self) -> IntArray:
        """(B, L) the tokens after the prompt."""
        return self.ids[:, self.prompt_length :]

    @property
    def masked(self) -> BoolArray:
        """(B, L) positions without a token."""
        return np.asarray(self.answers == self.mask_id)

    @property
    def open(self) -> BoolArray:
        """(B, L) positions where tokens may be committed now: the masked ones of the first block that has any."""
        return open_positions(self.masked, self.blocks)

    def select(self, rows: IntArray, answers: IntArray | None = None) -> Canvas:
        """These rows (n,), by their place in this canvas, with other answers (n, L) if given."""
        ids = self.ids[rows]
        if answers is not None:
            ids[:, self.prompt_length :] = answers
        return replace(self, ids=ids, starts=self.starts[rows], pinned=self.pinned[rows], rows=self.rows[rows])


def open_positions(masked: BoolArray, blocks: IntArray) -> BoolArray:
    """(B, L) the masked positions of each row's first block that has any."""
    first = np.where(masked, blocks, len(blocks)).min(axis=1, keepdims=True)
    return np.asarray(masked & (blocks == first))


def new_canvas(
    prompt_ids: Any, *, length: int, block_length: int, mask_id: int, vocab_size: int, pinned: Pins | None = None
) -> Canvas:
    """All positions masked but the pinned ones.

    prompt_ids  token ids of one prompt, or of several (rows; lengths may differ)
    pinned      position in the answer -> token that stands there from the beginning: one mapping for all rows, or one
                per row
    """
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id must lie in 0..{vocab_size - 1}, got {mask_id}")
    if length < 1 or block_length < 1 or length % block_length:
        raise ValueError(f"length must be a multiple of block_length, got {length} and {block_length}")
    single = len(prompt_ids) == 0 or np.ndim(prompt_ids[0]) == 0
    prompts = [np.asarray(p, np.int64) for p in ([prompt_ids] if single else prompt_ids)]
    for prompt in prompts:
        if len(prompt) and not (prompt.min() >= 0 and prompt.max() < vocab_size):
            raise ValueError(
                f"token ids of a prompt must lie in 0..{vocab_size - 1}, got {prompt.min()}..{prompt.max()}"
            )
        if (prompt == mask_id).any():
            raise ValueError(
                f"a prompt holds the mask id {mask_id}: give tokens that stand inside the answer as pinned"
            )
    rows, longest = len(prompts), max(map(len, prompts))
    ids = np.zeros((rows, longest + length), np.int64)
    ids[:, longest:] = mask_id
    for number, prompt in enumerate(prompts):
        ids[number, longest - len(prompt) : longest] = prompt
    fixed = np.zeros((rows, length), np.bool_)
    for row, pins in enumerate(_pins(pinned, rows)):
        for position, token in pins.items():
            if not 0 <= position < length:
                raise ValueError(f"a pinned position must lie in 0..{length - 1}, got {position}")
            if not 0 <= token < vocab_size or token == mask_id:
                raise ValueError(f"a pinned token must lie in 0..{vocab_size - 1} and not be the mask, got {token}")
            ids[row, longest + position], fixed[row, position] = token, True
    starts = np.array([longest - len(p) for p in prompts], np.int64)
    blocks = np.arange(length, dtype=np.int64) // block_length
    return Canvas(ids, longest, mask_id, starts, blocks, fixed, np.arange(rows))


def _pins(pinned: Pins | None, rows: int) -> Sequence[Mapping[int, int]]:
    if pinned is None:
        return [{}] * rows
    if isinstance(pinned, Mapping):
        return [pinned] * rows
    if len(pinned) != rows:
        raise ValueError(f"pinned must be one mapping, or one for each of the {rows} prompts, got {len(pinned)}")
    return pinned
