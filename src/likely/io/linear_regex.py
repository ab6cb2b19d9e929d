"""Search for a regular expression in time proportional to text × pattern, whatever both are.

Python's own engine backtracks: a pattern such as (a+)+b takes exponential time on an unlucky text, and it cannot be
stopped.  Here the pattern becomes an automaton whose states are followed all at once.  What that cannot express
(backreferences, lookahead and lookbehind, atomic groups) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from likely.errors import ConstraintError

MAX_PATTERN = 1000  # characters
MAX_STATES = 1000
MAX_TEXT = 20_000  # characters

Accepts = Callable[[str], bool]
Holds = Callable[[str, int], bool]  # (text, position)
MATCH = 0  # the number of the accepting state

_REFUSED = {
    sre.GROUPREF: "a backreference",
    sre.GROUPREF_EXISTS: "a conditional group",
    sre.ASSERT: "lookahead or lookbehind",
    sre.ASSERT_NOT: "lookahead or lookbehind",
    sre.ATOMIC_GROUP: "an atomic group",
    sre.POSSESSIVE_REPEAT: "a possessive quantifier",
}


class LinearRegex:
    """`search(text)`: whether the pattern occurs anywhere in the text, as `re.search` would say."""

    def __init__(self, pattern: str):
        if len(pattern) > MAX_PATTERN:
            raise ConstraintError(f"the pattern has {len(pattern)} characters, at most {MAX_PATTERN} are taken")
        self.pattern = pattern
        # one entry per state: (test of a character, test of a place, states that follow); tests None: always
        self._states: list[tuple[Accepts | None, Holds | None, list[int]]] = [(None, None, [])]
        try:
            parsed = _parser.parse(pattern)
            self._start = self._sequence(parsed, MATCH, parsed.state.flags)
        except (re.error, OverflowError) as error:
            raise ConstraintError(f"{pattern!r} is not a regular expression: {error}") from None
        except RecursionError:
            raise ConstraintError(f"the pattern is nested too deeply: {pattern[:40]}...") from None

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

    def _new(self, accepts: Accepts | None, holds: Holds | None, then: list[int]) -> int:
        if len(self._states) >= MAX_STATES:
            raise ConstraintError(f"{self.pattern!r} needs more than {MAX_STATES} states: use smaller repeat counts")
        self._states.append((accepts, holds, then))
        return len(self._states) - 1

    def _sequence(self, items: Any, then: int, flags: int) -> int:
        for kind, value in reversed(list(items)):
            then = self._node(kind, value, then, flags)
        return then

    def _node(self, kind: Any, value: Any, then: int, flags: int) -> int:
        if kind in _REFUSED:
            raise ConstraintError(f"{self.pattern!r} holds {_REFUSED[kind]}, which needs a backtracking engine")
        if kind is sre.BRANCH:
            return self._new(None, None, [self._sequence(branch, then, flags) for branch in value[1]])
        if kind is sre.SUBPATTERN:
            _, added, removed, body = value
            return self._sequence(body, then, (flags | added) & ~removed)
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            low, high, body = value
            return self._repeat(low, high, body, then, flags)
        if kind is sre.AT:
            return self._new(None, _place(value, flags), [then])
        return self._new(_character(kind, value, flags), None, [then])

    def _repeat(self, low: int, high: int, body: Any, then: int, flags: int) -> int:
        if high is sre.MAXREPEAT:
            following: list[int] = [then]
            start = self._new(None, None, following)
            following.append(self._sequence(body, start, flags))
        else:
            start = then
            for _ in range(high - low):
                start = self._new(None, None, [then, self._sequence(body, start, flags)])
        for _ in range(low):
            before, start = start, self._sequence(body, start, flags)
            if start == before:  # a billion times nothing is nothing
                break
        return start


def _character(kind: Any, value: Any, flags: int) -> Accepts:
    if kind is sre.ANY:
        return (lambda c: True) if flags & re.DOTALL else (lambda c: c != "\n")
    if kind is sre.NOT_LITERAL:
        kind, value = sre.IN, [(sre.NEGATE, None), (sre.LITERAL, value)]
    if kind is sre.LITERAL:
        kind, value = sre.IN, [(sre.LITERAL, value)]
    if kind is not sre.IN:
        raise ConstraintError(f"a pattern with {kind} is not supported")
    negated = bool(value) and value[0][0] is sre.NEGATE
    members = [_member(k, v, flags) for k, v in value if k is not sre.NEGATE]
    if flags & re.IGNORECASE:

        def accepts(c: str) -> bool:
            forms = {c, c.lower(), c.upper()}
            return any(member(form) for form in forms if len(form) == 1 for member in members) != negated
    else:

        def accepts(c: str) -> bool:
            return any(member(c) for member in members) != negated

    return accepts


def _member(kind: Any, value: Any, flags: int) -> Accepts:
    if kind is sre.LITERAL:
        return lambda c: ord(c) == value
    if kind is sre.RANGE:
        return lambda c: value[0] <= ord(c) <= value[1]
    name = str(value)
    plain = name.replace("_NOT_", "_")
    test = {"CATEGORY_DIGIT": str.isdecimal, "CATEGORY_SPACE": str.isspace, "CATEGORY_WORD": _is_word}[plain]
    ascii_only, wanted = bool(flags & re.ASCII), plain == name
    return lambda c: (test(c) and (not ascii_only or c.isascii())) == wanted


def _is_word(c: str) -> bool:
    return c.isalnum() or c == "_"


def _place(kind: Any, flags: int) -> Holds:
    lines = bool(flags & re.MULTILINE)
    if kind is sre.AT_BEGINNING:
        return lambda text, at: at == 0 or (lines and text[at - 1] == "\n")
    if kind is sre.AT_BEGINNING_STRING:
        return lambda text, at: at == 0
    if kind is sre.AT_END_STRING:
        return lambda text, at: at == len(text)
    if kind is sre.AT_END:
        return lambda text, at: at == len(text) or (text[at] == "\n" and (lines or at == len(text) - 1))
    word = _member(sre.CATEGORY, sre.CATEGORY_WORD, flags)
    at_edge = kind is sre.AT_BOUNDARY

    def boundary(text: str, at: int) -> bool:
        before, after = at > 0 and word(text[at - 1]), at < len(text) and word(text[at])
        return bool(text) and (before != after) == at_edge

    return boundary
