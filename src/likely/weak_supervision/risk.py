"""The POLAR score: how likely a model's answer is wrong, by a model that fused what rules and answers say.

Shapes: N texts, K classes.  Zhao et al. 2023, arXiv:2306.16564.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.metrics.bins import bin_table, ece
from likely.metrics.checks import Floats, check_confidence, check_correct, check_probs
from likely.metrics.ranking import auroc, risk_curve
from likely.uncertainty.types import Uncertainty
from likely.weak_supervision.labelling_rules import check_votes


def polar(probs: Any, answers: Any) -> Uncertainty:
    """ζ = 1 − h(x)[answer], in [0, 1]; 0 if and only if h puts all mass on the answer.

    probs    (N, K) of the fused model (`Harmonizer.predict_proba`)
    answers  (N,) classes, -1 where the model gave none: ζ is then 1 − max h, the risk of the fused model's own answer,
             and the note counts such rows
    """
    h = check_probs(probs)
    given = np.asarray(answers)
    if given.shape != (len(h),):
        raise ValueError(f"answers must be ({len(h)},), one per row of probs, got shape {given.shape}")
    given = check_votes(given[:, None], h.shape[1])[:, 0]
    none = given < 0
    own = np.where(none, h.argmax(axis=1), given)
    others = h.copy()
    others[np.arange(len(h)), own] = 0.0  # summing the others keeps small risks exact, 1 − h does not
    note = f"{int(none.sum())} of {len(h)} answers missing: risk of the harmonizer's own answer" if none.any() else ""
    return Uncertainty(np.clip(others.sum(axis=1), 0, 1), "probability", "less_certain", "POLAR", note=note)


@dataclass(frozen=True)
class RiskReport:
    """How well risks (N,) in [0, 1] foretell errors (N,) of 0 and 1.

    ece         mean gap of risk and error rate over 10 bins of equal counts
    r2          squared correlation of the bins' mean risks and error rates: 1 is a straight line, whatever its slope;
                NaN if either is the same in all bins
    auroc       P(risk of an error > risk of a right answer), ties half; NaN if all are right or all wrong
    top_decile  error rate among the tenth of the items with the highest risk, mean over all orders of tied ones
    error_rate  among all
    """

    n: int
    ece: float
    r2: float
    auroc: float
    top_decile: float
    error_rate: float


def risk_quality(risk: Any, wrong: Any, *, bins: int = 10) -> RiskReport:
    values = check_confidence(risk, "risk")
    errors = check_correct(wrong, len(values), "wrong")
    table = bin_table(values, errors, bins=bins, binning="mass")
    both = 0 < errors.sum() < len(errors)
    tenth = max(1, round(len(values) / 10))
    return RiskReport(
        len(values),
        ece(values, errors, bins=bins, binning="mass"),
        _squared_correlation(table.confidence, table.accuracy),
        auroc(values, errors) if both else float("nan"),
        float(1 - risk_curve(values, errors)[tenth - 1]),  # the curve's "errors" are the right answers here
        float(errors.mean()),
    )


def _squared_correlation(x: Floats, y: Floats) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)
