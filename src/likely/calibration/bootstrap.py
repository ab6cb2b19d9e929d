"""Percentile bootstrap: what a metric could have been on other rows of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from likely.calibration.inputs import Floats

_AT_ONCE = 1 << 17  # numbers held at a time: what fits a cache is fastest


def interval(
    metric: Callable[..., float], *arrays: Any, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """(low, high) of metric(*arrays), rows drawn with replacement, the same ones from every array.

    A resample for which the metric is undefined (ValueError, NaN) is left out; ValueError if it is for all.
    A metric that noise pushes up (ECE, MCE) is pushed up again by resampling: its interval may lie above its value.
    Efron & Tibshirani 1993, section 13.3.
    """
    check_settings(resamples, level)
    columns = [np.asarray(array) for array in arrays]
    if not columns or any(len(c) != len(columns[0]) for c in columns):
        raise ValueError(f"arrays must have as many rows as each other, got {[len(c) for c in columns]}")
    metric(*columns)  # what is wrong with the rows themselves is an error here
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        rows = rng.integers(0, len(columns[0]), len(columns[0]))
        try:
            values.append(float(metric(*(c[rows] for c in columns))))
        except ValueError:
            continue
    found = percentiles(np.array(values), level)
    if found is None:
        raise ValueError(f"the metric is undefined on all {resamples} resamples of {len(columns[0])} rows")
    return found


def check_settings(resamples: int, level: float) -> None:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


def percentiles(values: Floats, level: float) -> tuple[float, float] | None:
    """The middle `level` of the values that are numbers; None if there are none."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_weights(rows: int, *, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn, in blocks (R, rows); `interval` draws the same rows."""
    rng = np.random.default_rng(seed)
    for count in blocks(resamples, rows):
        drawn = rng.integers(0, rows, (count, rows)) + np.arange(count)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)


def blocks(resamples: int, rows: int) -> Iterator[int]:
    """Numbers of resamples to hold at a time, that sum to `resamples`."""
    most = max(1, _AT_ONCE // rows)
    for done in range(0, resamples, most):
        yield min(most, resamples - done)
