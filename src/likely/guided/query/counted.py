"""The counter tier: a constraint on a number of words, sentences, tokens or characters."""

from __future__ import annotations

from dataclasses import dataclass, field

from likely.decoding.masks import Mask, contains, no_tokens, pack
from likely.decoding.steer import ConstraintViolation
from likely.guided.query.counting import TokenCounts
from likely.guided.vocabulary import Vocabulary


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
