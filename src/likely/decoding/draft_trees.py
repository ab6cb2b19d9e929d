"""Shapes of drafts that come from a model with a known q: grown level by level, one call of the draft per level.

A growth is a generator: it yields a level (tokens, parents; node numbers count on from the last level, the first
level is empty and stands for the root), receives log q (n, V) after each node of that level (after the root: (1, V)),
and returns the Draft.  Many growths advance together: one call of the draft model serves one level of all of them.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from likely.decoding.draft import NO_DRAFT, Draft, Draw, Law
from likely.decoding.noise import generator, gumbel
from likely.models.runtime import FloatArray, IntArray

Level = tuple[IntArray, IntArray]
Growth = Generator[Level, FloatArray, Draft]
ROOT: Level = (np.empty(0, np.int64), np.empty(0, np.int64))


class Shape(Protocol):
    """How a draft grows.  `position` is the absolute position of the token after the root."""

    laws: frozenset[Law]

    def grow(self, draw: Draw, position: int, budget: int) -> Growth: ...


@dataclass(frozen=True)
class Chain:
    """One guess after another, at most `length`: the draft's best token when the target is greedy, else a draw from q.

    With keyed verification the draw uses the target's own noise, so that both tend to choose alike.
    confidence  stop where q's best token has less probability than this: a function of q alone, so that the law of what
                is drawn stays q; 0: never
    """

    length: int = 5
    confidence: float = 0.0
    laws = frozenset({Law.FIXED, Law.IID})

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be >= 1, got {self.length}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must lie in [0, 1], got {self.confidence}")

    def grow(self, draw: Draw, position: int, budget: int) -> Growth:
        sampling = draw.sampling
        drawn = draw.verification != "keyed"
        noise = generator(sampling.seed, draw.sample, position, "draft") if drawn else None
        tokens: list[int] = []
        kept: dict[int, FloatArray] = {}
        level = ROOT
        while len(tokens) < min(self.length, budget):
            log_q = (yield level)[0]
            if self.confidence and log_q.max() < np.log(self.confidence):
                break
            if noise is not None:
                token = int((log_q + noise.gumbel(size=len(log_q))).argmax())
                kept[len(tokens) - 1] = log_q
            elif sampling.greedy:
                token = int(log_q.argmax())
            else:
                place = position + len(tokens)
                ids = np.arange(len(log_q))
                token = int((log_q + gumbel(sampling.seed, draw.sample, place, ids)).argmax())
            tokens.append(token)
            level = (np.array([token]), np.array([len(tokens) - 2]))
        if not tokens:
            return NO_DRAFT
        draft = Draft.chain(tokens)
        if not drawn:
            return draft
        draws = {node: (node + 1,) for node in range(-1, len(tokens) - 1)}
        return Draft(draft.tokens, draft.parents, Law.IID, kept, draws)
