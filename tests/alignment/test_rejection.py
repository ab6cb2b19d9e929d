"""Rejection sampling against its law, its limits and the printed program, one candidate at a time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import chisquare

from likely.alignment import RejectionStatistics, accept_candidates, rejection_sample
from likely.errors import DataError


def by_the_book(rewards, k, beta, rng):
    """The paper's program on indices."""
    left, accepted = list(range(len(rewards))), []
    while len(accepted) < k:
        largest = max(rewards[i] for i in left)
        for i, u in zip(list(left), rng.random(len(left)), strict=True):
            if len(accepted) < k and u < np.exp((rewards[i] - largest) / beta):
                accepted.append(i)
        left = [i for i in left if i not in accepted]
    return accepted


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_printed_program(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 20))
    k, beta = int(rng.integers(1, n + 1)), float(np.exp(rng.normal()))
    rewards = np.round(rng.normal(size=n), 1)
    found = rejection_sample(rewards, k, beta, np.random.default_rng(seed))
    assert found.tolist() == by_the_book(rewards, k, beta, np.random.default_rng(seed))
    assert len(set(found.tolist())) == k


def test_one_accepted_candidate_follows_the_tilted_policy():
    policy, worth, rng = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0, 0.5, 1, 1.5]), np.random.default_rng(1)
    target = np.array([0.0851, 0.1734, 0.3143, 0.4272])
    counts = np.zeros(4)
    for _ in range(4000):
        drawn = rng.choice(4, size=64, p=policy)
        counts[drawn[rejection_sample(worth[drawn], 1, 0.5, rng)[0]]] += 1
    assert chisquare(counts, 4000 * target / target.sum()).pvalue > 1e-3
    assert chisquare(counts, 4000 * policy).pvalue < 1e-9  # what it must not be


def test_the_limits_are_the_first_and_the_best():
    rewards = np.random.default_rng(2).normal(size=30)
    rng = np.random.default_rng(3)
    assert rejection_sample(rewards, 7, 1e9, rng).tolist() == list(range(7))
    assert rejection_sample(rewards, 7, 1e-9, rng).tolist() == np.argsort(-rewards)[:7].tolist()


def test_shift_and_scale_change_nothing():
    rewards = np.random.default_rng(4).normal(size=30)
    found = rejection_sample(rewards, 8, 0.5, np.random.default_rng(5)).tolist()
    assert rejection_sample(rewards + 64, 8, 0.5, np.random.default_rng(5)).tolist() == found
    assert rejection_sample(rewards * 8, 8, 4.0, np.random.default_rng(5)).tolist() == found
    assert rejection_sample(rewards * 8, 8, 0.5, np.random.default_rng(5)).tolist() != found
    automatic = rejection_sample(rewards, 8, "ess:0.2", np.random.default_rng(5)).tolist()
    assert rejection_sample(rewards * 8 + 64, 8, "ess:0.2", np.random.default_rng(5)).tolist() == automatic


def test_equal_rewards_are_accepted_in_order():
    found = accept_candidates(np.zeros(6), 4, 0.5, np.random.default_rng(0))
    assert found.indices.tolist() == [0, 1, 2, 3] and found.passes == 1
    assert found.tried == 4 and found.acceptance_rate == 1.0 == found.expected_rate


def test_statistics_tell_an_outlier():
    rng, rewards = np.random.default_rng(6), np.random.default_rng(7).normal(size=32)
    calm = [accept_candidates(rewards, 4, 1.0, rng) for _ in range(200)]
    outlier = [accept_candidates(np.append(rewards, 1e3), 4, 1.0, rng) for _ in range(200)]
    one, other = RejectionStatistics.of(calm), RejectionStatistics.of(outlier)
    assert other.maximum_only == 1.0 and one.maximum_only < 0.2
    assert other.expected_rate == pytest.approx(1 / 33) and other.passes > one.passes
    assert one.accepted == 800 and one.prompts == 200 and one.short == 0
    first = [accept_candidates(rng.permutation(rewards), 1, 1.0, rng) for _ in range(4000)]
    once = [sample for sample in first if sample.passes == 1]
    assert len(once) > 3900
    assert RejectionStatistics.of(first).acceptance_rate == pytest.approx(one.expected_rate, rel=0.15)
    with pytest.raises(DataError, match="at least one"):
        RejectionStatistics.of([])


def test_equal_completions_can_be_one_candidate():
    texts = ["a", "b", "a", "c", "b"]
    rng = np.random.default_rng(8)
    for _ in range(50):
        found = rejection_sample(np.zeros(5), 3, 1.0, rng, dedup="unique", completions=texts)
        assert sorted(found.tolist()) == [0, 1, 3]
    few = accept_candidates(np.zeros(5), 4, 1.0, rng, dedup="unique", completions=texts)
    assert few.short and sorted(few.indices.tolist()) == [0, 1, 3]
    assert not accept_candidates(np.zeros(5), 4, 1.0, rng, completions=texts).short
    with pytest.raises(ValueError, match="completions"):
        rejection_sample(np.zeros(5), 3, 1.0, rng, dedup="unique")
    with pytest.raises(ValueError, match="as many"):
        rejection_sample(np.zeros(5), 3, 1.0, rng, completions=texts[:4])
    with pytest.raises(ValueError, match="dedup"):
        rejection_sample(np.zeros(5), 3, 1.0, rng, dedup="drop")  # type: ignore[arg-type]


def test_impossible_candidates_are_never_accepted():
    rng, rewards = np.random.default_rng(9), [-np.inf, 0.0, -np.inf, 1.0]
    for _ in range(50):
        assert set(rejection_sample(rewards, 2, 1e6, rng).tolist()) == {1, 3}
    with pytest.raises(DataError, match="prompt 7: 3 candidates are wanted, 2 have a finite reward"):
        rejection_sample(rewards, 3, 1.0, rng, where="prompt 7")
    with pytest.raises(DataError, match="prompt 7: row 1 is not a number"):
        rejection_sample([0.0, np.nan], 1, 1.0, rng, where="prompt 7")
    with pytest.raises(DataError, match=r"candidate 1 has a reward of \+inf"):
        rejection_sample([0.0, np.inf], 1, 1.0, rng)


@pytest.mark.parametrize(
    ("k", "beta", "message"), [(3, 1.0, "k must be at most"), (0, 1.0, "at least 1"), (1, 0.0, "beta")]
)
def test_settings_that_cannot_be(k, beta, message):
    with pytest.raises(ValueError, match=message):
        rejection_sample([0.0, 1.0], k, beta, np.random.default_rng(0))


def test_it_needs_no_torch():
    code = (
        "import sys; from likely.alignment import compare_policies, rejection_sample; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
