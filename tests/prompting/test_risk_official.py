"""The official package on the same probabilities and vocabulary (no dependency: pip install 'folktexts>=0.7')."""

from __future__ import annotations

import numpy as np
import pytest

from likely.prompting.risk.prompts import answer_texts, choice_orders, lettered_question
from likely.prompting.risk.report import order_bias
from likely.prompting.risk.task import load_task
from likely.scoring.digits import likeliest, official_number
from likely.scoring.letters import shares

official = pytest.importorskip("folktexts.qa_interface")
WORDS = ["<s>", "A", "B", "ĠA", "ĠB", "ĊA", "ĊB", "the", *"0123456789", "42", "07"]
VOCABULARY = {word: i for i, word in enumerate(WORDS)}


def laws(count, seed):
    return np.random.default_rng(seed).dirichlet(np.full(len(WORDS), 0.3), count)


def logs(law, words):
    with np.errstate(divide="ignore"):
        return np.log([law[VOCABULARY[word.replace(" ", "Ġ").replace("\n", "Ċ")]] for word in words])


@pytest.mark.parametrize("seed", range(3))
def test_letters_in_both_orders(seed):
    task = load_task("adult")
    choices = tuple(official.Choice(c.text, c.code, c.value) for c in task.choices)
    question = official.MultipleChoiceQA(column="x", text=task.question, num_forward_passes=1, choices=choices)
    for law in laws(100, seed):
        theirs = [
            asked.get_answer_from_model_output(law, VOCABULARY)
            for asked in official.MultipleChoiceQA.create_answer_keys_permutations(question)
        ]
        probs = []
        for order in choice_orders(2):
            probs.append(shares([logs(law, form) for form in answer_texts(task, "mc", order)]).probs)
        assert [p[1] for p in probs] == pytest.approx(theirs, abs=1e-9)
        assert order_bias(np.array([probs]), choice_orders(2), [0, 1]).order_bias == pytest.approx(
            abs(theirs[0] - theirs[1])
        )


def test_the_lettered_question_is_theirs():
    task = load_task("adult")
    for order in choice_orders(2):
        choices = tuple(official.Choice(task.choices[k].text, k, k) for k in order)
        asked = official.MultipleChoiceQA(column="x", text=task.question, num_forward_passes=1, choices=choices)
        assert asked.get_question_prompt() == lettered_question(task, order) + "\nAnswer:"


@pytest.mark.parametrize("seed", range(3))
def test_a_number_of_two_steps(seed):
    question = official.DirectNumericQA(column="x", text="P?", num_forward_passes=2)
    numbers = [word for word in WORDS if word.isdigit()]
    for first, second in zip(laws(100, seed), laws(100, seed + 99), strict=True):
        theirs = question.get_answer_from_model_output(np.stack([first, second]), VOCABULARY)
        steps = [likeliest(dict(zip(numbers, logs(law, numbers), strict=True))) for law in (first, second)]
        assert official_number(steps) == theirs
