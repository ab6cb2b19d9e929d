"""From the scores of a pool to a prompt and its answers: choose by a method, repair what the answers are biased to."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from likely.errors import check_choice
from likely.metrics.checks import Floats, Ints
from likely.metrics.intervals import Accuracy
from likely.prompting.selection.answer_bias import CbmNorm, cbm, contextual, pmi
from likely.prompting.selection.answers import accuracy, f1_of_prompts, macro_f1
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

    def ranked(self, labels: Ints | None = None) -> list[dict[str, Any]]:
        """The prompts, best first: name and value; with labels (N,) accuracy, macro-F1 and F1 over the best one."""
        rows: list[dict[str, Any]] = [{"prompt": self.names[t], "value": float(self.worth[t])} for t in self.ranking]
        if labels is not None:
            f1 = f1_of_prompts(self.all_probs, labels)
            for row, t in zip(rows, self.ranking, strict=True):
                row |= {"accuracy": accuracy(self.all_probs[t].argmax(axis=1), labels), "macro_f1": float(f1[t])}
                row["scaled_f1"] = float(f1[t] / f1.max()) if f1.max() else None
        return rows

    def quality(self, labels: Ints) -> dict[str, Any]:
        """How good the chosen answers are against labels (N,): accuracy with its 95 % interval, F1 beside the best and
        the mean prompt's, and the correlation of the prompts' values with their F1 (None where it is undefined).
        """
        from scipy.stats import pearsonr

        right = Accuracy(int((self.answers == labels).sum()), len(labels))
        f1, each = macro_f1(self.answers, labels, self.probs.shape[1]), f1_of_prompts(self.all_probs, labels)
        spread = len(each) > 2 and each.std() > 0 and self.worth.std() > 0
        return {
            "accuracy": right.value, "accuracy_interval": list(right.interval), "macro_f1": f1,
            "scaled_f1": f1 / float(each.max()) if each.max() else None, "best_f1": float(each.max()),
            "mean_f1": float(each.mean()),
            "correlation": float(pearsonr(self.worth, each).statistic) if spread else None,
        }  # fmt: skip


def calibrated_probs(
    scores: PromptScores, calibration: Calibration | None, *, norm: AnswerNorm = "token", cbm_norm: CbmNorm = "softmax"
) -> Floats:
    """P (T, N, K) with CBM, contextual calibration, PMI, or (None) as it is."""
    if calibration is None:
        return scores.probs(norm)
    check_choice("calibration", calibration, CALIBRATIONS)
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
    if "" not in scores.without:
        raise ValueError(f'pmi needs the scores of the empty input "", there are those of {list(scores.without)}')
    return pmi(scores.logits(norm), scores.content_free_logits(norm)[scores.without.index("")])


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
