"""Constraints made of constraints: all at once, one of several, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import reduce
from typing import Self

import numpy as np

from likely.decoding.constraint import Constraint, ConstraintViolation, Mask, contains, mask_of, no_tokens
from likely.guided.text_constraint import TextConstraint
from likely.guided.vocabulary import Vocabulary, after_bytes, check_bytes
from likely.tokenizers.protocol import common_length


def _check(parts: Sequence[Constraint]) -> None:
    if not parts:
        raise ValueError("give at least one constraint")
    sizes = sorted({part.vocab_size for part in parts})
    if len(sizes) > 1:
        raise ValueError(f"the constraints were made for different vocabularies: {sizes} tokens")


class _Joined:
    """Constraints that read the same text."""

    def __init__(self, *parts: Constraint):
        _check(parts)
        self.parts = parts

    @property
    def vocab_size(self) -> int:
        return self.parts[0].vocab_size

    @property
    def judges_late(self) -> bool:
        return any(getattr(part, "judges_late", False) for part in self.parts)

    @property
    def approximate(self) -> bool:
        return any(part.approximate for part in self.parts)


class AllOf(_Joined):
    """The text is in every language.

    A prefix that no text of all of them continues is found out only where no token is left.
    """

    @property
    def accepting(self) -> bool:
        return all(part.accepting for part in self.parts)

    @property
    def finished(self) -> bool:
        """By the parts alone; where their masks have nothing in common but end tokens this is not seen."""
        return self.accepting and any(part.finished for part in self.parts)

    def allowed(self, remaining: int | None = None) -> Mask:
        return reduce(np.bitwise_and, [part.allowed(remaining) for part in self.parts])

    def permits(self, token: int) -> bool:
        return all(part.permits(token) for part in self.parts)

    def advance(self, token: int) -> None:
        if not self.permits(token):
            raise ConstraintViolation(f"token {token} is not allowed here by every part")
        for part in self.parts:
            part.advance(token)

    def forced(self) -> list[int]:
        """What one part forces, all must follow."""
        guesses = [guess for part in self.parts if (guess := part.forced()) and self.permits(guess[0])]
        return max(guesses, key=len, default=[])

    def fork(self) -> Self:
        return type(self)(*(part.fork() for part in self.parts))

    def rollback(self, n: int) -> None:
        for part in self.parts:
            part.rollback(n)

    def ready(self, wait: bool = False) -> bool:
        return all([part.ready(wait) for part in self.parts])


class AnyOf(_Joined):
    """The text is in one of the languages, or several.  Parts that a token rules out stay behind."""

    def __init__(self, *parts: Constraint):
        super().__init__(*parts)
        self._taken = [0] * len(parts)  # tokens that each part has taken; those that took all are alive
        self._length = 0

    @property
    def _live(self) -> list[Constraint]:
        return [part for part, taken in zip(self.parts, self._taken, strict=True) if taken == self._length]

    @property
    def accepting(self) -> bool:
        return any(part.accepting for part in self._live)

    @property
    def finished(self) -> bool:
        """Nothing but an end token may follow: no part has a way on, and one is whole."""
        return self.accepting and all(part.finished for part in self._live)

    def allowed(self, remaining: int | None = None) -> Mask:
        return reduce(np.bitwise_or, [part.allowed(remaining) for part in self._live])

    def permits(self, token: int) -> bool:
        return any(part.permits(token) for part in self._live)

    def advance(self, token: int) -> None:
        takers = [i for i, part in enumerate(self.parts) if self._taken[i] == self._length and part.permits(token)]
        if not takers:
            raise ConstraintViolation(f"token {token} is not allowed here by any part")
        for i in takers:
            self.parts[i].advance(token)
            self._taken[i] += 1
        self._length += 1

    def forced(self) -> list[int]:
        guesses = [part.forced() for part in self._live]
        return guesses[0] if all(guess == guesses[0] for guess in guesses) else []

    def fork(self) -> AnyOf:
        copy = AnyOf(*(part.fork() for part in self.parts))
        copy._taken, copy._length = self._taken.copy(), self._length
        return copy

    def rollback(self, n: int) -> None:
        if n > self._length:
            raise ValueError(f"cannot take back {n} tokens, {self._length} were taken")
        self._length -= n
        for i, part in enumerate(self.parts):
            part.rollback(max(0, self._taken[i] - self._length))
            self._taken[i] = min(self._taken[i], self._length)

    def ready(self, wait: bool = False) -> bool:
        return all([part.ready(wait) for part in self._live])


@dataclass(frozen=True)
class _At:
    """One reading of the text so far: parts before `number` are whole, this one is in the given state."""

    number: int
    state: Constraint


class InOrder(TextConstraint):
    """A text of the first language, then one of the second, and so on: concatenation over bytes.

    Where one part ends stays open: every reading of the text is kept.  A token may hold the end of one part and
    the beginning of the next.  The parts must be over bytes (all ways to cut a text into tokens equal), not cut by
    budgets of their own.  The cost grows with the number of readings: two parts that take the same letters have one per
    place where the first may end.
    """

    def __init__(self, parts: tuple[Constraint, ...], vocabulary: Vocabulary):
        super().__init__(vocabulary)
        _check(parts)
        check_bytes(vocabulary)
        self.parts = parts
        self._readings = [self._closed([_At(0, parts[0])])]  # after each token; never changed, only replaced
        self._mask: Mask | None = None

    def _closed(self, readings: list[_At]) -> tuple[_At, ...]:
        """With the next part begun wherever one is whole."""
        out = list(readings)
        begun = {at.number for at in out if at.state is self.parts[at.number]}
        for at in out:  # grows while it is read
            following = at.number + 1
            if at.state.accepting and following < len(self.parts) and following not in begun:
                begun.add(following)
                out.append(_At(following, self.parts[following]))
        return tuple(out)

    def _step(self, readings: tuple[_At, ...], text: bytes) -> tuple[_At, ...]:
        """All readings after these bytes."""
        after = [(at.number, after_bytes(at.state, text, self.vocabulary)) for at in readings]
        return self._closed([_At(number, state) for number, state in after if state is not None])

    def _walk(self, readings: tuple[_At, ...], text: bytes) -> tuple[_At, ...]:
        for byte in text:
            if not readings:
                break
            readings = self._step(readings, bytes([byte]))
        return readings

    @property
    def accepting(self) -> bool:
        return self.ended or any(at.number == len(self.parts) - 1 and at.state.accepting for at in self._readings[-1])

    @property
    def finished(self) -> bool:
        return self.ended or (self.accepting and all(at.state.finished for at in self._readings[-1]))

    @property
    def approximate(self) -> bool:
        return any(at.state.approximate for at in self._readings[-1])

    def _text_mask(self) -> Mask:
        if self._mask is None:
            mask, readings = no_tokens(self.vocab_size), self._readings[-1]
            for at in readings:
                mask |= at.state.allowed()
            mask &= self.vocabulary.text_mask
            self._mask = mask | self._straddling(readings, mask)
        return self._mask

    def _straddling(self, readings: tuple[_At, ...], known: Mask) -> Mask:
        """The tokens, beside those known, inside which a part ends: walked in byte order, common beginnings once."""
        later = range(min((at.number for at in readings), default=0) + 1, len(self.parts))
        starts = _first_bytes(self.vocabulary, [self.parts[i] for i in later])
        here = _first_bytes(self.vocabulary, [at.state for at in readings])
        found: list[int] = []
        path: list[tuple[_At, ...]] = [readings]  # after each byte of `last`
        last = b""
        for text in self.vocabulary.sorted_texts:
            ids = self.vocabulary.ids_of[text]
            if len(text) < 2 or text[0] not in here or contains(known, ids[0]) or starts.isdisjoint(text[1:]):
                continue
            common = common_length(last, text)
            del path[common + 1 :]
            for byte in text[len(path) - 1 :]:
                if not path[-1]:
                    break
                path.append(self._step(path[-1], bytes([byte])))
            last = text[: len(path) - 1]
            if len(last) == len(text) and path[-1]:
                found += ids
        return mask_of(found, self.vocab_size)

    def _may_follow(self, token: int, text: bytes) -> bool:
        if self._mask is not None:
            return contains(self._mask, token)
        return any(at.state.permits(token) for at in self._readings[-1]) or bool(self._walk(self._readings[-1], text))

    def _take(self, token: int) -> None:
        self._readings.append(self._walk(self._readings[-1], self.vocabulary.tokens[token]))
        self._mask = None

    def _forced(self) -> list[int]:
        readings = self._readings[-1]
        return readings[0].state.forced() if len(readings) == 1 and not readings[0].state.accepting else []

    def fork(self) -> InOrder:
        other = copy(self)
        other._readings = self._readings.copy()
        return other

    def _undo(self, n: int) -> None:
        if n >= len(self._readings):
            raise ValueError(f"cannot take back {n} tokens, {len(self._readings) - 1} were taken")
        del self._readings[-n:]
        self._mask = None

    def ready(self, wait: bool = False) -> bool:
        return all([at.state.ready(wait) for at in self._readings[-1]])


def _first_bytes(vocabulary: Vocabulary, states: Sequence[Constraint]) -> set[int]:
    """The bytes that may come next in one of these."""
    single = {text[0]: ids[0] for text, ids in vocabulary.ids_of.items() if len(text) == 1}
    return {byte for byte, token in single.items() if any(state.permits(token) for state in states)}
