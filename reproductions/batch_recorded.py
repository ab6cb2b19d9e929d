"""A runtime that repeats recorded texts: scheduling can be studied exactly, in seconds, without a model.

Under greedy decoding the rounds of a drafter of fixed drafts depend on the texts alone, and so do the lengths that meet
in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from likely.runtimes.protocol import Capabilities, Limits, Output, Path, Work
from likely.runtimes.protocol import Sequence as Held
from likely.runtimes.turns import Turn


@dataclass(eq=False)
class RecordedSequence(Held):
    """begun: what it keeps, until the text is known that begins so; nodes: pending tokens."""

    begun: list[int] = field(default_factory=list)
    text: list[int] | None = None
    nodes: list[int] = field(default_factory=list)


class Recorded:
    """texts: whole token sequences with prompts of which none begins like another; off them any token may follow.

    Only for greedy decoding with drafts of any kind: what is kept is on the text.
    """

    capabilities = Capabilities(trees=True)
    limits = Limits(4096, 2**20, 2**20, 2**20)
    context_length = 2**16
    revision = "recorded"

    def __init__(self, texts: Iterable[Sequence[int]], vocab_size: int):
        self._texts = [list(map(int, text)) for text in texts]
        self.vocab_size, self.turn = vocab_size, Turn()
        self.rows = self.grouped = 0  # as aligned_caches.Alignment counts them

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
        following = [0] * len(new)
        if item.parents is None:
            self._keep(sequence, new)
            if item.want.rows != "none":
                following[-1] = self._next(sequence, [])
        else:
            for i, (parent, token) in enumerate(zip(item.parents.tolist(), new, strict=True)):
                sequence.parents.append(parent)
                sequence.nodes.append(token)
                path = sequence.path(sequence.pending - 1)
                following[i] = self._next(sequence, [sequence.nodes[node] for node in path])
        top = np.array(following, np.int64)[item.want.row_numbers(len(new))][:, None]
        return Output(top_ids=top, top_logprobs=np.zeros(top.shape, np.float32))

    def _keep(self, sequence: RecordedSequence, tokens: list[int]) -> None:
        if sequence.text is None:
            sequence.begun += tokens
        sequence.length += len(tokens)

    def _next(self, sequence: RecordedSequence, path: list[int]) -> int:
        """What follows the kept tokens and the path; 0 off the text."""
        n = sequence.length
        if sequence.text is None:
            sequence.text = next(text for text in self._texts if text[:n] == sequence.begun)
        end = n + len(path)
        return sequence.text[end] if sequence.text[n:end] == path and end < len(sequence.text) else 0

    def commit(self, accepted: Iterable[tuple[Held, Path]]) -> None:
        for sequence, path in accepted:
            assert isinstance(sequence, RecordedSequence)
            self._keep(sequence, [sequence.nodes[node] for node in path])
            sequence.nodes, sequence.parents = [], []

    def close(self, sequence: Held) -> None:
        sequence.closed = True

    def free_tokens(self) -> int:
        return 2**20
