"""Which cells of llama.cpp's cache are in use, and by how many sequences.

The layout that is kept: cells [0, top) are occupied, cells [top, size) are empty. New tokens go to [top, top + n), so
the cells of every path rise with position. That order matters: attention sums over cells in their order, and quantised
activations amplify a changed order to differences of 0.6 in logits (measured with SmolLM2 Q4_1). Cells that die at the
end are emptied at once; those that die in the middle are buried (they keep one reserved sequence id, so that nobody
writes to them) until `compact` moves all living cells to the front, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.runtimes.llamacpp.library import LlamaContext
from likely.runtimes.protocol import IntArray


@dataclass(frozen=True)
class CellRun:
    """Cells of consecutive positions from `start` on, all carrying sequence id `id`, that one holder gives back."""

    id: int
    start: int
    cells: IntArray


class Cells:
    """Bookkeeping of one context's cells.

    grave  the reserved id of buried cells
    guard  for models with a sliding window: a reserved id that protects cells. llama.cpp overwrites a cell that carries
           one id and has left that id's window when it looks for room from the front, which it does after compact().
    """

    def __init__(self, context: LlamaContext, *, grave: int, guard: int | None):
        self._context, self._grave, self._guard = context, grave, guard
        self.size = context.cells
        self.holders: NDArray[np.int32] = np.zeros(self.size, np.int32)  # sequences that hold the cell
        self.top = 0
        self.live = 0
        self._guarded = False
        self.must_compact = False

    @property
    def dead(self) -> int:
        return self.top - self.live

    def take(self, n: int) -> range:
        """The n cells that the next decoded tokens get, held once each."""
        taken = range(self.top, self.top + n)
        self.holders[taken.start : taken.stop] = 1
        self.top += n
        self.live += n
        return taken

    def give_back_last(self, n: int) -> None:
        """Undo `take` of the last n cells (the cells of the context are the caller's business)."""
        self.top -= n
        self.live -= n
        self.holders[self.top : self.top + n] = 0

    def share(self, cells: IntArray) -> None:
        self.holders[cells] += 1

    def release(self, runs: Iterable[CellRun], removals: Iterable[tuple[int, int]]) -> None:
        """One holder gives back the runs; then each (id, start) of `removals` forgets its positions from start on."""
        runs = [run for run in runs if len(run.cells)]
        for run in runs:
            self.holders[run.cells] -= 1
        died = [run.cells[self.holders[run.cells] == 0] for run in runs]
        dead = np.sort(np.concatenate(died))[::-1] if died else np.empty(0, np.int64)
        at_end = np.flatnonzero(dead != self.top - 1 - np.arange(len(dead)))
        top = self.top - (int(at_end[0]) if len(at_end) else len(dead))
        for run in runs:
            buried = np.flatnonzero((self.holders[run.cells] == 0) & (run.cells < top))
            if len(buried):  # one stretch: cells rise with position, and sharing ends before dying begins
                start = run.start + int(buried[0])
                self._context.copy(run.id, self._grave, start, start + len(buried))
        for id, start in removals:
            self._context.remove(id, start)
        self.top = top
        self.live -= len(dead)
        if self.live == 0:
            self._context.clear()
            self.top = 0

    def compact(self, ids: Iterable[int]) -> IntArray:
        """Empty the buried cells and move the living ones to the front. Returns the new number of each old cell.

        ids  every sequence id in use
        """
        self._context.remove(self._grave, 0)
        self._context.compact()
        self.must_compact = False
        alive = self.holders > 0
        new_number = np.cumsum(alive) - 1
        held = self.holders[alive]
        self.holders[:] = 0
        self.holders[: len(held)] = held
        self.top = self.live = len(held)
        if self._guard is not None:
            for id in ids:
                self._context.copy(id, self._guard)
            self._guarded = True
        return new_number

    def unguard(self, *, failed: bool = False) -> None:
        """After a decode: llama.cpp looks for room behind the last written cell again, unless the decode failed."""
        if self._guarded and self._guard is not None:
            self._context.remove(self._guard, 0)
            self._guarded = False
            self.must_compact = failed
