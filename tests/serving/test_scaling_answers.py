"""Answers of chains: when one is said, what it is, and how chains vote."""

from __future__ import annotations

import math

import pytest

from likely.errors import DataError
from likely.serving.scaling import ANSWER_FORMS, RejectionGate, is_right, read_gate, summarise, vote, write_gate


@pytest.mark.parametrize(
    ("form", "text", "said", "answer"),
    [
        ("number", "so 3 + 4 = 7\n#### 7\n", True, "7"),
        ("number", "#### 7", False, "7"),  # it may go on: 75
        ("number", r"thus \boxed{1,250} dollars", True, "1250"),
        ("number", "The answer is 3. Then 9 others", True, "3"),
        ("number", "ANSWER: -2 ", True, "-2"),
        ("number", "he has 5 and 6", False, "6"),
        ("number", "the answer is clear", False, None),
        ("choice", "ANSWER: B\n", True, "B"),
        ("choice", "I think (C) fits", False, "C"),
        ("line", "Answer: Port Vila.\nMore", True, "port vila"),
        ("line", " Paris\nQuestion", False, "paris"),
        ("line", "\n", False, None),
    ],
)
def test_what_a_text_says(form, text, said, answer):
    assert ANSWER_FORMS[form].is_said(text) is said
    assert ANSWER_FORMS[form].read(text) == answer


def test_votes():
    answers, logprobs = ["7", "8", "8", None, "7"], [-0.1, -2.0, -2.0, 0.0, None]
    best, weights = vote(answers, logprobs)
    assert best == "7" and weights == {"7": 2, "8": 2}  # equal: the greater likelihood
    best, weights = vote(answers, logprobs, by="likelihood")
    assert best == "7" and weights["8"] == pytest.approx(2 * math.exp(-2))
    assert vote(["8", "8", "7"], [-2, -2, -0.1])[0] == "8"
    assert vote([None], [0.0]) == (None, {}) and vote([], []) == (None, {})
    with pytest.raises(ValueError, match="vote"):
        vote([], [], by="best")


def test_grading():
    known = {"reference": "She has 5.\n#### 5"}
    assert is_right("number", "5", known) and is_right("number", None, known) is False
    assert is_right("number", "5", {}) is None and is_right("number", "5", {"reference": "five"}) is None
    assert is_right("choice", "B", {"reference": "B"}) and is_right("line", "port vila", {"reference": "Port Vila"})
    assert is_right("number", "1/2", {"reference": "0.5"})


def test_a_summary_counts_what_records_say():
    def chain(*writers):
        turns = [{"round": n, "writer": w} for n, w in enumerate(writers, 1)]
        return {"turns": turns}

    record = {"answer": "5", "correct": 1, "failed": 1, "draft_tokens": 7, "target_tokens": 2}
    records = [
        {**record, "chains": [chain("draft", "target"), chain("target")]},
        {**record, "answer": None, "correct": 0, "chains": [chain("draft", "draft", "draft")]},
    ]
    found = summarise(records, reject_rate=0.5, calibration_scores=9)
    assert (found["questions"], found["answered"], found["failed"], found["draft_tokens"]) == (2, 1, 2, 14)
    assert found["accuracy"]["accuracy"] == 0.5
    assert [(r["rounds"], r["drafts"], r["rejected"]) for r in found["rates"]] == [("1", 3, 1), ("2 and later", 3, 1)]
    assert found["rates"][0]["expected_low"] < 0.5 < found["rates"][0]["expected_high"]
    assert summarise([], reject_rate=0.5, calibration_scores=None)["accuracy"] is None


def test_a_calibration_is_kept_with_what_it_was_made_with(tmp_path):
    gate = RejectionGate(0.3, by_round=True)
    gate.add([-1.5, -2.0], 1)
    path = tmp_path / "gate.json"
    write_gate(path, gate, {"draft": "a", "rounds": 1})
    assert read_gate(path, {"draft": "a", "rounds": 1}).fingerprint == gate.fingerprint
    with pytest.raises(DataError, match=r"another draft \(a, now b\)"):
        read_gate(path, {"draft": "b", "rounds": 1})
    for text in ("", "{}\n", '{"kind": "atts_calibration", "made_with": {}, "gate": {"reject_rate": 2}}\n'):
        path.write_text(text)
        with pytest.raises(DataError):
            read_gate(path, {})
