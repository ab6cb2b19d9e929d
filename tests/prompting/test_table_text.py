"""A row as text: every code has words, layouts, what is missing, and whose fault an error is."""

from __future__ import annotations

import numpy as np
import pytest

from likely.data import load_records
from likely.errors import DataError
from likely.prompting.risk.task import load_task
from likely.prompting.risk.text import CONNECTORS, FORMATS, ColumnText, RowLayout, code_of, column_order, row_text

COLUMNS = {"age": ColumnText("age", unit="years old", bands=(30, 50)), "job": ColumnText("job", values={"1": "cook"})}
ROW = {"age": 31.0, "job": "1", "other": "x"}


@pytest.mark.parametrize("granularity", ["fine", "coarse"])
def test_every_code_of_the_census_has_words(data_dir, granularity):
    task = load_task("adult")
    for record in load_records("adult-census", data_dir=data_dir):
        text = row_text(record, task.columns, RowLayout(granularity=granularity))
        assert text.count("\n") == len(task.columns) == 13 and "?" not in text
        assert task.outcome(record) in (0, 1)


def test_layouts():
    said = {f: row_text(ROW, COLUMNS, RowLayout(format=f)) for f in FORMATS}
    assert said["the-bullets"] == "Information:\n- The age is: 31 years old.\n- The job is: cook."
    assert said["bullets"] == "Information:\n- age is: 31 years old\n- job is: cook"
    assert said["commas"] == "Information:\nage is: 31 years old, job is: cook."
    assert said["prose"] == "Information:\nThe age is 31 years old. The job is cook."
    between = [row_text(ROW, COLUMNS, RowLayout(connector=c, heading="")).split("31")[0] for c in CONNECTORS]
    assert between == ["- The age is: ", "- The age is ", "- The age = ", "- The age: "]
    assert row_text(ROW, COLUMNS, RowLayout(order=("job",))).index("job") < row_text(ROW, COLUMNS).index("job")


def test_bands_and_coarse_words():
    said = [COLUMNS["age"].text(age, "coarse") for age in (29.9, 30, 49, 50, "?")]
    assert said == ["under 30 years old", "at least 30 and under 50 years old", "at least 30 and under 50 years old",
                    "50 or more years old", "not known"]  # fmt: skip
    coarse = ColumnText("job", values={"1": "cook"}, coarse={"1": "kitchen"})
    assert (coarse.text("1"), coarse.text("1", "coarse")) == ("cook", "kitchen")
    assert ColumnText("n", values=lambda code: code * 2).text("7") == "77"


@pytest.mark.parametrize(
    ("value", "code"),
    [(5.0, "5"), (np.float64(0.1), "0.1"), (np.float32(2), "2"), (float("nan"), ""), (None, ""), (" a ", "a"),
     (7, "7"), (np.int64(7), "7"), (True, "True")],
)  # fmt: skip
def test_cells_as_codes(value, code):
    assert code_of(value) == code


def test_errors_name_what_is_wrong():
    with pytest.raises(DataError, match=r'column "job" is missing.*"age"'):
        row_text({"age": 3}, COLUMNS)
    with pytest.raises(DataError, match=r'"job": no text for the value "2".*known: 1'):
        row_text({"age": 3, "job": 2}, COLUMNS)
    with pytest.raises(DataError, match='"age": bands need numbers, found "old"'):
        COLUMNS["age"].text("old", "coarse")
    with pytest.raises(DataError, match="missing"):
        ColumnText("x", missing=None).text("NA")
    with pytest.raises(ValueError, match=r'unknown format "bulets".*bullets'):
        RowLayout(format="bulets")
    with pytest.raises(ValueError, match=r'no column is called "jobs".*job'):
        column_order(COLUMNS, ("jobs",))
    with pytest.raises(ValueError, match="twice"):
        RowLayout(order=("age", "age"))
    for wrong in ({"label": " "}, {"label": "x", "bands": (3, 1)}, {"label": "x", "bands": (1,), "coarse": {}}):
        with pytest.raises(ValueError):
            ColumnText(**wrong)
