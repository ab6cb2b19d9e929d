"""Advance the growths of many drafts together: one call of a model serves one level of all of them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from likely.decoding.drafting.model.trees import Growth, Level
from likely.decoding.drafting.protocol import NO_DRAFT, Draft
from likely.errors import KvFull
from likely.runtimes.protocol import FloatArray, LayerPlan, Output, Runtime, Sequence, Want, Work


def _same(token: int) -> int:
    return token


@dataclass(eq=False)
class Seat:
    """Where one draft grows: on a sequence, as pending nodes.

    first     tokens that the sequence must see first, the root last; kept at once, or (keep_first=False) pending, too
    law       (logits of a row, tokens from below the root to the row's node) -> log q (V,) of the target's vocabulary
    own_id    id of a drafted token in the vocabulary of the runtime
    tokens, parents   of the levels computed so far, -1: a child of the root
    """

    sequence: Sequence
    growth: Growth
    first: Seq[int]
    law: Callable[[FloatArray, list[int]], FloatArray]
    keep_first: bool = True
    own_id: Callable[[int], int] = _same
    layers: LayerPlan | None = None
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def work(self, level: Level) -> Work:
        tokens, parents = level
        if not len(tokens):
            own = np.asarray(self.first, np.int64)
            chain = None if self.keep_first else np.arange(-1, len(own) - 1)
            return Work(self.sequence, own, chain, want=Want.LAST, layers=self.layers)
        before = 0 if self.keep_first else len(self.first)
        own = np.array([self.own_id(int(t)) for t in tokens], np.int64)
        return Work(self.sequence, own, np.asarray(parents) + before, want=Want.ALL, layers=self.layers)

    def receive(self, level: Level, output: Output) -> FloatArray:
        """Note the level as computed; log q after each of its nodes."""
        assert output.logits is not None
        if not len(level[0]):
            return self.law(output.logits[-1], [])[None]
        first = len(self.tokens)
        self.tokens += [int(t) for t in level[0]]
        self.parents += [int(p) for p in level[1]]
        return np.stack([self.law(row, self.path(first + i)) for i, row in enumerate(output.logits)])

    def path(self, node: int) -> list[int]:
        """Tokens from below the root down to the node."""
        tokens = []
        while node != -1:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]

    def walk(self, tokens: Seq[int]) -> list[int]:
        """Computed nodes that spell the beginning of `tokens`, from a child of the root downwards."""
        child = {(p, t): node for node, (p, t) in enumerate(zip(self.parents, self.tokens, strict=True))}
        nodes, at = [], -1
        for token in tokens:
            if (at := child.get((at, token), -1)) == -1:
                break
            nodes.append(at)
        return nodes


def grow_together(runtime: Runtime, seats: Seq[Seat]) -> list[Draft]:
    """Drafts in the order of the seats; a seat for which there is no room gets none."""
    drafts = [NO_DRAFT] * len(seats)
    levels: dict[int, Level] = {}
    for i, seat in enumerate(seats):
        try:
            levels[i] = next(seat.growth)
        except StopIteration as stop:
            drafts[i] = stop.value
    while levels:
        outputs = _forward(runtime, seats, levels)
        for i, output in outputs.items():
            log_q = seats[i].receive(levels[i], output)
            try:
                levels[i] = seats[i].growth.send(log_q)
            except StopIteration as stop:
                drafts[i] = stop.value
                del levels[i]
    return drafts


def _forward(runtime: Runtime, seats: Seq[Seat], levels: dict[int, Level]) -> dict[int, Output]:
    """One call for the levels; the last seats leave until the rest fits."""
    while levels:
        try:
            return dict(
                zip(levels, runtime.forward([seats[i].work(level) for i, level in levels.items()]), strict=True)
            )
        except KvFull:
            last = next(reversed(levels))
            seats[last].growth.close()
            del levels[last]
    return {}
