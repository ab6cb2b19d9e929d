"""Where a place in unfinished Python code is: in code, a string or a comment, inside which brackets, after which word.

Byte by byte, with states that can be kept and gone back to; bytes of characters beyond ASCII count as letters.
(parso's tokenizer holds its state in a generator: it would read the line anew for every byte of a token.)
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass, replace

VALUES = {b"True", b"False", b"None"}
KEYWORDS = frozenset(word.encode() for word in keyword.kwlist) - VALUES
NAME_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") | frozenset(range(128, 256))
DIGITS = frozenset(b"0123456789")
OPEN, CLOSE = {40: 41, 91: 93, 123: 125}, frozenset(b")]}")
QUOTES = frozenset(b"'\"")
STRING_PREFIXES = frozenset({b"r", b"b", b"u", b"f", b"t", b"br", b"rb", b"fr", b"rf", b"tr", b"rt"})
_NAME, _PLAIN = re.compile(rb"[A-Za-z0-9_\x80-\xff]+"), re.compile(rb"[^'\"\\\n{}]*")
FIELD, FORMAT = -1, -2  # inside {} of an f-string: its expression, its format specification


@dataclass(frozen=True, slots=True)
class Quote:
    """An open string: its quote byte, whether there are three, whether {} hold code, whether a backslash is plain."""

    byte: int
    triple: bool
    fields: bool


@dataclass(frozen=True, slots=True)
class Lexed:
    """The state after some bytes.

    frames    what is open, outermost first: closing brackets awaited (as bytes), FIELD, FORMAT, strings
    word      the name, keyword or number that ends here, b"" if none
    finished  the last whole word, if only blanks came since;  before: the word before `word` or `finished`
    value     the code so far ends with something that has members: a name, a closing bracket, a string
    member    the byte just read is the dot of a member access
    first     the first word of the logical line; None: none yet, b"": it begins with something else
    """

    frames: tuple[int | Quote, ...] = ()
    word: bytes = b""
    finished: bytes = b""
    before: bytes = b""
    value: bool = False
    member: bool = False
    first: bytes | None = None
    comment: bool = False
    escaped: bool = False
    opening: tuple[int, int, bytes] | None = None  # a quote whose number is not known yet: byte, how many, prefix
    run: int = 0  # closing quotes of a triple one so far
    brace: bool = False  # one { in an f-string: a field, or the first of {{

    @property
    def in_string(self) -> bool:
        return self.opening is not None or (
            bool(self.frames) and (isinstance(self.frames[-1], Quote) or self.frames[-1] == FORMAT)
        )

    @property
    def in_code(self) -> bool:
        return not self.comment and not self.in_string

    @property
    def imports(self) -> bool:
        return self.first in (b"import", b"from") or (
            self.first is None and (self.word or self.finished) in (b"import", b"from")
        )

    def feed(self, text: bytes) -> Lexed:
        """After these bytes; runs of one kind are taken at once."""
        state, at = self, 0
        while at < len(text):
            if state.comment:
                at = text.find(b"\n", at)
                if at < 0:
                    return state
            elif state.in_code and (run := _NAME.match(text, at)) and run.end() > at + 1:
                state = step(state, text[at])
                word = state.word + text[at + 1 : run.end()]
                state, at = replace(state, word=word, value=_has_members(word)), run.end()
                continue
            elif state.in_string and not (state.opening or state.run or state.escaped or state.brace):
                at = _PLAIN.match(text, at).end()  # type: ignore[union-attr]
                if at == len(text):
                    return state
            state = step(state, text[at])
            at += 1
        return state


START = Lexed()


def is_number(word: bytes) -> bool:
    return word[:1].isdigit() or word[:1] == b"."


def step(s: Lexed, byte: int) -> Lexed:
    """The state after one more byte."""
    if s.comment:
        return _newline(replace(s, comment=False)) if byte == 10 else s
    if s.opening:
        return _opening(s, byte)
    top = s.frames[-1] if s.frames else None
    if isinstance(top, Quote):
        return _in_string(s, top, byte)
    if top == FORMAT:
        if byte == 125:
            return replace(s, frames=s.frames[:-1])
        return replace(s, frames=(*s.frames, FIELD), value=False) if byte == 123 else s
    return _in_code(s, top, byte)


def reading(s: Lexed, byte: int) -> Lexed:
    """The state in which a byte is read: after two quotes, anything but a third one is code again."""
    if s.opening and s.opening[1] == 2 and byte != s.opening[0]:
        return replace(s, opening=None, value=True)
    return s


def _in_code(s: Lexed, top: int | None, byte: int) -> Lexed:
    if byte in NAME_BYTES:
        if s.word:
            word = s.word + bytes((byte,))
            return replace(s, word=word, value=_has_members(word), member=False)
        word = bytes((byte,))
        if s.member:  # a member's name is no keyword and begins no line
            return replace(s, word=word, finished=b"", before=b".", value=True, member=False, first=s.first or b"")
        return replace(s, word=word, finished=b"", before=s.finished, value=_has_members(word), member=False)
    if byte == 46:
        if is_number(s.word) and not set(s.word) & set(b".eEjJxX"):
            return replace(s, word=s.word + b".", value=False)
        if s.value:
            return replace(_end_word(s, other=True), value=False, member=not s.imports)
        return replace(_end_word(s, other=True), value=False, member=False)
    if byte in QUOTES:
        prefix = s.word.lower() if s.word.lower() in STRING_PREFIXES else b""
        if not prefix:
            s = _end_word(s, other=True)
        return replace(
            s, word=b"", finished=b"", value=False, member=False, first=s.first or b"", opening=(byte, 1, prefix)
        )
    if byte in (32, 9, 13, 12):
        return _end_word(s)
    if byte == 92:
        return replace(_end_word(s), escaped=True)
    if byte == 10:
        return _newline(_end_word(s))
    if byte == 35:
        return replace(_end_word(s), comment=True)
    s = _end_word(s, other=True)
    if byte in OPEN:
        return replace(s, frames=(*s.frames, OPEN[byte]), value=False, member=False)
    if byte in CLOSE:
        if top == FIELD and byte == 125:
            return replace(s, frames=s.frames[:-1], value=False)
        return replace(s, frames=s.frames[:-1] if top == byte else s.frames, value=True, member=False)
    s = replace(s, value=False, member=False)
    if byte == 58 and top == FIELD:
        return replace(s, frames=(*s.frames[:-1], FORMAT))
    if byte == 59 and not s.frames:
        return replace(s, first=None)
    return s


def _has_members(word: bytes) -> bool:
    """Whether a dot after this word asks for a member."""
    if is_number(word):
        return bool(set(word) & set(b".eEjJ")) and word[-1] not in b"eE."
    return word not in KEYWORDS


def _end_word(s: Lexed, *, other: bool = False) -> Lexed:
    """The word is over.  other: by something else than a blank, so that the next word does not follow it directly."""
    if not s.word:
        if other:
            return replace(s, finished=b"", before=b"", first=b"" if s.first is None else s.first)
        return s
    first = s.word if s.first is None else s.first
    if other:
        return replace(s, word=b"", finished=b"", before=b"", first=first)
    return replace(s, word=b"", finished=s.word, first=first)


def _newline(s: Lexed) -> Lexed:
    if s.escaped or s.frames:
        return replace(s, escaped=False)
    return START


def _opening(s: Lexed, byte: int) -> Lexed:
    assert s.opening is not None
    quote, count, prefix = s.opening
    fields = bool(set(prefix) & set(b"ft"))
    if byte == quote:
        if count == 2:
            return replace(s, opening=None, frames=(*s.frames, Quote(quote, True, fields)))
        return replace(s, opening=(quote, 2, prefix))
    if count == 2:  # the empty string is over
        return step(reading(s, byte), byte)
    return step(replace(s, opening=None, frames=(*s.frames, Quote(quote, False, fields))), byte)


def _in_string(s: Lexed, top: Quote, byte: int) -> Lexed:
    if s.brace:
        if byte == 123:
            return replace(s, brace=False)
        return step(replace(s, brace=False, frames=(*s.frames, FIELD), value=False, member=False), byte)
    if s.escaped:
        return replace(s, escaped=False, run=0)
    if byte == 92:
        return replace(s, escaped=True, run=0)
    if byte == top.byte:
        if not top.triple or s.run == 2:
            return replace(s, frames=s.frames[:-1], run=0, value=True, finished=b"", before=b"")
        return replace(s, run=s.run + 1)
    if byte == 10 and not top.triple:  # never closed: the line ends it
        return _newline(replace(s, frames=s.frames[:-1], value=True))
    if byte == 123 and top.fields:
        return replace(s, brace=True, run=0)
    return s if not s.run else replace(s, run=0)
