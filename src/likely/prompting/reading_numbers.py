"""The number that a model writes after "0.", read from its next-token probabilities, for many prompts at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from likely.prompting.digits import DIGITS, Number, digit_tokens, expected_number, likeliest, official_number
from likely.scoring import Item, score_items

END = "."  # after a digit: the number is over


def read_numbers(lm: Any, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> list[Number]:
    """One Number per prompt text, each of which ends in "0.": two steps, the likeliest digit token each.

    Models on this machine are read by token id, tokens of several digits included; a server by the texts "0" to "9".
    """
    first = _laws(lm, texts, [""] * len(texts), progress)
    chosen = [likeliest({d: lp for d, lp in law.items() if d != END}) for law in first]
    second = _laws(lm, texts, chosen, progress)
    found = []
    for law, digits, then in zip(first, chosen, second, strict=True):
        only = {d: lp for d, lp in law.items() if d != END}
        more = likeliest(then)
        steps = [digits] if more == END else [digits, more]
        mass = sum(math.exp(lp) for lp in only.values())
        found.append(Number(official_number(steps), expected_number(only), mass))
    return found


def _laws(
    lm: Any, texts: Sequence[str], written: Sequence[str], progress: Callable[[int], None] | None
) -> list[dict[str, float]]:
    """Per prompt: digit text (or ".") -> log-probability of writing it next, after what was written."""
    runtime = getattr(lm, "runtime", None)
    if runtime is None:
        pairs = [(text + w, d) for text, w in zip(texts, written, strict=True) for d in (*DIGITS, END)]
        scored = iter(lm.score_pairs(pairs, progress=progress))
        return [{d: next(scored).sequence_logprob for d in (*DIGITS, END)} for _ in texts]
    digits = digit_tokens(lm.tokenizer, runtime.vocab_size)
    ids = {text: token for token, text in digits.items()}
    end = lm.tokenizer.encode(END)
    if len(end) == 1 and end[0] < runtime.vocab_size:
        ids[END] = end[0]
    items = []
    for text, w in zip(texts, written, strict=True):
        before = [*lm.encode_prompt(text), *([ids[w]] if w else [])]
        items += [Item((*before, token), len(before)) for token in ids.values()]
    scores = iter(score_items(runtime, items, progress=progress))
    return [{d: next(scores).logprobs[0] for d in ids} for _ in texts]
