"""What constraints over an engine's matcher have in common: the end token, the mask that is asked for once, undoing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

from likely.decoding.constraint import ConstraintViolation, Mask, contains, no_tokens
from likely.guided.vocabulary import Vocabulary


@dataclass(eq=False)
class MatcherConstraint(ABC):
    """The state of one text, most of it the engine's own (`matcher`).

    ended  an end token was taken; the matcher itself never sees it (its rollback might not count it)
    """

    matcher: Any
    vocabulary: Vocabulary
    ended: bool = False
    approximate: bool = False
    _mask: Mask | None = field(default=None, repr=False)

    @abstractmethod
    def _is_whole(self) -> bool:
        """Whether the matcher's text is a member of the language."""

    @abstractmethod
    def _fill(self, mask: Mask) -> None:
        """Write the matcher's set of tokens into the empty mask; bits of end and control tokens do not count."""

    @abstractmethod
    def _take(self, token: int) -> None: ...

    @abstractmethod
    def _undo(self, n: int) -> None:
        """ValueError if the matcher cannot take back n >= 1 tokens."""

    @abstractmethod
    def _copied(self) -> Any:
        """A copy of the matcher."""

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def accepting(self) -> bool:
        return self.ended or self._is_whole()

    def allowed(self, remaining: int | None = None) -> Mask:
        if self._mask is None:
            mask = no_tokens(self.vocab_size)
            if not self.ended:
                self._fill(mask)
                mask &= self.vocabulary.text_mask
                if self._is_whole():
                    mask |= self.vocabulary.end_mask
            self._mask = mask
        return self._mask

    def permits(self, token: int) -> bool:
        return contains(self.allowed(), token)

    def advance(self, token: int) -> None:
        if not self.permits(token):
            raise ConstraintViolation(f"token {token} ({self.vocabulary.tokens[token]!r}) is not allowed here")
        if token in self.vocabulary.end_ids:
            self.ended = True
        else:
            self._take(token)
        self._mask = None

    def fork(self) -> Self:
        return type(self)(self._copied(), self.vocabulary, self.ended, self.approximate, self._mask)

    def rollback(self, n: int) -> None:
        if n <= 0:
            return
        if self.ended:
            self.ended, n = False, n - 1
        if n:
            self._undo(n)
        self._mask = None

    def ready(self, wait: bool = False) -> bool:
        return True
