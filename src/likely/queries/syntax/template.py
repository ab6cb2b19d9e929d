"""Prompt strings: text, {values} and [HOLES], with [[ ]] {{ }} for the characters themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"\s*(?:@([A-Za-z_][\w.]*)\s+)?([A-Za-z_]\w*)\s*")
_CLOSES = {"(": ")", "[": "]", "{": "}"}


class TemplateError(ValueError):
    """Wrong at character `at` of the string."""

    def __init__(self, message: str, at: int):
        super().__init__(message)
        self.at = at


@dataclass(frozen=True)
class LiteralText:
    text: str


@dataclass(frozen=True)
class Value:
    """A Python expression, at character `at`."""

    expression: str
    at: int


@dataclass(frozen=True)
class HoleAt:
    """[NAME], [NAME: tactic] or [@decorator NAME].

    tactic, decorator  Python expressions or "";  at: where the name stands
    """

    name: str
    tactic: str
    at: int
    decorator: str = ""


PromptPiece = LiteralText | Value | HoleAt


def pieces_of(template: str) -> list[PromptPiece]:
    """The pieces in order, neighbouring text joined.  TemplateError for a bracket that fits nothing."""
    found: list[PromptPiece] = []
    text: list[str] = []
    at = 0

    def flush() -> None:
        if text:
            found.append(LiteralText("".join(text)))
            text.clear()

    while at < len(template):
        c = template[at]
        if c in "[]{}" and template[at + 1 : at + 2] == c:
            text.append(c)
            at += 2
        elif c in "[{":
            end = _closing(template, at)
            inside = template[at + 1 : end]
            flush()
            found.append(_hole(inside, at) if c == "[" else _value(inside, at))
            at = end + 1
        elif c in "]}":
            raise TemplateError(f"{c} closes nothing: write {c}{c} for the character", at)
        else:
            text.append(c)
            at += 1
    flush()
    return found


def _closing(template: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`; brackets and quotes inside nest as in Python."""
    stack, at = [_CLOSES[template[start]]], start + 1
    while at < len(template):
        c = template[at]
        if c in "'\"":
            end = at + 1
            while end < len(template) and template[end] != c:
                end += 2 if template[end] == "\\" else 1
            at = end
        elif c in _CLOSES:
            stack.append(_CLOSES[c])
        elif c in ")]}" and c == stack[-1]:
            stack.pop()
            if not stack:
                return at
        at += 1
    opening = template[start]
    raise TemplateError(f"{opening} is never closed: write {opening}{opening} for the character", start)


def _hole(inside: str, at: int) -> HoleAt:
    name, colon, tactic = inside.partition(":")
    match = _NAME.fullmatch(name)
    if not match:
        raise TemplateError(f"[{inside[:40]}] is no hole: its name must be a Python name; write [[ for a bracket", at)
    if colon and not tactic.strip():
        raise TemplateError(f"[{inside[:40]}] has no type after the colon", at)
    return HoleAt(match[2], tactic.strip(), at + 1 + match.start(2), match[1] or "")


def _value(inside: str, at: int) -> Value:
    if not inside.strip():
        raise TemplateError("{} holds no expression: write {{ for a brace", at)
    return Value(inside.strip(), at + 1)
