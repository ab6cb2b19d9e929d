"""What is shown of one text: its tokens with logprob, rank, entropy and alternatives, and text that hides nothing."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from likely.errors import CapabilityError
from likely.lm.results import Generation
from likely.scoring.scored import Scored, TopLogprob

NEWLINE = "↵"
EMPTY = "∅"  # a token without text
_NAMED = {"\t": "⇥", "\r": "␍", "\x1b": "␛", "\x00": "␀", "\u00a0": "⍽"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # control, format (bidi!), surrogate, private, unassigned


@dataclass(frozen=True)
class Token:
    """One token of a text.

    rank      1 for the most likely token; None if it was not among the alternatives that were asked for
    entropy   of the model's distribution at this place, in nats
    """

    text: str
    logprob: float
    rank: int | None = None
    entropy: float | None = None
    alternatives: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True)
class Shown:
    """One text with its tokens, as a page or a terminal shows it; the sums are the record's own."""

    title: str
    tokens: tuple[Token, ...]
    sequence_logprob: float
    mean_logprob: float | None
    note: str = ""


def shown(record: Scored | Generation, *, title: str | None = None) -> Shown:
    """The tokens of a scored or generated text.  CapabilityError if a server gave no log-probabilities for them."""
    logprobs, texts, total = record.token_logprobs, record.tokens, record.sequence_logprob
    if logprobs is None or texts is None or total is None:
        raise CapabilityError(
            "this server returned no log-probabilities for the text, so there is nothing to colour: "
            "use a model on this machine, or a server that returns them"
        )
    ids: Sequence[int | None] = record.token_ids if record.token_ids is not None else [None] * len(texts)
    tops = record.top_logprobs if record.top_logprobs is not None else [[] for _ in texts]
    entropies = getattr(record, "entropies", None) or [None] * len(texts)
    tokens = tuple(
        Token(text, logprob, _rank(number, text, row), entropy, tuple(row))
        for text, logprob, number, row, entropy in zip(texts, logprobs, ids, tops, entropies, strict=True)
    )
    if isinstance(record, Scored):
        note = "the first token also holds the end of the prompt" if record.straddles else ""
    else:
        note = f"ended by: {record.finish_reason}"
    return Shown(record.text if title is None else title, tokens, total, record.mean_logprob, note)


def _rank(number: int | None, text: str, row: Sequence[TopLogprob]) -> int | None:
    for rank, top in enumerate(sorted(row, key=lambda top: -top.logprob), 1):
        if top.token_id == number if number is not None and top.token_id is not None else top.text == text:
            return rank
    return None


def visible(text: str) -> str:
    """The text with every character that would be invisible, or change how others look, written out.

    A newline becomes "↵" followed by the newline itself; bidi controls, zero-width characters, odd spaces, terminal
    controls, unassigned characters and lone surrogates become ⟨U+202E⟩; a combining mark at the start gets a ◌ to
    sit on.
    """
    out = []
    for i, char in enumerate(text):
        kind = unicodedata.category(char)
        if char == "\n":
            out.append(NEWLINE + "\n")
        elif char == " ":
            out.append(char)
        elif char in _NAMED:
            out.append(_NAMED[char])
        elif kind in _HIDDEN:
            out.append(f"⟨U+{ord(char):04X}⟩")
        elif i == 0 and kind in ("Mn", "Me"):
            out.append("◌" + char)
        else:
            out.append(char)
    return "".join(out)


def one_line(text: str, limit: int = 200) -> str:
    """A visible text on one line, cut in the middle when it is long."""
    line = visible(text).replace("\n", "")
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[-limit // 2 :]}"


def probability(logprob: float) -> str:
    """p as a reader wants it: 0.7799, or 1.4e-07 where that says more."""
    p = math.exp(min(logprob, 0.0))
    return f"{p:.4f}" if p >= 0.001 or p == 0 else f"{p:.1e}"
