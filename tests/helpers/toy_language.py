"""Models whose every text can be listed: over a few letters, with an end of text."""

from __future__ import annotations

import numpy as np

from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.toy import CharTokenizer, ToyRuntime

LONGEST = 4


def toy(logits_of, alphabet="abc", **limits) -> Model:
    """A model of `logits_of(tokens after <bos>)` over alphabet, <bos> and <end>."""
    tokenizer = CharTokenizer(alphabet, add_bos=True)
    limits = {"context_length": 64, **limits}
    runtime = ToyRuntime(
        lambda prefix: np.asarray(logits_of(prefix[1:]), np.float32), vocab_size=len(alphabet) + 2, **limits
    )
    return Model(runtime, tokenizer, ModelInfo("toy", "toy", "toy", "float32", "0", "chars", False))


def bigram(seed: int, *, longest: int = LONGEST) -> Model:
    """Three letters, each law given by the last one; after `longest` letters the text ends."""
    table = 2 * np.random.default_rng(seed).standard_normal((4, 4))

    def logits_of(prefix):
        row = np.full(5, -np.inf)
        if len(prefix) >= longest:
            row[4] = 0.0
        else:
            row[[0, 1, 2, 4]] = table[prefix[-1] if prefix else 3]
        return row

    return toy(logits_of)


def laws(model: Model, prefix=()) -> np.ndarray:
    row = np.asarray(model.runtime._logits_of((model.tokenizer.bos_id, *prefix)), np.float64)
    return row - np.logaddexp.reduce(row)


def every_text(model: Model, prefix=(), logprob=0.0):
    """(tokens with the end token, log p) of every text that can be, by enumeration."""
    law = laws(model, prefix)
    for token in np.flatnonzero(law > -np.inf).tolist():
        if token == model.tokenizer.eos_id:
            yield (*prefix, token), logprob + law[token]
        else:
            yield from every_text(model, (*prefix, token), logprob + law[token])


def table_of(rows: dict[str, dict[str, float]], alphabet: str) -> Model:
    """A model by hand: text so far -> {next letter, or "." for the end: probability}."""
    names = {**{letter: i for i, letter in enumerate(alphabet)}, ".": len(alphabet) + 1}

    def logits_of(prefix):
        row = np.full(len(alphabet) + 2, -np.inf)
        for name, p in rows["".join(alphabet[t] for t in prefix)].items():
            row[names[name]] = np.log(p)
        return row

    return toy(logits_of, alphabet)
