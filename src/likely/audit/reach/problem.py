"""What is to be reached, and the exact test of candidates: many of them in one call of a runtime, as one tree.

A control u of k tokens fills a slot of the text: before ⊕ u ⊕ after.  The target is reached where the model's greedy
continuation is the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.errors import CapabilityError, DataError
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import FloatArray, IntArray, Runtime, Want, Work
from likely.tokenizers.protocol import Tokenizer, decode

NODES_PER_CALL = 16384


@dataclass(frozen=True)
class ReachProblem:
    """A text with a free slot, and what shall follow it.

    after   token ids behind the slot: the imposed state x0
    target  token ids that greedy decoding shall give next
    before  token ids in front of the slot: the token that begins a sequence, or a text whose suffix is searched for
    """

    after: tuple[int, ...]
    target: tuple[int, ...]
    before: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("after", "target", "before"):
            object.__setattr__(self, name, tuple(int(token) for token in getattr(self, name)))
        if not self.target:
            raise DataError("the target is empty: give at least one token to reach")

    def check(self, vocab_size: int, context_length: int, k: int) -> None:
        """DataError for token ids outside the vocabulary, and where a control of k tokens does not fit."""
        tokens = (*self.before, *self.after, *self.target)
        if bad := [token for token in tokens if not 0 <= token < vocab_size]:
            raise DataError(f"token id {bad[0]} is outside 0..{vocab_size - 1}")
        if not (self.before or self.after) and k == 0:
            raise DataError("there is no text before the target: give a state, or a control of 1 token or more")
        if len(tokens) + k > context_length:
            raise DataError(
                f"{len(tokens)} tokens and a control of {k} do not fit the context of {context_length} tokens: "
                f"shorten the state or the control"
            )

    def text(self, control: Sequence[int]) -> list[int]:
        """before ⊕ control ⊕ after."""
        return [*self.before, *map(int, control), *self.after]


@dataclass(frozen=True)
class EvaluatedControls:
    """What came of N controls.

    losses   (N,) mean of −log p of the target's tokens, in nats
    reached  (N,) whether each of the target's tokens is the most likely one in its place
    first    (N,) the most likely token after before ⊕ u ⊕ after; -1 for a control that was not evaluated
    """

    losses: NDArray[np.float64]
    reached: NDArray[np.bool_]
    first: IntArray

    @property
    def best(self) -> int:
        """A reached one before any other, then the lowest loss; the first of equals."""
        return int(np.lexsort((self.losses, ~self.reached))[0])


class CandidateTest:
    """Evaluates controls on a runtime.  Tokens that candidates share from the left are computed once.

    evaluations  controls evaluated so far;  tokens: computed for them
    tokenizer    given: controls whose text, with that of `after`, becomes other tokens are not evaluated; their loss
                 is inf
    """

    def __init__(self, runtime: Runtime, problem: ReachProblem, tokenizer: Tokenizer | None = None):
        if not runtime.capabilities.trees:
            raise CapabilityError(f"reach needs a runtime that holds trees (can: {kinds_with('trees')})")
        self.runtime, self.problem, self._tokenizer = runtime, problem, tokenizer
        self.evaluations = self.tokens = 0
        self._problem_checked = -1

    def __call__(self, controls: NDArray[np.int64] | Sequence[Sequence[int]]) -> EvaluatedControls:
        """Of (N, k) controls, in their order."""
        rows = np.asarray(controls, np.int64)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"controls must have shape (N, k) with N >= 1, got {rows.shape}")
        if rows.size and not 0 <= rows.min() <= rows.max() < self.runtime.vocab_size:
            raise DataError(f"a control holds token ids outside 0..{self.runtime.vocab_size - 1}")
        if rows.shape[1] > self._problem_checked:
            self.problem.check(self.runtime.vocab_size, self.runtime.context_length, rows.shape[1])
            self._problem_checked = rows.shape[1]
        kept = (
            np.flatnonzero([self._survives(row) for row in rows.tolist()]) if self._tokenizer else np.arange(len(rows))
        )
        found = EvaluatedControls(np.full(len(rows), np.inf), np.zeros(len(rows), bool), np.full(len(rows), -1))
        with self.runtime.turn:
            for part in self._parts(kept, rows.shape[1]):
                found.losses[part], found.reached[part], found.first[part] = self._of(rows[part])
        self.evaluations += len(kept)
        return found

    def _survives(self, control: list[int]) -> bool:
        assert self._tokenizer is not None
        tokens = [*control, *self.problem.after]
        return not control or self._tokenizer.encode(decode(self._tokenizer, tokens)) == tokens

    def _parts(self, numbers: NDArray[np.int64], k: int) -> Iterator[NDArray[np.int64]]:
        """As many controls as one tree may hold."""
        length = k + len(self.problem.after) + len(self.problem.target)
        limits = self.runtime.limits
        room = min(NODES_PER_CALL, self.runtime.free_tokens() - len(self.problem.before))
        most = max(1, min(limits.leaves, room // max(1, length)))
        for start in range(0, len(numbers), most):
            yield numbers[start : start + most]

    def _of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_], IntArray]:
        target = self.problem.target
        head = self.problem.before
        kept = head[:-1]  # the last token of the head opens the tree, so that its row can be asked for
        tree = _Tree()
        ends = np.empty((len(rows), len(target)), np.int64)
        for i, row in enumerate(rows.tolist()):
            text = [*head[-1:], *row, *self.problem.after, *target[:-1]]
            ends[i] = tree.add(text)[len(text) - len(target) :]
        sequence = self.runtime.open()
        try:
            if kept:
                self.runtime.forward([Work(sequence, np.asarray(kept, np.int64), want=Want.NONE)])
            asked, where = np.unique(ends, return_inverse=True)
            where = where.reshape(ends.shape)
            pairs = np.stack([ends, np.broadcast_to(np.asarray(target), ends.shape)], -1).reshape(-1, 2)
            want = Want(rows=tuple(asked.tolist()), top=1, pairs=pairs)
            work = Work(
                sequence, np.asarray(tree.tokens, np.int64), parents=np.asarray(tree.parents, np.int64), want=want
            )
            [out] = self.runtime.forward([work])
        finally:
            self.runtime.close(sequence)
        self.tokens += len(tree.tokens) + len(kept)
        assert out.logprobs is not None and out.top_ids is not None
        logprobs = np.asarray(out.logprobs, np.float64).reshape(ends.shape)
        tops = out.top_ids[:, 0][where]
        return -logprobs.mean(1), (tops == np.asarray(target)).all(1), tops[:, 0].astype(np.int64)


class _Tree:
    """Texts as a tree whose nodes are tokens; a text's beginning that is there already is not added again."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, text: Sequence[int]) -> list[int]:
        path, node = [], -1
        for token in text:
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
            node = child
            path.append(node)
        return path


def next_logprobs(runtime: Runtime, tokens: Sequence[int]) -> FloatArray:
    """(V,) log p of each next token after a text."""
    sequence = runtime.open()
    try:
        [out] = runtime.forward([Work(sequence, np.asarray(tokens, np.int64), want=Want.LAST)])
    finally:
        runtime.close(sequence)
    assert out.logits is not None
    row = out.logits[0].astype(np.float64)
    row -= row.max()
    return np.asarray(row - np.log(np.exp(row).sum()), np.float32)
