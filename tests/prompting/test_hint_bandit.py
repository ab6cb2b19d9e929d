"""A policy over hints finds the hint that makes a simulated model honest, question by question."""

from __future__ import annotations

import numpy as np
import pytest

from likely.errors import DataError
from likely.prompting.hints.bandit import HintBandit
from likely.prompting.hints.reward import confidence_reward

HINTS = ["", "Take your time.", "Be careful.", "Be bold."]


def world(n=400, seed=0):
    """Half of the questions are easy (right 90 %), half are hard (35 %); hints move what is stated only."""
    rng = np.random.default_rng(seed)
    hard = rng.integers(2, size=n)
    right = (rng.random(n) < np.where(hard, 0.35, 0.9)).astype(int)
    stated = np.array([[0.6, 0.9, 0.5, 0.99], [0.6, 0.8, 0.35, 0.99]])  # by difficulty and hint
    features = np.stack([hard + rng.normal(0, 0.05, n), rng.normal(size=n)], axis=1)
    return features, hard, right, stated


@pytest.mark.slow
def test_grpo_finds_the_hint_that_is_honest_for_each_kind_of_question():
    features, hard, right, stated = world()

    def rewards(questions, hints):
        return confidence_reward(right[questions], stated[hard[questions], hints])

    bandit = HintBandit(HINTS, seed=1).fit(features, rewards, steps=150)
    new, kind, _, _ = world(seed=7)
    assert (bandit.choose(new) == np.where(kind, 2, 1)).mean() > 0.98
    assert np.mean(bandit.rewards_[-20:]) > np.mean(bandit.rewards_[:5]) + 0.1
    law = bandit.predict_proba(new)
    assert law.shape == (400, 4) and law.sum(axis=1) == pytest.approx(np.ones(400))


def test_a_reward_for_accuracy_alone_teaches_nothing_about_confidence():
    """Negative control: every hint has the same accuracy, so nothing is learned but noise."""
    features, _, right, _ = world()
    bandit = HintBandit(HINTS, seed=1).fit(features, lambda q, h: right[q].astype(float), steps=60)
    assert bandit.predict_proba(features) == pytest.approx(np.full((400, 4), 0.25), abs=1e-9)


@pytest.mark.slow
def test_a_strong_pull_keeps_the_policy_where_it_was():
    features, hard, right, stated = world()

    def rewards(questions, hints):
        return confidence_reward(right[questions], stated[hard[questions], hints])

    free = HintBandit(HINTS, seed=1).fit(features, rewards, steps=60).predict_proba(features)
    held = HintBandit(HINTS, seed=1, beta=20.0).fit(features, rewards, steps=60).predict_proba(features)
    assert np.abs(held - 0.25).mean() < np.abs(free - 0.25).mean() / 3


def test_the_same_seed_is_the_same_policy_and_another_is_not():
    features, hard, right, stated = world(100)

    def rewards(questions, hints):
        return confidence_reward(right[questions], stated[hard[questions], hints])

    one, two, other = (HintBandit(HINTS, seed=s).fit(features, rewards, steps=5).weights_ for s in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_errors():
    features = world(20)[0]
    with pytest.raises(ValueError, match="2 or more"):
        HintBandit(["x"]).fit(features, lambda q, h: q)
    with pytest.raises(ValueError, match="group must be at least 2"):
        HintBandit(HINTS, group=1).fit(features, lambda q, h: q)
    with pytest.raises(ValueError, match="row 3 is not finite"):
        HintBandit(HINTS).fit(np.where(np.arange(20)[:, None] == 3, np.nan, features), lambda q, h: q)
    with pytest.raises(ValueError, match="not fitted"):
        HintBandit(HINTS).choose(features)
    bandit = HintBandit(HINTS).fit(features, lambda q, h: np.zeros(len(q)), steps=1)
    with pytest.raises(ValueError, match="3 columns, fit saw 2"):
        bandit.choose(np.zeros((2, 3)))


def test_a_written_policy_is_read_back_and_its_settings_are_checked():
    features, _, right, _ = world(40)
    bandit = HintBandit(HINTS, seed=1).fit(features, lambda q, h: right[q], steps=2)
    record = bandit.to_dict()
    again = HintBandit.from_dict(record)
    assert np.array_equal(again.predict_proba(features), bandit.predict_proba(features)) and again.lr == bandit.lr
    for name, value, said in (
        ("group", "many", "a whole number of at least 2, got 'many'"),
        ("group", 1, "at least 2"),
        ("batch", 2.5, "a whole number"),
        ("inner", True, "a whole number"),
        ("clip", None, "a number of at least 0"),
        ("lr", float("nan"), "a number"),
        ("beta", -0.1, "at least 0"),
        ("seed", -1, "at least 0"),
    ):
        with pytest.raises(DataError, match=rf"settings\.{name}: must be .*{said}"):
            HintBandit.from_dict({**record, "settings": {**record["settings"], name: value}})
