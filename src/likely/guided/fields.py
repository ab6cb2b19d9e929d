"""Fields of a structured text: where each value stands in it, and the log-probabilities of its tokens.

A token belongs to the first value that it has a byte of, and else to the structure around the values (braces, keys,
commas, the end).  A number has no end of its own: the byte after it, which ends it, counts as the number's; so does the
end token after a text that is a value as a whole.  Values that share a token with something else are marked.

A token is free where the form left something to choose, and forced where the text went on in one way only, whatever
the model said.  Forced tokens say nothing about the value; they are counted apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from likely.decoding.constraint import Constraint
from likely.guided.settings import Form


@dataclass(frozen=True, kw_only=True)
class Share:
    """What some of a text's tokens add up to, in nats.

    logprob          Σ log p over free tokens, p the model's own distribution
    guided_logprob   Σ (log p - log m) over free tokens: under the distribution that the text was sampled from, before
                     temperature and truncation
    forced_logprob   Σ log p over forced tokens
    min_probability  the least p among free tokens; None where none is free
    """

    logprob: float
    guided_logprob: float
    forced_logprob: float
    n_tokens: int
    n_free_tokens: int
    min_probability: float | None


@dataclass(frozen=True, kw_only=True)
class Field(Share):
    """A value of the text that holds no other, and its share.

    pointer     RFC 6901: "/person/age"; "" where the value is the whole text
    text        as it stands in the text;  start, end: its bytes there
    straddles   one of the tokens that wrote it also wrote something else
    """

    pointer: str
    value: Any
    text: str
    start: int
    end: int
    straddles: bool


def read_fields(
    text: str,
    form: Form,
    constraint: Constraint,
    tokens: Sequence[int],
    token_bytes: Callable[[int], bytes],
    logprobs: Sequence[float],
    log_masses: Sequence[float],
) -> tuple[list[Field], Share] | None:
    """(fields in the order of the text, the structure around them) of a whole text, its end token included in `tokens`.

    constraint  of this form, in its first state; it is not changed
    logprobs, log_masses  one per token, as a Generation holds them

    A text of another form than a schema is one field.  None where text and tokens differ (a stop string was cut off).
    All shares' logprob and forced_logprob together are the text's sequence_logprob.
    """
    raw = text.encode()
    pieces = [token_bytes(token) for token in tokens]
    if b"".join(pieces) != raw or not len(tokens) == len(logprobs) == len(log_masses):
        return None
    spans = json_spans(raw) if form.kind == "schema" else [JsonSpan("", 0, len(raw), text)]
    reach = [span.end + (span.is_number or form.kind != "schema") for span in spans]
    forced = forced_tokens(constraint, tokens, token_bytes)
    mine, straddling = owners([(s.start, end) for s, end in zip(spans, reach, strict=True)], pieces)

    own: dict[int | None, list[int]] = {}
    for i, owner in enumerate(mine):
        own.setdefault(owner, []).append(i)

    def share(owner: int | None) -> dict[str, Any]:
        all_of_it = own.get(owner, [])
        free = [i for i in all_of_it if not forced[i]]
        logprob = float(sum(logprobs[i] for i in free))
        return {
            "logprob": logprob,
            "guided_logprob": logprob - float(sum(log_masses[i] for i in free)),
            "forced_logprob": float(sum(logprobs[i] for i in all_of_it if forced[i])),
            "n_tokens": len(all_of_it),
            "n_free_tokens": len(free),
            "min_probability": math.exp(min(logprobs[i] for i in free)) if free else None,
        }

    fields = [
        Field(
            pointer=span.pointer,
            value=span.value,
            text=raw[span.start : span.end].decode(),
            start=span.start,
            end=span.end,
            straddles=i in straddling,
            **share(i),
        )
        for i, span in enumerate(spans)
    ]
    return fields, Share(**share(None))


def forced_tokens(constraint: Constraint, tokens: Sequence[int], token_bytes: Callable[[int], bytes]) -> list[bool]:
    """For each token of a text, whether the constraint left no other text to write at its place."""
    state, out = constraint.fork(), []
    for token in tokens:
        piece = token_bytes(token)
        out.append(b"".join(map(token_bytes, state.forced())).startswith(piece) if piece else state.finished)
        state.advance(token)
    return out


def owners(ranges: Sequence[tuple[int, int]], pieces: Sequence[bytes]) -> tuple[list[int | None], set[int]]:
    """(per token, the range it belongs to or None; the ranges that share a token with something outside of them).

    ranges  (start, end) in bytes, ascending, apart from each other;  a piece without bytes stands for one byte at its
            place that is not in the text
    """
    mine: list[int | None] = []
    shared: set[int] = set()
    at, first = 0, 0
    for piece in pieces:
        start, end = at, at + max(1, len(piece))
        while first < len(ranges) and ranges[first][1] <= start:
            first += 1
        met = first
        while met < len(ranges) and ranges[met][0] < end:
            if start < ranges[met][0] or end > ranges[met][1]:
                shared.add(met)
            met += 1
        mine.append(first if met > first else None)
        at += len(piece)
    return mine, shared


# --- where each value of a JSON text stands ---------------------------------------------------------------------------

_SPACE = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_OPEN_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*(?:\\(?:u[0-9a-fA-F]{0,3})?)?')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = (b"true", b"false", b"null")


@dataclass(frozen=True)
class JsonSpan:
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

    def spans(self) -> Iterator[JsonSpan]:
        while True:
            yield from self._value()
            while self.open and not self._goes_on():
                self.open.pop()
            if not self.open:
                break
        if self.skip():
            raise self.fail()

    def _value(self) -> Iterator[JsonSpan]:
        """Read up to the end of the next value that holds no other; containers on the way are opened."""
        while True:
            first, start = self.skip(), self.at
            if first not in (b"{", b"["):
                break
            self.at += 1
            closing = b"}" if first == b"{" else b"]"
            if self.skip() == closing:
                self.at += 1
                yield JsonSpan(self.pointer, start, self.at, {} if first == b"{" else [])
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
        yield JsonSpan(self.pointer, start, self.at, value)

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


def json_spans(text: bytes) -> list[JsonSpan]:
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
