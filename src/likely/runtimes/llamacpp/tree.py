"""Trees of pending tokens as llama.cpp wants them: one sequence id per leaf, on every node above it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from likely.runtimes.llamacpp.cells import CellRun
from likely.runtimes.protocol import IntArray, Sequence, Want, Work
from likely.runtimes.rows import wanted_rows


@dataclass(eq=False)
class LlamaSequence(Sequence):
    """id: a sequence id whose cells are the kept tokens and, while nodes are pending, one path of the tree."""

    id: int = -1
    cells: list[int] = field(default_factory=list)  # of the kept tokens
    node_cells: list[int] = field(default_factory=list)
    node_ids: list[int] = field(default_factory=list)  # for each node one id that passes through it
    depths: list[int] = field(default_factory=list)
    leaves: dict[int, int] = field(default_factory=dict)  # leaf node -> id

    def ids(self) -> list[int]:
        """All sequence ids of this sequence."""
        return list(self.leaves.values()) if self.leaves else [self.id]

    def forget_nodes(self) -> None:
        self.parents, self.node_cells, self.node_ids, self.depths, self.leaves = [], [], [], [], {}

    def dead_runs(self, path: Seq[int]) -> list[CellRun]:
        """The pending nodes outside `path`, as runs of consecutive positions; each node in one run."""
        done, runs = set(path), []
        for leaf, id in self.leaves.items():
            stretch, node = [], leaf
            while node != -1 and node not in done:
                stretch.append(node)
                done.add(node)
                node = self.parents[node]
            if stretch:
                start = self.length + self.depths[stretch[-1]] - 1
                runs.append(CellRun(id, start, np.array([self.node_cells[v] for v in stretch[::-1]], np.int64)))
        return runs


@dataclass(frozen=True)
class TreeGrowth:
    """What new nodes below a sequence's tree need.

    depths   of the new nodes                     paths     for each new node the numbers of the leaves below it
    leaves   the new leaves, in order             keeps     per leaf: the old id that it goes on with, or None
    copies   per leaf: (id, end): its new id starts as a copy of that id's positions before `end`
    """

    depths: list[int]
    paths: list[list[int]]
    leaves: list[int]
    keeps: list[int | None]
    copies: list[tuple[int, int]]
    ended: list[int]  # old leaves that are no leaves any more

    @property
    def new_ids(self) -> int:
        return sum(id is None for id in self.keeps)


def grow(sequence: LlamaSequence, parents: Seq[int]) -> TreeGrowth:
    """LlamaSettings the ids of new nodes; parents count pending nodes, the first new one is `sequence.pending`.

    Every id's cells are exactly one path. So a leaf that gets a child goes on with its id, and any further leaf below
    an old node starts as the range copy of an id through that node up to its position. The kept tokens are a "leaf" as
    long as nothing is pending.
    """
    first = sequence.pending
    depths = list(sequence.depths)
    for parent in parents:
        depths.append(1 + (depths[parent] if parent >= 0 else 0))
    inner = set(parents)
    leaves = [node for node in range(first, first + len(parents)) if node not in inner]
    free_ids = dict(sequence.leaves) if first else {-1: sequence.id}  # old leaf -> id that may go on
    paths: list[list[int]] = [[] for _ in parents]
    keeps: list[int | None] = []
    copies: list[tuple[int, int]] = []
    ended = []
    for number, leaf in enumerate(leaves):
        node = leaf
        while node >= first:
            paths[node - first].append(number)
            node = parents[node - first]
        through = sequence.id if node == -1 else sequence.node_ids[node]
        copies.append((through, sequence.length + (depths[node] if node >= 0 else 0)))
        keeps.append(free_ids.pop(node, None))
        if keeps[-1] is not None and node != -1:
            ended.append(node)
    return TreeGrowth(depths[first:], paths, leaves, keeps, copies, ended)


@dataclass(frozen=True)
class Placed:
    """One piece of work, ready for llama.cpp.

    arrays   tokens (n,), positions (n,), number of ids per token (n,), those ids (flat); all int32
    rows     the rows whose logits are needed, rising
    copies   (source id, target id, end): the target starts with the source's positions before `end`
    undo     (id, start): positions to forget if the call fails; new_ids: ids to free then
    keep     takes the tokens' cells into the sequence
    """

    n: int
    want: Want
    arrays: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
    rows: IntArray
    copies: list[tuple[int, int, int]]
    undo: list[tuple[int, int]]
    new_ids: list[int]
    keep: Callable[[range], None]


def place_chain(sequence: LlamaSequence, item: Work) -> Placed:
    """Tokens after the kept ones, kept at once."""
    n, length = len(item.tokens), sequence.length

    def keep(cells: range) -> None:
        sequence.cells.extend(cells)
        sequence.length += n

    return Placed(
        n,
        item.want,
        (
            np.asarray(item.tokens, np.int32),
            np.arange(length, length + n, dtype=np.int32),
            np.ones(n, np.int32),
            np.full(n, sequence.id, np.int32),
        ),
        wanted_rows(item.want, n),
        copies=[],
        undo=[(sequence.id, length)],
        new_ids=[],
        keep=keep,
    )


def place_tree(sequence: LlamaSequence, item: Work, growth: TreeGrowth, take_ids: Callable[[int], list[int]]) -> Placed:
    """Pending nodes as planned by `grow`; take_ids gives free sequence ids."""
    n, new_ids = len(item.tokens), take_ids(growth.new_ids)
    spare = iter(new_ids)
    ids = [next(spare) if kept is None else kept for kept in growth.keeps]
    node_ids = [ids[path[0]] for path in growth.paths]
    parents = np.asarray(item.parents).tolist()

    def keep(cells: range) -> None:
        sequence.parents += parents
        sequence.node_cells.extend(cells)
        sequence.node_ids += node_ids
        sequence.depths += growth.depths
        for node in growth.ended:
            del sequence.leaves[node]
        sequence.leaves.update(zip(growth.leaves, ids, strict=True))

    return Placed(
        n,
        item.want,
        (
            np.asarray(item.tokens, np.int32),
            np.array(growth.depths, np.int32) + np.int32(sequence.length - 1),
            np.fromiter((len(path) for path in growth.paths), np.int32, n),
            np.array([ids[leaf] for path in growth.paths for leaf in path], np.int32),
        ),
        wanted_rows(item.want, n),
        copies=[
            (source, own, end)
            for (source, end), own, kept in zip(growth.copies, ids, growth.keeps, strict=True)
            if kept is None and end > 0
        ],
        undo=[
            (own, 0 if kept is None else end)
            for (_, end), own, kept in zip(growth.copies, ids, growth.keeps, strict=True)
        ],
        new_ids=new_ids,
        keep=keep,
    )
