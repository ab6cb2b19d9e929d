"""The study of hints: a model that heeds hints is mended, another is not; the simulation tells rewards apart."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scripts import script

from likely.evidence import Source
from likely.prompting.hints.downstream import STATE, ChoiceQuestion

SOURCES = [Source(name="made up", sha256="0" * 64)]


@pytest.fixture(scope="module")
def study():
    return script("prompt4trust")


class Fake:
    """Right on half of the questions; states 90 %, and 50 % after one of the hints, if it heeds."""

    def __init__(self, heeds):
        self.info = SimpleNamespace(name=f"heeds {heeds}", sha256="0", runtime="made up", dtype="f64")
        self.heeds = heeds

    def score_pairs(self, pairs):
        return [SimpleNamespace(sequence_logprob=self._value(*pair)) for pair in pairs]

    def _value(self, prompt, answer):
        if STATE not in prompt:
            return 0.0 if answer == " yes" else -2.0
        return 0.0 if answer == (" 50%" if self.heeds and "get this wrong" in prompt else " 90%") else -60.0


def asked(n, seed):
    rng = np.random.default_rng(seed)
    return [ChoiceQuestion(f"Is {i} fine?{'?' * (i % 3)}", ("yes", "no"), int(rng.integers(2))) for i in range(n)]


@pytest.mark.parametrize("heeds", [True, False])
def test_the_policy_mends_a_model_that_heeds_hints_and_no_other(study, heeds):
    evidence = study.study(
        {"fake": Fake(heeds)}, asked(60, 1), asked(200, 2), steps=60, seeds=1, resamples=100, full=False,
        sources=SOURCES, data=[], kept=None, report=lambda line: None,
    )  # fmt: skip
    held = {check.statement: check.holds for check in evidence.checks}
    assert held["simulated: ECE of the learned policy"]
    assert [h for s, h in held.items() if "Brier" in s] == [heeds, heeds]
    assert evidence.verdict == ("reproduced" if heeds else "partly reproduced")
    value = {(f.subject, f.quantity): f.value for f in evidence.figures}
    assert value["fake, no hint", "ECE"] == pytest.approx(0.4, abs=0.12)
    assert (value["fake, policy", "ECE"] < 0.15) == heeds


def test_each_reward_teaches_what_it_pays_for(study):
    """What is right most often is stated too surely, so that accuracy alone teaches overconfidence."""
    learned, plain, honest = study.simulated(120, 0)
    paid, _, guessed = study.simulated(120, 0, accuracy_only=True)
    assert learned < 0.03 < plain and honest > 0.95
    assert paid > 0.06 and guessed < 0.5
    assert abs(paid - plain) > 0.01  # it moved: the control is no constant


@pytest.mark.parametrize(
    ("hint", "leaks"),
    [("It is B.", True), ("Choose option b", True), ("The answer is (A).", True), ("A cow, perhaps.", True),
     ("Think of COWS", False), ("A careful look helps.", False), ("Consider each option.", False), ("", False)],
)  # fmt: skip
def test_hints_that_name_an_option(study, hint, leaks):
    assert study.names_an_option(hint, ("hen", "cow")) == leaks
