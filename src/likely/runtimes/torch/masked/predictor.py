"""A masked language model as `decoding.diffusion` asks it: token ids of canvases in, logits as numpy arrays out.

Beside whole canvases (exact) it can compute a window of them next to keys and values that were kept from an earlier
call.  In attention in both directions these are those of an earlier canvas, an approximation (Wu et al. 2025,
Fast-dLLM, "prefix" and "dual" caches); in a block-causal model, whose positions do not see later blocks, what lies
before a block is final, and the window's logits are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from likely.errors import CapabilityError, ModelError
from likely.runtimes.protocol import FloatArray, IntArray
from likely.runtimes.torch.masked.network import KeyValues, MaskedTransformer

PAD = -1  # in the place of a token id: padding at the left of a shorter prompt, which no position sees


@dataclass(frozen=True)
class FrozenStates:
    """Keys and values of canvases outside a window, one row per canvas.

    exact    whether logits beside them are those of the whole canvas
    padding  (B, T), True where a canvas holds no token
    """

    window: tuple[int, int]
    exact: bool
    kept: KeyValues
    padding: torch.Tensor

    def rows(self, rows: IntArray) -> FrozenStates:
        """Those of these rows (n,), which may repeat."""
        chosen = torch.as_tensor(np.asarray(rows), device=self.padding.device)
        kept = [(keys[chosen], values[chosen]) for keys, values in self.kept]
        return FrozenStates(self.window, self.exact, kept, self.padding[chosen])


class MaskedPredictor:
    """Logits of a `MaskedTransformer`, without gradients.

    mask_id, vocab_size   of the model;  context: longest canvas
    shift_logits   row i of the logits predicts position i + 1
    block_causal   no position sees a later block of `block` positions, counted from the canvas's beginning
    """

    def __init__(self, network: MaskedTransformer):
        self.network, shape = network.eval(), network.shape
        self.mask_id, self.vocab_size, self.context = shape.mask_id, shape.vocab_size, shape.context
        self.shift_logits, self.block, self.block_causal = shape.shift, shape.block, shape.block > 0

    @property
    def device(self) -> torch.device:
        return self.network.lm_head.weight.device

    @torch.inference_mode()
    def logits(self, ids: IntArray) -> FloatArray:
        """(B, T) canvases -> (B, T, V).  `PAD` at the left of a row is no token; its logits mean nothing."""
        tokens, padding = self._tokens(ids)
        return _array(self._whole(tokens, padding, None))

    @torch.inference_mode()
    def freeze(self, ids: IntArray, window: tuple[int, int], *, suffix: bool) -> tuple[FloatArray, FrozenStates]:
        """`logits` of one call on whole canvases, and their keys and values outside the window [start, end).

        suffix  keep those behind the window, too ("dual"); without it nothing behind the window is seen afterwards
        """
        start, end = window
        length = np.shape(ids)[1]
        if not 0 <= start < end <= length:
            raise ValueError(f"the window must lie in 0..{length}, got {window}")
        if self.block_causal and (start % self.block or (end % self.block and end != length)):
            raise CapabilityError(
                f"this model's blocks begin at multiples of {self.block} positions and the window is {start}..{end}: "
                f"choose prompts and blocks of such lengths, or no cache"
            )
        tokens, padding = self._tokens(ids)
        found: KeyValues = []
        logits = _array(self._whole(tokens, padding, found))
        stop = length if suffix else end
        kept = [(keys[:, :, :stop], values[:, :, :stop]) for keys, values in found]
        exact = self.block_causal and not suffix
        return logits, FrozenStates((start, end), exact, kept, padding[:, :stop])

    @torch.inference_mode()
    def window_logits(self, ids: IntArray, frozen: FrozenStates) -> FloatArray:
        """(B, K, t) tokens of K versions of each row's window -> (B, K, t, V).

        A version sees the kept states, held once for all K, and itself, but no other version.
        """
        ids = np.asarray(ids, np.int64)
        start, end = frozen.window
        rows, versions, length = ids.shape
        if length != end - start or rows != len(frozen.padding):
            raise ValueError(f"{len(frozen.padding)} windows of {end - start} tokens are kept, got {ids.shape}")
        self._check(ids, 0)
        device = self.device
        tokens = torch.from_numpy(ids.reshape(rows, -1)).to(device)
        positions = torch.arange(start, end, device=device).repeat(versions) - frozen.padding.sum(1, keepdim=True)
        out = self.network(
            tokens, positions=positions.clamp_min(0), attend=self._beside(frozen, versions), window=frozen.window,
            kept=frozen.kept,
        )  # fmt: skip
        return _array(out.view(rows, versions, length, -1))

    def _whole(self, tokens: torch.Tensor, padding: torch.Tensor, collect: KeyValues | None) -> torch.Tensor:
        length = tokens.shape[1]
        positions = (torch.arange(length, device=tokens.device) - padding.sum(1, keepdim=True)).clamp_min(0)
        seen = attention_mask(padding, self.block) if self.block or bool(padding.any()) else None
        return cast(torch.Tensor, self.network(tokens, positions=positions, attend=seen, collect=collect))

    def _beside(self, frozen: FrozenStates, versions: int) -> torch.Tensor | None:
        """(B, 1, K t, keys) what each version's positions see; None: everything."""
        if versions == 1 and not bool(frozen.padding.any()):
            return None
        (start, end), padding = frozen.window, frozen.padding
        length = end - start
        own = torch.eye(versions, dtype=torch.bool, device=padding.device)
        own = own.repeat_interleave(length, 0).repeat_interleave(length, 1).expand(len(padding), -1, -1)
        before = ~padding[:, None, :start].expand(-1, versions * length, -1)
        behind = ~padding[:, None, end:].expand(-1, versions * length, -1)
        return torch.cat([before, own, behind], 2)[:, None]

    def _tokens(self, ids: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, where there are none)"""
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 2 or not ids.size:
            raise ValueError(f"canvases must have shape (B, T), got {ids.shape}")
        if ids.shape[1] > self.context:
            raise ModelError(f"a canvas of {ids.shape[1]} tokens is longer than this model's context of {self.context}")
        self._check(ids, PAD)
        padding = np.logical_and.accumulate(ids == PAD, axis=1)
        if (ids[~padding] == PAD).any():
            raise ValueError(f"padding ({PAD}) stands at the left of a canvas only")
        return torch.from_numpy(np.maximum(ids, 0)).to(self.device), torch.from_numpy(padding).to(self.device)

    def _check(self, ids: IntArray, low: int) -> None:
        if (bad := ids[(ids >= self.vocab_size) | (ids < low)]).size:
            raise ValueError(f"token id {bad[0]} is outside 0..{self.vocab_size - 1}")


def attention_mask(padding: torch.Tensor, block: int) -> torch.Tensor:
    """(B, 1, T, T), True where a query sees a key: no padding, and with block > 0 no later block.

    Blocks are counted from the canvas's beginning.  Padding sees itself, so that no row of weights is empty.
    """
    length = padding.shape[1]
    seen = ~padding[:, None, None, :].expand(-1, 1, length, length)
    if block:
        number = torch.arange(length, device=padding.device) // block
        seen = seen & (number[:, None] >= number[None, :])
    return seen | torch.eye(length, dtype=torch.bool, device=padding.device)


def _array(logits: torch.Tensor) -> FloatArray:
    return cast(FloatArray, logits.float().cpu().numpy())
