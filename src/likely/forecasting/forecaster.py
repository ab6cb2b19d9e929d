"""What every forecaster does: fit and predict as in scikit-learn, split conformal intervals, files without pickle."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from likely.calibration.conformal.quantiles import check_alpha, conformal_quantile, fewest_rows
from likely.calibration.recalibrators.protocol import Parameters
from likely.errors import CapabilityError, DataError
from likely.forecasting.series import TimeSeries
from likely.forecasting.windows import Standardiser, Windows, last_windows, windows_of
from likely.io.whole_file import write_for_user
from likely.metrics.checks import Floats

FEW_WINDOWS = 50  # to calibrate on: fewer are not thinned out
Progress = Callable[[int, int], None]  # (done, of)


@dataclass(frozen=True)
class Forecast:
    """What is expected, in the units of the data.  H steps, C columns.

    times      (H,);  mean (H, C)
    low, high  (H, C) ends of intervals that hold the truth as often as `level` says; None without calibration, and
               infinite for steps behind the calibrated ones
    """

    method: str
    names: tuple[str, ...]
    times: NDArray[np.datetime64]
    mean: Floats
    low: Floats | None = None
    high: Floats | None = None
    level: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; an infinite end is null."""
        steps = []
        for i, time in enumerate(self.times):
            row: dict[str, Any] = {"time": str(time)}
            for c, name in enumerate(self.names):
                row[name] = {"mean": float(self.mean[i, c])}
                if self.low is not None and self.high is not None:
                    row[name] |= {"low": _finite(self.low[i, c]), "high": _finite(self.high[i, c])}
            steps.append(row)
        return {"method": self.method, "level": self.level, "columns": list(self.names), "steps": steps}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class Forecaster(Parameters, ABC):
    """Each column is forecast by itself, with what all columns have taught; values are standardised inside.

    Learned: `scale_` (mean and std of the rows to train on), `names_`, `horizon_`, and with validation rows
    `quantiles_` (H, C): how far the truth lies from the mean, in std, at most as often as `level_` says.
    """

    name: ClassVar[str]
    calibration_windows: ClassVar[int] = 2000  # at most so many of each column
    lookback: int
    scale_: Standardiser
    names_: tuple[str, ...]
    horizon_: int
    quantiles_: Floats | None = None
    level_: float | None = None

    def fit(
        self, series: TimeSeries, val: TimeSeries | None = None, *, horizon: int = 96, level: float = 0.9,
        progress: Progress | None = None,
    ) -> Self:  # fmt: skip
        """Learn from `series`; with `val`, stop and calibrate there.

        val      rows that follow, and before them the `lookback` rows that they look at (`split_series`)
        horizon  steps that the method is fitted for (where it is) and that get intervals
        level    how often intervals shall hold the truth
        """
        if horizon < 1:
            raise ValueError(f"horizon must be >= 1, got {horizon}")
        check_alpha(1 - level)
        if val is not None and val.names != series.names:
            raise DataError(f"validation has columns {', '.join(val.names)}, training {', '.join(series.names)}")
        self.scale_, self.names_, self.horizon_ = Standardiser.of(series), series.names, horizon
        self.quantiles_, self.level_ = None, None
        self._learn(self.scale_.apply(series), None if val is None else self.scale_.apply(val), horizon, progress)
        if val is not None:
            self.calibrate(val, level=level)
        return self

    def calibrate(self, val: TimeSeries, *, level: float = 0.9) -> Self:
        """Intervals by split conformal prediction, of each step and column: |truth − mean| of rows not trained on.

        Windows that overlap are no independent rows, so that the level is kept only about (see docs/forecasting.md).
        """
        self._check_fitted()
        alpha = check_alpha(1 - level)
        rows = len(val) - self.lookback - self.horizon_ + 1
        grid = self.calibration_stride if rows >= FEW_WINDOWS * self.calibration_stride else 1
        stride = grid * max(1, -(-rows // (self.calibration_windows * grid)))
        windows = windows_of(self.scale_.apply(val), self.lookback, self.horizon_, stride=stride)
        apart = np.abs(windows.future - self.forecast(windows, self.horizon_))
        of_column = [apart[windows.columns == c] for c in range(len(self.names_))]
        self.quantiles_ = np.array([
            [conformal_quantile(rows[:, h], alpha) for rows in of_column] for h in range(self.horizon_)
        ])  # fmt: skip
        self.level_ = level
        if np.isinf(self.quantiles_).any():
            warnings.warn(
                f"level={level:g} needs at least {fewest_rows(alpha)} windows to calibrate on, there are "
                f"{len(of_column[0])}: intervals are infinite",
                stacklevel=2,
            )
        return self

    def predict(self, history: TimeSeries, horizon: int) -> Forecast:
        """What comes after `history`, which has at least `lookback` rows of the columns that were fitted."""
        self._check_fitted()
        if horizon < 1:
            raise ValueError(f"horizon must be >= 1, got {horizon}")
        self._check_names(history)
        windows = last_windows(self.scale_.apply(history), self.lookback)
        mean = self.forecast(windows, horizon).T * self.scale_.std + self.scale_.mean
        low = high = None
        if self.quantiles_ is not None:
            half = np.full_like(mean, np.inf)
            known = min(horizon, self.horizon_)
            half[:known] = self.quantiles_[:known]
            half = half * self.scale_.std
            low, high = mean - half, mean + half
        return Forecast(self.label, self.names_, history.later(horizon), mean, low, high, self.level_)

    @property
    def calibration_stride(self) -> int:
        """Rows between windows to calibrate on are a multiple of it, where that leaves enough of them."""
        return 1

    @property
    def label(self) -> str:
        """The method with what tells it from others of its kind."""
        return self.name

    @abstractmethod
    def forecast(self, windows: Windows, horizon: int) -> Floats:
        """(N, H) of standardised windows, which may look at more than `lookback`; reads nothing behind their past."""

    @abstractmethod
    def _learn(self, series: TimeSeries, val: TimeSeries | None, horizon: int, progress: Progress | None) -> None:
        """Learn from standardised rows."""

    def log_prob(self, history: TimeSeries, future: TimeSeries) -> Floats:
        """(H, C) log p(y_h | x, y_<h) in nats, densities in the units of the data; of methods with a distribution."""
        raise CapabilityError(
            f'{self.label} gives no distribution: use SmallLMForecaster with likelihood="gaussian" or "student_t"'
        )

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """One .safetensors file, for `load_forecaster`."""
        from safetensors.numpy import save

        self._check_fitted()
        arrays = {"scale/mean": self.scale_.mean, "scale/std": self.scale_.std, **self._arrays()}
        if self.quantiles_ is not None:
            arrays["quantiles"] = self.quantiles_
        about = {
            "method": self.name, "params": self._saved_params(), "names": list(self.names_), "horizon": self.horizon_,
            "level": self.level_, "learned": self._learned(),
        }  # fmt: skip
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        write_for_user(Path(path), save(contiguous, {"forecaster": json.dumps(about)}))

    def restore(self, about: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """Take up what `save` wrote; KeyError or ValueError where it is not whole."""
        names = tuple(map(str, about["names"]))
        mean, std = arrays.pop("scale/mean"), arrays.pop("scale/std")
        if mean.shape != (len(names),) or std.shape != mean.shape:
            raise ValueError("the scale does not fit the columns")
        self.scale_, self.names_, self.horizon_ = Standardiser(mean, std), names, int(about["horizon"])
        self.quantiles_, self.level_ = arrays.pop("quantiles", None), about["level"]
        if self.quantiles_ is not None and self.quantiles_.shape != (self.horizon_, len(names)):
            raise ValueError("the quantiles do not fit horizon and columns")
        self._take_up(about["learned"], arrays)

    def _saved_params(self) -> dict[str, Any]:
        return self.get_params(deep=False)

    def _learned(self) -> dict[str, Any]:
        return {}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _take_up(self, learned: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        return

    def _check_fitted(self) -> None:
        if not hasattr(self, "scale_"):
            raise ValueError(f"{type(self).__name__} is not fitted: call fit first")

    def _check_names(self, series: TimeSeries) -> None:
        if series.names != self.names_:
            raise DataError(f"the history has columns {', '.join(series.names)}, fitted were {', '.join(self.names_)}")


def roll(step: Callable[[Floats], Floats], past: Floats, horizon: int) -> Floats:
    """(N, horizon): `step` gives the next values of (N, L), which are appended while the oldest are dropped."""
    out: list[Floats] = []
    done = 0
    while done < horizon:
        new = step(past)
        out.append(new)
        done += new.shape[1]
        past = np.concatenate([past, new], 1)[:, -past.shape[1] :]
    return np.concatenate(out, 1)[:, :horizon]
