"""Which beginnings the sequences of one call share, found by their slots: what is then read once for all of them.

Forks hold the same slot numbers as what they were forked from, whatever forked them: n samples of one prompt, answers
scored after one prefix, beams, texts that begin like one in the prefix cache. Nothing needs to be declared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np

from likely.runtimes.protocol import IntArray
from likely.runtimes.slots.layout import SequenceQueries

LEAST_TOKENS = 64  # of a shared run
LEAST_SEQUENCES = 2
RUN_COST = 256  # of one more attention call, in tokens whose keys and values are read; SmolLM2's heads on a CPU
SHARING_COST = 768  # of keeping log-sum-exps and merging, however many runs there are


@dataclass(frozen=True)
class SharedRun:
    """slots (P,) that every query of these pieces sees; pieces: their numbers, ascending."""

    slots: IntArray
    pieces: list[int]

    @property
    def saved(self) -> int:
        """Tokens that are not read again."""
        return len(self.slots) * (len(self.pieces) - 1)


def split_shared(
    pieces: Seq[SequenceQueries],
    window: int | None = None,
) -> tuple[list[SharedRun], list[SequenceQueries]]:
    """(the runs that pieces share, any tree of them, and what is left of each piece); together they are what was given.

    P tokens of m pieces save (m - 1) P reads.  A run that is too short, or saves no more than RUN_COST, goes to the
    runs below it, in the end to the pieces themselves; where all runs together save no more than SHARING_COST beyond
    that, nothing is shared.  Under a window only what all queries of a run's pieces see counts.
    """
    first = [0 if window is None else max(0, int(piece.positions.max()) - window + 1) for piece in pieces]
    runs: list[SharedRun] = []
    covered: dict[int, list[tuple[int, int]]] = defaultdict(list)
    stack = [([n for n, piece in enumerate(pieces) if piece.kept >= LEAST_TOKENS], 0, 0)]
    while stack:
        members, start, at = stack.pop()  # slots before `at` are the same in all, those before `start` are in runs
        for group in _by_slot(pieces, members, at):
            if len(group) < LEAST_SEQUENCES:
                continue
            end = at + _common(pieces, group, at)
            begin = max(start, *(first[n] for n in group))
            if end - begin >= LEAST_TOKENS and (end - begin) * (len(group) - 1) > RUN_COST:
                runs.append(SharedRun(pieces[group[0]].slots[begin:end], group))
                for n in group:
                    covered[n].append((begin, end))
                begin = end
            else:
                begin = start
            stack.append((group, begin, end))
    if sum(run.saved - RUN_COST for run in runs) <= SHARING_COST:
        return [], list(pieces)
    return runs, [_without(piece, covered[n]) if n in covered else piece for n, piece in enumerate(pieces)]


def _by_slot(pieces: Seq[SequenceQueries], members: list[int], at: int) -> list[list[int]]:
    """Members whose next slot is the same; those that have none left are out."""
    groups: dict[int, list[int]] = defaultdict(list)
    for n in members:
        if at < pieces[n].kept:
            groups[int(pieces[n].slots[at])].append(n)
    return list(groups.values())


def _common(pieces: Seq[SequenceQueries], group: list[int], at: int) -> int:
    """How many slots from `at` on are the same in all of them."""
    like = pieces[group[0]].slots[at : min(pieces[n].kept for n in group)]
    length = len(like)
    for n in group[1:]:
        differ = np.flatnonzero(pieces[n].slots[at : at + length] != like[:length])
        length = int(differ[0]) if len(differ) else length
    return length


def _without(piece: SequenceQueries, covered: list[tuple[int, int]]) -> SequenceQueries:
    left = np.ones(len(piece.slots), bool)
    for begin, end in covered:
        left[begin:end] = False
    positions = np.arange(piece.kept) if piece.kept_positions is None else piece.kept_positions
    positions = positions[left[: piece.kept]]
    return replace(piece, slots=piece.slots[left], kept=len(positions), kept_positions=positions)
