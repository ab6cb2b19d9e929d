"""Which slots of a cache are taken: one slot per token, shared by reference counts.

A sequence is a list of slot numbers. Keys carry their rotary position, so that forks, cuts and commits of a tree path
only change slot numbers and counts; no data moves. What lies in a slot is the business of whoever owns the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from likely.errors import KvFull
from likely.runtimes.protocol import IntArray

FIRST_CAPACITY = 256


class SlotTable:
    """A reference count per slot; `capacity` slots have memory, which grows by doubling up to `limit`.

    aligned  slots that are read together: see `allocate`
    """

    def __init__(self, limit: int, *, aligned: int = 1):
        self.limit = limit
        self.aligned = aligned
        self.capacity = min(FIRST_CAPACITY, limit)
        self.used = 0
        self._counts = np.zeros(self.capacity, np.int32)

    @property
    def free(self) -> int:
        return self.limit - self.used

    def allocate(self, n: int, after: int = -1, position: int = 0) -> IntArray:
        """n free slots in ascending order, counted once; the run following slot `after` if it is free.

        A contiguous run is preferred, because it is read without a copy; of several, one whose first slot equals
        `position`, the number of tokens before, modulo `aligned`.
        """
        if n > self.free:
            raise KvFull(n, self.free)
        slots = self._find(n, after, position)
        while slots is None:
            self._grow()
            slots = self._find(n, after, position)
        self._counts[slots] = 1
        self.used += n
        return slots

    def _find(self, n: int, after: int, position: int) -> IntArray | None:
        """None: the table should grow first."""
        follow = after + 1
        if after >= 0 and follow + n <= self.capacity and not self._counts[follow : follow + n].any():
            return np.arange(follow, follow + n, dtype=np.int64)
        if after >= 0 and self.capacity < self.limit and not self._counts[follow:].any():
            return None  # growing keeps this sequence contiguous
        free = np.flatnonzero(self._counts == 0)
        if len(free) < n:
            return None
        runs = np.flatnonzero(free[n - 1 :] - free[: len(free) - n + 1] == n - 1)
        if self.aligned > 1:
            fitting = runs[free[runs] % self.aligned == position % self.aligned]
            runs = fitting if len(fitting) or self.capacity < self.limit else runs
        if len(runs):
            return free[runs[0] : runs[0] + n]
        return free[:n] if self.capacity == self.limit else None

    def retain(self, slots: IntArray) -> None:
        self._counts[slots] += 1

    def release(self, slots: IntArray) -> None:
        """Give up one reference to each slot; a slot number may appear only once."""
        self._counts[slots] -= 1
        self.used -= int((self._counts[slots] == 0).sum())

    def clear(self) -> None:
        """Forget every slot; the capacity is the first one again."""
        self.capacity, self.used = min(FIRST_CAPACITY, self.limit), 0
        self._counts = np.zeros(self.capacity, np.int32)

    def _grow(self) -> None:
        capacity = min(2 * self.capacity, self.limit)
        self._grow_memory(capacity)  # first, so that the table stays as it is where there is no memory
        self._counts = np.concatenate([self._counts, np.zeros(capacity - self.capacity, np.int32)])
        self.capacity = capacity

    def _grow_memory(self, capacity: int) -> None:
        """For a table that owns the memory: make room for `capacity` slots, with the present ones as they are."""


@dataclass(eq=False)
class TokenCount:
    """Stands in for a table where every sequence owns its tokens, so that only their number is kept."""

    limit: int
    used: int = 0
    bytes_per_token: int = 0

    @property
    def free(self) -> int:
        return self.limit - self.used

    def allocate(self, n: int, after: int = -1, position: int = 0) -> IntArray:
        """0..n-1: places within the call's new tokens."""
        if n > self.free:
            raise KvFull(n, self.free)
        self.used += n
        return np.arange(n, dtype=np.int64)

    def retain(self, slots: IntArray) -> None:
        if len(slots) > self.free:
            raise KvFull(len(slots), self.free)
        self.used += len(slots)

    def release(self, slots: IntArray) -> None:
        self.used -= len(slots)

    def clear(self) -> None:
        self.used = 0
