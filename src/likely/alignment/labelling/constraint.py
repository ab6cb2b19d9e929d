"""Responses held to their sentence: only words of the sentence, in order, each with a label of the options.

What may be written is the fixed word for "no span", or items "words:label" with ";" between them, the words of each a
run of the sentence after the one before it.  Every such response is read back without a problem.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple

from likely.alignment.labelling.codec import SpanCodec
from likely.decoding.constraint import Mask, contains, mask_of, no_tokens
from likely.guided.text_constraint import TextConstraint
from likely.guided.vocabulary import Vocabulary

SPACE = 0x20


class _State(NamedTuple):
    """One reading of the bytes so far.

    lead   `at` bytes of what every response begins with
    empty  `at` bytes of the word for "no span"
    begin  a span may begin at word `at` or later
    word   `at` bytes of the sentence's text, within a span
    label  at node `node` of the labels, after a span that ends before word `at`
    """

    kind: str
    at: int
    node: int = 0


Readings = tuple[_State, ...]


@dataclass(eq=False)
class SpanAutomaton:
    """What may follow, byte by byte, for one sentence; constraints of all its responses share it.

    lead  text in front of every response (a space, where a response goes on a line)
    """

    codec: SpanCodec
    tokens: Sequence[str]
    lead: str = ""
    _masks: dict[Readings, Mask] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        words = [self.codec.escaped(word).encode() for word in self.tokens]
        if not words or not all(words):
            raise ValueError("a sentence needs words, none of them empty")
        self._text = b" ".join(words)
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}  # where a word ends -> its number
        at = 0
        for number, word in enumerate(words):
            self._starts.append(at)
            self._ends[at + len(word)] = number
            at += len(word) + 1
        self._lead, self._empty = self.lead.encode(), self.codec.empty.encode()
        self._sep, self._kv = ord(self.codec.sep), ord(self.codec.kv)
        self._children: list[dict[int, int]] = [{}]  # nodes of the labels, by byte
        self._whole = {self._add_label(option.encode()) for option in self.codec.options}

    def _add_label(self, option: bytes) -> int:
        node = 0
        for byte in option:
            if byte not in self._children[node]:
                self._children.append({})
                self._children[node][byte] = len(self._children) - 1
            node = self._children[node][byte]
        return node

    @property
    def longest(self) -> int:
        """Bytes that no response exceeds: every word a span, with the longest label."""
        label = max(len(option.encode()) for option in self.codec.options) + 2
        return len(self._lead) + max(len(self._empty), len(self._text) + len(self.tokens) * label)

    @property
    def first(self) -> Readings:
        return self._closed([_State("lead", 0)])

    def _closed(self, states: Iterable[_State]) -> Readings:
        """Sorted, with what follows the lead; of readings that differ in where the last span ended, the earliest.

        The earliest allows all that later ones do, and is the one that the codec reads.
        """
        found = set(states)
        if _State("lead", len(self._lead)) in found:
            found = {s for s in found if s.kind != "lead"} | {_State("empty", 0), _State("begin", 0)}
        least: dict[tuple[str, int], _State] = {}
        for state in sorted(found):
            key = (state.kind, state.node if state.kind in ("label", "begin") else state.at)
            least.setdefault(key, state)
        return tuple(sorted(least.values()))

    def next_bytes(self, states: Readings) -> set[int]:
        """The bytes that may come next."""
        found: set[int] = set()
        for kind, at, node in states:
            if kind == "lead":
                found.add(self._lead[at])
            elif kind == "empty":
                found.update(self._empty[at : at + 1])
            elif kind == "begin":
                found.update(self._text[start] for start in self._starts[at:])
            elif kind == "label":
                found.update(self._children[node])
                if node in self._whole and at < len(self.tokens):
                    found.add(self._sep)
            else:
                found.update(self._text[at : at + 1])
                if at in self._ends:
                    found.add(self._kv)
        return found

    def step(self, states: Readings, byte: int) -> Readings:
        """All readings after one more byte; () where it cannot follow."""
        after: list[_State] = []
        for kind, at, node in states:
            if kind == "lead" and self._lead[at] == byte:
                after.append(_State("lead", at + 1))
            elif kind == "empty" and self._empty[at : at + 1] == bytes([byte]):
                after.append(_State("empty", at + 1))
            elif kind == "begin":
                after += [_State("word", start + 1) for start in self._starts[at:] if self._text[start] == byte]
            elif kind == "label":
                if byte in self._children[node]:
                    after.append(_State("label", at, self._children[node][byte]))
                if byte == self._sep and node in self._whole and at < len(self.tokens):
                    after.append(_State("begin", at))
            elif kind == "word":
                if self._text[at : at + 1] == bytes([byte]):
                    after.append(_State("word", at + 1))
                if byte == self._kv and at in self._ends:
                    after.append(_State("label", self._ends[at] + 1))
        return self._closed(after)

    def walk(self, states: Readings, text: bytes) -> Readings:
        for byte in text:
            if not states:
                break
            states = self.step(states, byte)
        return states

    def accepts(self, states: Readings) -> bool:
        """Whether the response is whole."""
        return any(
            (s.kind == "empty" and s.at == len(self._empty)) or (s.kind == "label" and s.node in self._whole)
            for s in states
        )

    def mask(self, states: Readings, vocabulary: Vocabulary) -> Mask:
        """The tokens whose bytes may follow, and the end tokens where the response is whole; remembered."""
        if states not in self._masks:
            ids: list[int] = []
            self._collect(states, b"", 0, len(vocabulary.sorted_texts), vocabulary, ids)
            found = mask_of(ids, vocabulary.size)
            self._masks[states] = found | vocabulary.end_mask if self.accepts(states) else found
        return self._masks[states]

    def _collect(
        self, states: Readings, read: bytes, low: int, high: int, vocabulary: Vocabulary, ids: list[int]
    ) -> None:
        """Ids of the texts [low, high) of the vocabulary, all of which begin with `read`, that may follow."""
        texts = vocabulary.sorted_texts
        if low < high and texts[low] == read:
            ids += vocabulary.ids_of[read]
            low += 1
        if low == high:
            return
        for byte in self.next_bytes(states):
            longer = read + bytes([byte])
            start = bisect_left(texts, longer, low, high)
            end = bisect_left(texts, read + bytes([byte + 1]), start, high) if byte < 255 else high
            if start < end:
                self._collect(self.step(states, byte), longer, start, end, vocabulary, ids)


class SpanConstraint(TextConstraint):
    """A constraint on the response for one sentence; see `SpanAutomaton`."""

    def __init__(self, automaton: SpanAutomaton, vocabulary: Vocabulary):
        super().__init__(vocabulary)
        self.automaton = automaton
        self._states = [automaton.first]  # after each token

    @property
    def accepting(self) -> bool:
        return self.ended or self.automaton.accepts(self._states[-1])

    @property
    def finished(self) -> bool:
        return self.ended or (self.accepting and not self.automaton.next_bytes(self._states[-1]))

    def allowed(self, remaining: int | None = None) -> Mask:
        if self.ended:
            return no_tokens(self.vocab_size)
        return self.automaton.mask(self._states[-1], self.vocabulary)

    def _may_follow(self, token: int, text: bytes) -> bool:
        states = self._states[-1]
        if states in self.automaton._masks:
            return contains(self.automaton._masks[states], token)
        return bool(self.automaton.walk(states, text))

    def _take(self, token: int) -> None:
        self._states.append(self.automaton.walk(self._states[-1], self.vocabulary.tokens[token]))

    def _forced(self) -> list[int]:
        states, text = self._states[-1], bytearray()
        while not self.automaton.accepts(states) and len(following := self.automaton.next_bytes(states)) == 1:
            [byte] = following
            text.append(byte)
            states = self.automaton.step(states, byte)
        return self.vocabulary.guess(bytes(text))

    def fork(self) -> SpanConstraint:
        other = copy(self)
        other._states = self._states.copy()
        return other

    def _undo(self, n: int) -> None:
        if n >= len(self._states):
            raise ValueError(f"cannot take back {n} tokens, {len(self._states) - 1} were taken")
        del self._states[-n:]
