"""Which form of the letters does the model use?  One form for all letters: a mixture would compare unlike things.

"A", " A" and a line break before it are different tokens; models differ in which they write.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from likely.metrics.checks import Floats

LOW_MASS = 0.1  # folktexts' threshold


class LowAnswerMass(UserWarning):
    """Less than `LOW_MASS` of the model's probability is on any of the answers: what is compared is a small rest."""


@dataclass(frozen=True)
class Shares:
    """How the answers share their probability.

    probs  (K,) summing to 1; NaN where nothing is on any of them
    mass   probability of all answers of this form together, before it was divided out
    form   which form was taken
    """

    probs: Floats
    mass: float
    form: int


def shares(logprobs: Sequence[Sequence[float]]) -> Shares:
    """The shares of K answers of which each may be written in several forms.

    logprobs  one row of K log-probabilities per form, nats, -inf allowed; the form of the largest total is taken
              (ties: the first).  In float64 from logarithms: letters of probability 1e-40 still have a ratio.
    """
    table = np.asarray(logprobs, np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ValueError(f"logprobs must be (forms, K) with K >= 2, got shape {table.shape}")
    if np.isnan(table).any() or (table == np.inf).any():
        raise ValueError("logprobs hold NaN or +inf")
    best = table.max(axis=1, keepdims=True)
    shifted = np.exp(table - np.where(np.isneginf(best), 0.0, best))
    totals = np.where(np.isneginf(best[:, 0]), -np.inf, best[:, 0] + np.log(np.maximum(shifted.sum(axis=1), 1e-300)))
    form = int(totals.argmax())
    if np.isneginf(totals[form]):
        return Shares(np.full(table.shape[1], np.nan), 0.0, form)
    return Shares(shifted[form] / shifted[form].sum(), float(np.exp(totals[form])), form)


def warn_low_mass(masses: Floats, answers: Sequence[str], likeliest: str | None) -> None:
    """Say once how many prompts give the answers less than `LOW_MASS`, and what the model would write instead."""
    low = masses < LOW_MASS
    if not low.any():
        return
    row = int(low.reshape(len(masses), -1).any(axis=1).argmax())
    instead = f'; its likeliest next token in row {row} is "{likeliest}"' if likeliest is not None else ""
    warnings.warn(
        f"{int(low.sum())} of {low.size} prompts give the answers {', '.join(repr(a) for a in answers)} less than "
        f"{LOW_MASS} of the probability together (lowest {masses.min():.2g}){instead}",
        LowAnswerMass,
        stacklevel=3,
    )
