"""All metrics of a set of predictions at once, with intervals: what `likely calibrate eval` prints.

Rows are resampled once, and every metric is computed on all of them together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from likely.metrics import bins as b
from likely.metrics import proper, ranking
from likely.metrics.bins import ece_floor
from likely.metrics.bootstrap import basic, check_settings, percentiles, resampled_weights
from likely.metrics.checks import (
    SMALLEST,
    Floats,
    Ints,
    check_confidence,
    check_correct,
    check_labels,
    check_probs,
    top_label,
)
from likely.metrics.intervals import wilson
from likely.metrics.proper import extreme
from likely.metrics.smooth import smooth_ece_of
from likely.metrics.tally import Tally, group


def report(
    probs_or_confidence: Any,
    labels_or_correct: Any,
    *,
    intervals: bool = True,
    bins: int = 15,
    edge: b.Edge = "right",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics by name, each with `<name>_interval` [low, high] beside it; JSON-able.

    probs (N, K) with labels (N,) in 0..K-1, or confidence (N,) in [0, 1] with correct (N,) of 0 and 1.

    n, accuracy, mean_confidence, sharpness (variance of confidences), extreme (share outside [0.1, 0.9])
    ece, mce, rmsce   top-label (of probs), bins of equal width;  ece_mass  bins of equal counts
    debiased_ce, sweep_ece, ks_error, smooth_ece
    classwise_ece     mean over classes (probs only)
    ece_floor, ece_p_value   the ECE that exact confidences would show, and P(at least the one seen) then
    brier, nll        of probs (brier 0..2), or of confidence (brier 0..1);  nll_clipped  rows clipped at 1e-12
    reliability, resolution, uncertainty   of Murphy's decomposition of the confidence's binary Brier score, same bins
    auroc, aurc, e_aurc, prr   of confidence for correctness
    notes             why a metric is None, by its name

    Intervals: bootstrap over rows, seeded (`bootstrap.interval` gives the same);  Wilson's for accuracy.  "basic" for
    calibration errors, which noise pushes up and resampling pushes up again, "percentile" for the others.  Of an error
    that noise makes for the most part the interval says little: see ece_p_value.
    A metric that is undefined (auroc of rows that are all right) is None, and so is its interval.
    """
    check_settings(resamples, level)
    means: dict[str, Floats] = {}  # metrics that are the mean of something of each row
    probs = labels = None
    if np.ndim(probs_or_confidence) == 1:
        confidence = check_confidence(probs_or_confidence)
        correct = check_correct(labels_or_correct, len(confidence))
        head: dict[str, Any] = {"kind": "confidence", "n": len(confidence)}
        means["brier"] = proper.brier_binary_rows(confidence, correct)
    else:
        probs = check_probs(probs_or_confidence)
        labels = check_labels(labels_or_correct, *probs.shape)
        confidence, correct = top_label(probs, labels)
        head = {"kind": "probs", "n": len(probs), "classes": probs.shape[1]}
        means["brier"] = proper.brier_rows(probs, labels)
    means["nll"] = proper.nll_rows(probs_or_confidence, labels_or_correct)
    clipped = proper.nll_clipped(probs_or_confidence, labels_or_correct)
    means |= {"mean_confidence": confidence, "mean_square": confidence**2, "extreme": extreme(confidence)}
    residuals = None if probs is None or labels is None else b.classwise_residuals(probs, labels, bins=bins, edge=edge)
    groups = group(confidence)

    def measured(weights: Floats) -> dict[str, Floats]:
        """Every metric with rows counted so often: (R, N) -> (R,) each."""
        found = {name: weights @ row / len(confidence) for name, row in means.items()}
        found["sharpness"] = np.maximum(0, found.pop("mean_square") - found["mean_confidence"] ** 2)
        found |= _shared(groups.tally(correct, weights), bins, edge)
        if residuals is not None and probs is not None:
            found["classwise_ece"] = np.abs(residuals @ weights.T).sum(axis=0) / probs.size
        return found

    values = {name: float(v[0]) for name, v in measured(np.ones((1, len(confidence)))).items()}
    resampled: dict[str, Floats] = {}
    if intervals:
        parts = [measured(w) for w in resampled_weights(len(confidence), resamples=resamples, seed=seed)]
        resampled = {name: np.concatenate([part[name] for part in parts]) for name in values}
    found = _assembled(head, values, resampled, correct, level)
    exact = ece_floor(confidence, correct, bins=bins, edge=edge, seed=seed)
    found |= {
        "ece_floor": exact.floor,
        "ece_p_value": exact.p_value,
        "nll_clipped": clipped,
        "bins": bins,
        "edge": edge,
    }
    if clipped:
        found["notes"]["nll"] = f"{clipped} of {len(confidence)} rows were clipped at {SMALLEST:g}"
    return found


_MURPHY = ("reliability", "resolution", "uncertainty")
PUSHED_UP = {  # all of them lie in 0..1
    "ece", "ece_mass", "mce", "rmsce", "debiased_ce", "sweep_ece", "ks_error", "smooth_ece", "classwise_ece",
    "reliability",
}  # fmt: skip
_ORDER = (
    "mean_confidence", "ece", "ece_mass", "mce", "rmsce", "debiased_ce", "sweep_ece", "ks_error", "smooth_ece",
    "classwise_ece", "nll", "brier", *_MURPHY, "auroc", "aurc", "e_aurc", "prr", "sharpness", "extreme",
)  # fmt: skip


def _shared(counted: Tally, bins: int, edge: b.Edge) -> dict[str, Floats]:
    """What depends on confidence and correctness alone, (R,) each."""
    width = b.bin_sums(counted, b.bin_cuts(counted, bins, "width", edge))
    mass = b.bin_sums(counted, b.bin_cuts(counted, bins, "mass", edge))
    area, perfect = ranking.area_of(counted), ranking.perfect_area(counted)
    found = dict(zip(_MURPHY, proper.murphy_of(width), strict=True))
    return found | {
        "ece": b.mean_gap(width),
        "ece_mass": b.mean_gap(mass),
        "mce": b.mean_gap(width, math.inf),
        "rmsce": b.mean_gap(width, 2),
        "debiased_ce": b.debiased_gap(mass),
        "sweep_ece": b.sweep_ece_of(counted, edge=edge),
        "ks_error": b.ks_error_of(counted),
        "smooth_ece": smooth_ece_of(counted),
        "auroc": ranking.auroc_of(counted),
        "aurc": area,
        "e_aurc": area - perfect,
        "prr": ranking.gained(counted, area, perfect),
    }


def _assembled(
    head: dict[str, Any], values: dict[str, float], resampled: dict[str, Floats], correct: Ints, level: float
) -> dict[str, Any]:
    right, n = int(correct.sum()), len(correct)
    found = head | {"accuracy": right / n}
    if resampled:
        found["accuracy_interval"] = list(wilson(right, n, level=level))
    notes = {}
    for name in (name for name in _ORDER if name in values):
        undefined = math.isnan(values[name])
        if undefined:
            notes[name] = f"{name} undefined: " + (
                f"all {n} rows are {'right' if right else 'wrong'}" if right in (0, n) else f"{n} rows are too few"
            )
        found[name] = None if undefined else values[name]
        if resampled:
            spread = None if undefined else _interval(name, values[name], resampled[name], level)
            found[f"{name}_interval"] = None if spread is None else list(spread)
    if resampled:
        found |= {"level": level, "resamples": len(resampled["ece"])}
    return found | {"notes": notes}


def _interval(name: str, value: float, resampled: Floats, level: float) -> tuple[float, float] | None:
    if name not in PUSHED_UP:
        return percentiles(resampled, level)
    spread = basic(value, resampled, level)
    return spread and (spread[0], max(value, min(1.0, spread[1])))
