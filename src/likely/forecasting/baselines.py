"""What a forecaster has to beat: the last value, the last season, a linear map.  numpy only."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from likely.forecasting.forecaster import Forecaster, Progress, roll
from likely.forecasting.series import TimeSeries
from likely.forecasting.windows import Windows, windows_of
from likely.metrics.checks import Floats

_BLOCK = 20_000  # windows whose products are in memory together


class LastValue(Forecaster):
    """The last value, for every step (a random walk's forecast)."""

    name: ClassVar[str] = "last-value"
    lookback: int = 1

    def forecast(self, windows: Windows, horizon: int) -> Floats:
        return np.repeat(windows.past[:, -1:], horizon, 1)

    def _learn(self, series: TimeSeries, val: TimeSeries | None, horizon: int, progress: Progress | None) -> None:
        return


class SeasonalNaive(Forecaster):
    """The values one season earlier: ŷ_h = y_{h − m}, again and again behind the first season.

    season  m, rows of a season
    """

    name: ClassVar[str] = "seasonal-naive"

    def __init__(self, season: int):
        if season < 1:
            raise ValueError(f"season must be >= 1, got {season}")
        self.season = season

    @property
    def lookback(self) -> int:  # type: ignore[override]
        return self.season

    @property
    def label(self) -> str:
        return f"{self.name} ({self.season})"

    def forecast(self, windows: Windows, horizon: int) -> Floats:
        last = windows.narrowed(self.season).past
        return np.tile(last, (1, -(-horizon // self.season)))[:, :horizon]

    def _learn(self, series: TimeSeries, val: TimeSeries | None, horizon: int, progress: Progress | None) -> None:
        return


class RidgeForecaster(Forecaster):
    """One linear map from the lookback to all steps, shared by the columns; each window's mean is taken off and put
    back.  W = (XᵀX + λI)⁻¹ XᵀY.

    Nearly DLinear (Zeng et al. 2023, arXiv:2205.13504), whose two linear maps of trend and remainder add up to one, and
    NLinear, in closed form.  Behind the horizon that it was fitted for it goes on from its own forecasts.
    """

    name: ClassVar[str] = "ridge"

    def __init__(self, lookback: int = 336, penalty: float = 10.0):
        if lookback < 1:
            raise ValueError(f"lookback must be >= 1, got {lookback}")
        if not penalty > 0:
            raise ValueError(f"penalty must be > 0, got {penalty}")
        self.lookback, self.penalty = lookback, penalty
        self.weights_: Floats

    @property
    def label(self) -> str:
        return f"{self.name} ({self.lookback})"

    def forecast(self, windows: Windows, horizon: int) -> Floats:
        return roll(self._next, windows.narrowed(self.lookback).past, horizon)

    def _next(self, past: Floats) -> Floats:
        mean = past.mean(1, keepdims=True)
        return (past - mean) @ self.weights_ + mean

    def _learn(self, series: TimeSeries, val: TimeSeries | None, horizon: int, progress: Progress | None) -> None:
        windows = windows_of(series, self.lookback, horizon)
        gram, cross = self.penalty * np.eye(self.lookback), np.zeros((self.lookback, horizon))
        for start in range(0, len(windows), _BLOCK):
            part = windows.take(slice(start, start + _BLOCK))
            past, future = part.past, part.future
            mean = past.mean(1, keepdims=True)
            gram += (past - mean).T @ (past - mean)
            cross += (past - mean).T @ (future - mean)
            if progress:
                progress(min(start + _BLOCK, len(windows)), len(windows))
        self.weights_ = np.asarray(np.linalg.solve(gram, cross), np.float64)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"weights": self.weights_}

    def _take_up(self, learned: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        self.weights_ = arrays["weights"]
        if self.weights_.shape != (self.lookback, self.horizon_):
            raise ValueError("the weights do not fit lookback and horizon")
