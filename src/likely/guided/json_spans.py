"""Where each value of a JSON text stands: byte spans, by JSON pointer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_SPACE = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_OPEN_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*(?:\\(?:u[0-9a-fA-F]{0,3})?)?')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = (b"true", b"false", b"null")


@dataclass(frozen=True)
class Span:
    """A value that holds no other: a string, number, true, false, null, or an empty array or object.

    pointer     RFC 6901: "/person/tags/0"; "" is the whole text
    start, end  bytes of the UTF-8 text, end exclusive; quotes are part of a string
    """

    pointer: str
    start: int
    end: int
    value: Any

    @property
    def is_number(self) -> bool:
        return isinstance(self.value, (int, float)) and not isinstance(self.value, bool)


class NotJson(ValueError):
    """The text is no JSON.

    at         the byte where it goes wrong; the text's length where it only ends too early
    pointer    of the value that stands there
    in_string  whether the text ends inside a string
    """

    def __init__(self, at: int, pointer: str, *, in_string: bool = False, reason: str = "unexpected"):
        super().__init__(f"{reason} at byte {at}, in {pointer or 'the whole text'}")
        self.at, self.pointer, self.in_string = at, pointer, in_string


@dataclass
class _Container:
    """An array or object that is open; key: of the member that is read now, as a pointer's piece."""

    is_object: bool
    key: str = ""
    count: int = 0


@dataclass
class _Reader:
    """Reads without recursion: a text may nest as deeply as it likes."""

    text: bytes
    at: int = 0
    open: list[_Container] = field(default_factory=list)

    @property
    def pointer(self) -> str:
        return "".join(f"/{container.key}" for container in self.open)

    def fail(self, *, in_string: bool = False) -> NotJson:
        early = self.at >= len(self.text) or in_string
        return NotJson(
            len(self.text) if early else self.at,
            self.pointer,
            in_string=in_string,
            reason="the text ends" if early else f"unexpected {self.text[self.at : self.at + 1]!r}",
        )

    def skip(self) -> bytes:
        """The next byte that is no space, b"" at the end."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
        return self.text[self.at : self.at + 1]

    def string(self) -> str:
        found = _STRING.match(self.text, self.at)
        if found is None:
            opened = _OPEN_STRING.match(self.text, self.at)
            raise self.fail(in_string=opened is not None and opened.end() == len(self.text))
        self.at = found.end()
        return str(json.loads(found.group()))

    def spans(self) -> Iterator[Span]:
        while True:
            yield from self._value()
            while self.open and not self._goes_on():
                self.open.pop()
            if not self.open:
                break
        if self.skip():
            raise self.fail()

    def _value(self) -> Iterator[Span]:
        """Read up to the end of the next value that holds no other; containers on the way are opened."""
        while True:
            first, start = self.skip(), self.at
            if first not in (b"{", b"["):
                break
            self.at += 1
            closing = b"}" if first == b"{" else b"]"
            if self.skip() == closing:
                self.at += 1
                yield Span(self.pointer, start, self.at, {} if first == b"{" else [])
                return
            self.open.append(_Container(first == b"{"))
            if first == b"{":
                self._key()
            else:
                self.open[-1].key = "0"
        if first == b'"':
            value: Any = self.string()
        elif word := next((w for w in _WORDS if self.text.startswith(w, start)), None):
            value, self.at = json.loads(word), start + len(word)
        elif number := _NUMBER.match(self.text, start):
            value, self.at = json.loads(number.group()), number.end()
        else:
            raise self.fail()
        yield Span(self.pointer, start, self.at, value)

    def _goes_on(self) -> bool:
        """After a value in a container: whether another one comes; otherwise the container was closed."""
        container, found = self.open[-1], self.skip()
        self.at += 1
        if found == (b"}" if container.is_object else b"]"):
            return False
        if found != b",":
            self.at -= 1
            raise self.fail()
        container.count += 1
        if container.is_object:
            self._key()
        else:
            container.key = str(container.count)
        return True

    def _key(self) -> None:
        container = self.open[-1]
        container.key = ""
        if self.skip() != b'"':
            raise self.fail()
        container.key = self.string().replace("~", "~0").replace("/", "~1")
        if self.skip() != b":":
            raise self.fail()
        self.at += 1


def json_spans(text: bytes) -> list[Span]:
    """The spans of all values that hold no others, in the order of the text; NotJson where it is no JSON.

    Of a key that an object holds twice, both values have a span.
    """
    return list(_Reader(text).spans())


def open_string(text: bytes) -> str | None:
    """Where a text that was cut ends inside a string: the pointer of its value; None elsewhere."""
    try:
        json_spans(text)
    except NotJson as error:
        return error.pointer if error.in_string else None
    return None
