"""Where the torch runtime keeps keys and values: one pool of slots, one slot per token, as floats or in blocks."""

from __future__ import annotations

from typing import TypeAlias

import torch

from likely.runtimes.kv_format import BFPFormat, KvFormat, StoredAs
from likely.runtimes.slots.table import SlotTable
from likely.runtimes.torch.block_float import BlockFloatTensor, bfp_quantize

Where: TypeAlias = slice | torch.Tensor  # a contiguous run of slots, or slot numbers
_PLAIN = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class StoredSlots:
    """Keys or values (capacity, H_kv, D) of one layer in a storage format; they are read as they were computed.

    Written numbers are rounded at once, so that a token sees itself as later tokens will see it.
    """

    def __init__(self, stored: StoredAs, capacity: int, like: torch.Tensor):
        """like (N, H_kv, D): such keys or values will be written."""
        self._stored, self._dtype, self._width = stored, like.dtype, like.shape[-1]
        heads = like.shape[1]
        if isinstance(stored, BFPFormat):
            width = -(-self._width * stored.mantissa_bits // 8)
            blocks = stored.blocks_of(self._width)
            self._parts = [
                like.new_zeros((capacity, heads, width), dtype=torch.uint8),
                like.new_zeros((capacity, heads, blocks), dtype=torch.int8),
            ]
        else:
            self._parts = [like.new_zeros((capacity, heads, self._width), dtype=_PLAIN[stored])]

    @property
    def bytes_per_slot(self) -> int:
        return sum(part[0].numel() * part.element_size() for part in self._parts)

    def __setitem__(self, where: Where, x: torch.Tensor) -> None:
        if isinstance(self._stored, BFPFormat):
            rounded = bfp_quantize(x, self._stored)
            self._parts[0][where], self._parts[1][where] = rounded.packed, rounded.exponents
        else:
            self._parts[0][where] = x.to(self._parts[0].dtype)

    def __getitem__(self, where: Where) -> torch.Tensor:
        parts = [part[where] for part in self._parts]
        if isinstance(self._stored, BFPFormat):
            packed, exponents = parts
            return BlockFloatTensor(packed, exponents, self._stored, self._width).dequantize(self._dtype)
        return parts[0].to(self._dtype)

    def grow(self, capacity: int) -> None:
        self._parts = [_grown(part, capacity) for part in self._parts]


Slots: TypeAlias = torch.Tensor | StoredSlots  # read and written by slot numbers


class SlotPool(SlotTable):
    """A table with keys and values per layer, each (capacity, H_kv, D).

    kv  what they are stored as; None: as they are computed
    """

    def __init__(self, limit: int, kv: KvFormat | None = None):
        super().__init__(limit)
        self.kv = kv
        self._layers: dict[int, tuple[Slots, Slots]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes over all layers seen so far."""
        return sum(_bytes_per_slot(part) for pair in self._layers.values() for part in pair)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor, where: Where) -> tuple[Slots, Slots]:
        """Store keys and values (N, H_kv, D) of the N slots `where`; returns the layer's whole pool."""
        if layer not in self._layers:
            formats = (None, None) if self.kv is None else (self.kv.keys, self.kv.values)
            self._layers[layer] = (self._made(formats[0], keys), self._made(formats[1], values))
        pool = self._layers[layer]
        pool[0][where] = keys
        pool[1][where] = values
        return pool

    def clear(self) -> None:
        """Forget every slot and all memory, for instance because weights, dtype or device changed."""
        super().clear()
        self._layers.clear()

    def _made(self, stored: StoredAs | None, like: torch.Tensor) -> Slots:
        if stored is None:
            return like.new_empty((self.capacity, *like.shape[1:]))
        return StoredSlots(stored, self.capacity, like)

    def _grow_memory(self, capacity: int) -> None:
        for i, pair in self._layers.items():
            keys, values = (_more(part, capacity) for part in pair)
            self._layers[i] = (keys, values)


def _bytes_per_slot(part: Slots) -> int:
    return part.bytes_per_slot if isinstance(part, StoredSlots) else part[0].numel() * part.element_size()


def _more(part: Slots, capacity: int) -> Slots:
    if isinstance(part, StoredSlots):
        part.grow(capacity)
        return part
    return _grown(part, capacity)


def _grown(old: torch.Tensor, capacity: int) -> torch.Tensor:
    new = old.new_empty((capacity, *old.shape[1:]))
    new[: old.shape[0]] = old
    return new
