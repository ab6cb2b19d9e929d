"""From the token log-probabilities of one generated answer to the probability that it is right: logistic regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import scipy

from likely.calibration.recalibrators.protocol import Fitted, Input, Learned
from likely.calibration.recalibrators.sigmoid import logistic
from likely.errors import DataError
from likely.metrics.checks import Floats, as_floats

FEATURES = ("sequence_logprob", "mean_logprob", "lowest_logprob", "log_tokens")


def within_form(token_logprobs: Sequence[float], token_log_masses: Sequence[float]) -> list[float]:
    """Of an answer in a given form (choices, a schema): log-probabilities among the tokens that the form allowed.

    How likely the model finds the form at all is taken out, which says nothing of the answer.
    """
    if len(token_logprobs) != len(token_log_masses):
        raise ValueError(f"{len(token_logprobs)} log-probabilities of tokens, {len(token_log_masses)} log masses")
    return [min(0.0, logprob - mass) for logprob, mass in zip(token_logprobs, token_log_masses, strict=True)]


def features(token_logprobs: Sequence[float]) -> list[float]:
    """Of the tokens of one answer, end token included: sum, mean and lowest logprob (nats), log of their number."""
    if not token_logprobs:
        raise ValueError("an answer of no tokens has no log-probability")
    total = math.fsum(token_logprobs)
    if not math.isfinite(total) or max(token_logprobs) > 1e-6:
        raise ValueError("token log-probabilities must be finite and at most 0")
    count = len(token_logprobs)
    return [total, total / count, min(token_logprobs), math.log(count)]


@dataclass(kw_only=True, eq=False)
class AnswerLogistic(Fitted):
    """σ(b + Σ_f w_f (x_f − mean_f) / scale_f), by penalised maximum likelihood; x (N, F) as `features` gives them.

    ridge  > 0: the penalty is ridge/2 · (Σ w² + (b − b₀)²), b₀ the log odds of the labelled answers
    Learned: `mean_`, `scale_`, `weights_` (F,), `intercept_`.
    """

    name: ClassVar[str] = "answer"
    inputs: ClassVar[tuple[Input, ...]] = ()
    learns: ClassVar[dict[str, Learned]] = {
        "mean_": Learned("f"), "scale_": Learned("f", low=1e-300), "weights_": Learned("f"), "intercept_": Learned(),
    }  # fmt: skip

    ridge: float = 1.0

    def restore(self, learned: Any) -> Self:
        super().restore(learned)
        if len(self.weights_) != len(FEATURES):
            raise DataError(f"learned.weights_: has {len(self.weights_)} entries, there are {len(FEATURES)} features")
        return self

    def checked(self, x: Any) -> Floats:
        array = as_floats(x, "answers", 2)
        if array.shape[1] != len(FEATURES):
            raise ValueError(f"answers must have {len(FEATURES)} columns ({', '.join(FEATURES)}), got {array.shape[1]}")
        return array

    def fit(self, x: Any, labels: Any) -> Self:
        if not self.ridge > 0:
            raise ValueError(f"ridge must be > 0, got {self.ridge}")
        array, correct = self.checked_binary(x, labels)
        if len(np.unique(correct)) < 2:
            raise ValueError(f"all {len(array)} answers are {'right' if correct[0] else 'wrong'}: nothing to learn")
        self.mean_, spread = array.mean(axis=0), array.std(axis=0)
        self.scale_ = np.where(spread > 1e-12, spread, 1.0)
        design = np.column_stack([np.ones(len(array)), (array - self.mean_) / self.scale_])
        start = np.zeros(design.shape[1])
        start[0] = math.log(correct.mean() / (1 - correct.mean()))
        found, _ = logistic(design, correct.astype(np.float64), start=start, pull=self.ridge)
        self.intercept_, self.weights_ = float(found[0]), found[1:]
        return self

    def predict_proba(self, x: Any) -> Floats:
        self.learned()
        return scipy.special.expit(self.intercept_ + (self.checked(x) - self.mean_) / self.scale_ @ self.weights_)
