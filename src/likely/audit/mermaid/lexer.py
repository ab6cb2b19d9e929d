"""Tokens of a sequence diagram, as the lexer of Mermaid 11 cuts them.

Its rules are tried in order and the first that matches counts, whatever the others would match; most keywords switch
to a mode with rules of its own for the rest of the line.  Where the grammar of the documentation and that lexer differ
(an "end" inside a name, a number before an arrow), the lexer is followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from likely.audit.mermaid.diagram import ARROWS
from likely.errors import DataError


class MermaidSyntaxError(DataError):
    """A text that is no sequence diagram: line and column (from 1), and what was expected there."""

    def __init__(self, message: str, line: int, column: int, expected: str = ""):
        super().__init__(f"line {line}, column {column}: {message}{f' (expected {expected})' if expected else ''}")
        self.line, self.column, self.expected = line, column, expected


@dataclass(frozen=True)
class DiagramToken:
    """kind: "newline", "name", "rest", "text", "arrow", "number", "invalid", "end of text", a keyword or a mark."""

    kind: str
    text: str
    start: int


ENTITY_OPEN, ENTITY_CLOSE = "\ue000", "\ue001"  # stand for "#" and ";" of an entity such as "#9829;"
_NAME_WORDS = ("participant", "actor", "destroy", "activate", "deactivate")
_LINE_WORDS = ("box", "loop", "rect", "opt", "alt", "else", "par_over", "par", "and", "critical", "option", "break")
_PLAIN_WORDS = (
    "create", "end", "left of", "right of", "links", "link", "properties", "details", "over", "note",
)  # fmt: skip
_I = re.IGNORECASE
_NEWLINES, _BLANKS, _SAME_LINE = re.compile(r"\n+"), re.compile(r"\s+"), re.compile(r"[^\S\n]+")
_COMMENTS = tuple(re.compile(pattern) for pattern in (r"#[^\n]*", r"%(?!\{)[^\n]*", r"[^}]%%[^\n]*"))
_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]{1,2})?|\.[0-9]{1,2})(?=[ \n])")
_WORD = re.compile(
    rf"(?P<name>{'|'.join(_NAME_WORDS)})\b|(?P<line>{'|'.join(_LINE_WORDS)})\b|(?P<plain>{'|'.join(_PLAIN_WORDS)})\b",
    _I,
)
_TITLE = re.compile(r"(title:?)\s([^#\n;]+)", _I)
_ACC = re.compile(r"(accTitle|accDescr)\s*:\s*([^\n]*)", _I)
_ACC_BLOCK = re.compile(r"accDescr\s*\{\s*([^}]*)(\}?)", _I)
_HEADER_WORD = re.compile(r"(sequenceDiagram|autonumber|off)\b", _I)
_ARROW = re.compile("|".join(re.escape(arrow) for arrow in sorted(ARROWS, key=len, reverse=True)), _I)
_TEXT = re.compile(r":([^#\n;]*)")
_REST = re.compile(r"[^#\n;]*")
_NAME_BEFORE_CONFIG = re.compile(r"[^<>:\n,;@\s-]+(?=@\{)")
_NAME_BEFORE_AS = re.compile(r"[^<>:\n,;@\s]+(?=\s+as\s)", _I)
_ENDS_NAME = frozenset("<>:\n,;@")
_ENDS_ACTOR, _ENDS_PIECE = frozenset("/\\+()<>-:\n,;"), frozenset("+<>-:\n,;")
_STARTS_ARROW = re.compile(r"-x|--|-\)|-\|\\|-\\|-/|-\|/|/\|-|\\\|-|//-|\\\\-|\(\)", _I)


class SequenceLexer:
    """Iterates over the tokens of a text; the last one is "end of text"."""

    def __init__(self, text: str):
        self.text, self._at = text, 0
        self._mode = "statement"

    def error(self, message: str, start: int, expected: str = "") -> MermaidSyntaxError:
        start = min(start, len(self.text) - 1)  # the last line break was added
        line = self.text.count("\n", 0, start) + 1
        return MermaidSyntaxError(message, line, start - (self.text.rfind("\n", 0, start) + 1) + 1, expected)

    def __iter__(self) -> Iterator[DiagramToken]:
        modes = {
            "statement": self._statement, "name": self._name, "config": self._config, "alias": self._alias,
            "rest": self._rest,
        }  # fmt: skip
        while self._at < len(self.text):
            yield from modes[self._mode]()
        if self._mode == "rest":
            yield DiagramToken("rest", "", self._at)
        elif self._mode in ("statement", "alias"):
            yield DiagramToken("newline", "", self._at)
        yield DiagramToken("end of text", "", self._at)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self._at)
        if found is not None and found.end() > self._at:
            self._at = found.end()
            return found
        return None

    def _statement(self) -> Iterator[DiagramToken]:
        start = self._at
        if self._take(_NEWLINES):
            yield DiagramToken("newline", "\n", start)
        elif self._take(_BLANKS) or any(self._take(comment) for comment in _COMMENTS):
            return
        elif found := self._take(_NUMBER):
            yield DiagramToken("number", found[0], start)
        elif found := self._take(_WORD):
            self._mode = "name" if found["name"] else "rest" if found["line"] else "statement"
            yield DiagramToken(found[0].lower(), found[0], start)
        elif found := self._take(_TITLE) or self._take(_ACC):
            names = {"acctitle": "accTitle", "accdescr": "accDescr"}
            name = names.get(found[1].lower(), "title")
            yield DiagramToken("setting", f"{name} {found[2].strip()}", start)
        elif found := self._take(_ACC_BLOCK):
            yield DiagramToken("block setting", f"accDescr {found[1].strip()}", start)
        elif found := self._take(_HEADER_WORD):
            yield DiagramToken(found[0].lower(), found[0], start)
        elif self.text[start] in ",;":
            self._at += 1
            yield DiagramToken("newline" if self.text[start] == ";" else ",", self.text[start], start)
        elif end := self._actor_end():
            self._at = end
            yield DiagramToken("name", self.text[start:end].strip(), start)
        elif found := self._take(_ARROW):
            yield DiagramToken("arrow", found[0].lower(), start)
        elif found := self._take(_TEXT):
            yield DiagramToken("text", found[1].strip(), start)
        else:
            pair = self.text.startswith("()", start)
            self._at += 1 + pair
            kind = self.text[start : self._at]
            yield DiagramToken(kind if kind in ("+", "-", "()") else "invalid", kind, start)

    def _actor_end(self) -> int:
        """Where a name that begins here ends; 0: none begins here.  A "-" belongs to it unless it begins an arrow."""
        text, at = self.text, self._at
        while at < len(text) and text[at] not in _ENDS_ACTOR:
            at += 1
        if at == self._at:
            return 0
        while at < len(text) and not _STARTS_ARROW.match(text, at):
            piece = at
            while piece < len(text) and text[piece] == "-":
                piece += 1
            end = piece
            while end < len(text) and text[end] not in _ENDS_PIECE:
                end += 1
            if end == piece:
                break
            at = end
        return at

    def _name(self) -> Iterator[DiagramToken]:
        start = self._at
        if self._take(_SAME_LINE) or self._take(_COMMENTS[0]):
            return
        if self.text.startswith("@{", start):
            self._at, self._mode = start + 2, "config"
            yield DiagramToken("@{", "@{", start)
        elif found := self._take(_NAME_BEFORE_CONFIG):
            yield DiagramToken("name", found[0].strip(), start)
        elif found := self._take(_NAME_BEFORE_AS):
            self._mode = "alias"
            yield DiagramToken("name", found[0].strip(), start)
        elif end := self._name_end():
            self._at, self._mode = end, "statement"
            yield DiagramToken("name", self.text[start:end].strip(), start)
        else:
            line = self.text.find("\n", start)
            if line == start:
                raise self.error("the name is missing", start, "the name of a participant")
            self._at, self._mode = (len(self.text) if line < 0 else line), "statement"
            yield DiagramToken("invalid", self.text[start : self._at], start)

    def _name_end(self) -> int:
        end = self._at
        while end < len(self.text) and self.text[end] not in _ENDS_NAME:
            end += 1
        if end == self._at:
            return 0
        if end == len(self.text) or self.text[end] in "\n;":
            return end
        comment = self.text.rfind("#", self._at + 1, end)
        return comment if comment > 0 else 0

    def _config(self) -> Iterator[DiagramToken]:
        start = self._at
        if self.text[start] == "}":
            self._at += 1
            self._mode = "alias" if re.compile(r"\s+as\s", _I).match(self.text, self._at) else "statement"
            yield DiagramToken("}", "}", start)
            return
        end = self.text.find("}", start)
        self._at = len(self.text) if end < 0 else end
        yield DiagramToken("config", self.text[start : self._at], start)

    def _alias(self) -> Iterator[DiagramToken]:
        start = self._at
        if self._take(_SAME_LINE) or self._take(_COMMENTS[0]):
            return
        if self._take(re.compile(r"as\b", _I)):
            self._mode = "rest"
            yield DiagramToken("as", "as", start)
        else:
            self._mode = "statement"
            yield DiagramToken("newline", "", start)

    def _rest(self) -> Iterator[DiagramToken]:
        start = self._at
        if self._take(_SAME_LINE) or self._take(_COMMENTS[0]):
            return
        found = self._take(_REST)
        self._mode = "statement"
        yield DiagramToken("rest", found[0].strip() if found else "", start)
