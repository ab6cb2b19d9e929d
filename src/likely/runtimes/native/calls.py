"""A call of the C++ library as arrays: tokens in one row, and for each the columns that it sees, in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from likely.runtimes.protocol import IntArray, LayerPlan, Work
from likely.runtimes.slots.layout import WorkPart
from likely.runtimes.slots.runtime import SlotSequence


@dataclass(frozen=True)
class Columns:
    """What the tokens of one piece of work see. A column's number is the position of its token.

    positions (n,)   of the tokens
    shared    slots of columns 0.., all or the first `counts` of which a token sees
    counts    (n,)   how many of the shared columns
    own       per token the slots of its further columns: the nodes of a tree above it and itself; None: no further ones
    """

    positions: IntArray
    shared: IntArray
    counts: IntArray
    own: list[list[int]] | None = None

    @classmethod
    def of(cls, sequence: SlotSequence, item: Work, slots: IntArray) -> Columns:
        n, length = len(slots), sequence.length
        positions = np.arange(length, length + n)
        if item.parents is None:
            return cls(positions, np.concatenate([sequence.held, slots]), positions + 1)
        if item.attention == "full":
            return cls(positions, np.concatenate([sequence.held, slots]), np.full(n, length + n))
        paths: list[list[int]] = []  # of slots, of every pending node
        for parent, slot in zip(
            [*sequence.parents, *np.asarray(item.parents).tolist()], [*sequence.nodes, *slots.tolist()], strict=True
        ):
            paths.append([*(paths[parent] if parent >= 0 else []), slot])
        own = paths[sequence.pending :]
        depths = np.array([len(path) for path in own])
        return cls(length + depths - 1, sequence.held, np.full(n, length), own)


@dataclass(frozen=True)
class CallArrays:
    """The arrays of one call, as cpp/attention/tiles.h describes them; int32."""

    tokens: np.ndarray
    positions: np.ndarray
    slots: np.ndarray  # of the new tokens
    pieces: np.ndarray  # (P, 4)
    columns: np.ndarray
    shared: np.ndarray
    own_at: np.ndarray
    own: np.ndarray
    layers: LayerPlan | None

    @classmethod
    def of(
        cls,
        parts: list[WorkPart],
        work: list[Work],
        columns: list[Columns],
        tokens: list[IntArray],
        slots: list[IntArray],
    ) -> CallArrays:
        lists: list[np.ndarray] = []
        pieces, shared, own_at, own = [], [], [], []
        at = row = 0
        for p in parts:
            seen, n = columns[p.item], p.stop - p.start
            counts = seen.counts[p.start : p.stop]
            visible = seen.shared[: int(counts.max())]
            lists.append(visible)
            pieces.append((row, n, at, len(visible)))
            at += len(visible)
            row += n
            shared.append(counts)
            if seen.own is None:
                own_at.append(np.zeros(n, np.int32))
                own.append(own_at[-1])
                continue
            paths = seen.own[p.start : p.stop]
            lengths = np.array([len(path) for path in paths])
            own_at.append(at + np.cumsum(lengths) - lengths)
            own.append(lengths)
            lists.append(np.concatenate(paths))
            at += int(lengths.sum())
        return cls(
            _row([tokens[p.item][p.start : p.stop] for p in parts]),
            _row([columns[p.item].positions[p.start : p.stop] for p in parts]),
            _row([slots[p.item][p.start : p.stop] for p in parts]),
            np.array(pieces, np.int32),
            _row(lists),
            _row(shared),
            _row(own_at),
            _row(own),
            work[parts[0].item].layers,
        )


def _row(parts: list[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts), np.int32)
