"""Asking again: how many, what is asked, and that nothing else changes.  The model is a table."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from likely.uncertainty.types import option_scores
from likely.weak_supervision.labelling_rules import LabelingFunction
from likely.weak_supervision.reasking import (
    Example,
    LabelTask,
    budget_threshold,
    fired,
    reask,
)

RULES = [
    LabelingFunction("free", "free", 1, text="It offers something free."),
    LabelingFunction("free again", "fr(e)e", 1, text="It offers something free."),
    LabelingFunction("thanks", "thanks", 0, text="It thanks somebody."),
]
TASK = LabelTask("Spam or ham?", ("ham", "spam"), "Message", (Example("Free entry", 1), Example("See you", 0)))
TEXTS = ["free\n entry", "hello", "thanks, it was free", "bye"]


class Table:
    """Prefers the label of the last Evidence line, "ham" where there is none; notes what it was asked."""

    def __init__(self):
        self.asked = []

    def score_pairs(self, pairs, *, progress=None):
        self.asked += [prompt for prompt, _ in pairs]
        if progress:
            progress(len(pairs))
        found = []
        for prompt, answer in pairs:
            evidence = [line for line in prompt.rsplit("\n\n", 1)[1].splitlines() if line.startswith("Evidence")]
            said = "spam" if evidence and evidence[-1].endswith("spam.") else "ham"
            value = -0.1 if answer == f" {said}" else -2.0
            found.append(SimpleNamespace(sequence_logprob=value, token_logprobs=[value]))
        return found


def test_prompts_as_they_are_read():
    start = "Spam or ham?\n\nMessage: Free entry\nAnswer: spam\n\nMessage: See you\nAnswer: ham\n\n"
    assert TASK.prompt("free\n entry") == start + "Message: free entry\nAnswer:"
    again = "\nLook at it again. Is that really right? Answer once more with one of: ham, spam.\nAnswer:"
    assert TASK.reconsider("x", 1) == start + "Message: x\nAnswer: spam" + again
    assert TASK.evidence("thanks, it was free", RULES) == (
        "Spam or ham?\n\nMessage: Free entry\nEvidence: It offers something free. This speaks for: spam.\n"
        "Answer: spam\n\nMessage: See you\nAnswer: ham\n\nMessage: thanks, it was free\n"
        "Evidence: It offers something free. This speaks for: spam.\n"
        "Evidence: It thanks somebody. This speaks for: ham.\nAnswer:"
    )


def test_rules_of_one_sentence_speak_once():
    assert [rule.name for rule in fired(RULES, "FREE, thanks")] == ["free", "thanks"] and fired(RULES, "x") == []


def test_thresholds_by_count():
    risk = np.arange(10) / 10
    for budget in (0, 0.1, 0.2, 0.3, 0.55, 0.7, 1):
        assert (risk > budget_threshold(risk, budget)).sum() == int(budget * 10 + 1e-9)
    tied = np.array([0.5, 0.5, 0.5, 0.1])
    assert (tied > budget_threshold(tied, 0.5)).sum() == 0  # two of three equal ones would be arbitrary
    assert (tied > budget_threshold(tied, 0.75)).sum() == 3
    rng = np.random.default_rng(0)
    for _ in range(50):
        some, share = rng.integers(5, size=20) / 4, rng.random()
        assert (some > budget_threshold(some, share)).mean() <= share
    with pytest.raises(ValueError, match=r"0\.\.1"):
        budget_threshold(risk, 1.1)
    with pytest.raises(ValueError, match="row 1 is not a number"):
        budget_threshold([0.1, np.nan], 0.5)


def test_only_the_risky_are_asked():
    lm = Table()
    found = reask(lm, TASK, TEXTS, [0, 1, 1, 1], [0.9, 0.1, 0.2, 0.8], threshold=0.5, rules=RULES)
    assert found.chosen.tolist() == [True, False, False, True]
    assert found.asked.tolist() == [True, False, False, False]  # no rule fires on "bye": there is no evidence
    assert found.answers.tolist() == [1, 1, 1, 1] and found.cost == 0.25
    assert np.isnan(found.probs[1:]).all() and found.probs[0].sum() == pytest.approx(1)
    assert len(lm.asked) == 2 and all("Message: free entry\nEvidence" in prompt for prompt in lm.asked)
    none = reask(None, TASK, TEXTS, [0, 1, 1, 1], np.zeros(4), threshold=0.5, rules=RULES)
    assert none.cost == 0 and none.answers.tolist() == [0, 1, 1, 1]


def test_reconsider_shows_the_answer_and_asks_plainly_where_there_was_none():
    lm = Table()
    found = reask(lm, TASK, TEXTS, [1, -1, 0, 0], np.ones(4), threshold=0.5, policy="reconsider")
    assert found.asked.all() and found.answers.tolist() == [0, 0, 0, 0]
    assert "free entry\nAnswer: spam\nLook at it again" in lm.asked[0]
    assert lm.asked[2] == TASK.prompt("hello")


def test_override_asks_nobody():
    fused = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = reask(None, TASK, TEXTS, [1, 0, 1, 0], [0.9, 0.9, 0.1, 0.1], threshold=0.5, policy="override", fused=fused)
    assert found.answers.tolist() == [0, 1, 1, 0] and found.cost == 0 and found.chosen.sum() == 2
    np.testing.assert_array_equal(found.probs[:2], fused[:2])


def test_option_scores_are_in_place():
    counted = []
    scores = option_scores(
        Table(), [TASK.prompt("a"), TASK.evidence("free", RULES)], TASK.labels, progress=counted.append
    )
    assert scores.logprobs.tolist() == [[-0.1, -2.0], [-2.0, -0.1]] and counted == [4]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"policy": "evidense"}, 'unknown policy "evidense"; did you mean "evidence"'),
        ({"policy": "evidence", "rules": []}, "evidence needs rules"),
        ({"policy": "override"}, "override needs fused"),
        ({"risk": [0.1]}, "one of each per text"),
        ({"answers": [0, 1, 2, 0]}, "row 2 is no class"),
        ({"lm": None}, "asks a model"),
    ],
)
def test_wrong_use(how, said):
    usual = {"lm": Table(), "answers": [0, 1, 1, 1], "risk": np.ones(4), "rules": RULES, "policy": "evidence"}
    given = {**usual, **how}
    with pytest.raises(ValueError, match=said):
        reask(given.pop("lm"), TASK, TEXTS, given.pop("answers"), given.pop("risk"), threshold=0.5, **given)
