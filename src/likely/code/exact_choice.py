"""Which of some names is likeliest as a whole, not letter by letter: greedy decoding may be led astray by its start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from likely.code.name_masks import NameMasks
from likely.decoding.constraint import unpack
from likely.errors import CapabilityError
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import FloatArray, Runtime, Want, Work
from likely.runtimes.protocol import Sequence as Kept
from likely.runtimes.rows import logsumexp

ROW_VALUES = 1 << 25  # logits held at one time: 128 MB
NAMES_PER_CALL = 64  # each takes a leaf of the tree


class NameScorer:
    """Scores names at places of one growing text; what two places share is computed once.  `close` frees it."""

    def __init__(self, runtime: Runtime, masks: NameMasks):
        if not runtime.capabilities.trees:
            raise CapabilityError(f'choose="exact" needs a runtime with pending trees: {kinds_with("trees")}')
        self.runtime, self.masks = runtime, masks
        self._sequence: Kept | None = None
        self._held: list[int] = []

    def logprobs(self, context: Sequence[int], names: Sequence[bytes]) -> NDArray[np.float64]:
        """As `name_logprobs`."""
        root = self._root(list(context))
        out = np.full(len(names), -np.inf)
        spelled = [self.masks.vocabulary.spell(name) for name in names]
        longest = max(map(len, spelled))
        size = int(np.clip(ROW_VALUES // (self.masks.vocabulary.size * longest), 1, NAMES_PER_CALL))
        for first in range(0, len(names), size):
            part = slice(first, first + size)
            out[part] = self._tree(root, names[part], spelled[part])
        return out

    def _tree(self, root: FloatArray, names: Sequence[bytes], spelled: Sequence[Sequence[int]]) -> list[float]:
        """The values of some names, their tokens a tree that one call computes; nothing stays pending."""
        assert self._sequence is not None
        masks = self.masks
        nodes: dict[tuple[int, ...], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        for ids in spelled:
            for end in range(1, len(ids) + 1):
                path = tuple(ids[:end])
                if path not in nodes:
                    nodes[path] = len(tokens)
                    tokens.append(ids[end - 1])
                    parents.append(nodes.get(path[:-1], -1))
        work = Work(self._sequence, np.asarray(tokens, np.int64), np.asarray(parents, np.int64), want=Want.ALL)
        rows = self.runtime.forward([work])[0].logits
        assert rows is not None
        self.runtime.commit([(self._sequence, [])])
        out = []
        for name, ids in zip(names, spelled, strict=True):
            before, rest, terms = 0.0, name, []
            for end in range(len(ids) + 1):
                row = root if end == 0 else rows[nodes[tuple(ids[:end])]]
                norm = logsumexp(row)
                terms.append(before + _log_share(row, unpack(masks.ending(rest), len(row)), norm))
                if end < len(ids):
                    before += float(row[ids[end]]) - norm
                    rest = rest[len(masks.vocabulary.tokens[ids[end]]) :]
            out.append(float(np.logaddexp.reduce(terms)))
        return out

    def _root(self, context: list[int]) -> FloatArray:
        """The row of logits after the context."""
        runtime = self.runtime
        shared = next((i for i, (a, b) in enumerate(zip(self._held, context, strict=False)) if a != b), None)
        shared = min(len(self._held), len(context) - 1) if shared is None else shared
        if self._sequence is not None and (shared < len(self._held)) and not runtime.capabilities.truncate:
            self.close()
        if self._sequence is None:
            self._sequence, shared = runtime.open(), 0
        elif shared < len(self._held):
            runtime.truncate(self._sequence, shared)
        work = Work(self._sequence, np.asarray(context[shared:], np.int64), want=Want.LAST)
        rows = runtime.forward([work])[0].logits
        self._held = context
        assert rows is not None
        return rows[-1]

    def close(self) -> None:
        if self._sequence is not None:
            self.runtime.close(self._sequence)
        self._sequence, self._held = None, []


def name_logprobs(
    runtime: Runtime, masks: NameMasks, context: Sequence[int], names: Sequence[bytes]
) -> NDArray[np.float64]:
    """log P(the next name is this one | context), nats, one per name.

    context  token ids, at least one;  names: what is left to write of each

    P(l) = sum over the tokens t_1 ... t_n of l as the tokenizer writes it, and k = 0 ... n, of
    p(t_1 ... t_k) * p(a token that writes the rest of l and ends the name there).  Other ways to cut l into tokens are
    left out, so that the values sum to at most 1.  One call of the model for the context, then one per group of names:
    a tree of their tokens.
    """
    scorer = NameScorer(runtime, masks)
    try:
        return scorer.logprobs(context, names)
    finally:
        scorer.close()


def _log_share(row: FloatArray, allowed: NDArray[np.bool_], norm: float) -> float:
    """log of the probability of some tokens."""
    return logsumexp(row[allowed]) - norm if allowed.any() else -float("inf")
