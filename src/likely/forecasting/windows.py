"""Windows of a series: what is looked at, and what comes after it.  Shapes: N windows, L lookback, H horizon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from likely.errors import DataError
from likely.forecasting.series import TimeSeries
from likely.metrics.checks import Floats, Ints

EPSILON = 1e-5  # added to the variance


@dataclass(frozen=True)
class Standardiser:
    """z = (x − mean) / std of each column, learned from the rows to train on.  A constant column has std 1."""

    mean: Floats  # (C,)
    std: Floats

    @classmethod
    def of(cls, series: TimeSeries) -> Standardiser:
        with np.errstate(over="ignore", invalid="ignore"):
            std = series.values.std(0)
        if not np.isfinite(std).all():
            name = series.names[int(np.isfinite(std).argmin())]
            raise DataError(f'column "{name}" holds values too large to square: give it in a larger unit')
        return cls(series.values.mean(0), np.where(std > 0, std, 1.0))

    def apply(self, series: TimeSeries) -> TimeSeries:
        return TimeSeries(series.times, (series.values - self.mean) / self.std, series.names)


@dataclass(frozen=True)
class Windows:
    """Pieces of single columns, each of L values to look at; H values after them are known (`future`) or not (H = 0).

    series    standardised
    starts    (N,) first rows;  columns (N,) which column each is of
    """

    series: TimeSeries
    starts: Ints
    columns: Ints
    lookback: int
    horizon: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def past(self) -> Floats:
        """(N, L)"""
        return self._cut(0, self.lookback)

    @property
    def future(self) -> Floats:
        """(N, H), true values."""
        return self._cut(self.lookback, self.horizon)

    def times(self, offset: int) -> NDArray[np.datetime64]:
        """(N,) times of the rows `offset` after the first of each window; the series may end before them."""
        places = self.starts + offset
        over = int(places.max()) - len(self.series) + 1
        known = np.concatenate([self.series.times, self.series.later(over)]) if over > 0 else self.series.times
        return known[places]

    def names(self) -> list[str]:
        """(N,) of their columns."""
        return [self.series.names[c] for c in self.columns]

    def take(self, rows: Ints | slice) -> Windows:
        return Windows(self.series, self.starts[rows], self.columns[rows], self.lookback, self.horizon)

    def narrowed(self, lookback: int) -> Windows:
        """The same with only the last `lookback` values to look at."""
        if lookback > self.lookback:
            raise DataError(f"too short: windows of {self.lookback} values, the lookback is {lookback}")
        return Windows(self.series, self.starts + self.lookback - lookback, self.columns, lookback, self.horizon)

    def _cut(self, offset: int, length: int) -> Floats:
        if length == 0 or not len(self):
            return np.empty((len(self), length))
        view = sliding_window_view(self.series.values, length, axis=0)  # (T − length + 1, C, length)
        return view[self.starts + offset, self.columns]


def windows_of(series: TimeSeries, lookback: int, horizon: int, *, stride: int = 1) -> Windows:
    """All windows whose starts are multiples of `stride`, of all columns; DataError where there is none."""
    for name, value in (("lookback", lookback), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if horizon < 0:
        raise ValueError(f"horizon must be >= 0, got {horizon}")
    last = len(series) - lookback - horizon
    if last < 0:
        raise DataError(
            f"too short: {len(series)} rows, a lookback of {lookback} and a horizon of {horizon} need "
            f"{lookback + horizon}"
        )
    starts = np.arange(0, last + 1, stride)
    columns = np.arange(len(series.names))
    return Windows(series, np.tile(starts, len(columns)), np.repeat(columns, len(starts)), lookback, horizon)


def last_windows(series: TimeSeries, lookback: int) -> Windows:
    """The end of each column, after which nothing is known; DataError where the series is shorter than the lookback."""
    if len(series) < lookback:
        raise DataError(f"too short: the history has {len(series)} rows, the lookback is {lookback}")
    columns = np.arange(len(series.names))
    return Windows(series, np.full(len(columns), len(series) - lookback), columns, lookback, 0)


def normalise(past: Floats) -> tuple[Floats, Floats, Floats]:
    """(values, mean, std) of each window: (x − mean) / std, the population's, ε = 1e-5 inside the root.

    past (N, L); mean and std (N, 1).
    """
    mean = past.mean(1, keepdims=True)
    std = np.sqrt(past.var(1, keepdims=True) + EPSILON)
    return (past - mean) / std, mean, std


def squared_and_absolute_error(predicted: Floats, true: Floats) -> tuple[float, float]:
    """(mean squared error, mean absolute error) over all windows and steps."""
    if predicted.shape != true.shape:
        raise ValueError(f"predictions have shape {predicted.shape}, true values {true.shape}")
    apart = predicted - true
    return float((apart**2).mean()), float(np.abs(apart).mean())
