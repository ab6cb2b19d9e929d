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
from likely.scoring.scored import Scored, TopLogprob, sums

ROUNDING = 1e-4  # nats by which a log-probability may exceed 0
# What a server says of a token when it generates it and when it is given it may differ by rounding, in nats.
TOLERANCE, RELATIVE_TOLERANCE = 0.1, 0.05
PROBES = ("The capital of France is", "Once upon a", "She opened the door and saw", "My name")


class Unusable(Exception):
    """The reply does not hold the log-probabilities of the text; says why."""


@dataclass(frozen=True)
class Echo:
    """The tokens of a text as a server gave them back: spans in bytes of UTF-8, and log-probabilities in nats.

    logprobs  None for the first token only (nothing stands before it)
    blurred   spans of characters whose tokens came unreadable: they begin and end with it, the rest is not known
    """

    tokens: list[str]
    logprobs: list[float | None]
    starts: list[int]
    ends: list[int]
    tops: list[list[TopLogprob]] | None
    blurred: list[tuple[int, int]]


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
    hidden, starts, blurred = _spans(tokens, logprobs[0], held.get("text_offset"), text, echoed)
    ends = [*starts[1:], len(text.encode())]
    checked = [_checked(value, i) for i, value in enumerate(logprobs[: hidden + len(starts)])][hidden:]
    numbers = [value for value in checked if value is not None]
    if len(numbers) > 1 and all(value == 0.0 for value in numbers):
        raise Unusable("all its log-probabilities are 0")
    tops = _tops(held.get("top_logprobs"), hidden, len(starts))
    return Echo(tokens[hidden : hidden + len(starts)], checked, starts, ends, tops, blurred)


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


def _spans(
    tokens: list[str], first: object, offsets: object, text: str, echoed: str
) -> tuple[int, list[int], list[tuple[int, int]]]:
    """(hidden tokens in front, byte offset of each token of the text, spans inside which tokens have no known place).

    By the tokens' own text; where that is broken in the middle of characters, by text_offset, or around the breaks.
    """
    whole = text.encode()
    for hidden in (0, 1) if first is None else (0,):
        pieces = [_bytes(token) for token in tokens[hidden:]]
        joined = b"".join(pieces)
        # Beyond the text stand new tokens: control tokens are no text, and half of a character is U+FFFD there.
        if joined.startswith(whole) and echoed.startswith(joined.decode("utf-8", "replace")[: len(echoed)]):
            return hidden, [s for s in accumulate(map(len, pieces[:-1]), initial=0) if s < len(whole)], []
    for hidden in (0, 1) if first is None else (0,):
        places, blurred = _offset_places(tokens, offsets, hidden, echoed), list[tuple[int, int]]()
        if places is None:
            places, blurred = _places_around_breaks(tokens[hidden:], echoed)
        if places is not None:
            size = [0, *accumulate(len(c.encode()) for c in echoed)]
            return hidden, [size[p] for p in places if p < len(text)], [(size[a], size[b]) for a, b in blurred]
    raise Unusable("its tokens do not join to the text it was given")


def _offset_places(tokens: list[str], offsets: object, hidden: int, echoed: str) -> list[int] | None:
    """Character offsets as the server says, if every token's text can stand there."""
    if not isinstance(offsets, list) or len(offsets) != len(tokens) or not all(type(o) is int for o in offsets):
        return None
    shift = len(tokens[0]) if hidden else 0
    places = [offset - shift for offset in offsets[hidden:]]
    if not places or places[0] != 0 or any(a > b for a, b in pairwise(places)) or places[-1] > len(echoed):
        return None
    for token, a, b in zip(tokens[hidden:], places, [*places[1:], len(echoed)], strict=True):
        if "\ufffd" in token or not token:  # a part of a character, at most the whole of it
            left = echoed[a:b].removeprefix(token.split("\ufffd")[0]).removesuffix(token.split("\ufffd")[-1])
            if len(left) > token.count("\ufffd") + 1 or any(c.isascii() for c in left):
                return None
        elif token != echoed[a:b]:
            return None
    return places


def _places_around_breaks(tokens: list[str], echoed: str) -> tuple[list[int] | None, list[tuple[int, int]]]:
    """Character offsets by the readable text between U+FFFD; None unless there is one way only.

    The tokens of a break all begin where it begins: where they part is not known, so its span is blurred.
    """
    parts = [(i, part) for i, token in enumerate(tokens) for part in re.split("(\ufffd+)", token) if part or not token]
    places, blurred, at, n = [-1] * len(tokens), list[tuple[int, int]](), 0, 0
    while n < len(parts):
        i, part = parts[n]
        places[i] = at if places[i] < 0 else places[i]
        if not part.startswith("\ufffd"):
            if not echoed.startswith(part, at):
                return None, []
            at, n = at + len(part), n + 1
            continue
        while n < len(parts) and parts[n][1][:1] in ("\ufffd", ""):
            places[parts[n][0]] = at if places[parts[n][0]] < 0 else places[parts[n][0]]
            n += 1
        after = ""
        for _, part in parts[n:]:
            if part.startswith("\ufffd"):
                break
            after += part
        end = at
        while end < len(echoed) and not echoed[end].isascii():
            end += 1
        if n == len(parts):
            ends = [end] if end == len(echoed) else []
        else:
            ends = [e for e in range(at + 1, end + 1) if echoed.startswith(after, e)]
        if len(ends) != 1:
            return None, []
        blurred.append((at, ends[0]))
        at = ends[0]
    return (places, blurred) if at == len(echoed) else (None, [])


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
    if answer and any(a < boundary < b for a, b in echo.blurred):
        raise DataError("the answer begins between characters whose tokens this server does not show apart")
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
            given = score(prompt, text)
            if given.tokens != [text] or given.straddles:
                continue  # the text is cut into other tokens when it is given: no comparison
            if not abs(given.sequence_logprob - logprob) <= TOLERANCE + RELATIVE_TOLERANCE * abs(logprob):
                raise Unusable(
                    f"after {prompt!r} it gives {text!r} {logprob:.3f} nats when it writes, but "
                    f"{given.sequence_logprob:.3f} when it is told"
                )
            seen.append((prompt, text, given.sequence_logprob))
            break
        if len(seen) == 2:
            break
    else:
        raise Unusable("what it says of given tokens could not be compared with what it says of its own")
    (_, text, value), (other, _, _) = seen
    if score(other, text).sequence_logprob == value:
        raise Unusable("its log-probability of a token does not depend on the prompt")
