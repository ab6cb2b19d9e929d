"""Log-probabilities of a given text out of an echoed completion, believed only as far as they can be checked.

A server that ignores `echo`, sends zeros, nulls, other text or shifted values must never become a score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from likely.errors import DataError
from likely.results import Scored, TopLogprob, sums

ROUNDING = 1e-4  # nats by which a log-probability may exceed 0
# What a server says of a token when it generates it and when it is told it may differ by rounding, in nats.
TOLERANCE, RELATIVE_TOLERANCE = 0.1, 0.05
PROBES = ("The capital of France is", "Once upon a", "She opened the door and saw", "My name")


class Unusable(Exception):
    """The reply does not hold the log-probabilities of the text; says why."""


@dataclass(frozen=True)
class Echo:
    """The tokens of a text as a server gave them back: spans in bytes of UTF-8, and log-probabilities in nats.

    logprobs  None for the first token only (nothing stands before it)
    hidden    tokens before the first one that are not in the text (beginning of sequence)
    """

    tokens: list[str]
    logprobs: list[float | None]
    starts: list[int]
    ends: list[int]
    tops: list[list[TopLogprob]] | None
    hidden: int


def read_echo(choice: Mapping[str, Any], text: str) -> Echo:
    """The tokens of `text`, from one choice of a reply to `prompt=text, echo=true`; raises Unusable."""
    echoed = choice.get("text")
    if not isinstance(echoed, str) or not echoed.startswith(text):
        raise Unusable("it did not echo the text it was given")
    held = choice.get("logprobs")
    if not isinstance(held, Mapping):
        raise Unusable("it sent no logprobs")
    tokens, logprobs = held.get("tokens"), held.get("token_logprobs")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens) or not isinstance(logprobs, list):
        raise Unusable("it sent no tokens with logprobs")
    if len(tokens) != len(logprobs) or not tokens:
        raise Unusable(f"it sent {len(logprobs)} log-probabilities for {len(tokens)} tokens")
    hidden, starts = _spans(tokens, logprobs[0], held.get("text_offset"), text, echoed)
    ends = [*starts[1:], len(text.encode())]
    checked = [_checked(value, i) for i, value in enumerate(logprobs[: hidden + len(starts)])][hidden:]
    numbers = [value for value in checked if value is not None]
    if len(numbers) > 1 and all(value == 0.0 for value in numbers):
        raise Unusable("all its log-probabilities are 0")
    tops = _tops(held.get("top_logprobs"), hidden, len(starts))
    return Echo(tokens[hidden : hidden + len(starts)], checked, starts, ends, tops, hidden)


def number(value: object) -> float:
    """A log-probability out of JSON, at most 0; raises Unusable on what cannot be one. -inf can."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unusable(f"a log-probability is {value!r}"[:100])
    try:
        found = float(value)
    except OverflowError:  # JSON has integers of any size
        found = math.nan
    if math.isnan(found) or found > ROUNDING:
        raise Unusable(f"a log-probability is {found}")
    return min(found, 0.0)


def _checked(value: object, i: int) -> float | None:
    if value is None and i == 0:
        return None
    try:
        return number(value)
    except Unusable as why:
        raise Unusable(f"of token {i}, {why}") from None


def _spans(tokens: list[str], first: object, offsets: object, text: str, echoed: str) -> tuple[int, list[int]]:
    """(hidden tokens in front, byte offset of each token of the text), by the tokens' own text or by text_offset."""
    whole = text.encode()
    pieces = [_bytes(token) for token in tokens]
    for hidden in (0, 1) if first is None else (0,):
        starts = list(accumulate(map(len, pieces[hidden:]), initial=0))
        joined = b"".join(pieces[hidden:])
        if joined.startswith(whole) and echoed.encode().startswith(joined[: len(echoed.encode())]):
            return hidden, [s for s in starts[:-1] if s < len(whole)]
    if isinstance(offsets, list) and len(offsets) == len(tokens) and all(type(o) is int for o in offsets):
        for hidden in (0, 1) if first is None else (0,):
            shift = len(tokens[0]) if hidden else 0
            places = [o - shift for o in offsets[hidden:]]
            if _fit(places, tokens[hidden:], echoed):
                return hidden, [len(text[:p].encode()) for p in places if p < len(text)]
    raise Unusable("its tokens do not join to the text it was given")


def _fit(places: list[int], tokens: list[str], echoed: str) -> bool:
    """Whether every readable token stands at its place; half characters take no place or one that they share."""
    if not places or places[0] != 0 or any(a > b for a, b in pairwise(places)) or places[-1] > len(echoed):
        return False
    slices = [echoed[a:b] for a, b in pairwise([*places, len(echoed)])]
    return all(token == part or not token or "\ufffd" in token for token, part in zip(tokens, slices, strict=True))


def _bytes(token: str) -> bytes:
    """A token's bytes; tokens that are no text come as bytes:\\xe2\\x80."""
    if re.fullmatch(r"bytes:(\\x[0-9a-fA-F]{2})+", token):
        return bytes.fromhex(token[len("bytes:") :].replace("\\x", ""))
    return token.encode("utf-8", "surrogatepass")


def _tops(rows: object, hidden: int, n: int) -> list[list[TopLogprob]] | None:
    if not isinstance(rows, list) or len(rows) < hidden + n:
        return None
    return [top_row(row) for row in rows[hidden : hidden + n]]


def top_row(row: object) -> list[TopLogprob]:
    """One position's alternatives, the most likely first."""
    items = row.items() if isinstance(row, Mapping) else ()
    found = [TopLogprob(None, str(text), number(logprob)) for text, logprob in items]
    return sorted(found, key=lambda top: (-top.logprob, top.text))


def score_answer(echo: Echo, prompt: str, answer: str, *, prompt_tokens: int | None, top: int) -> Scored:
    """The answer's part of an echoed prompt + answer: every token that holds at least one byte of the answer."""
    boundary = len(prompt.encode())
    mine = [i for i, (a, b) in enumerate(zip(echo.starts, echo.ends, strict=True)) if b > boundary or a >= boundary]
    if not answer:
        mine = []
    logprobs = [echo.logprobs[i] for i in mine]
    if any(value is None for value in logprobs):
        raise DataError(
            "this server gives no log-probability for the first token of a text: the prompt must not be empty, and "
            "must not melt into one token with the answer"
        )
    values = [value for value in logprobs if value is not None]
    if top and mine and echo.tops is None:
        raise Unusable("it sent no top_logprobs")
    total, mean = sums(values)
    return Scored(
        text=answer,
        token_ids=None,
        token_logprobs=values,
        sequence_logprob=total,
        mean_logprob=mean,
        tokens=[echo.tokens[i] for i in mine],
        context_tokens=None if prompt_tokens is None else prompt_tokens - len(mine),
        straddles=bool(mine) and echo.starts[mine[0]] < boundary,
        top_logprobs=[echo.tops[i][:top] for i in mine] if top and echo.tops is not None else None,
    )


def check_scoring(
    score: Callable[[str, str], Scored], next_tokens: Callable[[str], Sequence[tuple[str, float]]]
) -> None:
    """Raise Unusable unless given tokens get the log-probability that the model itself gives them when it writes.

    score        (prompt, answer) -> the server's score of it
    next_tokens  prompt -> (token text, logprob) of what may come first, the most likely first

    This finds values that look plausible and belong elsewhere (shifted by one, of the prompt alone, made up).
    """
    seen: list[tuple[str, str, float]] = []
    for prompt in PROBES:
        for text, logprob in next_tokens(prompt):
            told = score(prompt, text)
            if told.tokens != [text] or told.straddles:
                continue  # the text is cut into other tokens when it is given: no comparison
            if not abs(told.sequence_logprob - logprob) <= TOLERANCE + RELATIVE_TOLERANCE * abs(logprob):
                raise Unusable(
                    f"after {prompt!r} it gives {text!r} {logprob:.3f} nats when it writes, but "
                    f"{told.sequence_logprob:.3f} when it is told"
                )
            seen.append((prompt, text, told.sequence_logprob))
            break
        if len(seen) == 2:
            break
    else:
        raise Unusable("what it says of given tokens could not be compared with what it says of its own")
    (_, text, value), (other, _, _) = seen
    if score(other, text).sequence_logprob == value:
        raise Unusable("its log-probability of a token does not depend on the prompt")
