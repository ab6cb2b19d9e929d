"""Where the tokens of a piece of work stand in its sequence: positions, slots, and who comes before whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likely.models.runtime import IntArray, Sequence, Work
from likely.models.torch_attention import Piece


@dataclass(eq=False)
class TorchSequence(Sequence):
    """held: a slot number per kept token (a token id where nothing is cached); nodes: the same per pending node."""

    held: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    nodes: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)  # of pending nodes
    epoch: object = None  # of the runtime when the sequence was opened


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one piece of work stand: their positions and slots, and what came before."""

    before: IntArray  # slots of kept tokens
    pending: IntArray  # slots of earlier pending nodes
    pending_positions: IntArray
    slots: IntArray  # (n,) of the new tokens
    positions: IntArray  # (n,)
    ancestors: NDArray[np.bool_] | None  # (n, pending + n): each node's path, itself included; None: a kept chain
    canvas: bool

    @classmethod
    def of(cls, sequence: TorchSequence, item: Work, slots: IntArray) -> Layout:
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

    def piece(self, start: int, stop: int) -> Piece:
        """Tokens start..stop, when those before `start` have been computed."""
        positions, new = self.positions[start:stop], self.slots[:stop]
        if self.ancestors is None:
            return Piece(positions, np.concatenate([self.before, new]), len(self.before) + start)
        first = len(self.pending)
        return Piece(
            positions,
            np.concatenate([self.before, self.pending, new]),
            len(self.before),
            tail=self.ancestors[start:stop, : first + stop],
            tail_positions=np.concatenate([self.pending_positions, self.positions[:stop]]),
            canvas=self.canvas,
        )


def texts_of(
    sequence: TorchSequence, item: Work, tokens: IntArray, wanted: IntArray
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
