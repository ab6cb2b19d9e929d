"""Search for a regular expression in time proportional to text × pattern, whatever both are.

Python's own engine backtracks: a pattern such as (a+)+b takes exponential time on an unlucky text, and it cannot be
stopped.  Here the pattern becomes an automaton whose states are followed all at once.  What that cannot express
(backreferences, lookahead and lookbehind, atomic groups) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from likely.errors import ConstraintError
from likely.io.regular_expression import (
    Alternation,
    Anchor,
    AnchorKind,
    Character,
    CharacterClass,
    Concatenation,
    Dot,
    RegexGroup,
    RegexNode,
    Repetition,
    irregular,
    parse_regex,
)

MAX_PATTERN = 1000  # characters
MAX_STATES = 1000
MAX_TEXT = 20_000  # characters

CharacterTest = Callable[[str], bool]
PlaceTest = Callable[[str, int], bool]  # (text, position)
MATCH = 0  # the number of the accepting state


class LinearRegex:
    """`search(text)`: whether the pattern occurs anywhere in the text, as `re.search` would say."""

    def __init__(self, pattern: str):
        expression = parse_regex(pattern, longest=MAX_PATTERN)
        self.pattern = pattern
        # one entry per state: (test of a character, test of a place, states that follow); tests None: always
        self._states: list[tuple[CharacterTest | None, PlaceTest | None, list[int]]] = [(None, None, [])]
        self._start = self._build(expression.root, MATCH, expression.flags)

    def search(self, text: str) -> bool:
        if len(text) > MAX_TEXT:
            raise ConstraintError(f"the text has {len(text):,} characters, at most {MAX_TEXT:,} are searched")
        waiting: set[int] = set()
        for place in range(len(text) + 1):
            reached = self._reach({*waiting, self._start}, text, place)
            if MATCH in reached:
                return True
            if place < len(text):
                waiting = self._step(reached, text[place])
        return False

    def _reach(self, states: Iterable[int], text: str, place: int) -> set[int]:
        """All states reached without taking a character."""
        seen, todo = set(states), list(states)
        while todo:
            accepts, holds, following = self._states[todo.pop()]
            if accepts is None and (holds is None or holds(text, place)):
                new = [state for state in following if state not in seen]
                seen.update(new)
                todo += new
        return seen

    def _step(self, states: set[int], character: str) -> set[int]:
        following = set()
        for state in states:
            accepts, _, then = self._states[state]
            if accepts is not None and accepts(character):
                following.update(then)
        return following

    # --- the automaton is built from its end ----------------------------------------------------------------------

    def _new(self, accepts: CharacterTest | None, holds: PlaceTest | None, then: list[int]) -> int:
        if len(self._states) >= MAX_STATES:
            raise ConstraintError(f"{self.pattern!r} needs more than {MAX_STATES} states: use smaller repeat counts")
        self._states.append((accepts, holds, then))
        return len(self._states) - 1

    def _build(self, node: RegexNode, then: int, flags: int) -> int:
        """The state before `node`, where `then` follows."""
        if what := irregular(node):
            raise ConstraintError(f"{self.pattern!r} holds {what}, which needs a backtracking engine")
        match node:
            case Concatenation(parts):
                for part in reversed(parts):
                    then = self._build(part, then, flags)
                return then
            case Alternation(branches):
                return self._new(None, None, [self._build(branch, then, flags) for branch in branches])
            case RegexGroup(body, added, removed):
                return self._build(body, then, (flags | added) & ~removed)
            case Repetition(body, low, high):
                return self._repeat(body, low, high, then, flags)
            case Anchor(kind):
                return self._new(None, _place_test(kind, flags), [then])
            case Dot():
                return self._new(_any_character if flags & re.DOTALL else _no_line_end, None, [then])
            case Character():
                return self._new(_character_test(node, flags), None, [then])
        raise TypeError(f"not a part of a regular expression: {node!r}")

    def _repeat(self, body: RegexNode, low: int, high: int | None, then: int, flags: int) -> int:
        if high is None:
            following: list[int] = [then]
            start = self._new(None, None, following)
            following.append(self._build(body, start, flags))
        else:
            start = then
            for _ in range(high - low):
                start = self._new(None, None, [then, self._build(body, start, flags)])
        for _ in range(low):
            before, start = start, self._build(body, start, flags)
            if start == before:  # a billion times nothing is nothing
                break
        return start


def _any_character(c: str) -> bool:
    return True


def _no_line_end(c: str) -> bool:
    return c != "\n"


def _character_test(node: Character, flags: int) -> CharacterTest:
    members, negated = [_member_test(member, flags) for member in node.members], node.negated
    if flags & re.IGNORECASE:

        def accepts(c: str) -> bool:
            forms = {c, c.lower(), c.upper()}
            return any(member(form) for form in forms if len(form) == 1 for member in members) != negated
    else:

        def accepts(c: str) -> bool:
            return any(member(c) for member in members) != negated

    return accepts


_CLASS_TESTS: dict[str, CharacterTest] = {
    "digit": str.isdecimal,
    "space": str.isspace,
    "word": lambda c: c.isalnum() or c == "_",
}


def _member_test(member: tuple[int, int] | CharacterClass, flags: int) -> CharacterTest:
    if not isinstance(member, CharacterClass):
        low, high = member
        return lambda c: low <= ord(c) <= high
    test, ascii_only, wanted = _CLASS_TESTS[member.name], bool(flags & re.ASCII), not member.negated
    return lambda c: (test(c) and (not ascii_only or c.isascii())) == wanted


def _place_test(kind: AnchorKind, flags: int) -> PlaceTest:
    lines = bool(flags & re.MULTILINE)
    if kind == "start":
        return lambda text, at: at == 0 or (lines and text[at - 1] == "\n")
    if kind == "text start":
        return lambda text, at: at == 0
    if kind == "text end":
        return lambda text, at: at == len(text)
    if kind == "end":
        return lambda text, at: at == len(text) or (text[at] == "\n" and (lines or at == len(text) - 1))
    word = _member_test(CharacterClass("word", negated=False), flags)
    at_edge = kind == "boundary"

    def boundary(text: str, at: int) -> bool:
        before, after = at > 0 and word(text[at - 1]), at < len(text) and word(text[at])
        return bool(text) and (before != after) == at_edge

    return boundary
