"""The parts of a regular expression, characters as sequences of byte ranges in UTF-8.

Python's parser reads the pattern; before, everything is refused that Rust's regex crate would read otherwise.  Classes
such as \\w hold the characters of the Unicode version that this Python knows.
"""

from __future__ import annotations

import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from likely.errors import ConstraintError

ByteRange = tuple[int, int]  # lowest and highest byte
Points = tuple[tuple[int, int], ...]  # ranges of code points, ascending, apart
_ALL: Points = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # surrogates are no characters
_SPACE: Points = (
    (9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_COUNT = re.compile(r"\{\d+(,\d*)?\}")


@dataclass(frozen=True)
class Row:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """One of them."""

    branches: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`low` to `high` times; None: any number."""

    body: Node
    low: int
    high: int | None


@dataclass(frozen=True)
class Character:
    """One character: any of these sequences of byte ranges."""

    sequences: tuple[tuple[ByteRange, ...], ...]


Node = Row | Choice | Repeat | Character


def parse_regex(pattern: str) -> Node:
    """The parts of a pattern that a whole text must match; ConstraintError for what is not supported."""
    refuse_differences(pattern)
    body = pattern.removeprefix("^")
    if body.endswith("$") and not _odd_backslashes(body[:-1]):
        body = body[:-1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parsed = _parser.parse(body)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise ConstraintError(f"{pattern!r} is not a regular expression: {error}") from None
    if body != pattern and "|" in _outside_groups(pattern):
        raise _refused(pattern, "an anchor beside |: put the alternatives in a group")
    flags = parsed.state.flags & ~re.UNICODE
    if flags & ~re.DOTALL:
        raise _refused(pattern, "a flag other than s")
    return _row(parsed, pattern, flags)


def refuse_differences(pattern: str) -> None:
    """ConstraintError for what Python and Rust read differently, or only one of them knows."""
    outside = _ESCAPE.sub("..", pattern)
    for match in _ESCAPE.finditer(pattern):
        c = match[1]
        if (c.isalnum() and c not in "dDwWsSnrtfvaxuU") or c in "<>" or not c.isascii():
            raise _refused(pattern, f"\\{c}")
    for match in _CLASS.finditer(pattern):
        inside = _ESCAPE.sub("..", match[0])[1:-1]
        if "[" in inside or any(twice in inside for twice in ("&&", "--", "~~")):
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


def _row(items: Iterable[Any], pattern: str, flags: int) -> Row:
    return Row(tuple(_node(kind, value, pattern, flags) for kind, value in items))


def _node(kind: Any, value: Any, pattern: str, flags: int) -> Node:
    if kind is sre.BRANCH:
        return Choice(tuple(_row(branch, pattern, flags) for branch in value[1]))
    if kind is sre.SUBPATTERN:
        _, added, removed, body = value
        if (added | removed) & ~re.DOTALL:
            raise _refused(pattern, "a flag other than s")
        return _row(body, pattern, (flags | added) & ~removed)
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        low, high, body = value
        return Repeat(_row(body, pattern, flags), low, None if high is sre.MAXREPEAT else high)
    if kind is sre.ANY:
        return Character(_utf8(_ALL if flags & re.DOTALL else _complement(((10, 10),))))
    if kind is sre.NOT_LITERAL:
        return Character(_utf8(_complement(((value, value),))))
    if kind is sre.LITERAL:
        return Character(_utf8(((value, value),)))
    if kind is sre.IN:
        negated = bool(value) and value[0][0] is sre.NEGATE
        points = _union(p for k, v in value if k is not sre.NEGATE for p in _member(k, v))
        return Character(_utf8(_complement(points) if negated else points))
    names = {sre.AT: "an anchor or word boundary inside", sre.GROUPREF: "a backreference"}
    raise _refused(pattern, names.get(kind, str(kind).lower().replace("_", " ")))


def _member(kind: Any, value: Any) -> Points:
    if kind is sre.LITERAL:
        return ((value, value),)
    if kind is sre.RANGE:
        return (value,)
    name = str(value)
    family = name.rsplit("_", 1)[1]
    points = _SPACE if family == "SPACE" else _digits() if family == "DIGIT" else _words()
    return _complement(points) if "_NOT_" in name else points


@cache
def _digits() -> Points:
    return _where(lambda c: unicodedata.category(c) == "Nd")


@cache
def _words() -> Points:
    """Alphabetic, marks, decimal digits, connectors and joiners, as Unicode's annex 18 defines \\w."""
    circled = {chr(c) for a, b in ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))
               for c in range(a, b + 1)}  # fmt: skip
    kinds = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"}
    return _where(lambda c: unicodedata.category(c) in kinds or c in circled or c in "\u200c\u200d")


def _where(holds: Callable[[str], bool]) -> Points:
    return _union((c, c) for c in range(sys.maxunicode + 1) if holds(chr(c)))


def _union(ranges: Iterable[tuple[int, int]]) -> Points:
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


def _complement(points: Points) -> Points:
    out, at = [], 0
    for low, high in (*points, (sys.maxunicode + 1, 0)):
        if at < low:
            out.append((at, low - 1))
        at = high + 1
    return tuple(out)


@cache
def _utf8(points: Points) -> tuple[tuple[ByteRange, ...], ...]:
    """The ranges of code points as sequences of byte ranges."""
    out: list[tuple[ByteRange, ...]] = []
    for low, high in points:
        for start, end in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)):
            a, b = max(low, start), min(high, end)
            if a <= b:
                out += _split(chr(a).encode(), chr(b).encode())
    return tuple(out)


def _split(low: bytes, high: bytes) -> list[tuple[ByteRange, ...]]:
    """All byte strings of one length from `low` to `high` whose later bytes are continuation bytes."""
    if len(low) == 1:
        return [((low[0], high[0]),)]
    if low[0] == high[0]:
        return [((low[0], low[0]), *rest) for rest in _split(low[1:], high[1:])]
    bottom, top = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
    first, last = low[0], high[0]
    out: list[tuple[ByteRange, ...]] = []
    if low[1:] != bottom:
        out += [((first, first), *rest) for rest in _split(low[1:], top)]
        first += 1
    if high[1:] != top:
        last -= 1
    if first <= last:
        out.append(((first, last), *(((0x80, 0xBF),) * len(bottom))))
    if high[1:] != top:
        out += [((high[0], high[0]), *rest) for rest in _split(bottom, high[1:])]
    return out
