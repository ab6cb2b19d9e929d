"""Where the torch runtime keeps keys and values: one pool of slots, one slot per token, shared by reference counts.

A sequence is a list of slot numbers. Keys carry their rotary position, so that forks, cuts and commits of a tree path
only change slot numbers and counts; no data moves.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

from likely.errors import KvFull
from likely.models.runtime import IntArray

FIRST_CAPACITY = 256
Where: TypeAlias = slice | torch.Tensor  # a contiguous run of slots, or slot numbers


class SlotPool:
    """Keys and values per layer, each (capacity, H_kv, D), grown by doubling up to `limit` slots."""

    def __init__(self, limit: int):
        self.limit = limit
        self.capacity = min(FIRST_CAPACITY, limit)
        self.used = 0
        self._counts = np.zeros(self.capacity, np.int32)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def free(self) -> int:
        return self.limit - self.used

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes over all layers seen so far."""
        return sum(t[0].numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def allocate(self, n: int, after: int = -1) -> IntArray:
        """n free slots in ascending order, counted once; the run following slot `after` if it is free.

        Contiguous runs are preferred because they are read without a copy.
        """
        if n > self.free:
            raise KvFull(n, self.free)
        slots = self._find(n, after)
        while slots is None:
            self._grow()
            slots = self._find(n, after)
        self._counts[slots] = 1
        self.used += n
        return slots

    def _find(self, n: int, after: int) -> IntArray | None:
        """None: the pool should grow first."""
        follow = after + 1
        if after >= 0 and follow + n <= self.capacity and not self._counts[follow : follow + n].any():
            return np.arange(follow, follow + n, dtype=np.int64)
        if after >= 0 and self.capacity < self.limit and not self._counts[follow:].any():
            return None  # growing keeps this sequence contiguous
        free = np.flatnonzero(self._counts == 0)
        if len(free) < n:
            return None
        runs = np.flatnonzero(free[n - 1 :] - free[: len(free) - n + 1] == n - 1)
        if len(runs):
            return free[runs[0] : runs[0] + n]
        return free[:n] if self.capacity == self.limit else None

    def retain(self, slots: IntArray) -> None:
        self._counts[slots] += 1

    def release(self, slots: IntArray) -> None:
        """Give up one reference to each slot; a slot number may appear only once."""
        self._counts[slots] -= 1
        self.used -= int((self._counts[slots] == 0).sum())

    def _grow(self) -> None:
        capacity = min(2 * self.capacity, self.limit)
        for i, (keys, values) in self._layers.items():
            self._layers[i] = (_grown(keys, capacity), _grown(values, capacity))
        self._counts = np.concatenate([self._counts, np.zeros(capacity - self.capacity, np.int32)])
        self.capacity = capacity

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
        self._layers.clear()
        self.capacity, self.used = min(FIRST_CAPACITY, self.limit), 0
        self._counts = np.zeros(self.capacity, np.int32)


def _grown(old: torch.Tensor, capacity: int) -> torch.Tensor:
    new = old.new_empty((capacity, *old.shape[1:]))
    new[: old.shape[0]] = old
    return new
