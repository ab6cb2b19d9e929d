"""P(True): both orders, one form of the letters."""

from __future__ import annotations

import numpy as np
import pytest

from likely.scoring.letters import LowAnswerMass
from likely.uncertainty.p_true import (
    answers,
    p_true,
    p_true_of,
    p_true_prompt,
    p_true_prompts,
)
from likely.uncertainty.planner import gather
from likely.uncertainty.table import estimate, needs_of
from likely.uncertainty.types import Gathered, GenerationScores


def logprobs_of(p):
    """log p of each answer from {letter in its form: probability}."""
    return np.log([p.get(text, 1e-9) for text in answers()])


def test_the_prompt():
    assert p_true_prompt("Who?", " me ", ["you", "they"], true_first=False) == (
        "Question: Who?\nHere are some brainstormed ideas:\nyou\nthey\nPossible answer: me\n"
        "Is the possible answer:\n(A) False\n(B) True\nThe possible answer is:"
    )
    assert "brainstormed" not in p_true_prompt("Who?", "me", [], true_first=True)


def test_prompts_show_each_questions_own_samples_in_both_orders():
    def texts(names, owners):
        return GenerationScores([np.array([-1.0])] * len(names), names, ["stop"] * len(names), np.array(owners))

    found = Gathered(["Q1", "Q2"], texts(["x", "y"], [0, 1]), texts(["a", "b", "c", "d"], [0, 0, 1, 1]))
    first, second = p_true_prompts(found, 1)
    assert "ideas:\na\nPossible" in first[0] and "(A) True" in first[0] and "(A) False" in first[1]
    assert "Q2" in second[0] and "ideas:\nc\nPossible" in second[1] and "answer: y" in second[1]


def test_a_preference_for_a_letter_is_cancelled():
    biased = logprobs_of({" A": 0.8, " B": 0.2})
    assert p_true_of(np.array([[biased, biased]])).tolist() == pytest.approx([0.5])


def test_a_true_belief_is_recovered():
    believed = np.array([[logprobs_of({" A": 0.7, " B": 0.3}), logprobs_of({" A": 0.3, " B": 0.7})]])
    assert p_true_of(believed) == pytest.approx([0.7])
    swapped = believed[:, ::-1]
    assert p_true_of(swapped) == pytest.approx([0.3])


def test_one_form_is_used_for_both_letters():
    """Mixing " A" with "B" would give 0.9 / (0.9 + 0.8)."""
    mixed = logprobs_of({" A": 0.45, " B": 0.1, "A": 0.01, "B": 0.4})
    assert p_true_of(np.array([[mixed, logprobs_of({" A": 0.5, " B": 0.5})]])) == pytest.approx(
        [(0.45 / 0.55 + 0.5) / 2]
    )


def test_no_probability_on_any_letter_is_missing_and_never_a_half():
    nothing, strong = np.full(len(answers()), -np.inf), logprobs_of({" A": 0.5, " B": 0.4})
    with pytest.warns(LowAnswerMass, match="2 of 3 questions"):
        values = p_true_of(np.array([[nothing, nothing], [strong, strong], [strong, nothing]]))
    assert np.isnan(values).tolist() == [True, False, True]
    greedy = GenerationScores([np.array([-1.0])] * 3, ["x"] * 3, ["stop"] * 3, np.arange(3))
    assert p_true(Gathered(["?"] * 3, greedy, extra={"p_true": values})).missing.tolist() == [True, False, True]


def test_little_mass_on_the_letters_is_told():
    faint = logprobs_of({" A": 0.01, " B": 0.01})
    strong = logprobs_of({" A": 0.5, " B": 0.4})
    with pytest.warns(LowAnswerMass, match="1 of 2 questions have less than 0.1"):
        p_true_of(np.array([[strong, faint], [strong, strong]]))


def test_it_needs_samples_only_to_show_them():
    assert needs_of(["p_true"]) == {"greedy", "samples", "p_true"}
    assert needs_of(["p_true"], brainstormed=0) == {"greedy", "p_true"}


def test_on_a_model_that_believes_what_it_reads():
    """A toy that always says A, and one that says the letter of True: 0.5, and its belief."""
    import string

    from toy_language import toy

    from likely.runtimes.toy import CharTokenizer

    alphabet = CharTokenizer(string.printable)._alphabet
    end, a, b = len(alphabet) + 1, alphabet.index("A"), alphabet.index("B")

    def honest(prefix):
        text = "".join(alphabet[t] for t in prefix if t < len(alphabet))
        row = np.full(len(alphabet) + 2, -20.0)
        if text.endswith("answer is:"):
            row[alphabet.index(" ")] = 5.0
        elif text.endswith("answer is: "):
            true = a if "(A) True" in text else b
            row[[a, b]] = np.log(0.1)
            row[true] = np.log(0.9)
        else:
            row[end] = 5.0
        return row

    def stubborn(prefix):
        row = honest(prefix)
        if row[a] > -20:
            row[[a, b]] = np.log([0.95, 0.05])
        return row

    for of, expected in ((honest, 0.9), (stubborn, 0.5)):
        lm = toy(of, alphabet, context_length=600)
        found = gather(lm, ["Who?"], needs=["p_true"], max_tokens=2, samples=2)
        assert estimate(found, ["p_true"])["p_true"].values == pytest.approx([expected], abs=1e-4)


def test_it_must_be_gathered():
    greedy = GenerationScores([np.array([-1.0])], ["x"], ["stop"], np.array([0]))
    with pytest.raises(ValueError, match=r"P\(True\) was not gathered"):
        estimate(Gathered(["?"], greedy), ["p_true"])
