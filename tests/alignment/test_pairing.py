"""Which candidates meet, who is preferred, and what a reward says."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")

from likely.alignment.labellers import (
    PreferenceOracle,
    PreferencePair,
    RewardDifference,
    Symmetrised,
    bradley_terry,
    checked,
    label_pairs,
)
from likely.alignment.pairing import all_pairs, best_worst, first_round, tournament
from likely.alignment.rewards import (
    LengthReward,
    MeanReward,
    RegexReward,
    TextReward,
    UnfinishedPenalty,
    rewards_of,
)
from likely.alignment.scores import Completion
from likely.errors import DataError

TEXTS = [Completion((1,), tuple(range(2, 2 + n)), text="ab" * n, prompt_text="x", finished=n != 3) for n in range(1, 5)]


@pytest.mark.parametrize("n", [2, 5, 8])
def test_the_first_round_uses_everyone_at_most_once(n):
    pairs = first_round(n, np.random.default_rng(0))
    assert pairs.shape == (n // 2, 2) and len(set(pairs.ravel())) == 2 * (n // 2)


def test_every_pairing_of_the_first_round_is_equally_likely():
    rng, seen = np.random.default_rng(1), {}
    for _ in range(3000):
        key = frozenset(map(frozenset, first_round(4, rng).tolist()))
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 3 and all(abs(count - 1000) < 5 * math.sqrt(1000 * 2 / 3) for count in seen.values())


@pytest.mark.parametrize("n", [2, 3, 5, 8, 13])
def test_a_tournament_is_a_knock_out(n):
    strength = np.random.default_rng(n).permutation(n)
    pairs = tournament(n, lambda i, j: float(strength[i] > strength[j]), np.random.default_rng(0))
    losers = [i if strength[i] < strength[j] else j for i, j in pairs]
    assert len(pairs) == n - 1 and sorted(losers) == sorted(set(range(n)) - {int(strength.argmax())})


def test_all_pairs_and_the_extremes():
    assert all_pairs(4).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert best_worst([0.5, 2, -1, 2]).tolist() == [[1, 2]] and best_worst([1, 1]).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="candidate 1 is NaN"):
        best_worst([0, math.nan])
    with pytest.raises(ValueError, match="needs two candidates, got 1"):
        all_pairs(1)


def test_rewards_of_text():
    assert rewards_of(LengthReward(0.5), TEXTS).tolist() == [0.5, 1, 1.5, 2]
    assert rewards_of(RegexReward("bab"), TEXTS).tolist() == [0, 1, 1, 1]
    assert rewards_of(TextReward(lambda x, y: len(x + y)), TEXTS).tolist() == [3, 5, 7, 9]
    assert rewards_of(UnfinishedPenalty(LengthReward(), 10), TEXTS).tolist() == [1, 2, -7, 4]
    both = MeanReward((LengthReward(), LengthReward(3)), penalty=1)
    assert rewards_of(both, TEXTS).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_named_by_its_row(bad):
    with pytest.raises(DataError, match=r"row 2: the reward is (nan|inf)"):
        rewards_of(lambda completions: [0, bad, 0, 0], TEXTS)
    with pytest.raises(DataError, match="one number per completion: 4"):
        rewards_of(lambda completions: [0, 1], TEXTS)


def test_bradley_terry_needs_no_zero():
    first, second = np.array([1.0, -3, 0]), np.array([0.0, 2, 0])
    p = bradley_terry(first, second)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(second - first)))
    np.testing.assert_allclose(p, bradley_terry(first + 100, second + 100))
    assert bradley_terry(np.array([-math.inf]), np.array([-math.inf])).tolist() == [0.5]
    assert bradley_terry(np.array([1e4]), np.array([-1e4])).tolist() == [1.0]


def test_hard_soft_and_sampled_labels():
    labeller = RewardDifference(LengthReward())
    firsts, seconds = [TEXTS[0], TEXTS[3], TEXTS[1]], [TEXTS[1], TEXTS[0], TEXTS[1]]
    soft = label_pairs(labeller, firsts, seconds)
    np.testing.assert_allclose(soft.preferences, 1 / (1 + np.exp([1, -3, 0])))
    hard = label_pairs(labeller, firsts, seconds, hard=True)
    assert hard.kept.tolist() == [0, 1] and hard.preferences.tolist() == [0, 1] and hard.ties == 1
    rng = np.random.default_rng(0)
    drawn = [label_pairs(labeller, firsts, seconds, hard="sample", rng=rng).preferences for _ in range(4000)]
    assert np.abs(np.mean(drawn, axis=0) - soft.preferences).max() < 5 * 0.5 / math.sqrt(4000)


def test_a_place_is_not_preferred_once_symmetrised():
    def biased(firsts, seconds):
        return np.array([0.9 if len(a.tokens) >= len(b.tokens) else 0.3 for a, b in zip(firsts, seconds, strict=True)])

    firsts, seconds = TEXTS[:3], TEXTS[1:]
    with pytest.warns(UserWarning, match="both orders are averaged"):
        fair = checked(biased, firsts, seconds)
    np.testing.assert_allclose(fair(firsts, seconds) + fair(seconds, firsts), 1)
    assert checked(fair, firsts, seconds) is fair and isinstance(fair, Symmetrised)


def test_preferences_outside_0_and_1_are_refused():
    with pytest.raises(DataError, match=r"pair 1: the preference is 1.5, it must lie in \[0, 1\]"):
        label_pairs(PreferenceOracle(lambda x, a, b: 1.5), TEXTS[:2], TEXTS[2:])
    with pytest.raises(DataError, match=r"row 7: the preference must lie in \[0, 1\], got 2"):
        PreferencePair(TEXTS[0], TEXTS[1], 2.0, row=7)
    with pytest.raises(DataError, match="row 3: the chosen and the rejected completion are the same"):
        PreferencePair(TEXTS[0], TEXTS[0], row=3)
