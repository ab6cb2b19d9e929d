"""Calibration error from bins: how far, on average, accuracy lies from the confidence that was stated.

Three questions that are often mixed up, and give different numbers on the same predictions:
  top_label_ece   is the chosen class right as often as its probability says?  (confidence >= 1/K)
  positive_ece    does the event of probability p1 happen in a share p1 of the rows?  (bins over all of 0..1)
  classwise_ece   the second question asked of every class
`ece` itself takes any confidence in 0..1 with whether it was right.  All are biased upwards: a perfectly calibrated
model has an ECE of the order of sqrt(bins / N); `floor.ece_floor` says how much.

Shapes: N rows, K classes, B bins.  Functions that end in `_of` take a `Tally` with any leading axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_array

from likely.calibration.inputs import (
    Floats,
    Ints,
    check_confidence,
    check_correct,
    check_labels,
    check_probs,
    top_label,
)
from likely.calibration.tally import Tally, tally

Binning = Literal["width", "mass"]
Edge = Literal["right", "left"]


@dataclass(frozen=True)
class BinTable:
    """The bins that hold rows, from low to high confidence; arrays (B,), B at most what was asked for.

    low, high   the bin's edges (binning "width"), or its least and greatest confidence ("mass")
    n           rows;  confidence, accuracy: their means
    """

    low: Floats
    high: Floats
    n: Ints
    confidence: Floats
    accuracy: Floats

    def to_dict(self) -> list[dict[str, float]]:
        names = ("low", "high", "n", "confidence", "accuracy")
        return [
            dict(zip(names, row, strict=True)) for row in zip(*(getattr(self, k).tolist() for k in names), strict=True)
        ]


def ece(
    confidence: Any, correct: Any, *, bins: int = 15, binning: Binning = "width", edge: Edge = "right", norm: float = 1
) -> float:
    """Expected calibration error (Σ_b n_b/N |acc_b − conf_b|^norm)^(1/norm), 0 (calibrated) to 1.

    confidence (N,) in [0, 1];  correct (N,) of 0 and 1
    bins     how many
    binning  "width": of equal width.  "mass": of equal counts (sizes as numpy.array_split gives them in order of
             confidence), rows of one confidence always in one bin
    edge     who owns a confidence that lies on an edge.  "right": the bin below, (low, high], and 0 goes to the first
             bin;  "left": the bin above, [low, high), and 1 goes to the last.  It matters for stated confidences such
             as 0.8.  With "mass": tied rows go to the first, or the last, of the bins that they would fill
    norm     1 (ECE), 2 (root mean square, `rmsce`), math.inf (the greatest gap, `mce`)
    ValueError names the first row that is not a number, or outside 0..1.
    Naeini et al. 2015 ("width"); Nguyen & O'Connor 2015, arXiv:1508.05154 ("mass").
    """
    return float(ece_of(checked_tally(confidence, correct), bins=bins, binning=binning, edge=edge, norm=norm))


def top_label_ece(probs: Any, labels: Any, **how: Any) -> float:
    """`ece` of the greatest probability of each row and whether that class is the label.

    probs (N, K), labels (N,) in 0..K-1;  `how` as for `ece`.  Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    p = check_probs(probs)
    return ece(*top_label(p, check_labels(labels, *p.shape)), **how)


def positive_ece(p1: Any, y: Any, **how: Any) -> float:
    """`ece` of the probability of an event and whether it happened: p1, y (N,);  `how` as for `ece`.

    Not the same number as `top_label_ece` of the columns [1 − p1, p1], which has no confidence below 0.5.
    """
    p = check_confidence(p1, "p1")
    return ece(p, check_correct(y, len(p), "y"), **how)


def classwise_ece(probs: Any, labels: Any, *, average: Literal["mean", "sum"] = "mean", **how: Any) -> float:
    """Mean, or sum, over classes k of `positive_ece` of column k.  `how` as for `ece`.

    Kull et al. 2019, arXiv:1910.12656, section 2.
    """
    if average not in ("mean", "sum"):
        raise ValueError(f'average must be "mean" or "sum", got {average!r}')
    p = check_probs(probs)
    y = check_labels(labels, *p.shape)
    errors = [ece(p[:, k], y == k, **how) for k in range(p.shape[1])]
    return float(np.mean(errors) if average == "mean" else np.sum(errors))


def mce(confidence: Any, correct: Any, **how: Any) -> float:
    """The greatest gap of any bin that holds rows: max_b |acc_b − conf_b|.  `how` as for `ece`."""
    return ece(confidence, correct, norm=math.inf, **how)


def rmsce(confidence: Any, correct: Any, **how: Any) -> float:
    """Root mean square gap, sqrt(Σ_b n_b/N (acc_b − conf_b)²).  `how` as for `ece`."""
    return ece(confidence, correct, norm=2, **how)


def debiased_ce(
    confidence: Any, correct: Any, *, bins: int = 15, binning: Binning = "mass", edge: Edge = "right"
) -> float:
    """`rmsce` less what sampling noise adds to it: sqrt(max(0, Σ_b n_b/N (gap_b² − acc_b(1−acc_b)/(n_b−1)))).

    Bins of one row say nothing of their variance and count 0.  Kumar, Liang & Ma 2019, arXiv:1909.10155, section 5.
    """
    return float(debiased_ce_of(checked_tally(confidence, correct), bins=bins, binning=binning, edge=edge))


def sweep_ece(confidence: Any, correct: Any, *, edge: Edge = "right", norm: float = 1) -> float:
    """`ece` with as many equal-mass bins as leave accuracy rising with confidence.

    Bins are added one at a time until accuracies of successive bins fall somewhere; the number before that counts.
    Roelofs et al. 2022, arXiv:2012.08668, algorithm 1 (there norm 2).
    """
    return float(sweep_ece_of(checked_tally(confidence, correct), edge=edge, norm=norm))


def ks_error(confidence: Any, correct: Any) -> float:
    """max over thresholds t of |Σ (confidence − correct over rows with confidence <= t)| / N.  Needs no bins.

    The Kolmogorov-Smirnov distance of Gupta et al. 2021, arXiv:2006.12800, equation 8.
    """
    return float(ks_error_of(checked_tally(confidence, correct)))


def bin_table(
    confidence: Any, correct: Any, *, bins: int = 15, binning: Binning = "width", edge: Edge = "right"
) -> BinTable:
    """What `ece` sums over.  Arguments as for `ece`."""
    counted = checked_tally(confidence, correct)
    at = assign(counted, bins, binning, edge)
    n, conf, acc = bin_sums(counted, at, bins)
    held = np.flatnonzero(n)
    first = np.searchsorted(at, held, side="left")
    last = np.searchsorted(at, held, side="right") - 1
    low, high = (held / bins, (held + 1) / bins) if binning == "width" else (counted.value[first], counted.value[last])
    n = n[held]
    return BinTable(low, high, n.astype(np.int64), conf[held] / n, acc[held] / n)


def checked_tally(confidence: Any, correct: Any) -> Tally:
    c = check_confidence(confidence)
    return tally(c, check_correct(correct, len(c)))


def assign(counted: Tally, bins: int, binning: Binning, edge: Edge) -> Ints:
    """Bin 0..bins-1 of every value, rising with it: (G,) for "width", shaped like `counted.n` for "mass"."""
    if not isinstance(bins, int | np.integer) or isinstance(bins, bool) or bins < 1:
        raise ValueError(f"bins must be a whole number of at least 1, got {bins!r}")
    if binning not in ("width", "mass"):
        raise ValueError(f'binning must be "width" or "mass", got {binning!r}')
    if edge not in ("right", "left"):
        raise ValueError(f'edge must be "right" or "left", got {edge!r}')
    if binning == "width":
        return _of_width(counted.value, bins, edge)
    ends = np.cumsum(counted.n, axis=-1)
    return _split(ends - counted.n if edge == "right" else np.maximum(ends - 1, 0), counted.rows, bins)


def _split(position: Floats, rows: int, bins: int) -> Ints:
    """Part of numpy.array_split(range(rows), bins) that holds each position: the first rows % bins are one longer."""
    size, longer = divmod(rows, bins)
    of_longer = position // (size + 1)
    of_rest = longer + (position - longer * (size + 1)) // max(size, 1)
    # a value that no row of a resample has may stand behind the last position
    return np.minimum(np.where(position < longer * (size + 1), of_longer, of_rest), bins - 1).astype(np.int64)


def bin_sums(counted: Tally, at: Ints, bins: int) -> tuple[Floats, Floats, Floats]:
    """(rows, sum of confidence, right rows) of every bin, each (..., bins)."""
    n = counted.n
    each = np.broadcast_to(at, n.shape).reshape(-1, n.shape[-1])
    flat = (each + np.arange(len(each))[:, None] * bins).ravel()

    def summed(what: Floats) -> Floats:
        total = np.bincount(flat, weights=what.ravel(), minlength=len(each) * bins)
        return total.astype(np.float64).reshape(*n.shape[:-1], bins)

    return summed(n), summed(n * counted.value), summed(counted.right)


def classwise_residuals(probs: Floats, labels: Ints, *, bins: int = 15, edge: Edge = "right") -> Any:
    """Sparse (K · bins, N): its product with row weights (N,) is the sum of 1[y = k] − p_k in each bin of equal width.

    The absolute values of that, summed and divided by N · K, are `classwise_ece`: one product for all resamples.
    """
    rows, classes = probs.shape
    at = _of_width(probs, bins, edge)
    off = -probs
    off[np.arange(rows), labels] += 1
    cells = (at + np.arange(classes) * bins).ravel()
    return csr_array((off.ravel(), (cells, np.repeat(np.arange(rows), classes))), shape=(classes * bins, rows))


def _of_width(values: Floats, bins: int, edge: Edge) -> Ints:
    inner = np.arange(1, bins) / bins  # correctly rounded, as the literal 0.3 is; linspace and c * bins are not
    return np.searchsorted(inner, values, side="left" if edge == "right" else "right").astype(np.int64)


def ece_of(
    counted: Tally, *, bins: int = 15, binning: Binning = "width", edge: Edge = "right", norm: float = 1
) -> Floats:
    if not norm >= 1:
        raise ValueError(f"norm must be at least 1 (1, 2 or math.inf), got {norm!r}")
    n, conf, right = bin_sums(counted, assign(counted, bins, binning, edge), bins)
    return _mean_gap(n, conf, right, counted.rows, norm)


def _mean_gap(n: Floats, conf: Floats, right: Floats, rows: int, norm: float) -> Floats:
    if norm == 1:
        return np.abs(right - conf).sum(axis=-1) / rows
    gap = np.abs(right - conf) / np.maximum(n, 1)
    if norm == math.inf:
        return gap.max(axis=-1)
    return ((n / rows) * gap**norm).sum(axis=-1) ** (1 / norm)


def debiased_ce_of(counted: Tally, *, bins: int = 15, binning: Binning = "mass", edge: Edge = "right") -> Floats:
    n, conf, right = bin_sums(counted, assign(counted, bins, binning, edge), bins)
    held, accuracy = np.maximum(n, 1), right / np.maximum(n, 1)
    squared = ((right - conf) / held) ** 2 - accuracy * (1 - accuracy) / np.maximum(n - 1, 1)
    return np.sqrt(np.maximum(0, (np.where(n > 1, squared, 0) * n).sum(axis=-1) / counted.rows))


def sweep_ece_of(counted: Tally, *, edge: Edge = "right", norm: float = 1) -> Floats:
    if counted.n.ndim > 1:
        each = (Tally(counted.value, *pair, counted.rows) for pair in zip(counted.n, counted.right, strict=True))
        return np.array([sweep_ece_of(one, edge=edge, norm=norm) for one in each])
    held = counted.n > 0
    n, right = counted.n[held], counted.right[held]
    ends = np.cumsum(n)
    sums = np.stack([ends, np.cumsum(n * counted.value[held]), np.cumsum(right)])
    sums = np.concatenate([np.zeros((3, 1)), sums], axis=1)
    position = ends - n if edge == "right" else ends - 1
    best = sums[:, -1:]
    for bins in range(2, counted.rows + 1):
        first = np.searchsorted(position, _begins(counted.rows, bins), side="left")
        first = np.unique(np.concatenate([[0], first, [len(n)]]))
        parts = np.diff(sums[:, first], axis=1)
        if (np.diff(parts[2] / parts[0]) < 0).any():
            break
        best = parts
    return _mean_gap(best[0], best[1], best[2], counted.rows, norm)


def _begins(rows: int, bins: int) -> Ints:
    """First positions of parts 1.. of numpy.array_split(range(rows), bins)."""
    size, longer = divmod(rows, bins)
    part = np.arange(1, bins)
    return part * size + np.minimum(part, longer)


def ks_error_of(counted: Tally) -> Floats:
    return np.abs(np.cumsum(counted.n * counted.value - counted.right, axis=-1)).max(axis=-1) / counted.rows
