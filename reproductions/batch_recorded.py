"""A runtime that repeats recorded texts: scheduling can be studied exactly, in seconds, without a model.

Under greedy decoding the rounds of a drafter of fixed drafts depend on the texts alone, and so do the lengths that meet
in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from likely.models.runtime import Capabilities, Limits, Output, Path, Work
from likely.models.runtime import Sequence as Held


@dataclass(eq=False)
class RecordedSequence(Held):
    tokens: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)


class Recorded:
    """texts: whole token sequences, none the beginning of another; off them any token may follow."""

    capabilities = Capabilities(trees=True)
    limits = Limits(4096, 2**20, 2**20, 2**20)
    context_length = 2**16
    revision = "recorded"

    def __init__(self, texts: Iterable[Sequence[int]], vocab_size: int):
        self._texts = [list(map(int, text)) for text in texts]
        self.vocab_size = vocab_size
        self.rows = self.grouped = 0  # as likely.models.torch_aligned.Alignment counts them

    def open(self) -> RecordedSequence:
        return RecordedSequence()

    def forward(self, work: Sequence[Work]) -> list[Output]:
        lengths = [item.sequence.length for item in work]
        with_past = sum(length > 0 for length in lengths)
        if len(work) > 1 and with_past:
            self.rows += with_past
            self.grouped += with_past if len(set(lengths)) == 1 else 0
        return [self._answer(item) for item in work]

    def _answer(self, item: Work) -> Output:
        sequence, new = item.sequence, [int(t) for t in item.tokens]
        assert isinstance(sequence, RecordedSequence)
        following = []
        if item.parents is None:
            for n in range(1, len(new) + 1):
                following.append(self._next([*sequence.tokens, *new[:n]]) if n == len(new) else 0)
            sequence.tokens += new
            sequence.length = len(sequence.tokens)
        else:
            for parent, token in zip(item.parents.tolist(), new, strict=True):
                sequence.parents.append(parent)
                sequence.nodes.append(token)
                path = sequence.path(sequence.pending - 1)
                following.append(self._next([*sequence.tokens, *(sequence.nodes[node] for node in path)]))
        rows = item.want.row_numbers(len(new))
        top = np.array(following, np.int64)[rows][:, None]
        return Output(top_ids=top, top_logprobs=np.zeros(top.shape, np.float32))

    def _next(self, tokens: list[int]) -> int:
        n = len(tokens)
        return next((text[n] for text in self._texts if len(text) > n and text[:n] == tokens), 0)

    def commit(self, accepted: Iterable[tuple[Held, Path]]) -> None:
        for sequence, path in accepted:
            assert isinstance(sequence, RecordedSequence)
            sequence.tokens += [sequence.nodes[node] for node in path]
            sequence.nodes, sequence.parents = [], []
            sequence.length = len(sequence.tokens)

    def close(self, sequence: Held) -> None:
        sequence.closed = True

    def free_tokens(self) -> int:
        return 2**20
