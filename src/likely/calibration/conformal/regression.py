"""Conformal intervals for numbers: around a prediction, or around a lower and an upper one (CQR).

Split conformal as in `classification`: y is in [low, high] with a probability >= 1 − alpha, for any model.  N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from likely.calibration.conformal.quantiles import GroupQuantiles
from likely.metrics.checks import Floats, check_score


def cqr_scores(y: Floats, low: Floats, high: Floats) -> Floats:
    """(N,) max(low − y, y − high): how far y lies outside, negative inside.  Romano et al. 2019, arXiv:1905.03222."""
    return np.maximum(low - y, y - high)


@dataclass(kw_only=True)
class ConformalIntervals(GroupQuantiles):
    """Intervals with coverage >= 1 − alpha: predicted ± q, or [low − q, high + q].

    by  None, or "group": one quantile per group given to fit and predict
    `predicted` is (N,), or (N, 2) with a lower and an upper prediction (quantile regression, say); q may then be
    negative, which narrows the interval (to its middle at the least).
    Learned: `groups_`, `quantiles_`, `rows_` as in ConformalSets; an infinite quantile gives (−inf, inf) and a warning.
    """

    name: ClassVar[str] = "conformal_intervals"
    alpha: float = 0.1
    by: Literal["group"] | None = None

    def fit(self, predicted: Any, y: Any, groups: Sequence[Any] | None = None) -> Self:
        if self.by not in (None, "group"):
            raise ValueError(f'by must be None or "group", got "{self.by}"')
        low, high = _ends(predicted)
        target = check_score(y, "y")
        if len(target) != len(low):
            raise ValueError(f"y has {len(target)} rows, the predictions have {len(low)}")
        scores = cqr_scores(target, low, high)
        self.set_quantiles(scores, groups)
        return self

    def predict(self, predicted: Any, groups: Sequence[Any] | None = None) -> tuple[Floats, Floats]:
        """(low, high), each (N,)."""
        self.check_fitted("quantiles_")
        low, high = _ends(predicted)
        q = self.quantile_of_rows(groups, len(low))
        below, above = low - q, high + q
        middle = (low + high) / 2
        crossed = below > above
        return np.where(crossed, middle, below), np.where(crossed, middle, above)


def _ends(predicted: Any) -> tuple[Floats, Floats]:
    """A point is an interval of no width: |y − v| = max(v − y, y − v)."""
    array = np.asarray(predicted, np.float64)
    if array.ndim == 1:
        point = check_score(array, "predicted")
        return point, point
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"predicted must be (N,) or (N, 2) (low, high), got shape {array.shape}")
    low, high = check_score(array[:, 0], "predicted low"), check_score(array[:, 1], "predicted high")
    if (low > high).any():
        row = int((low > high).argmax())
        raise ValueError(f"predicted: row {row} has low {low[row]:g} above high {high[row]:g}: sort the two")
    return low, high
