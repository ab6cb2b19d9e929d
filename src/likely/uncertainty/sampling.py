"""Entropy of what the model may write, estimated from S samples at temperature 1."""

from __future__ import annotations

import numpy as np

from likely.uncertainty.types import Floats, GenerationScores, Uncertainty


def predictive_entropy(samples: GenerationScores, n: int) -> Uncertainty:
    """PE: −(1/S) Σ_s log p(y^s | x), whose mean over draws is the entropy of the text.

    n  number of prompts, N.  Malinin and Gales 2021, arXiv:2002.07650, eq. 5
    """
    return _mean_over_samples(samples, n, -samples.logprobs, "predictive_entropy")


def ln_predictive_entropy(samples: GenerationScores, n: int) -> Uncertainty:
    """LN-PE: −(1/S) Σ_s (1/L_s) log p(y^s | x), each text's nats per token."""
    return _mean_over_samples(samples, n, -samples.mean_logprobs, "ln_predictive_entropy")


def entropy_error(samples: GenerationScores, n: int) -> Floats:
    """(N,) standard error of `predictive_entropy`, from the spread of the S values; S >= 2."""
    out = np.empty(n)
    for i in range(n):
        own = samples.logprobs[samples_of(samples, i, least=2)]
        out[i] = own.std(ddof=1) / np.sqrt(len(own))
    return out


def samples_of(samples: GenerationScores, prompt: int, *, least: int = 1) -> np.ndarray:
    """The numbers of a prompt's samples; ValueError if there are fewer than `least`."""
    own = samples.of(prompt)
    if len(own) < least:
        raise ValueError(f"prompt {prompt} has {len(own)} samples, at least {least} are needed")
    return own


def any_cut(samples: GenerationScores, n: int) -> np.ndarray:
    """(N,) whether any of a prompt's samples was cut."""
    return np.array([bool(samples.truncated[samples.of(i)].any()) for i in range(n)])


def _mean_over_samples(samples: GenerationScores, n: int, each: Floats, name: str) -> Uncertainty:
    values = np.array([each[samples_of(samples, i)].mean() for i in range(n)])
    return Uncertainty(values, "score", "less_certain", name, truncated=any_cut(samples, n), note=samples.note)
