"""Regular expressions of schemas (ECMA-262) in the words of the engines and of Python, with one meaning everywhere.

A pattern may occur anywhere in a string unless it is anchored; \\d, \\w are ASCII, \\s is ECMA's white space and `.`
leaves out line ends.  Every such class is written out, so that no engine's own idea of it matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from likely.errors import ConstraintError
from likely.io.linear_regex import LinearRegex

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
        raise PatternError(f"{_short(pattern)} is not a regular expression: {error}", wrong=True) from None
    return text


def _escape(pattern: str, at: int, inside: bool) -> tuple[str, int]:
    """(what stands for the escape whose character is at `at`, where to go on)"""
    char = pattern[at : at + 1]
    if not char:
        raise PatternError(f"{_short(pattern)} is not a regular expression: it ends in a backslash", wrong=True)
    if char in _CLASSES:
        return (_CLASSES[char] if inside else f"[{_CLASSES[char]}]"), at + 1
    if char == "u":
        found = re.compile(r"u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}").match(pattern, at)
        if not found:
            raise PatternError(f"{_short(pattern)} is not a regular expression: \\u needs four digits", wrong=True)
        return _literal(int(found[1] or found[2], 16)), found.end()
    if char == "U" and (found := re.compile(r"U([0-9a-fA-F]{8})").match(pattern, at)):  # our own, not ECMA's
        return _literal(int(found[1], 16)), found.end()
    if char == "x" and (found := re.compile(r"x([0-9a-fA-F]{2})").match(pattern, at)):
        return _literal(int(found[1], 16)), found.end()
    if char == "c" and pattern[at + 1 : at + 2].isascii() and pattern[at + 1 : at + 2].isalpha():
        return _literal(ord(pattern[at + 1]) % 32), at + 2
    if char in "pP":
        raise PatternError(f"{_short(pattern)} holds \\{char}, which cannot be checked")
    if char in "tnvfr":
        return "\\" + char, at + 1
    if char == "b" and inside:
        return r"\x08", at + 1
    if char == "0":
        return r"\x00", at + 1
    if char in "bBk" or char.isdigit():
        return "\\" + char, at + 1
    if char.isalpha():
        raise PatternError(f"{_short(pattern)} is not a regular expression: bad escape \\{char}", wrong=True)
    return _literal(ord(char)), at + 1


def _literal(code: int) -> str:
    if code > 0x10FFFF:
        raise PatternError(f"there is no character U+{code:X}", wrong=True)
    char = chr(code)
    if char.isascii() and char.isprintable():
        return char if char.isalnum() or char in " _" else "\\" + char
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")


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
        return _long_repeats(_parser.parse(python), within=False) <= 2
    except _Slow:
        return False


class _Slow(Exception):
    pass


def _long_repeats(items: Any, within: bool) -> int:
    count = 0
    for kind, value in items:
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            _, high, body = value
            if high <= 1:
                count += _long_repeats(body, within)
            elif within or not _is_single(body):
                raise _Slow
            else:
                count += int(high > _LONG)
        elif kind is sre.BRANCH:
            count += max(_long_repeats(branch, within) for branch in value[1])
        elif kind is sre.SUBPATTERN:
            count += _long_repeats(value[3], within)
        elif kind in (sre.ASSERT, sre.ASSERT_NOT):
            if _long_repeats(value[1], within) > 2:
                raise _Slow
        elif kind is sre.ATOMIC_GROUP:
            count += _long_repeats(value, within)
        elif kind in (sre.GROUPREF, sre.GROUPREF_EXISTS):
            raise _Slow
    return count


def _is_single(body: Any) -> bool:
    """One character, perhaps in a group."""
    return len(body) == 1 and (
        body[0][0] in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY)
        or (body[0][0] is sre.SUBPATTERN and _is_single(body[0][1][3]))
    )


# --- what engines can do ----------------------------------------------------------------------------------------------


def look_around(pattern: str) -> str | None:
    """What of a pattern an automaton without lookaround cannot express; None: nothing."""
    return _look_around(_parser.parse(rewrite(pattern)), True, True)


_BEYOND = {
    sre.GROUPREF: "a backreference",
    sre.GROUPREF_EXISTS: "a conditional group",
    sre.ASSERT: "lookahead or lookbehind",
    sre.ASSERT_NOT: "lookahead or lookbehind",
    sre.ATOMIC_GROUP: "an atomic group",
    sre.POSSESSIVE_REPEAT: "a possessive quantifier",
}


def _look_around(items: Any, first: bool, last: bool) -> str | None:
    items = list(items)
    for i, (kind, value) in enumerate(items):
        starts, ends = first and i == 0, last and i == len(items) - 1
        found = _BEYOND.get(kind)
        if kind is sre.AT:
            at_edge = (starts and value is sre.AT_BEGINNING) or (ends and value is sre.AT_END)
            if value in (sre.AT_BOUNDARY, sre.AT_NON_BOUNDARY):
                found = "a word boundary"
            elif not at_edge:
                found = "an anchor in its middle"
        elif kind is sre.BRANCH:
            found = next(filter(None, (_look_around(branch, starts, ends) for branch in value[1])), None)
        elif kind is sre.SUBPATTERN:
            found = "a flag" if value[1] or value[2] else _look_around(value[3], starts, ends)
        elif kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            found = _look_around(value[2], False, False)
        if found:
            return found
    return None


def plain_body(pattern: str) -> str | None:
    """The inside of ^...$ if the whole is made of printable ASCII that JSON writes as itself; else None."""
    parsed = list(_parser.parse(rewrite(pattern)))
    if len(parsed) < 2 or parsed[0] != (sre.AT, sre.AT_BEGINNING) or parsed[-1] != (sre.AT, sre.AT_END):
        return None
    return rewrite(pattern)[1:-1] if _is_plain(parsed[1:-1]) else None


def _is_plain(items: Any) -> bool:
    for kind, value in items:
        if kind is sre.LITERAL:
            good = _plain_range(value, value)
        elif kind is sre.IN:
            good = all(
                (k is sre.LITERAL and _plain_range(v, v)) or (k is sre.RANGE and _plain_range(*v)) for k, v in value
            )
        elif kind is sre.BRANCH:
            good = all(map(_is_plain, value[1]))
        elif kind is sre.SUBPATTERN:
            good = not value[1] and not value[2] and _is_plain(value[3])
        elif kind is sre.MAX_REPEAT:
            good = _is_plain(value[2])
        else:
            good = False
        if not good:
            return False
    return True


def _plain_range(low: int, high: int) -> bool:
    return low >= 0x20 and high < 0x7F and not any(low <= ord(c) <= high for c in '"\\')
