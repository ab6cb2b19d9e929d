"""Conformal risk control: a setting whose expected loss on a new item is at most alpha.

Angelopoulos et al. 2022, arXiv:2208.02814.  The promise is on average over the labelled items too; `selective` makes
the stronger one, with high probability and about the answered items alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.calibration.conformal.quantiles import check_alpha
from likely.metrics.checks import as_floats, check_correct, check_score


@dataclass(frozen=True)
class ControlledRisk:
    """setting: the chosen value; risk: mean loss of the n items there; expectation of a new item's loss <= alpha."""

    setting: float
    alpha: float
    n: int
    risk: float


def control_risk(losses: Any, settings: Any, *, alpha: float, bound: float = 1.0) -> ControlledRisk | None:
    """The smallest setting λ with (n/(n+1))·R̂(λ) + B/(n+1) <= alpha (theorem 1); None if there is none.

    losses    (N, G) of every item at every setting, in 0..bound, falling (or level) from left to right
    settings  (G,) rising
    """
    check_alpha(alpha / bound if bound > 0 else -1)
    table = as_floats(losses, "losses", 2)
    values = check_score(settings, "settings")
    if len(values) != table.shape[1]:
        raise ValueError(f"settings has {len(values)} values, losses {table.shape[1]} columns")
    if (np.diff(values) <= 0).any():
        raise ValueError("settings must rise")
    for bad, why in (
        ((table < 0) | (table > bound), f"holds a loss outside 0..{bound:g}"),
        (np.diff(table, axis=1) > 0, "rises with the setting: only losses that fall can be controlled"),
    ):
        if bad.any():
            raise ValueError(f"losses: row {int(bad.any(axis=1).argmax())} {why}")
    n = len(table)
    risks = table.mean(axis=0)
    good = np.flatnonzero((n * risks + bound) / (n + 1) <= alpha + 1e-12)
    return ControlledRisk(float(values[good[0]]), alpha, n, float(risks[good[0]])) if len(good) else None


def wrong_answers_threshold(confidence: Any, correct: Any, *, alpha: float) -> ControlledRisk | None:
    """The lowest threshold at which the expected share of ALL items that are answered (confidence >= threshold) and
    wrong is at most alpha; −inf: answer everything; None: n + 1 < 1/alpha, too few items.

    The error rate among the answered ones alone does not fall with the threshold, so that this method cannot hold it
    (`selective.certified_threshold` does).  Every distinct confidence is a setting: the loss is 1[answered and wrong].
    """
    check_alpha(alpha)
    score = check_score(confidence, "confidence")
    right = check_correct(correct, len(score))
    n = len(score)
    allowed = math.floor(alpha * (n + 1) - 1 + 1e-9)  # wrong answers that may stay
    if allowed < 0:
        return None
    wrong = np.sort(score[right == 0])[::-1]
    if len(wrong) <= allowed:
        return ControlledRisk(-math.inf, alpha, n, len(wrong) / n)
    threshold = float(np.nextafter(wrong[allowed], np.inf))  # just above the first one too many
    return ControlledRisk(threshold, alpha, n, float((wrong >= threshold).sum() / n))
