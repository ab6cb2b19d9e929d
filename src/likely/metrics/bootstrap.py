"""Bootstrap intervals: what a number could have been on other rows of the same kind.

"percentile"  the middle of the resampled values: for means, and for metrics without bias
"basic"       what resampling adds to the value, taken off it.  For metrics that noise pushes up, such as every
              calibration error: resampling pushes them up once more, so that the percentiles lie above the truth
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from likely.metrics.checks import Floats, Ints, check_share

Method = Literal["percentile", "basic"]
_AT_ONCE = 1 << 17  # numbers held at a time: what fits a cache is fastest


def resampled_rows(rows: int, *, resamples: int, seed: int = 0) -> Iterator[Ints]:
    """Row numbers drawn with replacement, in blocks (R, rows) that have `resamples` rows in all.

    Every interval here rests on these: with the same seed and number of rows, on the same resamples.
    """
    rng = np.random.default_rng(seed)
    for count in blocks(resamples, rows):
        yield rng.integers(0, rows, (count, rows))


def resampled_weights(rows: int, *, resamples: int, seed: int = 0) -> Iterator[Floats]:
    """How often each row is drawn, in blocks (R, rows)."""
    for block in resampled_rows(rows, resamples=resamples, seed=seed):
        cells = block + np.arange(len(block))[:, None] * rows
        yield np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape).astype(np.float64)


def blocks(resamples: int, rows: int) -> Iterator[int]:
    """Numbers of resamples to hold at a time, that sum to `resamples`."""
    most = max(1, _AT_ONCE // rows)
    for done in range(0, resamples, most):
        yield min(most, resamples - done)


def check_settings(resamples: int, level: float) -> None:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    check_share(level=level)


def percentiles(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """The middle `level` of the values that are numbers; None if there are none."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def basic(value: float, values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """An interval of a metric >= 0 that noise pushes up, from its value and its resampled ones; None if all are NaN.

    low   max(0, 2·value − q_high), q the percentiles: the push of resampling taken off the value
    high  the greater of 2·value − q_low and value + (q_high − q_low)/2: the push may be smaller than resampling shows
    The value lies inside, also where noise is most of it and all resampled values lie above.  low may then exceed a
    true error of 0, which no interval of this kind can find: `bins.ece_floor` tests for it.
    """
    found = percentiles(values, level)
    if found is None:
        return None
    low, high = found
    return min(value, max(0.0, 2 * value - high)), max(value, 2 * value - low, value + (high - low) / 2)


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
    values = []
    for block in resampled_rows(len(columns[0]), resamples=resamples, seed=seed):
        for rows in block:
            try:
                values.append(float(metric(*(c[rows] for c in columns))))
            except ValueError:
                continue
    resampled = np.array(values)
    found = percentiles(resampled, level) if method == "percentile" else basic(value, resampled, level)
    if found is None:
        raise ValueError(f"the metric is undefined on all {resamples} resamples of {len(columns[0])} rows")
    return found


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], *, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """(low, high) for Σ numerators / Σ denominators: percentile bootstrap over their n pairs, with a fixed seed.

    A resample whose denominators sum to 0 is left out.
    """
    if len(numerators) != len(denominators) or not len(numerators):
        raise ValueError(
            f"a ratio needs as many numerators as denominators, and one of each at least, got "
            f"{len(numerators)} and {len(denominators)}"
        )
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not bottom.sum():
        raise ValueError("the denominators of a ratio must not sum to 0")
    sums = [(top[rows].sum(axis=1), bottom[rows].sum(axis=1)) for rows in resampled_rows(len(top), resamples=resamples)]
    upper, lower = (np.concatenate(part) for part in zip(*sums, strict=True))
    found = percentiles(upper[lower != 0] / lower[lower != 0], level)
    assert found is not None
    return found


def mean_interval(values: Sequence[float], *, resamples: int = 2000) -> tuple[float, float]:
    """(low, high) for the mean: 95 % percentile bootstrap with a fixed seed."""
    return bootstrap_ratio(values, [1.0] * len(values), resamples=resamples)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """(low, high) for the median: 95 % percentile bootstrap with a fixed seed."""
    array = np.asarray(values, np.float64)
    medians = [np.median(array[rows], axis=1) for rows in resampled_rows(len(array), resamples=2000)]
    found = percentiles(np.concatenate(medians))
    assert found is not None
    return found
