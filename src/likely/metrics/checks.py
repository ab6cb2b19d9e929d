"""Checks of what metrics and recalibrators are given: errors that say which row and why.

Shapes: N rows, K classes.  Everything comes back as float64 and int64.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SMALLEST = 1e-12  # probabilities are clipped here before a logarithm
SUM_TOLERANCE = 1e-3  # files hold rounded probabilities


def as_floats(values: Any, name: str, ndim: int) -> Floats:
    """A float64 array of so many dimensions with at least one row and no NaN; ValueError names the first bad row."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers in {ndim} dimension(s), rows of one length") from None
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {array.shape}")
    if not len(array):
        raise ValueError(f"{name} is empty: at least one row is needed")
    bad = np.isnan(array).reshape(len(array), -1).any(axis=1)
    if bad.any():
        raise ValueError(f"{name}: row {int(bad.argmax())} is not a number (NaN)")
    return array


def _classes(values: Any, name: str) -> Floats:
    array = as_floats(values, name, 2)
    if array.shape[1] < 2:
        raise ValueError(f"{name} has {array.shape[1]} column(s): at least 2 classes are needed")
    return array


def check_logits(logits: Any, name: str = "logits") -> Floats:
    """(N, K), K >= 2.  -inf is a class that cannot be, +inf and rows without a possible class are errors."""
    array = _classes(logits, name)
    for bad, why in ((np.isposinf(array).any(axis=1), "holds +inf"), (np.isneginf(array).all(axis=1), "is all -inf")):
        if bad.any():
            raise ValueError(f"{name}: row {int(bad.argmax())} {why}")
    return array


def check_probs(probs: Any, name: str = "probs") -> Floats:
    """(N, K), K >= 2, rows that sum to 1 within 1e-3 (and then exactly)."""
    array = _classes(probs, name)
    outside = ((array < 0) | (array > 1 + SUM_TOLERANCE)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"{name}: row {row} has values outside 0..1 ({array[row].min():g} to {array[row].max():g})")
    sums = array.sum(axis=1)
    off = np.abs(sums - 1) > SUM_TOLERANCE
    if off.any():
        row = int(off.argmax())
        raise ValueError(f"{name}: row {row} sums to {sums[row]:.6g}, not 1: give logits, or divide by the sum")
    return array / sums[:, None]


def check_confidence(confidence: Any, name: str = "confidence") -> Floats:
    """(N,) in [0, 1]."""
    array = as_floats(confidence, name, 1)
    outside = (array < 0) | (array > 1)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"{name}: row {row} is {array[row]:g}, outside 0..1")
    return array


def check_score(score: Any, name: str = "score") -> Floats:
    """(N,), any finite number."""
    array = as_floats(score, name, 1)
    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(f"{name}: row {int(bad.argmax())} is {array[bad.argmax()]:g}: finite numbers are needed")
    return array


def check_share(**settings: float | None) -> None:
    """ValueError unless each that is given lies between 0 and 1, the ends left out."""
    for name, value in settings.items():
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")


def check_labels(labels: Any, n: int, classes: int, name: str = "labels") -> Ints:
    """(N,) whole numbers in 0..K-1."""
    array = as_floats(labels, name, 1)
    if len(array) != n:
        raise ValueError(f"{name} has {len(array)} rows, the predictions have {n}")
    bad = (array != np.floor(array)) | (array < 0) | (array >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name}: row {row} is {array[row]:g}: whole numbers in 0..{classes - 1} are allowed")
    return array.astype(np.int64)


def check_correct(correct: Any, n: int, name: str = "correct") -> Ints:
    """(N,) of 0 and 1."""
    return check_labels(correct, n, 2, name)


def top_label(probs: Floats, labels: Ints) -> tuple[Floats, Ints]:
    """(confidence of the chosen class, whether it is right), each (N,).  Ties: the lowest index is chosen."""
    chosen = probs.argmax(axis=1)
    return probs[np.arange(len(probs)), chosen], (chosen == labels).astype(np.int64)


def log_softmax(logits: Floats) -> Floats:
    """Over the last axis, in float64; -inf stays."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits: Floats) -> Floats:
    return np.exp(log_softmax(logits))


def log_probs(probs: Floats) -> Floats:
    """log p, p clipped at 1e-12; a warning if more than 1 % of the rows hold a probability below that."""
    clipped = (probs < SMALLEST).any(axis=-1) if probs.ndim > 1 else probs < SMALLEST
    if clipped.mean() > 0.01:
        warnings.warn(
            f"{int(clipped.sum())} of {len(probs)} rows hold probabilities below {SMALLEST:g} and were clipped there: "
            f"rounded probabilities? logits keep what is lost",
            stacklevel=3,
        )
    return np.log(np.maximum(probs, SMALLEST))
