"""The method is chosen by its error on rows that none was fitted on, and all are reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
from toy_series import waves

from likely.errors import DataError
from likely.forecasting.selection import forecast_series, load_forecaster, seasons_of
from likely.forecasting.series import TimeSeries


def test_the_lowest_validation_error_is_chosen():
    report = forecast_series(waves(600), 12)
    errors = [m.validation for m in report.methods]
    assert errors == sorted(errors) and report.chosen == report.methods[0].method
    assert {m.method.split()[0] for m in report.methods} == {"last-value", "seasonal-naive", "ridge"}
    assert report.rows == (360, 120, 120) and report.season == 24
    assert all(0.75 < m.coverage <= 1 for m in report.methods)
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert len(record["steps"]) == 12 and record["chosen"] == report.chosen


def test_a_random_walk_is_forecast_by_its_last_value():
    walk = np.random.default_rng(5).normal(size=400).cumsum()
    report = forecast_series(TimeSeries.of(walk), 6)
    assert report.chosen == "last-value"
    assert report.forecast.mean[0, 0] == pytest.approx(walk[-1])


def test_the_final_forecast_is_learned_from_all_but_the_calibration_rows():
    series = waves(600, 1)
    report = forecast_series(series, 12, method="ridge")
    changed = series.values.copy()
    changed[370:480] += 3.0  # validation rows
    other = forecast_series(TimeSeries(series.times, changed, series.names), 12, method="ridge")
    assert not np.allclose(report.forecast.mean, other.forecast.mean)
    assert report.forecast.times[0] == series.times[-1] + np.timedelta64(3600, "s")


def test_a_method_that_was_asked_for_makes_the_forecast():
    report = forecast_series(waves(600), 12, method="last-value")
    assert report.chosen == "last-value" != report.methods[0].method
    assert len(report.methods) == 4  # seasons of a day and a week


@pytest.mark.parametrize(
    ("step_s", "expected"), [(1800, [48, 336, 17532]), (3600, [24, 168, 8766]), (86400, [7, 365]), (7 * 86400, [52])]
)
def test_seasons_follow_from_the_step(step_s, expected):
    assert seasons_of(TimeSeries.of(np.arange(5.0), step_s=step_s)) == expected


def test_months_have_a_season_of_twelve():
    times = np.arange("2015-01", "2020-01", dtype="M8[M]").astype("M8[s]")
    assert seasons_of(TimeSeries(times, np.arange(60.0), ("y",))) == [12]


def test_what_cannot_be_is_refused():
    for series, horizon, settings, said in (
        (waves(30), 12, {}, "too short"),
        (waves(7), 1, {}, "too short"),
        (waves(200), 12, {"lookback": 120}, "too short"),
    ):
        with pytest.raises(DataError, match=said):
            forecast_series(series, horizon, **settings)
    for settings, said in (
        ({"method": "rigde"}, 'did you mean "ridge"'), ({"season": 500}, "season must lie in"),
        ({"level": 1.0}, "alpha"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            forecast_series(waves(400), 12, **settings)


def test_files_that_are_no_forecasters_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "wrong.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a saved forecaster"):
        load_forecaster(path)
    save_file({"scale/mean": np.zeros(1)}, path, {"forecaster": json.dumps({"method": "ridge", "params": {}})})
    with pytest.raises(DataError, match="not a saved forecaster"):
        load_forecaster(path)
    with pytest.raises(DataError, match="not a saved forecaster"):
        load_forecaster(tmp_path / "none.safetensors")
