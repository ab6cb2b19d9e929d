"""Small series, and a tiny language model that reads the prompts of their patches."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
from byte_tokenizer import PieceTokenizer

from likely.forecasting.series import TimeSeries

LETTERS = sorted(set("From to: mean std change ,.-0123456789"))


def waves(rows: int = 400, columns: int = 2, *, noise: float = 0.1, seed: int = 0) -> TimeSeries:
    """Daily waves of hourly rows with a little noise."""
    rng = np.random.default_rng(seed)
    hours = np.arange(rows)[:, None]
    values = 5 + np.sin(2 * np.pi * (hours / 24 + np.arange(columns) / 3)) + noise * rng.normal(size=(rows, columns))
    return TimeSeries.of(values, tuple("abcdef"[:columns]))


@cache
def tiny_lm() -> SimpleNamespace:
    """Runtime and tokenizer, as `likely.load` has them."""
    from tiny_torch import tiny_module

    from likely.runtimes.torch.runtime import TorchRuntime

    tokenizer = PieceTokenizer([letter.encode() for letter in LETTERS])
    return SimpleNamespace(
        runtime=TorchRuntime(tiny_module("llama"), revision="tiny"), tokenizer=tokenizer,
        info=SimpleNamespace(source="tiny"),
    )  # fmt: skip
