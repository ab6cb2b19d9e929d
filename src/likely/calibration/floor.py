"""How large an ECE a perfectly calibrated model would show on as many rows, and whether this one shows more."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from likely.calibration.bins import Binning, Edge, checked_tally, ece_of
from likely.calibration.bootstrap import blocks, check_settings
from likely.calibration.tally import Tally


class Floor(NamedTuple):
    """ece: of the rows.  floor: its mean if every confidence were exact.  p_value: P(an ECE at least as large then)."""

    ece: float
    floor: float
    p_value: float


def ece_floor(
    confidence: Any,
    correct: Any,
    *,
    bins: int = 15,
    binning: Binning = "width",
    edge: Edge = "right",
    norm: float = 1,
    resamples: int = 1000,
    seed: int = 0,
) -> Floor:
    """`ece` beside what it is when `correct` is drawn anew with the stated probabilities.

    The p-value counts the given rows among the draws, (1 + draws with an ECE at least as large) / (1 + resamples), so
    it is at most α with probability α (and rounding of the count) if the confidences are exact.  Arguments as for
    `ece`.  Bröcker & Smith 2007, "Increasing the reliability of reliability diagrams" (consistency resampling).
    """
    check_settings(resamples, 0.5)
    counted = checked_tally(confidence, correct)
    how: dict[str, Any] = {"bins": bins, "binning": binning, "edge": edge, "norm": norm}
    value = float(ece_of(counted, **how))
    rng = np.random.default_rng(seed)
    drawn = []
    for count in blocks(resamples, len(counted.value)):
        shape = (count, len(counted.value))
        right = rng.binomial(counted.n.astype(np.int64), counted.value, shape).astype(np.float64)
        n = np.broadcast_to(counted.n, shape)
        drawn.append(ece_of(Tally(counted.value, n, right, counted.rows), **how))
    eces = np.concatenate(drawn)
    # equal values may differ in the last digits, where sums were taken in another order
    as_large = int((eces >= value - 1e-12).sum())
    return Floor(value, float(eces.mean()), (1 + as_large) / (1 + resamples))
