"""The number that a model writes after "0.", read from its next-token probabilities, for many prompts at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from likely.prompting.digits import DIGITS, Number, digit_tokens, expected_number, likeliest, official_number
from likely.scoring import Item, score_items


def read_numbers(
    lm: Any, texts: Sequence[str], *, official: bool = True, progress: Callable[[int], None] | None = None
) -> list[Number]:
    """One Number per prompt text, each of which ends in "0.".

    official  also take the likeliest digit token of a second step; without it a Number has no `official`, at half the
              cost
    Models on this machine are read by token id, tokens of several digits included; a server by the texts "0" to "9".
    """
    first = _laws(lm, texts, [""] * len(texts), progress)
    chosen = [likeliest(law) for law in first]
    steps: list[tuple[str, ...]] = [()] * len(texts)
    if official:
        second = _laws(lm, texts, chosen, progress)
        steps = [(digits, likeliest(law)) for digits, law in zip(chosen, second, strict=True)]
    return [
        Number(
            official=official_number(step) if step else None,
            expected=expected_number(law),
            mass=min(1.0, sum(math.exp(lp) for lp in law.values())),
        )
        for law, step in zip(first, steps, strict=True)
    ]


def _laws(
    lm: Any, texts: Sequence[str], written: Sequence[str], progress: Callable[[int], None] | None
) -> list[dict[str, float]]:
    """Per prompt: digit text -> log-probability of writing it next, after what was written."""
    runtime = getattr(lm, "runtime", None)
    if runtime is None:
        pairs = [(text + w, d) for text, w in zip(texts, written, strict=True) for d in DIGITS]
        scored = iter(lm.score_pairs(pairs, progress=progress))
        return [{d: next(scored).sequence_logprob for d in DIGITS} for _ in texts]
    # of two tokens of one text the later counts: byte tokens of a SentencePiece vocabulary stand in front
    ids = {text: token for token, text in digit_tokens(lm.tokenizer, runtime.vocab_size).items()}
    items = []
    for text, w in zip(texts, written, strict=True):
        before = [*lm.encode_prompt(text), *([ids[w]] if w else [])]
        items += [Item((*before, token), len(before)) for token in ids.values()]
    scores = iter(score_items(runtime, items, progress=progress))
    return [{d: next(scores).logprobs[0] for d in ids} for _ in texts]
