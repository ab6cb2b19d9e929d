"""How likely each field of a structured text was: the log-probabilities of its tokens, value by value.

A token belongs to the first value that it has a byte of, and else to the structure around the values (braces, keys,
commas, the end).  A number has no end of its own: the byte after it, which ends it, counts as the number's; so does the
end token after a text that is a value as a whole.  Values that share a token with something else are marked.

A token is free where the form left something to choose, and forced where the text went on in one way only, whatever
the model said.  Forced tokens tell nothing about the value; they are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from likely.decoding.constraint import Constraint
from likely.guided.json_spans import Span, json_spans
from likely.guided.settings import Form


@dataclass(frozen=True, kw_only=True)
class Share:
    """What some of a text's tokens add up to, in nats.

    logprob          Σ log p over free tokens, p the model's own law
    guided_logprob   Σ (log p - log m) over free tokens: under the law that the text was drawn from, before temperature
                     and truncation
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
    spans = json_spans(raw) if form.kind == "schema" else [Span("", 0, len(raw), text)]
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
