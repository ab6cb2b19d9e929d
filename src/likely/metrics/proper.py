"""Proper scores: least, on average, for the true probabilities, so they judge calibration and knowledge at once.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from likely.metrics.bins import Binning, BinSums, Edge, bin_cuts, bin_sums, checked_tally
from likely.metrics.checks import (
    SMALLEST,
    Floats,
    check_confidence,
    check_correct,
    check_labels,
    check_probs,
)


def brier(probs: Any, labels: Any) -> float:
    """mean_i Σ_k (p_ik − 1[y_i = k])², 0 (certain and right) to 2 (certain and wrong).  probs (N, K), labels (N,).

    For K = 2 it is twice `brier_binary` of either column.  Brier 1950, equation 2.
    """
    return float(brier_rows(probs, labels).mean())


def brier_binary(confidence: Any, correct: Any) -> float:
    """mean_i (c_i − y_i)², 0 to 1.  confidence (N,) in [0, 1], correct (N,) of 0 and 1."""
    return float(brier_binary_rows(confidence, correct).mean())


def nll(predicted: Any, labels: Any) -> float:
    """−mean_i log of the probability of what happened, in nats, clipped at 1e-12.

    predicted (N, K) probabilities with labels (N,), or (N,) confidences with labels of 0 and 1
    A row that is clipped stands with 27.6 nats for what is infinite: see `nll_clipped` for how many there are.
    """
    return float(nll_rows(predicted, labels).mean())


def nll_clipped(predicted: Any, labels: Any) -> int:
    """Rows whose label has a probability below 1e-12, where `nll` clips.  Rounded probabilities often do."""
    return int((_of_label(predicted, labels) < SMALLEST).sum())


class Murphy(NamedTuple):
    """brier_binary = reliability − resolution + uncertainty + within.

    reliability  Σ_b n_b/N (conf_b − acc_b)²  calibration error; 0 is best
    resolution   Σ_b n_b/N (acc_b − acc)²     how far the bins tell right from wrong; large is best
    uncertainty  acc (1 − acc)                of the rows, whatever the confidences are
    within       what differs inside bins: mean of (c − conf_b)² − 2 (c − conf_b)(y − acc_b); 0 if bins hold one value
    """

    reliability: float
    resolution: float
    uncertainty: float
    within: float


def murphy(
    confidence: Any,
    correct: Any,
    *,
    bins: int | None = None,
    binning: Binning = "width",
    edge: Edge = "right",
) -> Murphy:
    """Murphy's decomposition of `brier_binary`.  bins None: one for each distinct confidence, and then within = 0.

    Murphy 1973, "A new vector partition of the probability score"; the part within bins: Stephenson et al. 2008.
    """
    counted = checked_tally(confidence, correct)
    cuts = np.arange(len(counted.value) + 1) if bins is None else bin_cuts(counted, bins, binning, edge)
    sums = bin_sums(counted, cuts)
    reliability, resolution, uncertainty = (float(part) for part in murphy_of(sums))
    c, held = counted.value, np.maximum(sums.n, 1)
    squares = (counted.n * c**2).sum() - (sums.confidence**2 / held).sum()  # Σ (c − conf_b)²
    products = (counted.right * c).sum() - (sums.confidence * sums.right / held).sum()  # Σ (c − conf_b)(y − acc_b)
    return Murphy(reliability, resolution, uncertainty, float(squares - 2 * products) / sums.rows)


def murphy_of(sums: BinSums) -> tuple[Floats, Floats, Floats]:
    """Reliability, resolution, uncertainty of the bins, (...,) each."""
    held, overall = np.maximum(sums.n, 1), sums.right.sum(axis=-1) / sums.rows
    return (
        ((sums.confidence - sums.right) ** 2 / held).sum(axis=-1) / sums.rows,
        (sums.n * (sums.right / held - overall[..., None]) ** 2).sum(axis=-1) / sums.rows,
        overall * (1 - overall),
    )


def brier_rows(probs: Any, labels: Any) -> Floats:
    """`brier` of every row, (N,)."""
    p = check_probs(probs)
    y = check_labels(labels, *p.shape)
    return (p**2).sum(axis=1) + 1 - 2 * p[np.arange(len(p)), y]


def brier_binary_rows(confidence: Any, correct: Any) -> Floats:
    c = check_confidence(confidence)
    return (c - check_correct(correct, len(c))) ** 2


def nll_rows(predicted: Any, labels: Any) -> Floats:
    """`nll` of every row, (N,) in nats."""
    return -np.log(np.maximum(_of_label(predicted, labels), SMALLEST))


def _of_label(predicted: Any, labels: Any) -> Floats:
    if np.ndim(predicted) == 1:
        c = check_confidence(predicted)
        return np.where(check_correct(labels, len(c)) == 1, c, 1 - c)
    p = check_probs(predicted)
    return p[np.arange(len(p)), check_labels(labels, *p.shape)]


def sharpness(confidence: Any) -> float:
    """Variance of the confidences (N,), 0 (all equal) to ¼."""
    return float(check_confidence(confidence).var())


class Polarisation(NamedTuple):
    """extreme: share outside [0.1, 0.9].  deviation: standard deviation.  to_certainty: mean distance to 0 or 1."""

    extreme: float
    deviation: float
    to_certainty: float


def polarisation(confidence: Any) -> Polarisation:
    """Whether scores crowd at 0 and 1.  For scores of an event, e.g. risk scores (N,)."""
    c = check_confidence(confidence)
    return Polarisation(float(extreme(c).mean()), float(c.std()), float(np.minimum(c, 1 - c).mean()))


def extreme(confidence: Floats) -> Floats:
    """1.0 for confidences outside [0.1, 0.9], else 0.0; (N,)"""
    return ((confidence < 0.1) | (confidence > 0.9)).astype(np.float64)
