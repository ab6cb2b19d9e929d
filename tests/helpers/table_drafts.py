"""A DraftSource over a table q(next | last token) that drives any shape; and a target that is such a table, too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from likely.decoding.drafting.protocol import Draft, SamplingContext
from likely.decoding.drafting.trees.shapes import DraftShape
from likely.runtimes.toy import ToyRuntime


def table_runtime(p: np.ndarray, *, end: int | None = None, length: int = 0, **limits: int) -> ToyRuntime:
    """p (V, V): the law of the next token by the last one; after `length` tokens the token `end` is certain."""
    with np.errstate(divide="ignore"):
        rows = np.log(p).astype(np.float32)
        last = np.log(np.arange(p.shape[1]) == end).astype(np.float32)

    def logits_of(prefix: tuple[int, ...]) -> np.ndarray:
        return last if length and len(prefix) >= length else rows[prefix[-1]]

    return ToyRuntime(logits_of, vocab_size=p.shape[1], **limits)


def grow(shape: DraftShape, q: np.ndarray, last: int, context: SamplingContext, position: int, budget: int) -> Draft:
    """The draft of `shape` over q (V, V) after the token `last`."""
    with np.errstate(divide="ignore"):
        log_q = np.log(q).astype(np.float32)
    growth = shape.grow(context, position, budget)
    try:
        tokens, parents = next(growth)
        assert len(tokens) == len(parents) == 0
        rows = log_q[[last]]
        while True:
            tokens, parents = growth.send(rows)
            assert len(tokens) and tokens.dtype == parents.dtype == np.int64
            rows = log_q[tokens]
    except StopIteration as end:
        return end.value


class TableDrafts:
    """q (V, V); `laws` are those of the shape."""

    name, free = "table", False

    def __init__(self, q: np.ndarray, shape: DraftShape):
        self.q, self.shape, self.distributions = q, shape, shape.distributions

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> TableDrafter:
        return TableDrafter(self, list(prompt), context)


class TableDrafter:
    def __init__(self, source: TableDrafts, tokens: list[int], context: SamplingContext):
        self.source, self.tokens, self.context = source, tokens, context

    def propose(self, budget: int) -> Draft:
        return grow(self.source.shape, self.source.q, self.tokens[-1], self.context, len(self.tokens), budget)

    def observe(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens

    def fork(self, context: SamplingContext) -> TableDrafter:
        return TableDrafter(self.source, self.tokens.copy(), context)

    def rollback(self, n: int) -> None:
        del self.tokens[len(self.tokens) - n :]

    def end(self) -> None:
        pass
