"""P(True): the model is shown its answer, beside others that it sampled, and asked whether it is true.

Kadavath et al. 2022, arXiv:2207.05221, section 4.  The two options are asked about in both orders, since small models
prefer a letter whatever stands behind it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from likely.metrics.checks import Floats
from likely.scoring.letters import LOW_MASS, LowAnswerMass, shares
from likely.uncertainty.types import Gathered, Uncertainty

LETTERS = ("A", "B")
FORMS = (" {}", "{}", " ({}")  # how the model may write a letter; one form for both letters


def p_true_prompt(question: str, answer: str, brainstormed: Sequence[str], *, true_first: bool) -> str:
    """The question about an answer; the letter of "True" is A if true_first, else B."""
    options = ("True", "False") if true_first else ("False", "True")
    ideas = "".join(f"\n{text.strip()}" for text in brainstormed)
    return (
        f"Question: {question}\n"
        + (f"Here are some brainstormed ideas:{ideas}\n" if brainstormed else "")
        + f"Possible answer: {answer.strip()}\nIs the possible answer:\n(A) {options[0]}\n(B) {options[1]}\n"
        + "The possible answer is:"
    )


def p_true_prompts(gathered: Gathered, brainstormed: int) -> list[tuple[str, str]]:
    """Per prompt the two orders, True first and False first, with its first `brainstormed` samples."""
    greedy = gathered.texts("greedy").texts
    out = []
    for i, question in enumerate(gathered.prompts):
        ideas: list[str] = []
        if brainstormed:
            samples = gathered.texts("samples")
            ideas = [samples.texts[k] for k in samples.of(i)[:brainstormed]]
        one, other = (p_true_prompt(question, greedy[i], ideas, true_first=first) for first in (True, False))
        out.append((one, other))
    return out


def answers() -> list[str]:
    """What is scored after each prompt: both letters in every form."""
    return [form.format(letter) for form in FORMS for letter in LETTERS]


def p_true_of(logprobs: Floats) -> Floats:
    """(N,) the mean over both orders of the share of the letter of "True"; NaN where no letter has any probability.

    logprobs  (N, 2, 6): per prompt and order (True first, False first), log p of each of `answers()`
    """
    out = np.empty(len(logprobs))
    low = 0
    for i, orders in enumerate(logprobs):
        first, second = (shares(order.reshape(len(FORMS), len(LETTERS))) for order in orders)
        out[i] = (first.probs[0] + second.probs[1]) / 2
        low += min(first.mass, second.mass) < LOW_MASS
    if low:
        warnings.warn(
            f"P(True): {low} of {len(logprobs)} questions have less than {LOW_MASS:g} of the probability on the "
            f"letters A and B: the model does not answer in that form",
            LowAnswerMass,
            stacklevel=2,
        )
    return out


def p_true(gathered: Gathered) -> Uncertainty:
    """The probabilities that were gathered under "p_true"."""
    if "p_true" not in gathered.extra:
        raise ValueError('P(True) was not gathered: gather(..., needs=["p_true"])')
    return Uncertainty(
        np.asarray(gathered.extra["p_true"], np.float64), "probability", "more_certain", "p_true",
        truncated=gathered.texts("greedy").truncated,
    )  # fmt: skip
