"""From the scores of a pool to a prompt and its answers: choose by a method, repair what the answers are biased to."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from likely.errors import nearest
from likely.metrics.checks import Floats, Ints
from likely.prompting.selection.answer_bias import CbmNorm, cbm, contextual, pmi
from likely.prompting.selection.criteria import best_prompt, probs_of_choice, prompt_values
from likely.prompting.selection.scores import AnswerNorm, PromptScores

Calibration = Literal["cbm", "cc", "pmi"]
CALIBRATIONS = get_args(Calibration)


@dataclass(frozen=True)
class Selection:
    """What was chosen, and what it answers.

    values   (T,) or (T, N): what each prompt is worth, for all inputs or for each; higher is better
    choice   () or (N,): the number of the chosen prompt
    probs    (N, K): the answers' probabilities under the chosen prompt, calibrated if that was asked for
    all_probs (T, N, K): the same under every prompt
    """

    names: tuple[str, ...]
    method: str
    values: Floats
    choice: Ints
    probs: Floats
    all_probs: Floats

    @property
    def per_input(self) -> bool:
        return self.choice.ndim == 1

    @property
    def answers(self) -> Ints:
        """(N,) the most likely answer; a tie goes to the lowest number."""
        return self.probs.argmax(axis=1)

    @property
    def worth(self) -> Floats:
        """(T,) one value per prompt: the mean over the inputs where each input has its own."""
        return self.values.mean(axis=1) if self.values.ndim == 2 else self.values

    @property
    def ranking(self) -> Ints:
        """(T,) numbers of the prompts, the best first; ties in their order."""
        return np.argsort(-self.worth, kind="stable")

    @property
    def name(self) -> str | None:
        """Of the chosen prompt; None where each input has its own."""
        return None if self.per_input else self.names[int(self.choice)]


def calibrated_probs(
    scores: PromptScores, calibration: Calibration | None, *, norm: AnswerNorm = "token", cbm_norm: CbmNorm = "softmax"
) -> Floats:
    """P (T, N, K) with CBM, contextual calibration, PMI, or (None) as it is."""
    if calibration is None:
        return scores.probs(norm)
    if calibration == "cbm":
        if scores.dynamic:
            warnings.warn(
                "every input brings answers of its own: CBM divides by the marginal of the answers' positions, which "
                "is right only if the right answer stands everywhere equally often (shuffle_answers does that)",
                stacklevel=2,
            )
        return cbm(scores.probs(norm), norm=cbm_norm)
    if calibration == "cc":
        return contextual(scores.probs(norm), scores.content_free_logits(norm))
    if calibration == "pmi":
        if "" not in scores.without:
            raise ValueError(f'pmi needs the scores of the empty input "", there are those of {list(scores.without)}')
        return pmi(scores.logits(norm), scores.content_free_logits(norm)[scores.without.index("")])
    known = ", ".join(CALIBRATIONS)
    raise ValueError(f'unknown calibration "{calibration}"{nearest(calibration, CALIBRATIONS)} (allowed: {known})')


def select(
    scores: PromptScores,
    method: str = "MI_G",
    *,
    calibrate_choice: Calibration | None = None,
    calibrate_answers: Calibration | None = None,
    norm: AnswerNorm = "token",
    cbm_norm: CbmNorm = "softmax",
) -> Selection:
    """Choose a prompt (or one per input) without labels, and answer with it.

    method  see `selection.METHODS`
    calibrate_choice, calibrate_answers  repair P before prompts are compared, before answers are read.  The paper's
        scenarios: X neither, A the answers, P the choice, PA both
    norm      how answers of several tokens are compared: mean per token (the paper's), sums, the first token
    cbm_norm  "softmax" as in the official code, or "mean"; no answer depends on it, the choice does
    """
    missing = ~scores.done
    if missing.any():
        raise ValueError(f'prompt "{scores.names[int(missing.argmax())]}" is not scored yet: score the pool to its end')
    before = calibrated_probs(scores, calibrate_choice, norm=norm, cbm_norm=cbm_norm)
    values = prompt_values(before, method, perplexity=scores.perplexity)
    choice = best_prompt(values)
    after = (
        before
        if calibrate_answers == calibrate_choice
        else calibrated_probs(scores, calibrate_answers, norm=norm, cbm_norm=cbm_norm)
    )
    return Selection(scores.names, method, values, choice, probs_of_choice(after, choice), after)
