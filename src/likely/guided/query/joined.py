"""Constraints joined by and, or, and one for counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from likely.decoding.masks import Mask, contains, no_tokens, pack
from likely.decoding.steer import Constraint, ConstraintViolation
from likely.guided.query.counting import TokenCounts
from likely.guided.query.opaque import Opaque
from likely.guided.vocabulary import Vocabulary


@dataclass(eq=False)
class Joined:
    """Children that read the same text.  every: all must allow (and); else one is enough (or), and one that refused a
    token is out until it is taken back.

    taken  tokens that each child has read; fewer than `length`: it is out
    """

    parts: Sequence[Constraint]
    every: bool
    taken: list[int] = field(default_factory=list)
    length: int = 0

    def __post_init__(self) -> None:
        self.taken = self.taken or [0] * len(self.parts)

    @property
    def vocab_size(self) -> int:
        return self.parts[0].vocab_size

    @property
    def _live(self) -> list[Constraint]:
        return [p for p, n in zip(self.parts, self.taken, strict=True) if n == self.length]

    @property
    def accepting(self) -> bool:
        return (all if self.every else any)(p.accepting for p in self._live)

    @property
    def finished(self) -> bool:
        return (any if self.every else all)(p.finished for p in self._live) and self.accepting

    @property
    def approximate(self) -> bool:
        return any(p.approximate for p in self.parts)

    def allowed(self, remaining: int | None = None) -> Mask:
        mask: Mask | None = None
        for part in sorted(self._live, key=lambda p: isinstance(p, Opaque)):
            seen = mask if self.every else None
            own = part.allowed_within(seen) if isinstance(part, Opaque) else part.allowed(remaining)
            mask = own.copy() if mask is None else (mask & own if self.every else mask | own)
        return no_tokens(self.vocab_size) if mask is None else mask

    def permits(self, token: int) -> bool:
        return (all if self.every else any)(p.permits(token) for p in self._live)

    def advance(self, token: int) -> None:
        if not self.permits(token):
            raise ConstraintViolation(f"token {token} is not allowed here")
        for i, part in enumerate(self.parts):
            if self.taken[i] == self.length and (self.every or part.permits(token)):
                part.advance(token)
                self.taken[i] += 1
        self.length += 1

    def forced(self) -> list[int]:
        live = self._live
        if self.every:
            return max((p.forced() for p in live), key=len, default=[])
        return live[0].forced() if len(live) == 1 else []

    def fork(self) -> Joined:
        return Joined([p.fork() for p in self.parts], self.every, self.taken.copy(), self.length)

    def rollback(self, n: int) -> None:
        self.length -= n
        for i, part in enumerate(self.parts):
            if self.taken[i] > self.length:
                part.rollback(self.taken[i] - self.length)
                self.taken[i] = self.length

    def ready(self, wait: bool = False) -> bool:
        return all([p.ready(wait) for p in self.parts])


def all_of(parts: Sequence[Constraint]) -> Constraint:
    return parts[0] if len(parts) == 1 else Joined(parts, True)


def any_of(parts: Sequence[Constraint]) -> Constraint:
    return parts[0] if len(parts) == 1 else Joined(parts, False)


@dataclass(eq=False)
class Counted:
    """least <= count <= most: the counter tier.  Masks are looked up by (state, count still free).

    A text that may be too short at the end only loses the end tokens; within a budget of tokens this is not looked
    ahead (a word may need several).
    """

    counts: TokenCounts
    vocabulary: Vocabulary
    least: int
    most: int | None
    masks: dict[tuple[int, int], Mask] = field(default_factory=dict, repr=False)
    history: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])  # (count, state) after each token
    ended: bool = False
    approximate: bool = False

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def accepting(self) -> bool:
        count = self.history[-1][0]
        return self.least <= count and (self.most is None or count <= self.most)

    @property
    def finished(self) -> bool:
        return self.ended

    def allowed(self, remaining: int | None = None) -> Mask:
        if self.ended:
            return no_tokens(self.vocab_size)
        count, state = self.history[-1]
        if self.most is None:
            mask = self.vocabulary.text_mask
        else:
            key = (state, min(self.most - count, self.vocabulary.longest))
            if key not in self.masks:
                self.masks[key] = pack(self.counts.tables[0][state] <= key[1]) & self.vocabulary.text_mask
            mask = self.masks[key]
        return mask | self.vocabulary.end_mask if self.accepting else mask

    def permits(self, token: int) -> bool:
        return contains(self.allowed(), token)

    def advance(self, token: int) -> None:
        if not self.permits(token):
            raise ConstraintViolation(f"token {token} is not allowed here")
        if token in self.vocabulary.end_ids:
            self.ended = True
            return
        count, state = self.history[-1]
        adds, after = self.counts.tables
        self.history.append((count + int(adds[state, token]), int(after[state, token])))

    def forced(self) -> list[int]:
        return []

    def fork(self) -> Counted:
        return Counted(self.counts, self.vocabulary, self.least, self.most, self.masks, self.history.copy(), self.ended)

    def rollback(self, n: int) -> None:
        if n and self.ended:
            self.ended, n = False, n - 1
        if n:
            del self.history[-n:]

    def ready(self, wait: bool = False) -> bool:
        return True
