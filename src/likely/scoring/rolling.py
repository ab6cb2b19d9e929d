"""Perplexity: a whole text, every token of it scored once, in sliding windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from likely.runtimes.protocol import Runtime
from likely.scoring.likelihood import joint_item, score_items, windows
from likely.tokenizers.protocol import Tokenizer


@dataclass(frozen=True)
class Perplexity:
    """How well a text is predicted, in units that survive a change of tokenizer, too."""

    tokens: int
    bytes: int
    nats: float
    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    window: int
    stride: int


def perplexity(
    runtime: Runtime,
    tokenizer: Tokenizer,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """exp of the mean nats per token of a text, every token scored once in sliding windows.

    The first token is predicted from the model's beginning (or end) token.  Defaults: the smaller of 1,024 tokens and
    the context, half of it as stride.
    """
    if not text:
        raise ValueError("the text is empty: nothing to score")
    window = min(1024, runtime.context_length) if window is None else window
    if window > runtime.context_length:
        raise ValueError(f"window must be <= the context of {runtime.context_length} tokens, got {window}")
    stride = max(1, window // 2) if stride is None else stride
    item, _ = joint_item(tokenizer, "", text)
    scores = score_items(runtime, windows(item, window=window, stride=stride), progress=progress)
    nats = -sum(sum(s.logprobs) for s in scores)
    tokens, size = len(item.tokens) - item.start, len(text.encode())
    bits_per_byte = float(nats / np.log(2) / size)
    return Perplexity(tokens, size, nats, nats / tokens, float(np.exp(nats / tokens)), bits_per_byte, window, stride)
