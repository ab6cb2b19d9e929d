"""Sets of characters as ranges of code points, and as byte ranges of UTF-8.

Classes such as \\w hold the characters of the Unicode version that this Python knows.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache

from likely.io.regular_expression import Character, CharacterClass

ByteRange = tuple[int, int]  # lowest and highest byte
CodePoints = tuple[tuple[int, int], ...]  # ranges of code points, ascending, apart
ALL: CodePoints = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # surrogates are no characters
_SPACE: CodePoints = (
    (9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip


def code_points(node: Character) -> CodePoints:
    """The characters that a part of a pattern stands for."""
    points = union(p for m in node.members for p in (_class(m) if isinstance(m, CharacterClass) else (m,)))
    return complement(points) if node.negated else points


def _class(member: CharacterClass) -> CodePoints:
    points = _SPACE if member.name == "space" else _digits() if member.name == "digit" else _words()
    return complement(points) if member.negated else points


@cache
def _digits() -> CodePoints:
    return where(lambda c: unicodedata.category(c) == "Nd")


@cache
def _words() -> CodePoints:
    """Alphabetic, marks, decimal digits, connectors and joiners, as Unicode's annex 18 defines \\w."""
    circled = {chr(c) for a, b in ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))
               for c in range(a, b + 1)}  # fmt: skip
    kinds = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"}
    return where(lambda c: unicodedata.category(c) in kinds or c in circled or c in "\u200c\u200d")


def where(holds: Callable[[str], bool]) -> CodePoints:
    return union((c, c) for c in range(sys.maxunicode + 1) if holds(chr(c)))


def union(ranges: Iterable[tuple[int, int]]) -> CodePoints:
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


def complement(points: CodePoints) -> CodePoints:
    out, at = [], 0
    for low, high in (*points, (sys.maxunicode + 1, 0)):
        if at < low:
            out.append((at, low - 1))
        at = high + 1
    return tuple(out)


@cache
def utf8(points: CodePoints) -> tuple[tuple[ByteRange, ...], ...]:
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
