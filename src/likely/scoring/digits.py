"""A probability that a model writes in digits after "0.": its likeliest digits, and the mean over them.

The official way takes the likeliest digit token twice, so that 0.73 is a possible answer and 1 is none.  The mean over
the first digit is smoother and costs one call less: Σ_d p(d) · (d + ½) / 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.scoring.likelihood import Item, score_items
from likely.tokenizers.protocol import Tokenizer

DIGITS = "0123456789"


def digit_tokens(tokenizer: Tokenizer, vocab_size: int) -> dict[int, str]:
    """Token id -> its digits, for every token that is one or more of 0-9 and nothing else.

    vocab_size  of the model's logits: a tokenizer may know more ids than the model has, and those are left out.
    """
    found = {}
    control = set(tokenizer.special_tokens.values())
    for token in range(min(vocab_size, tokenizer.vocab_size)):
        if token in control:
            continue
        raw = tokenizer.token_bytes(token)
        if raw and all(48 <= byte <= 57 for byte in raw):
            found[token] = raw.decode("ascii")
    if not found:
        raise ValueError("this tokenizer has no token of digits alone: use another style")
    return found


@dataclass(frozen=True)
class Number:
    """official: "0." and the digits of two steps;  expected: the mean over the first step;  mass: of its digits."""

    official: float | None
    expected: float
    mass: float


def expected_number(logprobs: Mapping[str, float]) -> float:
    """Σ p(d) · (value of d + ½) / 10^(digits of d), p normalised over the digit texts given.

    logprobs  digit text -> nats.  The ½ is the middle of what the further digits could add: "7" stands for 0.70-0.80.
    NaN where no digit has any probability.
    """
    texts = list(logprobs)
    values = np.array([logprobs[t] for t in texts], np.float64)
    middle = np.array([(int(t) + 0.5) / 10 ** len(t) for t in texts])
    if np.isneginf(values).all():
        return math.nan
    weights = np.exp(values - values.max())
    return float((weights * middle).sum() / weights.sum())


def likeliest(logprobs: Mapping[str, float]) -> str:
    """The digit text of the highest log-probability; ties: the first given."""
    return max(logprobs, key=logprobs.__getitem__)


def official_number(steps: Sequence[str]) -> float:
    """0. and the digits, each step's in turn."""
    return float("0." + "".join(steps))


# --- for many prompts at once -----------------------------------------------------------------------------------------


def read_numbers(
    lm: Any, texts: Sequence[str], *, official: bool = True, progress: Callable[[int], None] | None = None
) -> list[Number]:
    """One Number per prompt text, each of which ends in "0.".

    official  also take the likeliest digit token of a second step; without it a Number has no `official`, at half the
              cost
    Models on this machine are read by token id, tokens of several digits included; a server by the texts "0" to "9".
    """
    first = _digit_logprobs(lm, texts, [""] * len(texts), progress)
    chosen = [likeliest(logprobs) for logprobs in first]
    steps: list[tuple[str, ...]] = [()] * len(texts)
    if official:
        second = _digit_logprobs(lm, texts, chosen, progress)
        steps = [(digits, likeliest(logprobs)) for digits, logprobs in zip(chosen, second, strict=True)]
    return [
        Number(
            official=official_number(step) if step else None,
            expected=expected_number(logprobs),
            mass=min(1.0, sum(math.exp(lp) for lp in logprobs.values())),
        )
        for logprobs, step in zip(first, steps, strict=True)
    ]


def _digit_logprobs(
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
