"""A KV cache for transformers that stores packed blocks: `past_key_values` of `module(...)` and of `generate`."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from likely.errors import CapabilityError
from likely.runtimes.kv_format import BFPFormat
from likely.runtimes.torch.block_float import BlockFloatTensor, bfp_quantize

KEYS, VALUES = BFPFormat(4, 32), BFPFormat(8, 32)


class BlockQuantizedCache(Cache):
    """Keys and values in block floating point, rounded when they are appended; blocks lie within one token.

    config  of the model; CapabilityError where a layer does not attend to everything (sliding windows, states)
    k, v    formats; None: as they are computed
    sink    so many first tokens of the text stay floats
    """

    def __init__(self, config: Any, *, k: BFPFormat | None = KEYS, v: BFPFormat | None = VALUES, sink: int = 0):
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        count = text.num_hidden_layers
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * count
        if unknown := sorted(set(kinds) - {"full_attention"}):
            raise CapabilityError(
                f"BlockQuantizedCache keeps layers of full attention; this model has {', '.join(unknown)}: use "
                'likely.load(..., runtime="torch", kv_dtype=...), which knows windows'
            )
        if sink < 0:
            raise ValueError(f"sink must be at least 0, got {sink}")
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        for fmt in (k, v):
            if fmt is not None:
                fmt.blocks_of(width)
        super().__init__(layers=[_BlockLayer(k, v, sink) for _ in range(count)])

    @property
    def nbytes(self) -> int:
        """What is stored: packed mantissas, exponents, and the floats of sinks."""
        return sum(part.nbytes for layer in self.layers for part in layer.parts)


class _Stored:
    """Keys or values (B, H, T, D) of a layer: the first tokens as floats, the others packed."""

    def __init__(self, fmt: BFPFormat | None, sink: int, like: torch.Tensor):
        self._fmt, self._sink, self._dtype = fmt, sink, like.dtype
        self.exact = like[:, :, :0]
        self.packed = None if fmt is None else bfp_quantize(self.exact, fmt)

    @property
    def length(self) -> int:
        return self.exact.shape[-2] + (0 if self.packed is None else self.packed.packed.shape[-2])

    @property
    def nbytes(self) -> int:
        return self.exact.numel() * self.exact.element_size() + (0 if self.packed is None else self.packed.nbytes)

    def append(self, x: torch.Tensor) -> torch.Tensor:
        """Store x and give everything stored, as floats."""
        if self._fmt is None or self.packed is None:
            self.exact = torch.cat([self.exact, x], dim=-2)
            return self.exact
        kept = min(max(0, self._sink - self.exact.shape[-2]), x.shape[-2])
        self.exact = torch.cat([self.exact, x[:, :, :kept]], dim=-2)
        new = bfp_quantize(x[:, :, kept:], self._fmt)
        self._set(
            torch.cat([self.packed.packed, new.packed], dim=-2),
            torch.cat([self.packed.exponents, new.exponents], dim=-2),
        )
        return torch.cat([self.exact, self.packed.dequantize(self._dtype)], dim=-2)

    def change(self, of: Any) -> None:
        """Replace each stored tensor (B, H, T, ...) by of(tensor)."""
        self.exact = of(self.exact)
        if self.packed is not None:
            self._set(of(self.packed.packed), of(self.packed.exponents))

    def crop(self, length: int) -> None:
        exact = min(length, self.exact.shape[-2])
        self.exact = self.exact[:, :, :exact]
        if self.packed is not None:
            rest = length - exact
            self._set(self.packed.packed[:, :, :rest], self.packed.exponents[:, :, :rest])

    def _set(self, packed: torch.Tensor, exponents: torch.Tensor) -> None:
        assert self.packed is not None
        self.packed = BlockFloatTensor(packed, exponents, self.packed.fmt, self.packed.width)


class _BlockLayer(DynamicLayer):
    """A layer that holds no floats but its sinks."""

    def __init__(self, k: BFPFormat | None, v: BFPFormat | None, sink: int):
        super().__init__()
        self._formats, self._sink = (k, v), sink
        self.parts: list[_Stored] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        pairs = zip(self._formats, (key_states, value_states), strict=True)
        self.parts = [_Stored(fmt, self._sink, like) for fmt, like in pairs]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.parts
        return keys.append(key_states), values.append(value_states)

    def get_seq_length(self) -> int:
        return self.parts[0].length if self.parts else 0

    def crop(self, tokens_to_remove: int) -> None:
        """tokens_to_remove <= 0: so many of the last tokens go."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, got {tokens_to_remove}")
        length = max(0, self.get_seq_length() + tokens_to_remove)
        for part in self.parts:
            part.crop(length)

    def reset(self) -> None:
        self.parts, self.is_initialized = [], False

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        for part in self.parts:
            part.change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        for part in self.parts:
            part.change(lambda x: x[indices.to(x.device)])

    def offload(self) -> None:
        for part in self.parts:
            part.change(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        for part in self.parts:
            part.change(lambda x: x.to(self.device, non_blocking=True))
