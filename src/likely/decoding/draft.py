"""Drafts: guesses of what comes next, as trees of tokens, and who makes them.

A drafter can be slow, never wrong: what is emitted is decided by the target alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from likely.decoding.sampling import Sampling
from likely.models.runtime import IntArray


@dataclass(frozen=True)
class Draft:
    """A tree of guesses under the last emitted token.

    tokens (N,) target token ids; parents (N,) with parents[i] < i, -1 for a child of the root.  No two siblings alike.
    """

    tokens: IntArray
    parents: IntArray

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> Draft:
        n = len(tokens)
        return cls(np.asarray(tokens, np.int64), np.arange(-1, n - 1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.tokens)

    def check(self, *, budget: int, vocab_size: int, name: str) -> None:
        """ValueError that names the drafter, unless this is a tree of at most `budget` tokens of the vocabulary."""
        n = len(self.tokens)
        if n > budget:
            raise ValueError(f"drafter {name} proposed {n} tokens, its budget was {budget}")
        if self.parents.shape != (n,):
            raise ValueError(f"drafter {name}: parents must have shape ({n},), got {self.parents.shape}")
        if n and (self.tokens.min() < 0 or self.tokens.max() >= vocab_size):
            raise ValueError(f"drafter {name} proposed a token outside 0..{vocab_size - 1}")
        if n and ((self.parents < -1) | (self.parents >= np.arange(n))).any():
            raise ValueError(f"drafter {name}: each parent must be -1 or come before its child")
        if len(set(zip(self.parents.tolist(), self.tokens.tolist(), strict=True))) != n:
            raise ValueError(f"drafter {name} proposed the same token twice under one parent")

    def depths(self) -> IntArray:
        """(N,) 1 for children of the root."""
        depths = np.zeros(len(self.tokens), np.int64)
        for i, parent in enumerate(self.parents.tolist()):
            depths[i] = 1 + (depths[parent] if parent >= 0 else 0)
        return depths

    def cut(self, depth: int) -> Draft:
        """Without the nodes below `depth`."""
        if not len(self):
            return self
        keep = self.depths() <= depth
        renumber = np.cumsum(keep) - 1
        parents = self.parents[keep]
        return Draft(self.tokens[keep], np.where(parents >= 0, renumber[parents], -1))

    def children(self) -> dict[int, dict[int, int]]:
        """node (-1: root) -> {token: child node}."""
        out: dict[int, dict[int, int]] = {}
        for node, (parent, token) in enumerate(zip(self.parents.tolist(), self.tokens.tolist(), strict=True)):
            out.setdefault(parent, {})[token] = node
        return out


NO_DRAFT = Draft.chain([])


class Drafter(Protocol):
    """The guesses for one sequence; it has seen the prompt."""

    def propose(self, budget: int) -> Draft: ...  # N <= budget; N = 0 is fine
    def observe(self, tokens: Sequence[int]) -> None: ...  # what was really emitted, each token exactly once
    def fork(self) -> Drafter: ...
    def rollback(self, n: int) -> None: ...  # forget the last n observed tokens
    def end(self) -> None: ...  # release; may be called twice


class DraftSource(Protocol):
    """Knowledge shared by all requests; makes one Drafter per sequence."""

    name: str

    def begin(self, prompt: Sequence[int], *, sampling: Sampling) -> Drafter: ...
