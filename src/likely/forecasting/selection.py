"""Which method to use: all are fitted, compared on rows that none has seen, and the best goes on; files of any method.

The report names every method that took part, whoever wins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from likely.errors import DataError, check_choice, missing_extra
from likely.forecasting.baselines import LastValue, RidgeForecaster, SeasonalNaive
from likely.forecasting.forecaster import Forecast, Forecaster, Progress
from likely.forecasting.series import TimeSeries, split_series
from likely.forecasting.windows import squared_and_absolute_error, windows_of
from likely.models.catalog import DEFAULT_MODEL

# method -> (module, class); those that need torch are imported when they are used
METHODS = {
    "last-value": ("likely.forecasting.baselines", "LastValue"),
    "seasonal-naive": ("likely.forecasting.baselines", "SeasonalNaive"),
    "ridge": ("likely.forecasting.baselines", "RidgeForecaster"),
    "patch-transformer": ("likely.forecasting.patch_transformer", "PatchTransformerForecaster"),
    "small-lm": ("likely.forecasting.small_lm", "SmallLMForecaster"),
}
TRAINED = ("patch-transformer", "small-lm")  # only where they are asked for
LOOKBACK = 336  # at most, where nobody says otherwise
FEWEST_LOOKBACK = 4
PATCHES = 7  # of the small language model
PATCH = 16  # values of a patch of the transformer, where the lookback allows
_SEASONS = (3600 * 24, 3600 * 24 * 7, 3600 * 24 * 365.2425)  # day, week, year
_TEST_WINDOWS = 2000  # of each column, at most


@dataclass(frozen=True)
class MethodErrors:
    """How a method did, in units of the training rows' standard deviation.

    validation, test  mean squared error;  test_mae  mean absolute error
    coverage          how often its intervals held the truth of the test rows, of `level` promised
    """

    method: str
    validation: float
    test: float
    test_mae: float
    coverage: float


@dataclass(frozen=True)
class ForecastReport:
    """A forecast, and how the methods did that could have made it.

    chosen  of `forecast`; asked for, or the one with the lowest validation error
    methods  all that took part, the lowest validation error first
    rows    (train, validation, test) of the comparison
    lookback, level, season  what was used (season None: none was found that fits in the lookback)
    """

    forecast: Forecast
    chosen: str
    methods: tuple[MethodErrors, ...]
    rows: tuple[int, int, int]
    lookback: int
    level: float
    season: int | None
    history: TimeSeries
    forecaster: Forecaster  # that made it

    def lines(self) -> list[list[str]]:
        """(time, column, expected, low, high) of each step and column, to be read."""
        made, ends = self.forecast, (self.forecast.low, self.forecast.high)
        return [
            [str(time).replace("T", " "), name, f"{made.mean[i, c]:.6g}",
             *("" if end is None else f"{end[i, c]:.6g}" for end in ends)]
            for i, time in enumerate(made.times)
            for c, name in enumerate(made.names)
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        compared = [vars(method) for method in self.methods]
        rows = dict(zip(("train", "validation", "test"), self.rows, strict=True))
        about = {"chosen": self.chosen, "compared": compared, "rows": rows, "lookback": self.lookback}
        return self.forecast.to_dict() | about | {"season": self.season}


def seasons_of(series: TimeSeries) -> list[int]:
    """Rows of a day, a week and a year, of those that are whole numbers >= 2."""
    step = series.step_s
    found = []
    for length in _SEASONS:
        rows = length / step
        if rows >= 2 and (abs(rows - round(rows)) < 0.02 * rows if length == _SEASONS[2] else rows == round(rows)):
            found.append(round(rows))
    return found


def forecast_series(
    series: TimeSeries,
    horizon: int,
    *,
    method: str = "auto",
    lookback: int | None = None,
    season: int | None = None,
    level: float = 0.9,
    split: str = "60/20/20",
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> ForecastReport:
    """What comes after a series, with intervals, and how well that works.

    Naive methods and ridge regression are fitted on the first part of the rows, compared on the second (where they are
    calibrated, too) and reported on the last.  The method with the lowest squared error on the *second* is fitted again
    on the first two, calibrated on the last one and makes the forecast.
    method    "auto" (of those that need no training), or one of METHODS, which then makes the forecast
    lookback  rows to look at; default: 336, or what a short series allows
    season    rows of a season; default: a day and a week and a year, as far as the steps and the lookback allow
    settings  of the method that was asked for, as its constructor takes them
    """
    check_choice("method", method, ("auto", *METHODS))
    if horizon < 1:
        raise ValueError(f"horizon must be >= 1, got {horizon}")
    lookback = _lookback(series, horizon, split, lookback)
    seasons = [season] if season is not None else [m for m in seasons_of(series) if m <= lookback]
    if season is not None and not 1 <= season <= lookback:
        raise ValueError(f"season must lie in 1..{lookback} (the lookback), got {season}")
    if method == "seasonal-naive" and not seasons:
        raise ValueError(f"no season of a day, week or year fits in {lookback} rows: give season=")
    makers: list[tuple[str, Callable[[], Forecaster]]] = [("last-value", LastValue)]
    makers += [("seasonal-naive", lambda m=m: SeasonalNaive(m)) for m in seasons]  # type: ignore[misc]
    makers += [("ridge", lambda: RidgeForecaster(lookback))]
    if method in TRAINED:
        makers.append((method, _maker(method, lookback, settings or {})))
    train, val, test = split_series(series, lookback, split)
    found: list[tuple[MethodErrors, str, Callable[[], Forecaster]]] = []
    for i, (name, make) in enumerate(makers):
        tell = progress if name == method and progress else None
        forecaster = make().fit(train, val, horizon=horizon, level=level, progress=tell)
        found.append((_errors(forecaster, val, test, lookback, horizon), name, make))
        if progress and tell is None:
            progress(i + 1, len(makers))
    found.sort(key=lambda one: one[0].validation)
    chosen = next(one for one in found if method in ("auto", one[1]))
    # the most recent rows calibrate what is learned from all before them
    before = series.rows(0, len(train) + len(val) - lookback)
    final = chosen[2]().fit(
        before, test, horizon=horizon, level=level, progress=progress if method in TRAINED else None
    )
    made = final.predict(series, horizon)
    rows = (len(train), len(val) - lookback, len(test) - lookback)
    return ForecastReport(
        made, chosen[0].method, tuple(one[0] for one in found), rows, lookback, level, seasons[0] if seasons else None,
        series, final,
    )  # fmt: skip


def _lookback(series: TimeSeries, horizon: int, split: str, given: int | None) -> int:
    train, val, test = split_series(series, 0, split)
    shortest = min(len(val), len(test))
    if horizon > shortest:
        raise DataError(
            f"too short: {len(series)} rows leave {shortest} to compare methods on, which is less than the horizon "
            f"{horizon}: give more rows or a smaller horizon"
        )
    most = len(train) - horizon
    found = min(LOOKBACK, most // 2) if given is None else given
    if most < FEWEST_LOOKBACK or not 1 <= found <= most:
        raise DataError(
            f"too short: {len(train)} rows to learn from and a horizon of {horizon} allow a lookback of "
            f"1..{max(0, most)} (at least {FEWEST_LOOKBACK} must be possible), got {found}"
        )
    return found


def _maker(method: str, lookback: int, settings: dict[str, Any]) -> Callable[[], Forecaster]:
    """Makes forecasters of a method that trains; a language model is opened once for all of them."""
    kind, own = _class_of(method), {"lookback": lookback, **settings}
    if method == "small-lm":
        from likely.training.lora import trainable

        patch = max(1, settings.get("patch", lookback // PATCHES))
        lm = trainable(settings.get("model", DEFAULT_MODEL))
        whole = {"patch": patch, "lookback": lookback // patch * patch}
        own = {"layers": 2, "prompt": "time"} | whole | settings | {"model": lm}
    elif "patch" not in settings and lookback < 2 * PATCH:
        own["patch"] = max(1, lookback // 2)
    return lambda: kind(**own)


def _class_of(method: str) -> Any:
    module, name = METHODS[method]
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise missing_extra(error.name or "torch", "torch") from None


def _errors(forecaster: Forecaster, val: TimeSeries, test: TimeSeries, lookback: int, horizon: int) -> MethodErrors:
    """Of the same windows for every method, whatever it looks at."""
    errors = []
    for part in (val, test):
        rows = len(part) - lookback - horizon + 1
        most = min(_TEST_WINDOWS, 4 * forecaster.calibration_windows)
        windows = windows_of(forecaster.scale_.apply(part), lookback, horizon, stride=max(1, -(-rows // most)))
        predicted, true = forecaster.forecast(windows, horizon), windows.future
        errors.append(squared_and_absolute_error(predicted, true))
    assert forecaster.quantiles_ is not None
    inside = np.abs(predicted - true) <= forecaster.quantiles_.T[windows.columns]
    return MethodErrors(forecaster.label, errors[0][0], errors[1][0], errors[1][1], float(inside.mean()))


def compare_forecasters(
    forecasters: Sequence[Forecaster], test: TimeSeries, horizons: Sequence[int], *, stride: int = 1
) -> dict[str, dict[int, tuple[float, float]]]:
    """label -> horizon -> (MSE, MAE), standardised, of fitted forecasters on one set of windows, none dropped.

    test  begins with the longest lookback's rows
    """
    longest = max(one.lookback for one in forecasters)
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for one in forecasters:
        found[one.label] = {}
        for horizon in horizons:
            windows = windows_of(one.scale_.apply(test), longest, horizon, stride=stride)
            found[one.label][horizon] = squared_and_absolute_error(one.forecast(windows, horizon), windows.future)
    return found


def load_forecaster(path: str | Path) -> Forecaster:
    """What `Forecaster.save` wrote, of any method; DataError where it is none.  A language model is opened again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["forecaster"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["method"] not in METHODS:
            raise ValueError(f'unknown method "{about["method"]}"')
        made: Forecaster = _class_of(about["method"])(**about["params"])
        made.restore(about, arrays)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{path}: not a saved forecaster ({error})") from None
    return made
