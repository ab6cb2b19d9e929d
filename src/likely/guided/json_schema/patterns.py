"""Regular expressions of schemas (ECMA-262) in the words of the engines and of Python, with one meaning everywhere.

A pattern may occur anywhere in a string unless it is anchored; \\d, \\w are ASCII, \\s is ECMA's white space and `.`
leaves out line ends.  Every such class is written out, so that no engine's own idea of it matters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from likely.errors import ConstraintError, shortened
from likely.guided.engines.code_points import complement, where
from likely.io.linear_regex import LinearRegex
from likely.io.regular_expression import (
    Alternation,
    Anchor,
    Character,
    Concatenation,
    Dot,
    Irregular,
    RegexGroup,
    RegexNode,
    Repetition,
    irregular,
    parse_regex,
)

_SPACE = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_NOT_SPACE = (
    r"\x00-\x08\x0e-\x1f!-\u009f\u00a1-\u167f\u1681-\u1fff\u200b-\u2027\u202a-\u202e\u2030-\u205e\u2060-\u2fff"
    r"\u3001-\ufefe\uff00-\U0010ffff"
)
_CLASSES = {
    "d": "0-9", "D": r"\x00-/:-\U0010ffff", "w": "0-9A-Za-z_", "W": r"\x00-/:-@\[-\^`{-\U0010ffff",
    "s": _SPACE, "S": _NOT_SPACE,
}  # fmt: skip
_ANY = r"[^\n\r\u2028\u2029]"
_LONG = 8  # repeats of more than this many may be slow to go back over


class PatternError(ValueError):
    """A pattern that cannot be used; `wrong`: it is no regular expression at all."""

    def __init__(self, reason: str, *, wrong: bool = False):
        super().__init__(reason)
        self.wrong = wrong


@lru_cache(maxsize=1024)
def rewrite(pattern: str) -> str:
    """The pattern with its classes written out, as both Python and Rust read it ($ still means the end)."""
    out, at, inside = [], 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            piece, at = _escape(pattern, at + 1, inside)
            out.append(piece)
            continue
        if char == "[" and not inside:
            inside = True
            at += 1
            if pattern[at : at + 1] == "^":
                char, at = "[^", at + 1
            if pattern[at : at + 1] == "]":
                raise PatternError("an empty class [] is not supported")
            out.append(char)
            continue
        if char == "]" and inside:
            inside = False
        elif inside and char in "[&~-|" and (char == "[" or pattern[at : at + 2] == char * 2):
            char = "\\" + char  # engines differ on these inside a class
        elif char == "." and not inside:
            char = _ANY
        elif char == "(" and pattern[at : at + 3] == "(?<" and pattern[at + 3 : at + 4] not in ("=", "!"):
            char, at = "(?P<", at + 2
        out.append(char)
        at += 1
    text = "".join(out)
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternError(f"{shortened(pattern)!r} is not a regular expression: {error}", wrong=True) from None
    return text


def _escape(pattern: str, at: int, inside: bool) -> tuple[str, int]:
    """(what stands for the escape whose character is at `at`, where to go on)"""
    char = pattern[at : at + 1]
    if not char:
        raise PatternError(f"{shortened(pattern)!r} is not a regular expression: it ends in a backslash", wrong=True)
    if char in _CLASSES:
        return (_CLASSES[char] if inside else f"[{_CLASSES[char]}]"), at + 1
    if char == "u":
        found = re.compile(r"u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}").match(pattern, at)
        if not found:
            raise PatternError(f"{shortened(pattern)!r} is not a regular expression: \\u needs four digits", wrong=True)
        return _literal(int(found[1] or found[2], 16)), found.end()
    if char == "U" and (found := re.compile(r"U([0-9a-fA-F]{8})").match(pattern, at)):  # our own, not ECMA's
        return _literal(int(found[1], 16)), found.end()
    if char == "x" and (found := re.compile(r"x([0-9a-fA-F]{2})").match(pattern, at)):
        return _literal(int(found[1], 16)), found.end()
    if char == "c" and pattern[at + 1 : at + 2].isascii() and pattern[at + 1 : at + 2].isalpha():
        return _literal(ord(pattern[at + 1]) % 32), at + 2
    if char in "pP":
        found = re.compile(r"[pP]\{([A-Z][a-z]?)\}").match(pattern, at)
        if not found or not (members := _of_category(found[1], negated=char == "P")):
            raise PatternError(
                f"{shortened(pattern)!r} holds \\{char}; of these only general categories (L, Nd) are taken"
            )
        return (members if inside else f"[{members}]"), found.end()
    if char in "tnvfr":
        return "\\" + char, at + 1
    if char == "b" and inside:
        return r"\x08", at + 1
    if char == "0":
        return r"\x00", at + 1
    if char in "bBk" or char.isdigit():
        return "\\" + char, at + 1
    if char.isalpha():
        raise PatternError(f"{shortened(pattern)!r} is not a regular expression: bad escape \\{char}", wrong=True)
    return _literal(ord(char)), at + 1


@lru_cache(maxsize=64)
def _of_category(name: str, *, negated: bool) -> str:
    """The characters of a general category of Unicode, as a class holds them; "" for a name that is none."""
    points = where(lambda char: unicodedata.category(char).startswith(name))
    if not points:
        return ""
    return "".join(f"{_literal(low)}-{_literal(high)}" for low, high in (complement(points) if negated else points))


def _literal(code: int) -> str:
    if code > 0x10FFFF:
        raise PatternError(f"there is no character U+{code:X}", wrong=True)
    char = chr(code)
    if char.isascii() and char.isprintable():
        return char if char.isalnum() or char in " _" else "\\" + char
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


# --- checking strings -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def searcher(pattern: str) -> Callable[[str], bool]:
    """Whether the pattern occurs in a string, in bounded time.  PatternError where that cannot be promised."""
    python = python_pattern(pattern)
    compiled = re.compile(python)
    if is_quick(python):
        return lambda text: compiled.search(text) is not None
    try:
        return LinearRegex(python).search
    except ConstraintError as error:
        raise PatternError(f"checking it could take very long: {error}") from None


def python_pattern(pattern: str) -> str:
    """For Python's `re`: $ is the very end."""
    text = rewrite(pattern)
    return re.sub(r"(\\.|\[(?:\\.|[^\]\\])*\])|\$", lambda m: m.group(1) or r"\Z", text, flags=re.DOTALL)


def is_quick(python: str) -> bool:
    """Whether backtracking stays short: no repeat within a repeat, and at most two long ones after each other."""
    try:
        return _long_repeats(parse_regex(python).root, within=False) <= 2
    except (_SlowPattern, ConstraintError):
        return False


class _SlowPattern(Exception):
    pass


def _long_repeats(node: RegexNode, within: bool) -> int:
    """How many repeats without a small bound may follow each other."""
    match node:
        case Concatenation(parts):
            return sum(_long_repeats(part, within) for part in parts)
        case Alternation(branches):
            return max(_long_repeats(branch, within) for branch in branches)
        case RegexGroup(body):
            return _long_repeats(body, within)
        case Repetition(body, _, high):
            if high is not None and high <= 1:
                return _long_repeats(body, within)
            if within or not _is_single(body):
                raise _SlowPattern
            return int(high is None or high > _LONG)
        case Irregular(what, body):
            if body is None or _long_repeats(body, within) > 2:
                raise _SlowPattern
            return _long_repeats(body, within) if what == "an atomic group" else 0
    return 0


def _is_single(node: RegexNode) -> bool:
    """One character, perhaps in a group."""
    match node:
        case Concatenation((part,)) | RegexGroup(part):
            return _is_single(part)
    return isinstance(node, Character | Dot)


# --- what engines can do ----------------------------------------------------------------------------------------------


def look_around(pattern: str) -> str | None:
    """What of a pattern an automaton without lookaround cannot express; None: nothing."""
    try:
        return _beyond(parse_regex(rewrite(pattern)).root, True, True)
    except ConstraintError:
        return "groups that are nested too deeply"


def _beyond(node: RegexNode, first: bool, last: bool) -> str | None:
    """first, last  whether nothing stands before and after the node"""
    if what := irregular(node):
        return what
    match node:
        case Concatenation(parts):
            end = len(parts) - 1
            found = (_beyond(part, first and i == 0, last and i == end) for i, part in enumerate(parts))
            return next(filter(None, found), None)
        case Alternation(branches):
            return next(filter(None, (_beyond(branch, first, last) for branch in branches)), None)
        case RegexGroup(body, added, removed):
            return "a flag" if added or removed else _beyond(body, first, last)
        case Repetition(body):
            return _beyond(body, False, False)
        case Anchor("boundary" | "no boundary"):
            return "a word boundary"
        case Anchor(place) if not ((first and place == "start") or (last and place == "end")):
            return "an anchor in its middle"
    return None
