"""KL, envelope and comparison at equal KL against exact sums over tables of at most 8 outcomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from likely.alignment import PolicySamples, compare_policies, draw_frontier, envelope, matched_kl
from likely.alignment.frontier import distinct, kl_exact, kl_k1, kl_k3, lies_above
from likely.errors import DataError

V, T = 3, 2


def two_step_model(seed, scale=1.0):
    """(first (V,), second (V, V)) next-token log-probabilities."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(V + 1, V)) * scale
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows[0], rows[1:]


def rows_along(model, sequence):
    return np.stack([model[0], model[1][sequence[0]]])


def test_all_three_estimators_are_unbiased():
    """Their expectation over all sequences of a two-step model is the KL of the sequences, to 1e-10."""
    policy, reference = two_step_model(0), two_step_model(1)
    kl, found = 0.0, np.zeros(3)
    for sequence in np.ndindex(V, V):
        ours, theirs = rows_along(policy, sequence), rows_along(reference, sequence)
        picked = np.arange(T), np.array(sequence)
        probability = np.exp(ours[picked].sum())
        ratios = ours[picked] - theirs[picked]
        kl += probability * ratios.sum()
        found += probability * np.array([kl_exact(ours, theirs), kl_k3(ratios), kl_k1(ratios)])
        assert kl_k3(ratios) >= 0
    assert found == pytest.approx(kl, abs=1e-10) and kl > 0.1


def test_exact_kl_where_a_token_is_excluded():
    ours, theirs = np.log([[0.5, 0.5, 1e-300]]), np.log([[0.25, 0.25, 0.5]])
    assert kl_exact(ours, theirs) == pytest.approx(np.log(2), abs=1e-12)
    with np.errstate(divide="ignore"):
        assert kl_exact(np.log([[0.5, 0.5, 0.0]]), theirs) == pytest.approx(np.log(2), abs=1e-12)
        assert kl_exact(theirs, np.log([[0.5, 0.5, 0.0]])) == np.inf
    with pytest.raises(DataError, match="one shape"):
        kl_exact(ours, theirs[:, :2])


def samples(name, gain, kl, *, prompts=200, n=4, seed=0):
    """Completions whose reward is `gain` above that of a prompt, which varies."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), n)
    ease = np.random.default_rng(99).normal(size=prompts)[prompt]
    exact = np.full(len(prompt), float(kl))
    k1, k3 = exact + rng.normal(size=len(prompt)), exact + rng.normal(size=len(prompt)) ** 2 - 1
    return PolicySamples(
        name, prompt, {"gold": ease + gain + rng.normal(size=len(prompt)) * 0.3},
        {"exact": exact, "k1": k1, "k3": k3},
        [[int(i), 1, 2] for i in rng.integers(0, 4, len(prompt))],
    )  # fmt: skip


def test_a_point_states_what_was_measured():
    reference = samples("ref", 0.0, 0.0)
    point = compare_policies([samples("a", 0.5, 2.0, seed=1)], reference)[0]
    assert point.rewards["gold"].value == pytest.approx(0.5, abs=0.3)
    assert point.rewards["gold"].se == pytest.approx(1 / 200**0.5, rel=0.15)
    assert point.best_kl.value == 2.0 and point.kls_agree
    assert 0.8 < point.win_rate.value < 0.95 and point.mean_length == 3
    assert point.distinct_2 == pytest.approx(5 / 1600) and (point.prompts, point.completions) == (200, 800)
    same = compare_policies([reference], reference)[0]
    assert same.win_rate.value == pytest.approx(0.5)


def test_estimators_that_disagree_are_told():
    honest = samples("a", 0.5, 2.0)
    other = replace(honest, kl={**honest.kl, "k1": honest.kl["k1"] + 1})
    assert [p.kls_agree for p in compare_policies([honest, other], honest)] == [True, False]


def test_the_envelope_is_the_tilted_reference():
    """Uniform over K = 8 outcomes, all of them sampled once: reward and KL to 1e-10."""
    rewards = np.random.default_rng(3).normal(size=(2, 8))
    found = envelope(rewards, [2.0, 0.8], least_ess=1)
    assert [point.beta for point in found.points] == [np.inf, 2.0, 0.8]
    for point in found.points[1:]:
        tilted = np.exp(rewards / point.beta)
        tilted /= tilted.sum(axis=1, keepdims=True)
        assert point.reward.value == pytest.approx((tilted * rewards).sum(axis=1).mean(), abs=1e-10)
        assert point.kl.value == pytest.approx((tilted * np.log(tilted * 8)).sum(axis=1).mean(), abs=1e-10)
    assert found.points[0].reward.value == pytest.approx(rewards.mean()) and found.points[0].kl.value == 0


def test_no_policy_of_a_table_lies_above_the_envelope():
    """One prompt's uniform reference over 8 outcomes against 2,000 random policies."""
    rng = np.random.default_rng(4)
    rewards = rng.normal(size=8)
    bound = envelope(np.stack([rewards, rewards]), np.geomspace(0.05, 50, 60).tolist(), least_ess=1)
    gaps = []
    for policy in rng.dirichlet(np.ones(8) * 0.5, 2000):
        kl = float((policy * np.log(np.maximum(policy, 1e-300) * 8)).sum())
        most = bound.reward_at(kl)
        if not np.isnan(most):
            gaps.append(policy @ rewards - most)
    assert len(gaps) > 1000 and max(gaps) < 1e-2  # linear between 60 points
    tilted = np.exp(rewards / 0.5) / np.exp(rewards / 0.5).sum()
    kl = float((tilted * np.log(tilted * 8)).sum())
    assert tilted @ rewards == pytest.approx(bound.reward_at(kl), abs=1e-2)


def test_too_few_samples_are_refused():
    rewards = np.random.default_rng(5).normal(size=(50, 16))
    found = envelope(rewards, [1.0, 0.01])
    assert found.refused == (0.01,) and [point.beta for point in found.points] == [np.inf, 1.0]
    assert np.isnan(found.reward_at(50.0))
    for bad in (rewards[:, :1], rewards[0], np.full((2, 2), np.nan)):
        with pytest.raises(DataError, match="rewards must be finite"):
            envelope(bad, [1.0])
    with pytest.raises(ValueError, match="beta"):
        envelope(rewards, [0.0])


def test_what_lies_above_the_envelope_is_told():
    reference = samples("ref", 0.0, 0.0, n=16)
    bound = envelope(reference.rewards["gold"].reshape(200, 16), [1.0, 0.3, 0.2])
    most = bound.points[-1].kl.value
    honest, impossible = samples("a", 0.05, most / 2, seed=1), samples("b", 2.0, most / 2, seed=1)
    points = compare_policies([honest, impossible], reference)
    assert [lies_above(point, bound, "gold") for point in points] == [False, True]


def test_methods_are_compared_at_equal_kl():
    """Rewards 1.0·KL and 0.8·KL: the gap is 0.2 times the mean KL of the common range."""
    reference = samples("ref", 0.0, 0.0)
    good = [samples(f"good {kl}", kl, kl, seed=1) for kl in (0.5, 1.0, 2.0)]
    weak = [samples(f"weak {kl}", 0.8 * kl, kl, seed=2) for kl in (0.25, 1.5)]
    found = matched_kl(good, weak, reference, "gold")
    assert (found.from_kl, found.to_kl) == (0.5, 1.5)
    assert found.low < 0.2 * 1.0 < found.high and found.dominates
    assert found.high - found.low < 0.15  # the ease of a prompt is in both
    back = matched_kl(weak, good, reference, "gold")
    assert back.difference == pytest.approx(-found.difference) and not back.dominates
    same = matched_kl(good, good, reference, "gold")
    assert same.difference == 0 == same.low == same.high and not same.dominates


def test_more_reward_for_more_kl_is_no_gain():
    reference = samples("ref", 0.0, 0.0)
    small, large = [samples("small", 0.5, 0.5, seed=1)], [samples("large", 2.0, 2.0, seed=2)]
    found = matched_kl(large, small, reference, "gold")
    assert not found.dominates and abs(found.difference) < 0.1


def test_what_cannot_be_compared():
    reference = samples("ref", 0.0, 0.0)
    with pytest.raises(DataError, match="each sweep"):
        matched_kl([], [reference], reference, "gold")
    with pytest.raises(DataError, match="200 prompts"):
        matched_kl([samples("a", 1, 1, prompts=3)], [reference], reference, "gold")
    with pytest.raises(DataError, match="no KL"):
        matched_kl([reference], [reference], reference, "gold")
    with pytest.raises(DataError, match="3 prompts"):
        compare_policies([samples("a", 1, 1, prompts=3)], reference)
    with pytest.raises(DataError, match="rewards"):
        compare_policies([replace(reference, rewards={"proxy": reference.rewards["gold"]})], reference)
    with pytest.raises(DataError, match="NaN"):
        replace(reference, rewards={"gold": np.full(800, np.nan)})
    with pytest.raises(DataError, match="must have 800 values"):
        replace(reference, kl={"exact": np.zeros(3)})
    with pytest.raises(DataError, match="each have a completion"):
        replace(reference, prompt=reference.prompt + 1)
    with pytest.raises(DataError, match="as many as prompts"):
        replace(reference, tokens=[])


def test_variety():
    assert distinct([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct([[1], []], 2) == 0.0


def test_the_picture():
    pytest.importorskip("matplotlib")
    reference = samples("ref", 0.0, 0.0, n=16)
    points = compare_policies([samples(f"dpo {kl}", kl, kl) for kl in (1, 2)] + [reference], reference)
    bound = envelope(reference.rewards["gold"].reshape(200, 16), [1.0, 0.3])
    axes = draw_frontier(points, "gold", bound=bound, lines=["dpo"]).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["envelope (no policy lies above)", "dpo", "ref"]
