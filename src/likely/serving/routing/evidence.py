"""What an answer's own tokens say of its being right: those that its form left free, and no others.

A token that the form forces has probability 1 whatever the model knows; counted in, it makes every answer look sure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.calibration.calibrator import Calibrator, fit_calibrator
from likely.calibration.labelled import Labelled
from likely.calibration.recalibrators.answer import FEATURES, features, within_form
from likely.errors import DataError
from likely.guided.fields import forced_tokens
from likely.guided.form import Form
from likely.lm.model import Model
from likely.lm.results import Answer


@dataclass(frozen=True)
class AnswerEvidence:
    """What is known of one answer before anybody checks it.

    logprobs     per free token, in nats, among the tokens that the form allowed there; without a form of every token
    tokens       of the answer, forced ones and the end token included
    log_mass     Σ log m over all tokens, m the model's probability of what the form allowed: how much the form had to
                 force; 0 without a form
    valid        whether every check accepted it;  repairs: that it took
    """

    logprobs: tuple[float, ...]
    tokens: int
    log_mass: float = 0.0
    valid: bool = True
    repairs: int = 0

    @property
    def informative(self) -> bool:
        """False where the form left nothing to choose: the answer then says nothing of its being right."""
        return bool(self.logprobs)

    def features(self) -> dict[str, float]:
        """What a calibrator is fitted on, by name; empty without information."""
        return dict(zip(FEATURES, features(self.logprobs), strict=True)) if self.informative else {}

    def to_dict(self) -> dict[str, Any]:
        return {**self.features(), "free_tokens": len(self.logprobs), "tokens": self.tokens,
                "log_mass": self.log_mass, "valid": self.valid, "repairs": self.repairs}  # fmt: skip

    def confidence(self, calibrator: Calibrator) -> float | None:
        """P(right); None where there is no information, 0 where a check refused the answer."""
        if not self.valid:
            return 0.0
        return calibrator.of_answer(self.logprobs) if self.informative else None


def evidence_of(
    lm: Model, answer: Answer, form: Form | None, *, valid: bool = True, repairs: int = 0, with_forced: bool = False
) -> AnswerEvidence:
    """The evidence of an answer of this model.

    form         that it was held to, None if none
    with_forced  count forced tokens in, as a comparison

    DataError for an answer without log-probabilities.
    """
    logprobs, masses = answer.token_logprobs, answer.token_log_masses
    if not logprobs or answer.token_ids is None:
        raise DataError(f"the answer of {lm.info.name} has no log-probabilities of tokens: load the model locally")
    if form is None or masses is None:
        return AnswerEvidence(tuple(min(0.0, p) for p in logprobs), len(logprobs), 0.0, valid, repairs)
    inside = within_form(logprobs, masses)
    if not with_forced:
        forced = forced_tokens(lm.guide.constraint(form), answer.token_ids, lm.tokenizer.token_bytes)
        inside = [logprob for logprob, one_way in zip(inside, forced, strict=True) if not one_way]
    return AnswerEvidence(tuple(inside), len(logprobs), math.fsum(masses), valid, repairs)


def fit_confidence(
    evidence: Sequence[AnswerEvidence], correct: Sequence[bool], *, method: str = "auto",
    about: Mapping[str, Any] | None = None,
) -> Calibrator:  # fmt: skip
    """A calibrator from evidence to P(right), see `fit_calibrator`; answers without information are left out.

    Those that a check refused are left out, too: nothing is to be learned from them, their confidence is 0.
    """
    if len(evidence) != len(correct):
        raise ValueError(f"{len(evidence)} answers, {len(correct)} labels")
    used = [(e, bool(c)) for e, c in zip(evidence, correct, strict=True) if e.informative and e.valid]
    if not used:
        raise DataError("none of the answers says anything: their form leaves nothing to choose")
    x = np.array([features(e.logprobs) for e, _ in used])
    labelled = Labelled("answer", x, np.array([c for _, c in used], np.int64))
    fitted = fit_calibrator(labelled, method=method, file="routing", reports=False)
    fitted.about.update(about or {})
    return fitted
