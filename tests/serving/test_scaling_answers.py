"""Answers of chains: when one is said, what it is, and how chains vote."""

from __future__ import annotations

import math

import pytest

from likely.serving.scaling import ANSWER_FORMS, vote


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
