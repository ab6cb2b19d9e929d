"""The opaque tier: parts of a clause that only Python can evaluate, on the text so far.

A predicate forbids the end while it is false.  One with a FINAL rule also forbids tokens after which it is false for
good: the most likely tokens are tried, and only those that pass are allowed (`approximate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from likely.decoding.constraint import LogitsProcessor, Mask, mask_of, members, no_tokens
from likely.guided.combinators import AllOf
from likely.guided.text_constraint import TextConstraint
from likely.queries.where.final import FIN, Partial, evaluate
from likely.queries.where.nodes import Node
from likely.runtimes.protocol import FloatArray, Runtime

TOP = 64  # tokens that are tried at each step


@dataclass(eq=False)
class Peek(LogitsProcessor):
    """A transform that changes nothing: it shows the logits to the constraint that is asked right after it."""

    row: FloatArray | None = None

    def begin(self, runtime: Runtime, prompt: Sequence[int]) -> Peek:
        return self

    def apply(self, path: Sequence[int], logits: FloatArray) -> FloatArray:
        self.row = logits
        return logits

    def fork(self) -> Peek:
        return self


@dataclass(eq=False)
class Opaque(TextConstraint):
    """`node` must hold of the whole text of `hole`.

    peek  None: the node has no FINAL rule, so that no token can be ruled out before the end
    """

    node: Node
    hole: str
    peek: Peek | None = None
    top: int = TOP
    texts: list[bytes] = field(default_factory=list)
    only_likeliest: bool = False  # some mask so far held only the likeliest tokens

    @property
    def approximate(self) -> bool:
        return self.only_likeliest

    def _state(self, data: bytes, tokens: int, done: bool) -> dict[str, Partial]:
        return {self.hole: Partial(data.decode("utf-8", "ignore"), tokens, done)}

    @property
    def accepting(self) -> bool:
        value, _ = evaluate(self.node, self._state(b"".join(self.texts), len(self.texts), True))
        return value is None or bool(value)

    def _dead(self, data: bytes, tokens: int) -> bool:
        value, final = evaluate(self.node, self._state(data, tokens, False))
        return value is not None and not value and final is FIN

    def allowed(self, remaining: int | None = None) -> Mask:
        return self.allowed_within(None)

    def allowed_within(self, others: Mask | None) -> Mask:
        """The mask; tokens outside `others` need not be tried."""
        if self.ended:
            return no_tokens(self.vocab_size)
        mask = self.vocabulary.text_mask
        if self.peek is not None and self.peek.row is not None:
            mask = self._tried(self.peek.row, mask if others is None else mask & others)
        return mask | self.vocabulary.end_mask if self.accepting else mask

    def _tried(self, row: FloatArray, candidates: Mask) -> Mask:
        """The tokens among the likeliest that do not make the node false for good; further ones if none passes."""
        self.only_likeliest = True
        texts, data = members(candidates), b"".join(self.texts)
        order = texts[np.argsort(-row[texts], kind="stable")]
        passed: list[int] = []
        for rank, token in enumerate(order.tolist()):
            if rank >= self.top and passed:
                break
            if not self._dead(data + self.vocabulary.tokens[token], len(self.texts) + 1):
                passed.append(token)
        return mask_of(passed, self.vocab_size)

    def _may_follow(self, token: int, text: bytes) -> bool:
        return self.peek is None or not self._dead(b"".join(self.texts) + text, len(self.texts) + 1)

    def _take(self, token: int) -> None:
        self.texts.append(self.vocabulary.tokens[token])

    def fork(self) -> Opaque:
        return replace(self, texts=self.texts.copy())

    def _undo(self, n: int) -> None:
        del self.texts[-n:]


class Tiers(AllOf):
    """All parts of a clause; opaque ones come last, and try only what the others allow."""

    def allowed(self, remaining: int | None = None) -> Mask:
        sure = [p.allowed(remaining) for p in self.parts if not isinstance(p, Opaque)]
        mask = reduce(np.bitwise_and, sure) if sure else None
        for part in self.parts:
            if isinstance(part, Opaque):
                own = part.allowed_within(mask)
                mask = own if mask is None else mask & own
        assert mask is not None
        return mask
