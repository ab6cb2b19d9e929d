"""How many tokens a step commits, and the one function that commits them.

Static decoding, drafts and their verification all go through `Transition.step`: that what is verified is what static
decoding would have done holds by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from likely.decoding.diffusion.canvas import BoolArray, open_positions
from likely.decoding.diffusion.proposal import ProposalRule, most_likely, propose
from likely.metrics.checks import Floats
from likely.runtimes.protocol import FloatArray, IntArray

Counts = Callable[[int, int], list[int]]


def linear(masked: int, steps: int) -> list[int]:
    """masked // steps each; the first masked % steps commit one more (LLaDA: Nie et al. 2025, arXiv:2502.09992)."""
    each, more = divmod(masked, steps)
    return [each + (i < more) for i in range(steps) if each + (i < more)]


def cosine(masked: int, steps: int) -> list[int]:
    """floor(masked * cos(pi/2 * i/steps)) are left after step i, at least one less than before (Chang et al. 2022)."""
    left = [int(np.floor(masked * np.cos(np.pi / 2 * i / steps) + 1e-9)) for i in range(1, steps)]
    return _at_least_one(masked, left)


def ancestral(masked: int, steps: int) -> list[int]:
    """Of what is masked at time t, floor of the share 1 - s/t; times are even from 1 to 1e-3, the last step takes all.

    Dream (Ye et al. 2025, arXiv:2508.15487), but for steps that would commit nothing: those commit one.
    """
    times = np.linspace(1, 1e-3, steps + 1)
    counts, left = [], masked
    for i in range(steps):
        share = 1.0 if i == steps - 1 else 1 - times[i + 1] / times[i]
        counts.append(min(left, max(1, int(left * share))) if left else 0)
        left -= counts[-1]
    return [n for n in counts if n]


def _at_least_one(masked: int, left: list[int]) -> list[int]:
    counts, now = [], masked
    for goal in [*left, 0]:
        n = min(now, max(1, now - goal)) if goal else now
        if n:
            counts.append(n)
        now -= n
    return counts


SCHEDULES: dict[str, Counts] = {"linear": linear, "cosine": cosine, "ancestral": ancestral}


@dataclass(frozen=True)
class ConfidenceThreshold:
    """Commit every open position whose confidence is at least this, and the most confident one in any case.

    A schedule for `diffusion_generate`: threshold decoding (Wu et al. 2025, arXiv:2505.22618).
    """

    confidence: float = 0.9

    def __post_init__(self) -> None:
        if np.isnan(self.confidence):
            raise ValueError(f"confidence must be a number, got {self.confidence}")


def commit(ids: IntArray, tokens: IntArray, confidence: Floats, n: IntArray, allowed: BoolArray) -> IntArray:
    """A new canvas in which the n[b] most confident allowed positions of row b hold their proposed token.

    All (B, L), n (B,).  Ties go to the position further left; never more than are allowed.
    """
    ranked = np.where(allowed, np.maximum(confidence, np.finfo(np.float64).min), -np.inf)
    order = np.argsort(-ranked, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(ids.shape[1]), ids.shape), axis=1)
    return np.where(allowed & (rank < n[:, None]), tokens, ids)


@dataclass(frozen=True)
class Ending:
    """What is known of the token that ends an answer.

    policy  "allow": a token as any other; "last": committed after all others; "forbid": never
    A block that is complete and holds nothing else ends its row: what is behind it becomes the same token.
    """

    token: int
    policy: str = "allow"


@dataclass(frozen=True)
class Transition:
    """The static decoder's step as a function of answers and logits alone.

    first   (R, blocks) masked positions of each block of each row before anything was committed
    tables  [m, r] how many a block of m masked positions commits while r are left; None: a ConfidenceThreshold
    noise   of each row;  pinned (R,): tokens that were given, which do not count as committed
    """

    rule: ProposalRule
    mask_id: int
    blocks: IntArray
    first: IntArray
    noise: list[int]
    pinned: IntArray
    table: IntArray | None
    threshold: float = 1.0
    ending: Ending | None = None

    def ending_with(self, ending: Ending) -> Transition:
        return replace(self, ending=ending)

    @property
    def rule_of_drafts(self) -> Literal["exact", "subset"]:
        """A draft is on the path if it is what the step makes, or (threshold) commits no more than that."""
        return "subset" if self.table is None else "exact"

    def propose(self, rows: IntArray, answers: IntArray, logits: FloatArray) -> tuple[IntArray, Floats]:
        """Tokens and confidences (n, L) at the open positions of these answers (n, L), which belong to these rows."""
        masked = answers == self.mask_id
        wanted = open_positions(masked, self.blocks)
        committed = (~masked).sum(axis=1) - self.pinned[rows]
        logits = self._possible(logits)
        noise = [self.noise[row] for row in rows] if self.rule.needs_noise else []
        tokens, confidence = propose(logits, wanted, self.rule, noise=noise, committed=committed)
        if self.ending is not None and self.ending.policy == "last":
            confidence = np.where(tokens == self.ending.token, -np.inf, confidence)
        return tokens, confidence

    def step(self, rows: IntArray, answers: IntArray, proposal: tuple[IntArray, Floats]) -> IntArray:
        """The answers (n, L) after one step of static decoding that made this proposal."""
        tokens, confidence = proposal
        allowed = open_positions(answers == self.mask_id, self.blocks)
        return self.close(answers, commit(answers, tokens, confidence, self.count(rows, confidence, allowed), allowed))

    def more(self, answers: IntArray, proposal: tuple[IntArray, Floats]) -> IntArray:
        """As `step`, of the most confident position alone."""
        tokens, confidence = proposal
        allowed = open_positions(answers == self.mask_id, self.blocks)
        return self.close(answers, commit(answers, tokens, confidence, np.ones(len(answers), np.int64), allowed))

    def count(self, rows: IntArray, confidence: Floats, allowed: BoolArray) -> IntArray:
        """(n,) how many tokens a step commits."""
        if self.table is None:
            return np.asarray(np.maximum(1, (allowed & (confidence >= self.threshold)).sum(axis=1)))
        block = self.blocks[allowed.argmax(axis=1)]
        return np.asarray(self.table[self.first[rows, block], allowed.sum(axis=1)])

    def fill(self, answers: IntArray, logits: FloatArray, *, whole: bool) -> IntArray:
        """The answers (n, L) with the most likely token at all masked positions, or (not whole) at the open ones."""
        masked = answers == self.mask_id
        here = masked if whole else open_positions(masked, self.blocks)
        filled = answers.copy()
        filled[here] = most_likely(self._possible(logits)[here])
        return self.close(answers, filled)

    def _possible(self, logits: FloatArray) -> FloatArray:
        if self.ending is not None and self.ending.policy == "forbid":
            logits = logits.copy()
            logits[..., self.ending.token] = -np.inf
        return logits

    def close(self, before: IntArray, after: IntArray) -> IntArray:
        """Where a block became complete and holds the ending token alone, the rest of the row becomes that token."""
        if self.ending is None:
            return after
        was, left = before == self.mask_id, after == self.mask_id
        block = np.where(was, self.blocks, len(self.blocks)).min(axis=1, keepdims=True)  # that the step worked on
        here = self.blocks == block
        ended = here.any(axis=1) & np.where(here, after == self.ending.token, True).all(axis=1)
        return np.where(ended[:, None] & left, self.ending.token, after)


def table_of(counts: Counts, block_length: int, steps: int) -> IntArray:
    """[m, r]: how many of m masked positions are committed while r of them are left; 0 for an r that does not occur."""
    table = np.zeros((block_length + 1, block_length + 1), np.int64)
    for m in range(1, block_length + 1):
        found = counts(m, steps)
        if sum(found) != m or min(found) < 1:
            raise ValueError(f"a schedule must commit all of {m} positions, at least one a step, got {found}")
        left = m - np.concatenate([[0], np.cumsum(found)[:-1]])
        table[m, left] = found
    return table
