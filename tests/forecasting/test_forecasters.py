"""What holds for every forecaster: nothing of the future is read, rolling is repeating, files give it back."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest
from toy_series import tiny_lm, waves

from likely.errors import CapabilityError, DataError
from likely.forecasting import selection
from likely.forecasting.baselines import LastValue, RidgeForecaster, SeasonalNaive
from likely.forecasting.series import TimeSeries, split_series
from likely.forecasting.windows import Windows, last_windows, squared_and_absolute_error, windows_of

pytest.importorskip("torch")
LOOKBACK, HORIZON = 24, 10
LM = {"patch": 6, "lookback": LOOKBACK, "epochs": 2, "experts": 2, "layers": 1}


@cache
def fitted(name):
    """A fitted forecaster of each kind, on waves; and the rows behind."""
    from likely.forecasting.patch_transformer import PatchTransformerForecaster
    from likely.forecasting.small_lm import SmallLMForecaster

    train, val, test = split_series(waves(), LOOKBACK)
    made = {
        "last-value": LastValue,
        "seasonal-naive": lambda: SeasonalNaive(24),
        "ridge": lambda: RidgeForecaster(LOOKBACK),
        "patch-transformer": lambda: PatchTransformerForecaster(
            lookback=LOOKBACK, patch=8, width=16, depth=1, epochs=3, stride=2
        ),
        "small-lm": lambda: SmallLMForecaster(tiny_lm(), **LM),
        "small-lm, time": lambda: SmallLMForecaster(tiny_lm(), prompt="time", norm="causal", encoder="mlp", **LM),
        "small-lm, student_t": lambda: SmallLMForecaster(tiny_lm(), prompt="none", likelihood="student_t", **LM),
        "small-lm, lora": lambda: SmallLMForecaster(tiny_lm(), prompt="none", backbone="lora", **LM),
        "small-lm, random": lambda: SmallLMForecaster(tiny_lm(), prompt="none", backbone="random", **LM),
        "small-lm, no model": lambda: SmallLMForecaster(tiny_lm(), backbone="none", fusion="add", **LM),
    }[name]()
    return made.fit(train, val, horizon=HORIZON), test


KINDS = (
    "last-value", "seasonal-naive", "ridge", "patch-transformer", "small-lm", "small-lm, time", "small-lm, student_t",
    "small-lm, lora", "small-lm, random", "small-lm, no model",
)  # fmt: skip


def without_future(windows: Windows, start: int) -> Windows:
    """The same windows of a series whose later values are NaN."""
    values = windows.series.values.copy()
    values[start:] = np.nan
    hidden = TimeSeries(windows.series.times, windows.series.values, windows.series.names)
    object.__setattr__(hidden, "values", values)
    return Windows(hidden, windows.starts, windows.columns, windows.lookback, windows.horizon)


@pytest.mark.parametrize("kind", KINDS)
def test_no_future_value_is_read(kind):
    forecaster, test = fitted(kind)
    series = forecaster.scale_.apply(test)
    windows = windows_of(series, LOOKBACK, 3 * HORIZON).take(np.array([0, len(test) - LOOKBACK - 3 * HORIZON + 1]))
    windows = windows.take(windows.starts == windows.starts[0])
    known = forecaster.forecast(windows, 3 * HORIZON)
    hidden = forecaster.forecast(without_future(windows, int(windows.starts[0]) + LOOKBACK), 3 * HORIZON)
    assert np.isfinite(known).all() and np.array_equal(known, hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_rolling_is_repeating(kind):
    forecaster, test = fitted(kind)
    step = {"small": 6, "ridge": HORIZON, "patch": HORIZON}.get(kind.split("-")[0].split(",")[0], 24)
    first = forecaster.predict(test, step)
    longer = forecaster.predict(test, 2 * step)
    both = TimeSeries(np.concatenate([test.times, first.times]), np.concatenate([test.values, first.mean]), test.names)
    second = forecaster.predict(both, step)
    assert np.allclose(longer.mean[:step], first.mean, atol=1e-5)
    assert np.allclose(longer.mean[step:], second.mean, atol=1e-4)
    assert longer.times[step:].tolist() == second.times.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_stays_constant(kind):
    forecaster, test = fitted(kind)
    level = forecaster.scale_.mean + forecaster.scale_.std
    flat = TimeSeries(test.times, np.tile(level, (len(test), 1)), test.names)
    found = forecaster.predict(flat, 2 * HORIZON).mean
    assert np.abs((found - level) / forecaster.scale_.std).max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_it_back(kind, tmp_path, monkeypatch):
    forecaster, test = fitted(kind)
    if kind.startswith("small-lm"):  # the tiny model is found under its name
        from likely.forecasting import backbone

        monkeypatch.setattr(backbone, "trainable", lambda model: tiny_lm())
    path = tmp_path / "one.safetensors"
    forecaster.save(path)
    again = selection.load_forecaster(path)
    one, other = forecaster.predict(test, HORIZON), again.predict(test, HORIZON)
    assert type(again) is type(forecaster) and one.method == other.method
    assert np.array_equal(one.mean, other.mean) and np.array_equal(one.low, other.low)
    assert other.level == 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_history_and_other_columns_are_refused(kind):
    forecaster, test = fitted(kind)
    if forecaster.lookback > 1:
        with pytest.raises(DataError, match="too short"):
            forecaster.predict(test.rows(0, forecaster.lookback - 1), 3)
    with pytest.raises(DataError, match="has columns a, fitted were a, b"):
        forecaster.predict(test.column("a"), 3)
    with pytest.raises(ValueError, match="horizon must be >= 1"):
        forecaster.predict(test, 0)


@pytest.mark.parametrize("kind", ["ridge", "patch-transformer", "small-lm", "small-lm, no model"])
def test_waves_are_learned_better_than_by_the_last_value(kind):
    forecaster, test = fitted(kind)
    windows = windows_of(forecaster.scale_.apply(test), LOOKBACK, HORIZON)
    naive, _ = fitted("last-value")
    errors = [squared_and_absolute_error(f.forecast(windows, HORIZON), windows.future)[0] for f in (forecaster, naive)]
    assert errors[0] < (0.2 if kind == "ridge" else 1.0) * errors[1]


def test_unfitted_and_undistributed_are_refused():
    with pytest.raises(ValueError, match="not fitted"):
        RidgeForecaster(4).predict(waves(), 3)
    forecaster, test = fitted("ridge")
    with pytest.raises(CapabilityError, match="no distribution"):
        forecaster.log_prob(test, test)
    for wrong in (lambda: RidgeForecaster(0), lambda: RidgeForecaster(4, 0.0), lambda: SeasonalNaive(0)):
        with pytest.raises(ValueError, match="must be"):
            wrong()


# --- intervals --------------------------------------------------------------------------------------------------------


def test_intervals_hold_as_often_as_promised():
    """Independent noise: windows a horizon apart are exchangeable, and coverage is at least the level."""
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(40):
        series = TimeSeries.of(rng.standard_t(3, 2400))
        train, val, test = split_series(series, 1)
        forecaster = LastValue().fit(train, val, horizon=2, level=0.8)
        windows = windows_of(forecaster.scale_.apply(test), 1, 2, stride=3)
        apart = np.abs(forecaster.forecast(windows, 2) - windows.future)
        inside.append((apart <= forecaster.quantiles_[:, 0]).mean(0))
    error = np.std(inside, 0, ddof=1) / 40**0.5
    assert (np.abs(np.mean(inside, 0) - 0.8) < 4 * error + 0.005).all()


def test_each_column_and_step_has_its_own_interval():
    rng = np.random.default_rng(0)
    walk = np.stack([rng.normal(0, 1, 3000).cumsum(), 5 * rng.normal(0, 1, 3000)], 1)
    train, val, _ = split_series(TimeSeries.of(walk, ("walk", "noise")), 1)
    found = LastValue().fit(train, val, horizon=16).predict(val, 16)
    half = (found.high - found.low)[:, 0] / 2
    assert half[15] > 2.5 * half[0]  # a random walk's grows as the root of the step
    noise = (found.high - found.low)[:, 1] / 2
    assert noise.max() < 1.3 * noise.min()
    assert np.allclose((found.low + found.high) / 2, found.mean)


def test_intervals_are_the_conformal_quantiles_of_validation():
    train, val, _ = split_series(waves(), LOOKBACK)
    forecaster = RidgeForecaster(LOOKBACK).fit(train, val, horizon=3, level=0.75)
    windows = windows_of(forecaster.scale_.apply(val), LOOKBACK, 3)
    apart = np.abs(forecaster.forecast(windows, 3) - windows.future)[windows.columns == 1, 2]
    rank = int(np.ceil((len(apart) + 1) * 0.75))
    assert forecaster.quantiles_[2, 1] == pytest.approx(np.sort(apart)[rank - 1])


def test_too_few_windows_and_steps_behind_the_horizon_have_no_finite_interval():
    train, val, _ = split_series(waves(60), 4)
    with pytest.warns(UserWarning, match="at least 9 windows"):
        LastValue().fit(train, val.rows(0, 13), horizon=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = LastValue().fit(train, val, horizon=2, level=0.5).predict(val, 4)
    assert np.isfinite(found.low[:2]).all() and np.isneginf(found.low[2:]).all()
    steps = found.to_dict()["steps"]
    assert steps[3]["a"]["high"] is None and steps[0]["a"]["low"] is not None


# --- baselines --------------------------------------------------------------------------------------------------------


def test_seasonal_naive_is_exact_on_a_periodic_series():
    series = TimeSeries.of(np.tile([3.0, 1.0, 4.0, 1.0, 5.0], 20))
    found = SeasonalNaive(5).fit(series, horizon=12).predict(series, 12)
    assert np.allclose(found.mean[:, 0], np.tile([3.0, 1.0, 4.0, 1.0, 5.0], 3)[:12])
    wrong = SeasonalNaive(4).fit(series, horizon=12).predict(series, 12)
    assert not np.allclose(wrong.mean, found.mean)


def test_ridge_is_scikit_learns():
    from sklearn.linear_model import Ridge

    train = waves(200, 1)
    forecaster = RidgeForecaster(12, penalty=3.0).fit(train, horizon=4)
    windows = windows_of(forecaster.scale_.apply(train), 12, 4)
    mean = windows.past.mean(1, keepdims=True)
    theirs = Ridge(3.0, fit_intercept=False).fit(windows.past - mean, windows.future - mean)
    assert np.allclose(forecaster.weights_, theirs.coef_.T)
    ends = last_windows(forecaster.scale_.apply(train), 12)
    level = ends.past.mean(1, keepdims=True)
    assert np.allclose(forecaster.forecast(ends, 4), theirs.predict(ends.past - level) + level)


def test_the_data_set_gives_the_known_errors(data_dir):
    """MSE at horizon 48 on the last fifth, stride 4: 1.084 last value, 0.290 daily, 0.942 weekly, 0.20 ridge."""
    from likely.forecasting.series import read_time_series

    series = read_time_series(data_dir / "tetouan_power" / "tetouan_30min.csv.gz")
    train, _, test = split_series(series, 336)
    methods = [LastValue(), SeasonalNaive(48), SeasonalNaive(336), RidgeForecaster()]
    found = selection.compare_forecasters([m.fit(train, horizon=48) for m in methods], test, [48], stride=4)
    errors = [found[m.label][48][0] for m in methods]
    assert errors == pytest.approx([1.084, 0.290, 0.942, 0.198], rel=0.03)
