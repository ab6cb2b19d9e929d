"""Bootstrap intervals: what a metric could have been on other rows of the same kind.

"percentile"  the middle of the resampled values: for means, and for metrics without bias
"basic"       what resampling adds to the value, taken off it.  For metrics that noise pushes up, such as every
              calibration error: resampling pushes them up once more, so that the percentiles lie above the truth
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from likely.metrics.checks import Floats

Method = Literal["percentile", "basic"]
_AT_ONCE = 1 << 17  # numbers held at a time: what fits a cache is fastest


def interval(
    metric: Callable[..., float],
    *arrays: Any,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    method: Method = "percentile",
) -> tuple[float, float]:
    """(low, high) of metric(*arrays), rows drawn with replacement, the same ones from every array.

    method  "percentile", or "basic" for a metric >= 0 that noise pushes up (ECE, MCE): see `basic`
    A resample for which the metric is undefined (ValueError, NaN) is left out; ValueError if it is for all.
    Efron & Tibshirani 1993, section 13.3; Davison & Hinkley 1997, section 5.2.1 ("basic").
    """
    check_settings(resamples, level)
    if method not in ("percentile", "basic"):
        raise ValueError(f'method must be "percentile" or "basic", got {method!r}')
    columns = [np.asarray(array) for array in arrays]
    if not columns or any(len(c) != len(columns[0]) for c in columns):
        raise ValueError(f"arrays must have as many rows as each other, got {[len(c) for c in columns]}")
    value = float(metric(*columns))  # what is wrong with the rows themselves is an error here
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        rows = rng.integers(0, len(columns[0]), len(columns[0]))
        try:
            values.append(float(metric(*(c[rows] for c in columns))))
        except ValueError:
            continue
    drawn = np.array(values)
    found = percentiles(drawn, level) if method == "percentile" else basic(value, drawn, level)
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


def basic(value: float, values: Floats, level: float) -> tuple[float, float] | None:
    """An interval of a metric >= 0 that noise pushes up, from its value and its resampled ones; None if all are NaN.

    low   max(0, 2·value − q_high), q the percentiles: the push of resampling taken off the value
    high  the greater of 2·value − q_low and value + (q_high − q_low)/2: the push may be smaller than resampling shows
    The value lies inside, also where noise is most of it and all resampled values lie above.  low may then exceed a
    true error of 0, which no interval of this kind can find: `floor.ece_floor` tests for it.
    """
    found = percentiles(values, level)
    if found is None:
        return None
    low, high = found
    return min(value, max(0.0, 2 * value - high)), max(value, 2 * value - low, value + (high - low) / 2)


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
