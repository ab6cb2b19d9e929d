"""Calibration error from bins: how far, on average, accuracy lies from the confidence that was stated.

Three questions that are often mixed up, and give different numbers on the same predictions:
  top_label_ece   is the chosen class right as often as its probability says?  (confidence >= 1/K)
  positive_ece    does the event of probability p1 happen in a share p1 of the rows?  (bins over all of 0..1)
  classwise_ece   the second question asked of every class
`ece` itself takes any confidence in 0..1 with whether it was right.  All are biased upwards: a perfectly calibrated
model has an ECE of the order of sqrt(bins / N); `ece_floor` says how much.

Shapes: N rows, K classes, B bins.  Functions that end in `_of` take a `Tally` with any leading axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import numpy as np
import scipy

from likely.metrics.bootstrap import blocks, check_settings
from likely.metrics.checks import (
    Floats,
    Ints,
    check_confidence,
    check_correct,
    check_labels,
    check_probs,
    top_label,
)
from likely.metrics.tally import Tally, tally

Binning = Literal["width", "mass"]
Edge = Literal["right", "left"]
SWEPT = 100  # bins at most in `sweep_ece`


class BinSettings(TypedDict, total=False):
    """See `ece`."""

    bins: int
    binning: Binning
    edge: Edge


class EceSettings(BinSettings, total=False):
    """See `ece`."""

    norm: float


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


def top_label_ece(probs: Any, labels: Any, **how: Unpack[EceSettings]) -> float:
    """`ece` of the greatest probability of each row and whether that class is the label.

    probs (N, K), labels (N,) in 0..K-1;  `how` as for `ece`.  Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    p = check_probs(probs)
    return ece(*top_label(p, check_labels(labels, *p.shape)), **how)


def positive_ece(p1: Any, y: Any, **how: Unpack[EceSettings]) -> float:
    """`ece` of the probability of an event and whether it happened: p1, y (N,);  `how` as for `ece`.

    Not the same number as `top_label_ece` of the columns [1 − p1, p1], which has no confidence below 0.5.
    """
    p = check_confidence(p1, "p1")
    return ece(p, check_correct(y, len(p), "y"), **how)


def classwise_ece(
    probs: Any, labels: Any, *, average: Literal["mean", "sum"] = "mean", **how: Unpack[EceSettings]
) -> float:
    """Mean, or sum, over classes k of `positive_ece` of column k.  `how` as for `ece`.

    Kull et al. 2019, arXiv:1910.12656, section 2.
    """
    if average not in ("mean", "sum"):
        raise ValueError(f'average must be "mean" or "sum", got {average!r}')
    p = check_probs(probs)
    y = check_labels(labels, *p.shape)
    errors = [ece(p[:, k], y == k, **how) for k in range(p.shape[1])]
    return float(np.mean(errors) if average == "mean" else np.sum(errors))


def mce(confidence: Any, correct: Any, **how: Unpack[BinSettings]) -> float:
    """The greatest gap of any bin that holds rows: max_b |acc_b − conf_b|.  `how` as for `ece`."""
    return ece(confidence, correct, norm=math.inf, **how)


def rmsce(confidence: Any, correct: Any, **how: Unpack[BinSettings]) -> float:
    """Root mean square gap, sqrt(Σ_b n_b/N (acc_b − conf_b)²).  `how` as for `ece`."""
    return ece(confidence, correct, norm=2, **how)


def debiased_ce(
    confidence: Any, correct: Any, *, bins: int = 15, binning: Binning = "mass", edge: Edge = "right",
    signed: bool = False,
) -> float:  # fmt: skip
    """`rmsce` less what sampling noise adds to it: sqrt(max(0, D)), D = Σ_b n_b/N (gap_b² − acc_b(1−acc_b)/(n_b−1)).

    signed  sign(D)·sqrt(|D|): below 0 where the gaps are smaller than noise alone makes them, so that maps which all
            look calibrated can be told apart
    Bins of one row say nothing of their variance and count 0.  Kumar, Liang & Ma 2019, arXiv:1909.10155, section 5.
    """
    counted = checked_tally(confidence, correct)
    return float(debiased_gap(bin_sums(counted, bin_cuts(counted, bins, binning, edge)), signed=signed))


def sweep_ece(confidence: Any, correct: Any, *, edge: Edge = "right", norm: float = 1) -> float:
    """`ece` with as many equal-mass bins as leave accuracy rising with confidence.

    Bins are added one at a time until accuracies of successive bins fall somewhere; the number before that counts.
    It also ends where every distinct confidence has a bin of its own, since more bins change nothing then, and at 100
    bins: rows that are all right would otherwise end with one bin each.
    Roelofs et al. 2022, arXiv:2012.08668, algorithm 1 (there norm 2, and no greatest number of bins).
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
    cuts = bin_cuts(counted, bins, binning, edge)
    sums = bin_sums(counted, cuts)
    held = np.flatnonzero(sums.n)
    n, first, last = sums.n[held], cuts[held], cuts[held + 1] - 1
    low, high = (held / bins, (held + 1) / bins) if binning == "width" else (counted.value[first], counted.value[last])
    return BinTable(low, high, n.astype(np.int64), sums.confidence[held] / n, sums.right[held] / n)


def checked_tally(confidence: Any, correct: Any) -> Tally:
    c = check_confidence(confidence)
    return tally(c, check_correct(correct, len(c)))


class BinSums(NamedTuple):
    """Rows, sum of their confidences, right ones in each bin, (..., B) each; empty bins hold 0.  rows: of all bins."""

    n: Floats
    confidence: Floats
    right: Floats
    rows: int


def bin_cuts(counted: Tally, bins: int, binning: Binning, edge: Edge) -> Ints:
    """Where bins begin among the distinct values, and G: (bins + 1,) for "width", (..., bins + 1) for "mass"."""
    if not isinstance(bins, int | np.integer) or isinstance(bins, bool) or bins < 1:
        raise ValueError(f"bins must be a whole number of at least 1, got {bins!r}")
    if binning not in ("width", "mass"):
        raise ValueError(f'binning must be "width" or "mass", got {binning!r}')
    if edge not in ("right", "left"):
        raise ValueError(f'edge must be "right" or "left", got {edge!r}')
    groups = len(counted.value)
    if binning == "width":
        inner = np.searchsorted(counted.value, _edges(bins), side="right" if edge == "right" else "left")
        return np.concatenate([[0], inner, [groups]])
    lead = counted.n.shape[:-1]
    begins = _begins(counted.rows, bins)
    # the rows of a value lie at positions n_before[g] to n_before[g + 1] − 1; one search in all resamples, end to end
    places = counted.n_before[..., :-1] if edge == "right" else counted.n_before[..., 1:] - 1
    offset = np.arange(int(np.prod(lead)))[:, None]
    flat = (places.reshape(-1, groups) + offset * counted.rows).ravel()
    inner = np.searchsorted(flat, (begins + offset * counted.rows).ravel()).reshape(*lead, bins - 1)
    inner = inner - (offset * groups).reshape(*lead, 1)
    ends = np.zeros((*lead, 1), np.int64)
    return np.concatenate([ends, inner, ends + groups], axis=-1)


def _edges(bins: int) -> Floats:
    return np.arange(1, bins) / bins  # correctly rounded, as the literal 0.3 is; linspace and c * bins are not


def _begins(rows: int, bins: int) -> Ints:
    """First positions of parts 1.. of numpy.array_split(range(rows), bins): the first rows % bins are one longer."""
    size, longer = divmod(rows, bins)
    part = np.arange(1, bins)
    return part * size + np.minimum(part, longer)


def bin_sums(counted: Tally, cuts: Ints) -> BinSums:
    def between(before: Floats) -> Floats:
        at = before[..., cuts] if cuts.ndim == 1 else np.take_along_axis(before, cuts, axis=-1)
        return np.diff(at, axis=-1)

    return BinSums(
        between(counted.n_before), between(counted.value_before), between(counted.right_before), counted.rows
    )


def ece_of(
    counted: Tally, *, bins: int = 15, binning: Binning = "width", edge: Edge = "right", norm: float = 1
) -> Floats:
    return mean_gap(bin_sums(counted, bin_cuts(counted, bins, binning, edge)), norm)


def mean_gap(sums: BinSums, norm: float = 1) -> Floats:
    """`ece` of the bins, (...,)."""
    if not norm >= 1:
        raise ValueError(f"norm must be at least 1 (1, 2 or math.inf), got {norm!r}")
    off = np.abs(sums.right - sums.confidence)
    if norm == 1:
        return off.sum(axis=-1) / sums.rows
    gap = off / np.maximum(sums.n, 1)
    if norm == math.inf:
        return gap.max(axis=-1)
    return ((sums.n / sums.rows) * gap**norm).sum(axis=-1) ** (1 / norm)


def debiased_gap(sums: BinSums, *, signed: bool = False) -> Floats:
    """`debiased_ce` of the bins, (...,)."""
    n, accuracy = np.maximum(sums.n, 1), sums.right / np.maximum(sums.n, 1)
    squared = ((sums.right - sums.confidence) / n) ** 2 - accuracy * (1 - accuracy) / np.maximum(n - 1, 1)
    total = (np.where(sums.n > 1, squared, 0) * n).sum(axis=-1) / sums.rows
    return np.sign(total) * np.sqrt(np.abs(total)) if signed else np.sqrt(np.maximum(0, total))


def sweep_ece_of(counted: Tally, *, edge: Edge = "right", norm: float = 1) -> Floats:
    groups = len(counted.value)
    before = (counted.n_before, counted.value_before, counted.right_before)
    each = zip(*(b.reshape(-1, groups + 1) for b in before), strict=True)
    found = [mean_gap(_sweep(np.stack(row), counted.rows, edge), norm) for row in each]
    return np.array(found).reshape(counted.n.shape[:-1])


def _sweep(before: Floats, rows: int, edge: Edge) -> BinSums:
    """before (3, G + 1): sums of n, confidence and right before each distinct value."""
    places = before[0, :-1] if edge == "right" else before[0, 1:] - 1
    held = np.count_nonzero(np.diff(before[0]))
    best = before[:, -1:]
    for bins in range(2, min(rows, SWEPT) + 1):
        if best.shape[1] == held:
            break
        cuts = np.concatenate([[0], np.searchsorted(places, _begins(rows, bins)), [len(places)]])
        parts = np.diff(before[:, cuts], axis=1)
        parts = parts[:, parts[0] > 0]
        if (np.diff(parts[2] / parts[0]) < 0).any():
            break
        best = parts
    n, confidence, right = best
    return BinSums(n, confidence, right, rows)


def ks_error_of(counted: Tally) -> Floats:
    return np.abs(counted.value_before - counted.right_before).max(axis=-1) / counted.rows


def classwise_residuals(probs: Floats, labels: Ints, *, bins: int = 15, edge: Edge = "right") -> Any:
    """Sparse (K · bins, N): its product with row weights (N,) is the sum of 1[y = k] − p_k in each bin of equal width.

    The absolute values of that, summed and divided by N · K, are `classwise_ece`: one product for all resamples.
    """
    rows, classes = probs.shape
    at = np.searchsorted(_edges(bins), probs, side="left" if edge == "right" else "right")
    off = -probs
    off[np.arange(rows), labels] += 1
    cells = (at + np.arange(classes) * bins).ravel()
    return scipy.sparse.csr_array(
        (off.ravel(), (cells, np.repeat(np.arange(rows), classes))), shape=(classes * bins, rows)
    )


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
    """`ece` beside what it is when `correct` is sampled anew with the stated probabilities.

    The p-value counts the given rows among the samples, (1 + samples with an ECE at least as large) / (1 + resamples),
    so it is at most α with probability α (and rounding of the count) if the confidences are exact.  Arguments as for
    `ece`.  Bröcker & Smith 2007, "Increasing the reliability of reliability diagrams" (consistency resampling).
    """
    check_settings(resamples, 0.5)
    counted = checked_tally(confidence, correct)
    how: EceSettings = {"bins": bins, "binning": binning, "edge": edge, "norm": norm}
    value = float(ece_of(counted, **how))
    rng = np.random.default_rng(seed)
    sampled = []
    for count in blocks(resamples, len(counted.value)):
        shape = (count, len(counted.value))
        right = rng.binomial(counted.n.astype(np.int64), counted.value, shape).astype(np.float64)
        n = np.broadcast_to(counted.n, shape)
        sampled.append(ece_of(Tally(counted.value, n, right, counted.rows), **how))
    eces = np.concatenate(sampled)
    # equal values may differ in the last digits, where sums were taken in another order
    as_large = int((eces >= value - 1e-12).sum())
    return Floor(value, float(eces.mean()), (1 + as_large) / (1 + resamples))
