"""likely forecast: a table in, a forecast, a comparison and a picture out."""

from __future__ import annotations

import json

import pytest
from toy_series import waves

from likely.forecasting.selection import load_forecaster
from likely.forecasting.series import read_time_series


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    series = waves(300)
    rows = [f"{time},{a},{b}" for time, (a, b) in zip(series.times, series.values, strict=True)]
    path = tmp_path_factory.mktemp("tables") / "waves.csv"
    path.write_text("\n".join(["date,a,b", *rows]) + "\n")
    return path


def test_one_command_forecasts_and_draws(table, tmp_path, cli):
    for name, start in (("one.png", b"\x89PNG"), ("one.html", b"<!doctype html>")):
        shown = cli("forecast", str(table), "--column", "a", "--horizon", "12", "--plot", str(tmp_path / name))
        assert shown.code == 0 and "ridge" in shown.out and "seasonal-naive (24)" in shown.out, shown.err
        assert (tmp_path / name).read_bytes().startswith(start)
    page = (tmp_path / "one.html").read_text()
    assert "<polyline" in page and "<polygon" in page and "last-value" in page and "<script" not in page
    assert "np.float64" not in page and "Note" not in shown.err
    assert "http" not in page.replace("http-equiv", "")


def test_json_holds_the_forecast_and_the_comparison(table, tmp_path, cli):
    kept = tmp_path / "kept.safetensors"
    shown = cli("forecast", str(table), "-c", "a", "-c", "b", "-H", "6", "--json", "--save", str(kept))
    record = json.loads(shown.out)
    assert record["columns"] == ["a", "b"] and len(record["steps"]) == 6
    step = record["steps"][0]["b"]
    assert step["low"] < step["mean"] < step["high"]
    assert record["compared"][0]["method"] == record["chosen"]
    again = load_forecaster(kept).predict(read_time_series(table), 6)
    assert again.mean[0, 1] == pytest.approx(step["mean"])


def test_a_worse_method_is_used_if_asked_for_and_the_better_one_is_named(table, cli):
    shown = cli("forecast", str(table), "-c", "a", "-H", "6", "--method", "last-value")
    assert "last-value *" in shown.out and "has a lower error" in shown.err and "Note: " in shown.err


def test_a_gap_in_time_is_named(table, tmp_path, cli):
    lines = table.read_text().splitlines(keepends=True)
    path = tmp_path / "gap.csv"
    path.write_text("".join(lines[:100] + lines[110:]))
    shown = cli("forecast", str(path), "-c", "a", "-H", "6", "--json")
    assert shown.code == 0 and "Note: 1 of 289 steps are not the usual one of 3600 s, first before row 100" in shown.err


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["-c", "c"], 1, 'no column of numbers is called "c"'),
        (["-c", "a", "--method", "rigde"], 2, 'did you mean "ridge"'),
        (["-c", "a", "--horizon", "200"], 1, "too short"),
        (["-c", "a", "--plot", "one.gif"], 2, "must end in .png"),
        (["-c", "a", "-s", "layers=2"], 2, "settings and models belong to"),
        (["-c", "a", "-H", "9", "--method", "patch-transformer", "-s", "width=30"], 2, "width must be a multiple"),
        (["-c", "a", "--split", "80/20"], 2, "unknown split"),
    ],
)
def test_what_cannot_be_is_one_line(table, cli, given, code, said):
    shown = cli("forecast", str(table), *given)
    assert shown.code == code and said in shown.err and len(shown.err.strip().splitlines()) == 1
