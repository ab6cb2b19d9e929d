"""What a model reads: golden files of three census records in every style, orders, answers, worked examples."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from likely.prompting.risk.prompts import STYLES, answer_texts, choice_orders, row_prompt
from likely.prompting.risk.task import TableChoice, TableTask, load_task
from likely.prompting.risk.text import ColumnText

GOLDEN = Path(__file__).parent / "golden"
ROWS = [
    {"age": "39", "workclass": "State-gov", "education": "Bachelors", "education-num": "13",
     "marital-status": "Never-married", "occupation": "Adm-clerical", "relationship": "Not-in-family", "race": "White",
     "sex": "Male", "capital-gain": "2174", "capital-loss": "0", "hours-per-week": "40",
     "native-country": "United-States", "income-per-year": "<=50K"},
    {"age": 52.0, "workclass": "Self-emp-inc", "education": "Prof-school", "education-num": 15,
     "marital-status": "Married-civ-spouse", "occupation": "Exec-managerial", "relationship": "Wife", "race": "Black",
     "sex": "Female", "capital-gain": 15024, "capital-loss": 0, "hours-per-week": 60.0, "native-country": "Jamaica",
     "income-per-year": ">50K"},
    {"age": "17", "workclass": "?", "education": "10th", "education-num": "6", "marital-status": "Never-married",
     "occupation": None, "relationship": "Own-child", "race": "Other", "sex": "Female", "capital-gain": "0",
     "capital-loss": "0", "hours-per-week": "12", "native-country": float("nan"), "income-per-year": "?"},
]  # fmt: skip
THREE = TableTask(
    columns={"age": ColumnText("age")}, target="grade", question="Which grade?", word_question="Grade {options}?",
    numeric_question="P?",
    choices=tuple(TableChoice(c, f"Grade {c}.", c, v) for c, v in (("low", 0), ("mid", 0.5), ("high", 1))),
)  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("row", range(3))
def test_prompts_as_they_were(style, row):
    """A change here changes every score: measure again before replacing a file."""
    text = row_prompt(ROWS[row], load_task("adult"), style=style).text
    assert text == (GOLDEN / f"{style}-{row + 1}.txt").read_text("utf-8")


@pytest.mark.parametrize("style", ["mc", "word", "numeric"])
def test_worked_examples_as_they_were(style):
    text = row_prompt(ROWS[2], load_task("adult"), style=style, order=(1, 0), examples=ROWS[:2]).text
    assert text == (GOLDEN / f"{style}-few-shot-reversed.txt").read_text("utf-8")


def test_the_outcome_of_the_row_itself_is_nowhere():
    task = load_task("adult")
    for style in STYLES:
        texts = [row_prompt({**ROWS[0], task.target: o}, task, style=style).text for o in ("<=50K", ">50K")]
        assert texts[0] == texts[1]


def test_orders():
    assert choice_orders(2) == [(0, 1), (1, 0)] and choice_orders(2, correction=False) == [(0, 1)]
    assert sorted(choice_orders(4)) == sorted(itertools.permutations(range(4)))
    five = choice_orders(5)
    assert len(five) == 5 and all({order[place] for order in five} == set(range(5)) for place in range(5))


def test_answers_follow_the_order_shown():
    task = load_task("adult")
    assert answer_texts(task, "mc", (0, 1)) == [["A", "B"], [" A", " B"], ["\nA", "\nB"]]
    assert answer_texts(task, "mc", (1, 0)) == [["B", "A"], [" B", " A"], ["\nB", "\nA"]]
    assert answer_texts(task, "word", (1, 0)) == [[" below", " above"]]
    assert answer_texts(THREE, "mc", (2, 0, 1))[0] == ["B", "C", "A"]


def test_three_choices():
    text = row_prompt({"age": 3}, THREE, style="mc", order=(2, 0, 1)).text
    assert text.endswith("Question: Which grade?\nA. Grade high.\nB. Grade low.\nC. Grade mid.\nAnswer:")
    assert "Grade high, low or mid?" in row_prompt({"age": 3}, THREE, style="word", order=(2, 0, 1)).text
    shown = row_prompt({"age": 3}, THREE, style="mc", order=(2, 0, 1), examples=[{"age": 4, "grade": "mid"}]).text
    assert "Answer: C\n\n" in shown
    number = row_prompt({"age": 3}, THREE, style="numeric", examples=[{"age": 4, "grade": "high"}]).text
    assert "0.99\n\n" in number  # 1 cannot be written after "0."


def test_examples_that_cannot_be_worked():
    with pytest.raises(ValueError, match='no "income-per-year"'):
        row_prompt(ROWS[0], load_task("adult"), examples=[ROWS[2]])
    with pytest.raises(ValueError, match="cot"):
        row_prompt(ROWS[0], load_task("adult"), style="cot", examples=[ROWS[0]])
