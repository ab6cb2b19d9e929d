"""Where the tokens of a piece of work stand in its sequence: positions, slots, and who comes before whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.runtimes.protocol import IntArray, Work
from likely.runtimes.slots.runtime import SlotSequence


@dataclass(frozen=True)
class WorkPart:
    """Tokens start..stop of one piece of work: what one call of the model computes of it."""

    item: int
    start: int
    stop: int


@dataclass(frozen=True)
class SequenceQueries:
    """The queries of one sequence in one call, and what they may see.

    positions (n,)    of the queries
    slots     (S,)    seen by some query; the first `kept` are tokens at positions 0.. that every query may see
    tail      (n, S - kept) bool: which of the other slots each query sees; None: the queries themselves, as a chain
    tail_positions    (S - kept,)
    canvas            the queries see each other in both directions
    kept_positions    (kept,) ascending, where some are left out; None: 0..kept-1
    """

    positions: IntArray
    slots: IntArray
    kept: int
    tail: NDArray[np.bool_] | None = None
    tail_positions: IntArray | None = None
    canvas: bool = False
    kept_positions: IntArray | None = None

    def first_column(self, window: int | None) -> int:
        """Columns before this one are outside the window of every query."""
        if window is None:
            return 0
        first = self.positions.min() - window + 1
        if self.kept_positions is not None:
            return int(np.searchsorted(self.kept_positions, first))
        return int(np.clip(first, 0, self.kept))

    def visible(self, window: int | None) -> NDArray[np.bool_]:
        """(n, S - first_column) which slot each query sees. A window counts positions, not columns."""
        first, n = self.first_column(window), len(self.positions)
        tail = np.tri(n, dtype=bool) if self.tail is None else self.tail
        seen = np.concatenate([np.ones((n, self.kept - first), bool), tail], axis=1)
        if window is not None:
            after = self.positions if self.tail_positions is None else self.tail_positions
            before = np.arange(first, self.kept) if self.kept_positions is None else self.kept_positions[first:]
            distance = self.positions[:, None] - np.concatenate([before, after])[None, :]
            seen &= np.abs(distance) < window
        return seen


@dataclass(frozen=True)
class WorkLayout:
    """Where the tokens of one piece of work stand: their positions and slots, and what came before."""

    before: IntArray  # slots of kept tokens
    pending: IntArray  # slots of earlier pending nodes
    pending_positions: IntArray
    slots: IntArray  # (n,) of the new tokens
    positions: IntArray  # (n,)
    ancestors: NDArray[np.bool_] | None  # (n, pending + n): each node's path, itself included; None: a kept chain
    canvas: bool

    @classmethod
    def of(cls, sequence: SlotSequence, item: Work, slots: IntArray) -> WorkLayout:
        n, length, first = len(slots), sequence.length, sequence.pending
        pending = np.array(sequence.nodes, np.int64)
        depths = np.array(sequence.depths, np.int64)
        if item.parents is None:
            return cls(sequence.held, pending, depths, slots, length + np.arange(n), None, False)
        parents = [*sequence.parents, *np.asarray(item.parents).tolist()]
        seen = np.eye(first + n, dtype=bool)
        new_depths = np.concatenate([depths, np.zeros(n, np.int64)])
        for node, parent in enumerate(parents):
            if parent >= 0:
                seen[node] |= seen[parent]
            if node >= first:
                new_depths[node] = 1 + (new_depths[parent] if parent >= 0 else 0)
        positions = length + new_depths - 1
        canvas = item.attention == "full"
        ancestors = np.ones((n, n), bool) if canvas else seen[first:]
        return cls(sequence.held, pending, positions[:first], slots, positions[first:], ancestors, canvas)

    def piece(self, start: int, stop: int) -> SequenceQueries:
        """Tokens start..stop, when those before `start` have been computed."""
        positions, new = self.positions[start:stop], self.slots[:stop]
        if self.ancestors is None:
            return SequenceQueries(positions, np.concatenate([self.before, new]), len(self.before) + start)
        first = len(self.pending)
        return SequenceQueries(
            positions,
            np.concatenate([self.before, self.pending, new]),
            len(self.before),
            tail=self.ancestors[start:stop, : first + stop],
            tail_positions=np.concatenate([self.pending_positions, self.positions[:stop]]),
            canvas=self.canvas,
        )


def calls_of(
    work: list[Work], most_tokens: int, head_rows: list[IntArray] | None = None, most_rows: int = 0
) -> Iterator[list[WorkPart]]:
    """Calls of at most `most_tokens` tokens and `most_rows` rows of logits that do the work, each under one layer plan.

    head_rows  per piece of work: the sorted rows whose logits are computed; None: rows are not bounded

    A canvas is never cut, and parts keep their order.
    """
    parts: list[WorkPart] = []
    used = used_rows = 0
    for i, item in enumerate(work):
        n, start = len(item.tokens), 0
        head = None if head_rows is None else head_rows[i]
        if parts and item.layers != work[i - 1].layers:
            yield parts
            parts, used, used_rows = [], 0, 0
        while start < n:
            seen = 0 if head is None else int(np.searchsorted(head, start))
            if item.attention == "full":
                stop = n if not parts or used + n <= most_tokens else start
            else:
                stop = min(n, start + most_tokens - used)
                allowed = seen + most_rows - used_rows
                stop = min(stop, int(head[allowed])) if head is not None and allowed < len(head) else stop
            if stop > start:
                parts.append(WorkPart(i, start, stop))
                used += stop - start
                used_rows += 0 if head is None else int(np.searchsorted(head, stop)) - seen
                start = stop
            if start < n:
                yield parts
                parts, used, used_rows = [], 0, 0
    if parts:
        yield parts


def texts_of(
    sequence: SlotSequence, item: Work, tokens: IntArray, wanted: IntArray
) -> Iterator[tuple[IntArray, IntArray]]:
    """(text, rows): texts from the first token, and which of the work's rows their last tokens are; each row once."""
    if not len(wanted):
        return
    if item.parents is None:
        last = int(wanted[-1]) + 1
        yield np.concatenate([sequence.held, tokens[:last]]), np.arange(last)
        return
    first = sequence.pending
    parents = [*sequence.parents, *np.asarray(item.parents).tolist()]
    nodes = np.concatenate([np.array(sequence.nodes, np.int64), tokens])
    missing = {int(row) for row in wanted}
    for row in wanted[::-1].tolist():  # later nodes are deeper: their paths cover the earlier ones
        if row not in missing:
            continue
        path, node = [], first + row
        while node != -1:
            path.append(node)
            node = parents[node]
        path.reverse()
        new = [node for node in path if node >= first]
        covered = np.array([node - first for node in new], np.int64)
        missing -= set(covered.tolist())
        yield np.concatenate([sequence.held, nodes[path]]), covered
