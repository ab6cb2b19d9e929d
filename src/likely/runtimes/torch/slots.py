"""Where the torch runtime keeps keys and values: one pool of slots, one slot per token."""

from __future__ import annotations

from typing import TypeAlias

import torch

from likely.runtimes.slots.table import SlotTable

Where: TypeAlias = slice | torch.Tensor  # a contiguous run of slots, or slot numbers


class SlotPool(SlotTable):
    """A table with keys and values per layer, each (capacity, H_kv, D)."""

    def __init__(self, limit: int):
        super().__init__(limit)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes over all layers seen so far."""
        return sum(t[0].numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, where: Where
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (N, H_kv, D) of the N slots `where`; returns the layer's whole pool."""
        if layer not in self._layers:
            self._layers[layer] = (
                keys.new_empty((self.capacity, *keys.shape[1:])),
                values.new_empty((self.capacity, *values.shape[1:])),
            )
        pool = self._layers[layer]
        pool[0][where] = keys
        pool[1][where] = values
        return pool

    def clear(self) -> None:
        """Forget every slot and all memory, for instance because weights, dtype or device changed."""
        super().clear()
        self._layers.clear()

    def _grow_memory(self, capacity: int) -> None:
        for i, (keys, values) in self._layers.items():
            self._layers[i] = (_grown(keys, capacity), _grown(values, capacity))


def _grown(old: torch.Tensor, capacity: int) -> torch.Tensor:
    new = old.new_empty((capacity, *old.shape[1:]))
    new[: old.shape[0]] = old
    return new
