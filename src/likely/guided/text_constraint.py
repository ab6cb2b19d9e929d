"""What constraints on the text of one vocabulary have in common: the end token, undoing, and plain answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Self

from likely.decoding.constraint import ConstraintViolation, Mask, contains, no_tokens
from likely.guided.vocabulary import Vocabulary


@dataclass(eq=False)
class TextConstraint(ABC):
    """A `Constraint` of which a subclass says what may come next, and how its state changes with a token of text.

    ended  an end token was taken; the subclass never sees it
    """

    vocabulary: Vocabulary
    ended: bool = field(default=False, kw_only=True)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    @abstractmethod
    def accepting(self) -> bool: ...

    @property
    def finished(self) -> bool:
        return self.ended

    @property
    def approximate(self) -> bool:
        return False

    def allowed(self, remaining: int | None = None) -> Mask:
        if self.ended:
            return no_tokens(self.vocab_size)
        return self._text_mask() | self.vocabulary.end_mask if self.accepting else self._text_mask()

    def _text_mask(self) -> Mask:
        """The tokens of text that may come next; for a subclass that has no `allowed` of its own."""
        raise NotImplementedError

    def permits(self, token: int) -> bool:
        if self.ended or not 0 <= token < self.vocab_size:
            return False
        if token in self.vocabulary.end_ids:
            return self.accepting
        text = self.vocabulary.tokens[token]
        return bool(text) and self._may_follow(token, text)

    def _may_follow(self, token: int, text: bytes) -> bool:
        """Whether this token of text may come next."""
        return contains(self.allowed(), token)

    def advance(self, token: int) -> None:
        if not self.permits(token):
            raise ConstraintViolation(f"token {token} ({self.vocabulary.tokens[token]!r}) is not allowed here")
        if token in self.vocabulary.end_ids:
            self.ended = True
        else:
            self._take(token)

    @abstractmethod
    def _take(self, token: int) -> None:
        """Take a token of text that is allowed."""

    def forced(self) -> list[int]:
        if self.ended:
            return []
        return [self.vocabulary.eos_id] if self.finished else self._forced()

    def _forced(self) -> list[int]:
        return []

    @abstractmethod
    def fork(self) -> Self: ...

    def rollback(self, n: int) -> None:
        if n > 0 and self.ended:
            self.ended, n = False, n - 1
        if n > 0:
            self._undo(n)

    @abstractmethod
    def _undo(self, n: int) -> None:
        """Undo the last n >= 1 tokens of text; ValueError if there are fewer."""

    def ready(self, wait: bool = False) -> bool:
        return True
