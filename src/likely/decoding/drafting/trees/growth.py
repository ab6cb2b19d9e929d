"""Growing drafts of a shape: many together, one call of a model for one level of all of them, or one from a known q."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from likely.decoding.drafting.protocol import NO_DRAFT, Draft
from likely.decoding.drafting.trees.shapes import DraftGrowth, TreeLevel
from likely.decoding.sampling import Sampling, apply_penalties, processed_logprobs
from likely.errors import KvFull
from likely.runtimes.protocol import FloatArray, LayerPlan, Output, Runtime, Sequence, Want, Work
from likely.runtimes.rows import log_softmax


def _same(token: int) -> int:
    return token


@dataclass(eq=False)
class GrowingDraft:
    """One draft on its way: its nodes are pending ones of a sequence.

    first     tokens that the sequence must see first, the root last; kept at once, or (keep_first=False) pending, too
    log_q     (logits of a row, tokens from below the root to the row's node) -> log q (V,) of the target's vocabulary
    own_id    id of a drafted token in the vocabulary of the runtime
    layers    the plan of all pending nodes; what is kept is computed by the whole model
    tokens, parents   of the levels computed so far, -1: a child of the root
    """

    sequence: Sequence
    growth: DraftGrowth
    first: Seq[int]
    log_q: Callable[[FloatArray, list[int]], FloatArray]
    keep_first: bool = True
    own_id: Callable[[int], int] = _same
    layers: LayerPlan | None = None
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def work(self, level: TreeLevel) -> Work:
        tokens, parents = level
        if not len(tokens):
            own = np.asarray(self.first, np.int64)
            chain = None if self.keep_first else np.arange(-1, len(own) - 1)
            return Work(self.sequence, own, chain, want=Want.LAST, layers=None if self.keep_first else self.layers)
        before = 0 if self.keep_first else len(self.first)
        own = np.array([self.own_id(int(t)) for t in tokens], np.int64)
        return Work(self.sequence, own, np.asarray(parents) + before, want=Want.ALL, layers=self.layers)

    def receive(self, level: TreeLevel, output: Output) -> FloatArray:
        """Note the level as computed; log q after each of its nodes."""
        assert output.logits is not None
        if not len(level[0]):
            return self.log_q(output.logits[-1], [])[None]
        first = len(self.tokens)
        self.tokens += [int(t) for t in level[0]]
        self.parents += [int(p) for p in level[1]]
        return np.stack([self.log_q(row, self.path(first + i)) for i, row in enumerate(output.logits)])

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


def log_q_of_row(row: FloatArray, settings: Sampling, target: Sampling, text: Seq[int], prompt: int) -> FloatArray:
    """log q (V,) of a draft model's logits; raw where the target is greedy, since its best token is all that counts.

    text  all tokens up to this row, of which the first `prompt` are the prompt's; only penalties look at them
    """
    row = apply_penalties(row, settings, text[:prompt], text[prompt:])
    if settings.greedy and target.greedy:
        return log_softmax(row)
    return processed_logprobs(row, settings)


def grow_together(runtime: Runtime, wanted: Seq[GrowingDraft | None]) -> list[Draft]:
    """Drafts in the order of `wanted`; None, and one for which there is no room, has an empty one."""
    drafts = [NO_DRAFT] * len(wanted)
    growing = {i: each for i, each in enumerate(wanted) if each is not None}
    levels: dict[int, TreeLevel] = {}
    for i, each in growing.items():
        try:
            levels[i] = next(each.growth)
        except StopIteration as stop:
            drafts[i] = stop.value
    while levels:
        outputs = _forward(runtime, growing, levels)
        for i, output in outputs.items():
            log_q = growing[i].receive(levels[i], output)
            try:
                levels[i] = growing[i].growth.send(log_q)
            except StopIteration as stop:
                drafts[i] = stop.value
                del levels[i]
    return drafts


def _forward(runtime: Runtime, growing: dict[int, GrowingDraft], levels: dict[int, TreeLevel]) -> dict[int, Output]:
    """One call for the levels; the last drafts are given up until the rest fits."""
    while levels:
        work = [growing[i].work(level) for i, level in levels.items()]
        try:
            return dict(zip(levels, runtime.forward(work), strict=True))
        except KvFull:
            last = next(reversed(levels))
            growing[last].growth.close()
            del levels[last]
    return {}


def grow_with(growth: DraftGrowth, log_q_of: Callable[[tuple[int, ...]], FloatArray]) -> Draft:
    """One draft where q is computed in this process: log_q_of(path) -> (V,) after the drafted `path`."""
    paths: list[tuple[int, ...]] = []
    try:
        next(growth)
        rows = [log_q_of(())]
        while True:
            tokens, parents = growth.send(np.stack(rows))
            level = [
                ((*paths[parent], token) if parent >= 0 else (token,))
                for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True)
            ]
            paths += level
            rows = [log_q_of(path) for path in level]
    except StopIteration as done:
        return done.value
