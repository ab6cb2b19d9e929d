"""Regular expressions as trees: Python's parser reads a pattern once, everything else works on types of our own.

On them stand the search in linear time (`linear_regex`), the byte automaton of constraints and the check of JSON
Schema's patterns.  Only this module knows the parser of `re`, which is private to it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Literal

from likely.errors import ConstraintError

MAX_PATTERN = 2_000_000  # characters
MAX_DEPTH = 100  # of groups and repeats within each other

AnchorKind = Literal["start", "text start", "end", "text end", "boundary", "no boundary"]


@dataclass(frozen=True)
class CharacterClass:
    """One of \\d, \\s, \\w, or one of the others (negated)."""

    name: Literal["digit", "space", "word"]
    negated: bool


@dataclass(frozen=True)
class Character:
    """One character: of these ranges of code points (both ends included) and classes, or none of them (negated)."""

    members: tuple[tuple[int, int] | CharacterClass, ...]
    negated: bool = False


@dataclass(frozen=True)
class Dot:
    """Any character; without the flag s all but the line end."""


@dataclass(frozen=True)
class Concatenation:
    """One after the other."""

    parts: tuple[RegexNode, ...]


@dataclass(frozen=True)
class Alternation:
    """One of them."""

    branches: tuple[RegexNode, ...]


@dataclass(frozen=True)
class Repetition:
    """`low` to `high` times, None: without a bound."""

    body: RegexNode
    low: int
    high: int | None
    mode: Literal["greedy", "lazy", "possessive"] = "greedy"


@dataclass(frozen=True)
class RegexGroup:
    """A group, capturing or with flags of its own."""

    body: RegexNode
    flags_added: int = 0
    flags_removed: int = 0


@dataclass(frozen=True)
class Anchor:
    """A place between characters: ^ and \\A, $ and \\Z, \\b and \\B."""

    kind: AnchorKind


@dataclass(frozen=True)
class Irregular:
    """What no finite automaton expresses.  body: inside lookahead, lookbehind and atomic groups."""

    what: str
    body: RegexNode | None = None


RegexNode = Character | Dot | Concatenation | Alternation | Repetition | RegexGroup | Anchor | Irregular


@dataclass(frozen=True)
class RegularExpression:
    """flags: those of the whole pattern, as in `re`"""

    pattern: str
    root: Concatenation
    flags: int


def parse_regex(pattern: str, *, longest: int = MAX_PATTERN) -> RegularExpression:
    """The tree of a pattern in Python's syntax; ConstraintError for what is none, too long or nested too deeply."""
    if len(pattern) > longest:
        raise ConstraintError(f"the pattern has {len(pattern)} characters, at most {longest} are taken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = _parser.parse(pattern)
        return RegularExpression(pattern, _concatenation(parsed, MAX_DEPTH), parsed.state.flags)
    except (re.error, OverflowError) as error:
        raise ConstraintError(f"{pattern!r} is not a regular expression: {error}") from None
    except RecursionError:
        raise ConstraintError(f"the pattern is nested too deeply: {pattern[:40]}...") from None


def _concatenation(items: Iterable[Any], depth: int) -> Concatenation:
    if depth < 0:
        raise RecursionError
    return Concatenation(tuple(_node(kind, value, depth - 1) for kind, value in items))


_ANCHORS: dict[Any, AnchorKind] = {
    sre.AT_BEGINNING: "start",
    sre.AT_BEGINNING_STRING: "text start",
    sre.AT_END: "end",
    sre.AT_END_STRING: "text end",
    sre.AT_BOUNDARY: "boundary",
    sre.AT_NON_BOUNDARY: "no boundary",
}
_MODES: dict[Any, Literal["greedy", "lazy", "possessive"]] = {
    sre.MAX_REPEAT: "greedy",
    sre.MIN_REPEAT: "lazy",
    sre.POSSESSIVE_REPEAT: "possessive",
}


def _node(kind: Any, value: Any, depth: int) -> RegexNode:
    if kind is sre.LITERAL:
        return Character(((value, value),))
    if kind is sre.NOT_LITERAL:
        return Character(((value, value),), negated=True)
    if kind is sre.IN:
        negated = bool(value) and value[0][0] is sre.NEGATE
        return Character(tuple(_member(k, v) for k, v in value if k is not sre.NEGATE), negated)
    if kind is sre.ANY:
        return Dot()
    if kind is sre.AT:
        return Anchor(_ANCHORS[value])
    if kind is sre.BRANCH:
        return Alternation(tuple(_concatenation(branch, depth) for branch in value[1]))
    if kind is sre.SUBPATTERN:
        _, added, removed, body = value
        return RegexGroup(_concatenation(body, depth), added, removed)
    if kind in _MODES:
        low, high, body = value
        return Repetition(_concatenation(body, depth), low, None if high is sre.MAXREPEAT else high, _MODES[kind])
    if kind in (sre.ASSERT, sre.ASSERT_NOT):
        return Irregular("lookahead or lookbehind", _concatenation(value[1], depth))
    if kind is sre.ATOMIC_GROUP:
        return Irregular("an atomic group", _concatenation(value, depth))
    if kind is sre.FAILURE:  # (?!)
        return Irregular("lookahead or lookbehind", Concatenation(()))
    return Irregular("a conditional group" if kind is sre.GROUPREF_EXISTS else "a backreference")


def _member(kind: Any, value: Any) -> tuple[int, int] | CharacterClass:
    if kind is sre.LITERAL:
        return value, value
    if kind is sre.RANGE:
        return value
    *_, name = str(value).lower().split("_")
    return CharacterClass(name, negated="_NOT_" in str(value))  # type: ignore[arg-type]


def irregular(node: RegexNode) -> str | None:
    """What of a single node no automaton expresses, None: nothing."""
    if isinstance(node, Irregular):
        return node.what
    return "a possessive quantifier" if isinstance(node, Repetition) and node.mode == "possessive" else None
