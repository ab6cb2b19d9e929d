"""Reading, cutting and splitting series: exact, or refused in one line."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error
from toy_series import waves

from likely.errors import DataError
from likely.forecasting.series import TimeSeries, read_time_series, split_series
from likely.forecasting.windows import (
    Standardiser,
    last_windows,
    normalise,
    squared_and_absolute_error,
    windows_of,
)

TABLE = "date,y,z\n2024-01-01 00:00,1,10\n2024-01-01 01:00,2,20\n2024-01-01T02:00:00,3.5,-3e1\n"


def write(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz", "table.tsv"])
def test_reads_what_was_written(tmp_path, name):
    text = TABLE.replace(",", "\t") if "tsv" in name else TABLE
    found = read_time_series(write(tmp_path, text, name))
    assert found.names == ("y", "z") and found.values.tolist() == [[1, 10], [2, 20], [3.5, -30]]
    assert found.times.tolist() == np.array(["2024-01-01T00", "2024-01-01T01", "2024-01-01T02"], "M8[s]").tolist()
    assert found.later(2).tolist() == np.array(["2024-01-01T03", "2024-01-01T04"], "M8[s]").tolist()
    assert read_time_series(write(tmp_path, text, name), ["z"]).values[:, 0].tolist() == [10, 20, -30]


def test_the_mark_that_spreadsheets_put_before_a_table_is_not_of_its_first_name(tmp_path):
    assert read_time_series(write(tmp_path, "\ufeff" + TABLE)).names == ("y", "z")


def test_steps_that_are_not_the_usual_one_are_known():
    series = waves(50)
    gap = TimeSeries(np.delete(series.times, slice(20, 30)), np.delete(series.values, slice(20, 30), 0), series.names)
    assert gap.odd_steps.tolist() == [20] and not len(series.odd_steps)
    months = np.arange("2024-01", "2025-01", dtype="M8[M]").astype("M8[s]")
    assert not len(TimeSeries(months, np.zeros(12), ("y",)).odd_steps)


def test_times_with_a_zone_are_utc_and_the_column_may_have_another_name(tmp_path):
    path = write(tmp_path, "when,y\n2024-01-01T00:00:00+02:00,1\n2024-01-01T00:00:00Z,2\n")
    assert read_time_series(path, date="when").times[0] == np.datetime64("2023-12-31T22:00:00")


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        (TABLE, ["w"], 'no column of numbers is called "w"'),
        (TABLE, ["date"], 'no column of numbers is called "date"'),
        (TABLE.replace("date", "day"), None, "no column holds time stamps"),
        (TABLE.replace("3.5", ""), None, 'row 3, column "y": the value is missing'),
        (TABLE.replace("3.5", "nan"), None, "nan is not a finite number"),
        (TABLE.replace("3.5", "inf"), None, "inf is not a finite number"),
        (TABLE.replace("3.5", "many"), None, '"many" is not a number'),
        (TABLE.replace("2024-01-01 01:00", "2024-01-01 00:00"), None, "row 2: time"),
        (TABLE.replace("2024-01-01 01:00", "1704067200"), None, 'time "1704067200" is not ISO 8601'),
        (TABLE.replace("3.5", "3_5"), None, '"3_5" is not a number'),
        (TABLE.replace("z", "y"), None, 'two columns are called "y"'),
        (TABLE.replace("2024-01-01 01:00", "1/2/2024"), None, 'time "1/2/2024" is not ISO 8601'),
        (TABLE.replace("2,20", "2"), None, "columns, the header has 3"),
        (TABLE.replace("01:00", "01:00Z"), None, 'row 2: time "2024-01-01 01:00Z" has a zone, row 1 has none'),
        (TABLE.replace("00:00", "00:00+01:00"), None, 'row 2: time "2024-01-01 01:00" has no zone, row 1 has one'),
        ("date,y\n", None, "no rows below the header"),
        ("", None, "empty"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, columns, said):
    with pytest.raises(DataError) as error:
        read_time_series(write(tmp_path, text), columns)
    assert said in str(error.value) and "\n" not in str(error.value) and "table.csv" in str(error.value)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a table"):
        read_time_series(write(tmp_path, TABLE, "table.txt"))
    with pytest.raises(DataError, match="cannot read"):
        read_time_series(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("times", "next_one"),
    [
        (["2024-01", "2024-02", "2024-03"], "2024-04"),
        (["2023-01-31", "2023-02-28", "2023-03-28"], "2023-04-25"),  # no calendar: the median step
        (["2021", "2022", "2023"], "2024"),
        (["2024-01-01T06", "2024-04-01T06", "2024-07-01T06"], "2024-10-01T06"),
    ],
)
def test_later_times_follow_the_calendar_where_the_rows_do(times, next_one):
    series = TimeSeries(np.array(times, "M8[s]"), np.zeros(3), ("y",))
    assert series.later(1)[0] == np.datetime64(next_one, "s")


def test_a_series_without_a_row_for_each_part_is_too_short():
    for rows in (1, 2, 3):
        with pytest.raises(DataError, match=f"too short: {rows} rows split 60/20/20 leave"):
            split_series(TimeSeries.of(np.arange(float(rows))), 0)


def test_values_whose_squares_are_infinite_are_refused():
    with pytest.raises(DataError, match='column "y" holds values too large'):
        Standardiser.of(TimeSeries.of(1e301 * np.arange(10.0)))


def test_splits_hold_the_lookback_in_front_and_every_row_once():
    series = waves(100)
    train, val, test = split_series(series, 10)
    assert (len(train), len(val), len(test)) == (60, 30, 30)
    assert np.array_equal(np.concatenate([train.values, val.values[10:], test.values[10:]]), series.values)
    etth = waves(8640 + 2880 + 2880 + 5, 1)
    train, val, test = split_series(etth, 96, "etth")
    assert (len(train), len(val), len(test)) == (8640, 2976, 2976)
    assert test.times[-1] == etth.times[-6]
    with pytest.raises(DataError, match="needs 57600 rows"):
        split_series(etth, 96, "ettm")
    with pytest.raises(DataError, match="too short"):
        split_series(series, 60)
    with pytest.raises(ValueError, match='did you mean "etth"'):
        split_series(series, 10, "eth")


def test_windows_are_the_rows_they_say():
    series = waves(50)
    windows = windows_of(series, 7, 3, stride=4)
    assert len(windows) == 2 * 11
    for i in range(len(windows)):
        start, column = windows.starts[i], windows.columns[i]
        assert start % 4 == 0
        assert np.array_equal(windows.past[i], series.values[start : start + 7, column])
        assert np.array_equal(windows.future[i], series.values[start + 7 : start + 10, column])
        assert windows.times(7)[i] == series.times[start + 7]
    assert np.array_equal(windows.narrowed(3).past, windows.past[:, 4:])
    assert np.array_equal(windows.narrowed(3).future, windows.future)
    ends = last_windows(series, 7)
    assert ends.times(8)[0] == series.times[-1] + np.timedelta64(2 * 3600, "s")
    for wrong in (lambda: windows_of(series, 49, 2), lambda: last_windows(series, 51), lambda: windows.narrowed(8)):
        with pytest.raises(DataError, match="too short"):
            wrong()


def test_normalisation_is_undone():
    past = np.random.default_rng(0).normal(3, 40, (5, 12))
    past[2] = 7.0  # constant
    values, mean, std = normalise(past)
    assert np.allclose(values * std + mean, past, atol=1e-9)
    assert np.allclose(values.mean(1), 0) and np.allclose(values[[0, 1, 3, 4]].std(1), 1, atol=1e-4)
    assert (values[2] == 0).all()
    scale = Standardiser.of(TimeSeries.of(past.T, tuple("abcde")))
    assert (scale.std > 0).all()


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(1)
    predicted, true = rng.normal(size=(2, 30, 4))
    mse, mae = squared_and_absolute_error(predicted, true)
    assert mse == pytest.approx(mean_squared_error(true, predicted))
    assert mae == pytest.approx(mean_absolute_error(true, predicted))
    with pytest.raises(ValueError, match="shape"):
        squared_and_absolute_error(predicted, true[:3])


def test_series_that_are_none_are_refused():
    for values, said in (([1.0, np.nan], "not a finite number"), ([], "empty")):
        with pytest.raises(DataError, match=said):
            TimeSeries.of(values)
    with pytest.raises(ValueError, match="names"):
        TimeSeries.of(np.zeros((3, 2)), ("y",))
    with pytest.raises(DataError, match=r'no column is called "b".*found: a'):
        waves(columns=1).column("b")
