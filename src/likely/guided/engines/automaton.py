"""Regular expressions and lists of texts as deterministic automata over bytes: the slow, readable way.

pattern -> tree -> nondeterministic automaton -> deterministic one without dead states.  What is taken
is the part of Rust's syntax that Python writes the same way; the rest is refused.  A text matches as a whole.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from likely.errors import ConstraintError
from likely.guided.engines.code_points import ALL, ByteRange, code_points, complement, utf8
from likely.io.regular_expression import (
    Alternation,
    Anchor,
    Character,
    Concatenation,
    Dot,
    RegexGroup,
    RegexNode,
    RegularExpression,
    Repetition,
    irregular,
    parse_regex,
)

MAX_STATES = 5000
DEAD = -1
UNREACHABLE = 2**30  # distance of a state from which no text can be completed


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """States are numbers, 0 is the first; every state leads to acceptance.

    table      (S, 256) the state after each byte, DEAD where none
    accepting  (S,) whether a text may end here
    """

    table: NDArray[np.int32]
    accepting: NDArray[np.bool_]

    @classmethod
    def of_regex(cls, pattern: str, *, max_states: int = MAX_STATES) -> ByteAutomaton:
        """ConstraintError for what is outside the common subset, too large, or matches nothing."""
        expression = parse_whole(pattern)
        nfa = _Nfa(pattern, max_states)
        return nfa.determinise(nfa.build(expression.root, 0, expression.flags))

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> ByteAutomaton:
        """Exactly these texts: a tree of their bytes."""
        rows: list[dict[int, int]] = [{}]
        ends = set()
        for text in texts:
            state = 0
            for byte in text.encode():
                if byte not in rows[state]:
                    rows[state][byte] = len(rows)
                    rows.append({})
                state = rows[state][byte]
            ends.add(state)
        return _alive(rows, ends, "the list of texts")

    def walk(self, state: int, text: bytes) -> int:
        """The state after these bytes, DEAD if they cannot follow."""
        for byte in text:
            if state == DEAD:
                break
            state = int(self.table[state, byte])
        return state

    def distances(self, usable: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """(S,) bytes of the shortest completion from each state, written with usable bytes (256,) only."""
        before: list[list[int]] = [[] for _ in self.accepting]
        for state, byte in zip(*np.nonzero(self.table != DEAD), strict=True):
            if usable is None or usable[byte]:
                before[self.table[state, byte]].append(int(state))
        out = np.full(len(self.accepting), UNREACHABLE, np.int64)
        todo = deque(np.flatnonzero(self.accepting).tolist())
        out[self.accepting] = 0
        while todo:
            state = todo.popleft()
            for earlier in before[state]:
                if out[earlier] == UNREACHABLE:
                    out[earlier] = out[state] + 1
                    todo.append(earlier)
        return out

    @cached_property
    def final(self) -> NDArray[np.bool_]:
        """(S,) whether nothing can follow."""
        return np.all(self.table == DEAD, axis=1)


class ShortestCompletions:
    """The shortest completion of a text from each state, in usable bytes (256,) only; of these the first in byte order.

    So the end of a completion is the completion further on.
    """

    def __init__(self, automaton: ByteAutomaton, usable: NDArray[np.bool_]):
        self.automaton, self.usable = automaton, usable
        self.distance = automaton.distances(usable)

    def after(self, state: int) -> bytes | None:
        """None where no usable bytes complete the text."""
        if state == DEAD or self.distance[state] >= UNREACHABLE:
            return None
        out = bytearray()
        while self.distance[state]:
            row = self.automaton.table[state]
            nearer = (row >= 0) & self.usable & (self.distance[row] == self.distance[state] - 1)
            out.append(int(np.argmax(nearer)))
            state = int(row[out[-1]])
        return bytes(out)


class _Nfa:
    """States with steps over byte ranges and free steps; built from the end, so each piece knows what follows it."""

    def __init__(self, pattern: str, max_states: int):
        self.pattern, self.max_states = pattern, max_states
        self.steps: list[list[tuple[int, int, int]]] = [[]]  # (lowest byte, highest byte, next state)
        self.free: list[list[int]] = [[]]  # state 0 accepts

    def _new(self, steps: Sequence[tuple[int, int, int]] = (), free: Sequence[int] = ()) -> int:
        if len(self.steps) > 20 * self.max_states:
            raise self._too_large()
        self.steps.append(list(steps))
        self.free.append(list(free))
        return len(self.steps) - 1

    def _too_large(self) -> ConstraintError:
        return ConstraintError(
            f"{self.pattern[:60]!r} needs more than {self.max_states} states: use smaller repeat counts or classes, or "
            f"the backend llguidance"
        )

    def build(self, node: RegexNode, then: int, flags: int) -> int:
        """The state before `node`, where `then` follows."""
        if what := irregular(node):
            raise _refused(self.pattern, what)
        match node:
            case Concatenation(parts):
                for part in reversed(parts):
                    then = self.build(part, then, flags)
                return then
            case Alternation(branches):
                return self._new(free=[self.build(branch, then, flags) for branch in branches])
            case Repetition():
                return self._repeat(node, then, flags)
            case RegexGroup(body, added, removed):
                if (added | removed) & ~re.DOTALL:
                    raise _refused(self.pattern, "a flag other than s")
                return self.build(body, then, (flags | added) & ~removed)
            case Dot():
                points = ALL if flags & re.DOTALL else complement(((10, 10),))
                return self._characters(frozenset(utf8(points)), then, {})
            case Character():
                return self._characters(frozenset(utf8(code_points(node))), then, {})
            case Anchor():
                raise _refused(self.pattern, "an anchor or word boundary inside")
        raise TypeError(f"not a part of a regular expression: {node!r}")

    def _repeat(self, node: Repetition, then: int, flags: int) -> int:
        if node.high is None:
            start = self._new(free=[then])
            self.free[start].append(self.build(node.body, start, flags))
        else:
            start = then
            for _ in range(node.high - node.low):
                start = self._new(free=[then, self.build(node.body, start, flags)])
        for _ in range(node.low):
            start = self.build(node.body, start, flags)
        return start

    def _characters(self, rest: frozenset[tuple[ByteRange, ...]], then: int, made: dict) -> int:
        """The state before one of these sequences of byte ranges; equal rests share one state."""
        if rest == {()}:
            return then
        if rest not in made:
            edges = sorted({bound for first, *_ in rest for bound in (first[0], first[1] + 1)})
            steps = []
            for low, high in itertools.pairwise(edges):
                follow = frozenset(s[1:] for s in rest if s[0][0] <= low < s[0][1] + 1)
                if follow:
                    steps.append((low, high - 1, self._characters(follow, then, made)))
            made[rest] = self._new(steps)
        return made[rest]

    def determinise(self, start: int) -> ByteAutomaton:
        """States of the deterministic automaton are the sets of states that one text can reach."""
        first = self._closed([start])
        number, todo = {first: 0}, [first]
        rows: list[dict[int, int]] = []
        for reached in todo:
            arcs = [arc for state in reached for arc in self.steps[state]]
            edges = sorted({bound for low, high, _ in arcs for bound in (low, high + 1)})
            row = {}
            for low, high in itertools.pairwise(edges):
                follow = self._closed([then for a, b, then in arcs if a <= low <= b])
                if not follow:
                    continue
                if follow not in number:
                    if len(number) >= self.max_states:
                        raise self._too_large()
                    number[follow] = len(number)
                    todo.append(follow)
                row.update(dict.fromkeys(range(low, high), number[follow]))
            rows.append(row)
        return _alive(rows, {number[s] for s in todo if 0 in s}, repr(self.pattern[:60]))

    def _closed(self, states: list[int]) -> frozenset[int]:
        """With all that is reached by free steps; only states that matter are kept: with steps, or accepting."""
        seen, todo = set(states), list(states)
        while todo:
            new = [s for s in self.free[todo.pop()] if s not in seen]
            seen.update(new)
            todo += new
        return frozenset(s for s in seen if self.steps[s] or s == 0)


def _alive(rows: list[dict[int, int]], ends: set[int], name: str) -> ByteAutomaton:
    """The automaton of these rows without the states from which no end can be reached."""
    before: list[list[int]] = [[] for _ in rows]
    for state, row in enumerate(rows):
        for then in set(row.values()):
            before[then].append(state)
    alive, todo = set(ends), list(ends)
    while todo:
        new = [s for s in before[todo.pop()] if s not in alive]
        alive.update(new)
        todo += new
    if 0 not in alive:
        raise ConstraintError(f"{name} matches no text at all")
    number = {state: i for i, state in enumerate(sorted(alive))}
    table = np.full((len(alive), 256), DEAD, np.int32)
    for state, i in number.items():
        for byte, then in rows[state].items():
            if then in alive:
                table[i, byte] = number[then]
    return ByteAutomaton(table, np.array([state in ends for state in number], np.bool_))


# --- what Python and Rust read alike ----------------------------------------------------------------------------------

_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_COUNT = re.compile(r"\{\d+(,\d*)?\}")


def parse_whole(pattern: str) -> RegularExpression:
    """The tree of a pattern that a whole text must match; ConstraintError for what is not supported."""
    _refuse_differences(pattern)
    body = pattern.removeprefix("^")
    if body.endswith("$") and not _odd_backslashes(body[:-1]):
        body = body[:-1]
    expression = parse_regex(body)
    if body != pattern and "|" in _outside_groups(pattern):
        raise _refused(pattern, "an anchor beside |: put the alternatives in a group")
    if expression.flags & ~(re.UNICODE | re.DOTALL):
        raise _refused(pattern, "a flag other than s")
    return expression


def _refuse_differences(pattern: str) -> None:
    """ConstraintError for what Python and Rust read differently, or only one of them knows."""
    outside = _ESCAPE.sub("..", pattern)
    for match in _ESCAPE.finditer(pattern):
        c = match[1]
        if (c.isalnum() and c not in "dDwWsSnrtfvaxuU") or c in "<>" or not c.isascii():
            raise _refused(pattern, f"\\{c}")
    for match in _CLASS.finditer(pattern):
        inside = _ESCAPE.sub("..", match[0])[1:-1]
        if "[" in inside or any(twice in inside for twice in ("&&", "--", "~~", "||")):
            raise _refused(pattern, f"the class {match[0]} (nested, or an operation on classes)")
    plain = _plain(pattern)
    if "(?#" in outside:
        raise _refused(pattern, "a comment")
    for at in (i for i, c in enumerate(plain) if c == "{"):
        if not _COUNT.match(plain, at):
            raise _refused(pattern, "a brace that is no repeat count: write \\{")


def _plain(pattern: str) -> str:
    """With dots for escapes and classes."""
    return _CLASS.sub(lambda m: "." * len(m[0]), _ESCAPE.sub("..", pattern))


def _outside_groups(pattern: str) -> str:
    plain, before = _plain(pattern), ""
    while plain != before:
        before, plain = plain, re.sub(r"\([^()]*\)", "", plain)
    return plain


def _odd_backslashes(text: str) -> bool:
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _refused(pattern: str, what: str) -> ConstraintError:
    return ConstraintError(
        f"{pattern[:60]!r} holds {what}, which the reference automaton does not take: use the backend llguidance"
    )
