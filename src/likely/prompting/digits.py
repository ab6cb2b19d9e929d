"""A probability written in digits after "0.": the digits that the model would write, and their mean.

The official way takes the likeliest digit token twice, so that 0.73 is a possible answer and 1 is none.  The mean over
the first digit is smoother and costs one call less: Σ_d p(d) · (d + ½) / 10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.models.tokenizer import Tokenizer

Floats = NDArray[np.float64]
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
