"""The text of a query so far, and its tokens.

Control tokens (<|im_start|>, ...) count as such only where the query's own text spells them; in values, holes and
answers of tools they are ordinary characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from likely.errors import ModelError
from likely.scoring.likelihood import Item, answer_item, surface_lengths
from likely.tokenizers.protocol import Tokenizer, begin, opening


@dataclass(frozen=True)
class Segment:
    """A piece of text; own: written in the query itself."""

    text: str
    own: bool


class Control(str):
    """A text whose control tokens count, for a prompt that was rendered elsewhere: {control(lm.render(...).text)}."""


def control(text: str) -> Control:
    return Control(text)


def encode(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[int]:
    """Token ids of the joined text, no beginning-of-sequence token."""
    whole, pattern = "".join(s.text for s in segments), _control_tokens(tuple(tokenizer.special_tokens))
    if pattern is None:
        return tokenizer.encode(whole)
    if len(pattern.findall(whole)) == sum(len(pattern.findall(s.text)) for s in segments if s.own):
        return tokenizer.encode(whole, parse_special=True)
    ids: list[int] = []
    plain: list[str] = []

    def flush() -> None:
        ids.extend(tokenizer.encode("".join(plain)) if plain else [])
        plain.clear()

    for segment in segments:
        if not segment.own:
            plain.append(segment.text)
            continue
        at = 0
        for found in pattern.finditer(segment.text):
            plain.append(segment.text[at : found.start()])
            flush()
            ids.append(tokenizer.special_tokens[found[0]])
            at = found.end()
        plain.append(segment.text[at:])
    flush()
    return ids


@lru_cache(maxsize=16)
def _control_tokens(texts: tuple[str, ...]) -> re.Pattern[str] | None:
    special = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, special))) if special else None


def prompt_tokens(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[int]:
    """Tokens to continue from: with the beginning-of-sequence token where the model wants one; at least one token."""
    tokens = begin(tokenizer, encode(tokenizer, segments)) or opening(tokenizer)
    if not tokens:
        raise ModelError("an empty prompt needs a beginning or end token, and this tokenizer has neither")
    return tokens


def scored_item(tokenizer: Tokenizer, segments: Sequence[Segment], answer: str) -> Item:
    """The tokens of text + answer, encoded together, and the first one that holds a byte of the answer.

    Encoded apart, a leading space would be doubled or lost; a first token that also holds the end of the text is
    counted whole.
    """
    tokens = encode(tokenizer, [*segments, Segment(answer, False)])
    return answer_item(tokenizer, tokens, surface_lengths(tokenizer, tokens), answer)[0]
