"""The reference constraint: a deterministic automaton over bytes, walked by all tokens at once.  Regex and choices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from likely.decoding.constraint import Mask, pack
from likely.errors import CapabilityError
from likely.guided.engines.automaton import DEAD, ByteAutomaton
from likely.guided.settings import Form
from likely.guided.text_constraint import TextConstraint
from likely.guided.vocabulary import Vocabulary

KEPT = 128  # states whose successors are remembered


class TokenColumns:
    """The tokens of a vocabulary by columns: column c holds byte c of every token that has one, longer tokens first."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        tokens = vocabulary.tokens
        order = sorted((i for i, text in enumerate(tokens) if text), key=lambda i: -len(tokens[i]))
        lengths = np.array([len(tokens[i]) for i in order])
        self.order = np.array(order, np.int64)
        self.columns = [
            np.array([tokens[i][c] for i in order[: int((lengths > c).sum())]], np.int64)
            for c in range(int(lengths.max()))
        ]


class TokenSteps:
    """After which token an automaton is in which state; shared by all texts of one compiled form."""

    def __init__(self, automaton: ByteAutomaton, columns: TokenColumns):
        self.automaton, self.columns, self.vocabulary = automaton, columns, columns.vocabulary
        self._after: dict[int, NDArray[np.int32]] = {}

    def after(self, state: int) -> NDArray[np.int32]:
        """(V,) the state after each token, DEAD where it cannot follow or has no text."""
        if state not in self._after:
            if len(self._after) >= KEPT:
                self._after.clear()
            states = np.full(len(self.columns.order), state, np.int32)
            live = np.arange(len(states))
            for column in self.columns.columns:
                live = live[: int(np.searchsorted(live, len(column)))]
                states[live] = self.automaton.table[states[live], column[live]]
                live = live[states[live] != DEAD]
            out = np.full(self.vocabulary.size, DEAD, np.int32)
            out[self.columns.order] = states
            self._after[state] = out
        return self._after[state]


class Reference:
    """The engine for one vocabulary: compiles regular expressions and choices into constraints."""

    name = "reference"

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary

    @cached_property
    def columns(self) -> TokenColumns:
        return TokenColumns(self.vocabulary)

    def steps(self, automaton: ByteAutomaton) -> TokenSteps:
        return TokenSteps(automaton, self.columns)

    def compile(self, form: Form) -> ReferenceConstraint:
        if form.kind == "regex":
            return self.regex(form.source)
        if form.kind == "choices":
            return self.choices(form.source)
        raise CapabilityError(
            f'backend="reference" holds a regex or choices, not a {form.kind}: use backend="llguidance"'
        )

    def regex(self, pattern: str) -> ReferenceConstraint:
        return self.of(ByteAutomaton.of_regex(pattern))

    def choices(self, texts: Iterable[str]) -> ReferenceConstraint:
        return self.of(ByteAutomaton.of_texts(texts))

    def of(self, automaton: ByteAutomaton) -> ReferenceConstraint:
        return ReferenceConstraint(self.vocabulary, self.steps(automaton))


@dataclass(eq=False)
class ReferenceConstraint(TextConstraint):
    """The state of one text: the automaton's states after each token."""

    steps: TokenSteps
    _states: list[int] = field(default_factory=lambda: [0])

    @property
    def _state(self) -> int:
        return self._states[-1]

    @property
    def accepting(self) -> bool:
        return self.ended or bool(self.steps.automaton.accepting[self._state])

    @property
    def finished(self) -> bool:
        return self.ended or bool(self.steps.automaton.final[self._state])

    def _text_mask(self) -> Mask:
        return pack(self.steps.after(self._state) != DEAD)

    def _may_follow(self, token: int, text: bytes) -> bool:
        return self.steps.automaton.walk(self._state, text) != DEAD

    def _take(self, token: int) -> None:
        self._states.append(self.steps.automaton.walk(self._state, self.vocabulary.tokens[token]))

    def _forced(self) -> list[int]:
        automaton, state, text = self.steps.automaton, self._state, bytearray()
        while not automaton.accepting[state] and len(text) < 256:
            follow = np.flatnonzero(automaton.table[state] != DEAD)
            if len(follow) != 1:
                break
            text.append(int(follow[0]))
            state = int(automaton.table[state, follow[0]])
        return self.vocabulary.guess(bytes(text))

    def fork(self) -> ReferenceConstraint:
        return replace(self, _states=self._states.copy())

    def _undo(self, n: int) -> None:
        if n >= len(self._states):
            raise ValueError(f"cannot take back {n} tokens, {len(self._states) - 1} were taken")
        del self._states[-n:]
