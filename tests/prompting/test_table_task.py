"""Tasks from Python and TOML: what leaks, what is not a task, and whose line is wrong."""

from __future__ import annotations

import pytest

from likely.errors import DataError
from likely.prompting.risk.task import TableChoice, TableTask, load_task, read_task
from likely.prompting.risk.text import ColumnText

TWO = (TableChoice("0", "No", "no", 0), TableChoice("1", "Yes", "yes", 1))
GOOD = {
    "target": "ill", "question": "Is the patient ill?",
    "choice": [{"code": 0, "text": "No", "value": 0}, {"code": 1, "text": "Yes", "value": 1}],
    "column": [{"name": "age"}, {"name": "smokes", "values": {"0": "no", "1": "yes"}}],
}  # fmt: skip


def made(**changes):
    given = {"columns": {"age": ColumnText("age")}, "target": "ill", "choices": TWO, "question": "Ill?",
             "word_question": "Ill, {options}?", "numeric_question": "P?"}  # fmt: skip
    return TableTask(**{**given, **changes})


def test_the_ready_task():
    task = load_task("adult")
    assert len(task.columns) == 13 and "fnlwgt" not in task.columns and task.target not in task.columns
    assert task.positive.code == ">50K" and [c.word for c in task.choices] == ["below", "above"]
    assert task.label({task.target: ">50K"}) == 1 and task.label({task.target: "?"}) is None
    assert list(task.without("race", "sex").columns) == [c for c in task.columns if c not in ("race", "sex")]
    assert len({task.digest(), task.without("race").digest(), task.without("sex").digest()}) == 3


def test_a_small_file_is_enough():
    task = read_task(GOOD)
    assert task.outcome({"ill": 1}) == task.outcome({"ill": "1"}) == task.outcome({"ill": 1.0}) == 1
    assert task.word_question == "Is the patient ill? {options}?" and task.word_prefix == "Answer:"
    assert task.numeric_question == 'Is the patient ill? What is the probability of "Yes"?'
    assert [c.word for c in task.choices] == ["No", "Yes"] and task.columns["age"].label == "age"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "age"}, 'the target "age" is among the features'),
        ({"columns": {}}, "at least one column"),
        ({"choices": TWO[:1]}, "2 to 26 choices"),
        ({"choices": (TWO[0], TableChoice("1", "Yes", "no", 1))}, "word each, all different"),
        ({"choices": (TWO[0], TableChoice("1", "Yes", "yes", 0.5))}, "span 0 to 1"),
        ({"word_question": "Ill?"}, "{options}"),
    ],
)
def test_what_is_no_task(changes, message):
    with pytest.raises(DataError, match=message):
        made(**changes)


def test_an_unknown_outcome_names_the_known_ones():
    with pytest.raises(DataError, match=r'target "ill": unknown value "yes".*known: 0, 1'):
        made().outcome({"ill": "yes"})
    with pytest.raises(ValueError, match=r'no column is called "agee".*age'):
        made().without("agee")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 3}, 'field "target" must be a text in quotes, found 3'),
        ({"questoin": "?"}, 'unknown field "questoin".*question'),
        ({"choice": "no"}, r"\[\[choice\]\]"),
        ({"choice": [{"code": 0, "text": "No"}] * 2}, 'choice 1: field "value" is missing'),
        ({"choice": [{"code": 0, "text": "No", "value": "low"}]}, "choice 1: .*must be a number.*'low'"),
        ({"choice": [{"code": 0, "text": "No", "value": True}]}, "choice 1: .*must be a number"),
        ({"choice": [{"code": 0, "text": 1, "value": 0}]}, "choice 1: .*must be a text"),
        ({"choice": []}, "2 to 26 choices, got 0"),
        ({"column": [{"label": "age"}]}, 'column 1: field "name" is missing'),
        ({"column": [{"name": "a"}, {"name": "a"}]}, '"a" is described twice'),
        ({"column": [{"name": "a", "label": ""}]}, "column 1: a column needs a label"),
        ({"column": [{"name": "a", "bands": 3}]}, 'column 1: field "bands" must be a list of numbers'),
        ({"column": [{"name": "a", "bands": [3, 1]}]}, "column 1: .*must rise"),
        ({"column": [{"name": "a", "bands": ["x"]}]}, "column 1: .*list of numbers"),
        ({"column": [{"name": "a", "values": ["x"]}]}, 'column 1: field "values" must be a table of texts'),
        ({"column": [{"name": "a", "values": {"1": 2}}]}, "table of texts"),
        ({"column": [{"name": "a", "bands": [1], "coarse": {"1": "x"}}]}, "coarse= or bands="),
        ({"column": [{"name": "ill"}]}, "the answer would leak"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_clear_error(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        read_task({**GOOD, **changes}, "my.toml")
    assert str(caught.value).startswith("my.toml: ") and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r'"adlut".*adult'):
        load_task("adlut")
    (tmp_path / "t.toml").write_bytes(b"name = [")
    with pytest.raises(DataError, match=r"t.toml: not TOML"):
        load_task(tmp_path / "t.toml")
    (tmp_path / "t.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(DataError, match=r"t.toml: not TOML"):
        load_task(tmp_path / "t.toml")
