"""Counts of characters, words, sentences and tokens, and the constraint that bounds one of them.

words      maximal runs of bytes that are not ASCII white space, as bytes.split() cuts them
sentences  begun at the first byte that is not white space, ended by . ! or ? before white space ("3.14" is no end)
chars      UTF-8 characters;  tokens: as they were emitted

Every count only grows while text is appended.  Small automata over bytes count, along texts or whole tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from likely.decoding.constraint import Mask, pack
from likely.guided.text_constraint import TextConstraint
from likely.queries.where.nodes import CountKind

SPACE: Final = b" \t\n\r\x0b\x0c"
_CLASS = np.full(256, 2, np.uint8)  # 0 space, 1 end mark, 2 other, 3 UTF-8 continuation byte
_CLASS[list(SPACE)] = 0
_CLASS[list(b".!?")] = 1
_CLASS[0x80:0xC0] = 3


@dataclass(frozen=True, eq=False)
class CountAutomaton:
    """next[state][class], adds[state][class]: the state after a byte of this class, and what it adds to the count."""

    next: NDArray[np.uint8]
    adds: NDArray[np.uint8]


def _automaton(rows: list[list[tuple[int, int]]]) -> CountAutomaton:
    table = np.array(rows, np.uint8)
    return CountAutomaton(table[..., 0].copy(), table[..., 1].copy())


AUTOMATA = {
    "chars": _automaton([[(0, 1), (0, 1), (0, 1), (0, 0)]]),
    # 0 between words, 1 inside
    "words": _automaton([[(0, 0), (1, 1), (1, 1), (1, 1)], [(0, 0), (1, 0), (1, 0), (1, 0)]]),
    # 0 between sentences, 1 inside, 2 inside after an end mark
    "sentences": _automaton(
        [
            [(0, 0), (2, 1), (1, 1), (1, 1)],
            [(1, 0), (2, 0), (1, 0), (1, 0)],
            [(0, 0), (2, 0), (1, 0), (1, 0)],
        ]
    ),
}


_NEXT_SENTENCE = re.compile(rb"[.!?]\s+(?=\S)")


def count(kind: CountKind, text: str, tokens: int) -> int:
    """The count of a whole text that was written with this many tokens, as the automata count it."""
    match kind:
        case "tokens":
            return tokens
        case "chars":
            return len(text)
        case "words":
            return len(text.encode().split())
    data = text.encode()
    return int(bool(data.strip())) + len(_NEXT_SENTENCE.findall(data))


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """What each token of a vocabulary adds to a count, from each state.

    adds (S, V), next (S, V)
    """

    kind: CountKind
    tokens: tuple[bytes, ...] = field(repr=False)

    @cached_property
    def tables(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """(adds, next), each (S, V); the vocabulary is walked byte by byte, all its tokens together."""
        size = len(self.tokens)
        if self.kind == "tokens":
            return np.array([[1 if t else 0 for t in self.tokens]], np.int32), np.zeros((1, size), np.uint8)
        automaton = AUTOMATA[self.kind]
        states = len(automaton.next)
        lengths = np.fromiter(map(len, self.tokens), np.int64, size)
        joined = _CLASS[np.frombuffer(b"".join(self.tokens), np.uint8)]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        adds = np.zeros((states, size), np.int32)
        state = np.repeat(np.arange(states, dtype=np.uint8)[:, None], size, axis=1)
        order = np.argsort(-lengths, kind="stable")
        for place in range(int(lengths.max(initial=0))):
            live = order[: int((lengths > place).sum())]
            cls = joined[starts[live] + place]
            at = state[:, live]
            adds[:, live] += automaton.adds[at, cls]
            state[:, live] = automaton.next[at, cls]
        return adds, state


# --- the constraint ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Counted(TextConstraint):
    """least <= count <= most: the counter tier.  Masks are looked up by (state, count still free).

    A text that may be too short at the end only loses the end tokens; within a budget of tokens this is not looked
    ahead (a word may need several).
    """

    counts: TokenCounts
    least: int
    most: int | None
    masks: dict[tuple[int, int], Mask] = field(default_factory=dict, repr=False)
    history: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])  # (count, state) after each token

    @property
    def accepting(self) -> bool:
        count = self.history[-1][0]
        return self.least <= count and (self.most is None or count <= self.most)

    def _text_mask(self) -> Mask:
        count, state = self.history[-1]
        if self.most is None:
            return self.vocabulary.text_mask
        key = (state, min(self.most - count, self.vocabulary.longest))
        if key not in self.masks:
            self.masks[key] = pack(self.counts.tables[0][state] <= key[1]) & self.vocabulary.text_mask
        return self.masks[key]

    def _take(self, token: int) -> None:
        count, state = self.history[-1]
        adds, after = self.counts.tables
        self.history.append((count + int(adds[state, token]), int(after[state, token])))

    def fork(self) -> Counted:
        return replace(self, history=self.history.copy())

    def _undo(self, n: int) -> None:
        del self.history[-n:]
