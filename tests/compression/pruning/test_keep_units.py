"""How many units go and which: budgets are met, guards hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.compression.pruning.allocation import keep_units, split_sparsity
from likely.compression.pruning.scores import UnitScores
from likely.compression.pruning.sizes import BlockSizes

SMOLLM2 = BlockSizes(30, 576, 3, 3, 64, 1536, 2 * 64 * 4 * 576, 3 * 576, (1, 2, 3))


def scores_of(sizes=SMOLLM2, seed=0):
    rng = np.random.default_rng(seed)
    return UnitScores(
        rng.gamma(1, size=(sizes.layers, sizes.groups)), rng.gamma(1, size=(sizes.layers, sizes.neurons)), sizes, "m"
    )


def removed(kept, sizes=SMOLLM2):
    groups, neurons = kept
    gone = sum(sizes.groups - len(g) for g in groups) * sizes.group_weights
    return gone + sum(sizes.neurons - len(n) for n in neurons) * sizes.neuron_weights


def test_the_sizes_of_smollm2():
    assert SMOLLM2.attention == 1536 * 576 and SMOLLM2.mlp == 4608 * 576
    assert split_sparsity(0.2, 3, SMOLLM2.attention, SMOLLM2.mlp) == pytest.approx((0.08, 0.24))


@given(st.floats(0, 0.7), st.floats(0.1, 100), st.floats(1, 10), st.floats(1, 10))
def test_both_parts_together_are_the_budget(sparsity, gamma, attention, mlp):
    of_attention, of_mlp = split_sparsity(sparsity, gamma, attention, mlp)
    assert of_attention * attention + of_mlp * mlp == pytest.approx(sparsity * (attention + mlp))
    assert of_mlp <= 0.95 + 1e-12
    if of_mlp < 0.95:
        assert of_mlp == pytest.approx(gamma * of_attention, abs=1e-12)


def test_equal_and_infinite_ratios():
    assert split_sparsity(0.3, 1, 5, 7) == pytest.approx((0.3, 0.3))
    assert split_sparsity(0.3, math.inf, 5, 7) == pytest.approx((0, 0.3 * 12 / 7))
    assert split_sparsity(0.9, math.inf, 5, 7) == pytest.approx(((0.9 * 12 - 0.95 * 7) / 5, 0.95))


@pytest.mark.parametrize("sparsity", [0.0, 0.07, 0.2, 0.35, 0.5, 0.7])
@pytest.mark.parametrize("multiple", [8, 32])
@pytest.mark.parametrize("gamma", ["auto", 1.0, 6.0])
def test_over_the_whole_model_the_budget_is_missed_by_less_than_one_step(sparsity, multiple, gamma):
    kept = keep_units(scores_of(), sparsity, gamma=gamma, allocation="global", multiple_of=multiple)
    over = removed(kept) - sparsity * SMOLLM2.weights
    assert 0 <= over < multiple * SMOLLM2.neuron_weights + 1
    groups, neurons = kept
    assert min(map(len, groups)) >= 1 and min(map(len, neurons)) >= 8
    assert all(len(n) % multiple == 0 for n in neurons)


@pytest.mark.parametrize("sparsity", [0.0, 0.07, 0.2, 0.35, 0.5, 0.7])
def test_uniform_layers_are_alike_and_meet_the_budget(sparsity):
    groups, neurons = kept = keep_units(scores_of(), sparsity)
    assert len({len(g) for g in groups}) == len({len(n) for n in neurons}) == 1
    over = removed(kept) - sparsity * SMOLLM2.weights
    assert 0 <= over < SMOLLM2.layers * 32 * SMOLLM2.neuron_weights + 1
    assert len(neurons[0]) % 32 == 0


def test_the_lowest_scores_go():
    scores = scores_of()
    for allocation in ("uniform", "global"):
        groups, neurons = keep_units(scores, 0.4, allocation=allocation, multiple_of=1)
        for kept, values in ((groups, scores.groups), (neurons, scores.neurons)):
            for layer, units in enumerate(kept):
                gone = np.delete(values[layer], units)
                assert not len(gone) or gone.max() < values[layer, list(units)].min()
    # and over the whole model: what goes anywhere scores no more than what stays, save each layer's guarded best
    gone = np.concatenate([np.delete(scores.neurons[i], units) for i, units in enumerate(neurons)])
    kept = np.concatenate([np.sort(scores.neurons[i, list(units)])[:-8] for i, units in enumerate(neurons)])
    assert gone.max() <= kept.min()


def test_rounding_spares_the_best_of_what_would_go():
    sizes = BlockSizes(1, 8, 1, 1, 8, 16, 1, 1, (1,))
    scores = UnitScores(np.ones((1, 1)), np.arange(16.0)[None], sizes, "m")
    _, neurons = keep_units(scores, 0.2, gamma=math.inf, allocation="global", multiple_of=8)
    assert neurons == (tuple(range(8, 16)),)  # 4 of 17 asked for: 8 go, since 8 or 16 may stay


def test_every_layer_keeps_its_best_even_where_it_is_the_worst_of_all():
    sizes = BlockSizes(4, 576, 3, 3, 64, 1536, 2 * 64 * 4 * 576, 3 * 576, (1, 2, 3))
    scores = scores_of(sizes)
    scores.groups[2] *= 1e-9
    scores.neurons[2] *= 1e-9
    groups, neurons = keep_units(scores, 0.6, gamma=1.0, allocation="global")
    assert groups[2] == (int(scores.groups[2].argmax()),) and len(neurons[2]) == 32


def test_protected_layers_lose_nothing():
    scores = scores_of()
    groups, neurons = keep_units(scores, 0.3, allocation="global", protect_layers=(0, 29))
    for layer in (0, 29):
        assert len(groups[layer]) == 3 and len(neurons[layer]) == 1536
    assert removed((groups, neurons)) >= 0.3 * SMOLLM2.weights


def test_uniform_plans_have_a_number_of_groups_that_engines_load():
    sizes = BlockSizes(16, 2048, 8, 4, 64, 8192, 2 * 64 * 5 * 2048, 3 * 2048, (1, 2, 4, 8))
    assert [sizes.loadable_groups(n) for n in (1, 2, 3, 5, 7, 8)] == [1, 2, 4, 8, 8, 8]
    for sparsity in (0.2, 0.4, 0.6, 0.8):
        groups, _ = kept = keep_units(scores_of(sizes), sparsity, gamma=1.0)
        assert 2048 % (4 * len(groups[0])) == 0 and removed(kept, sizes) >= sparsity * sizes.weights


def test_permuting_neurons_permutes_the_plan():
    scores, order = scores_of(), np.random.default_rng(3).permutation(1536)
    moved = UnitScores(scores.groups, scores.neurons[:, order], scores.sizes, "m")
    for allocation in ("uniform", "global"):
        (groups, neurons), (again, others) = (keep_units(s, 0.3, allocation=allocation) for s in (scores, moved))
        assert groups == again
        assert [set(order[list(units)]) for units in others] == [set(units) for units in neurons]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, math.nan])
def test_a_sparsity_outside_its_range_is_an_error(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\)"):
        keep_units(scores_of(), sparsity)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gamma": 0.0}, "gamma must be > 0"),
        ({"allocation": "globe"}, 'unknown allocation "globe"; did you mean "global"'),
        ({"multiple_of": 0}, "multiple_of must be at least 1"),
        ({"protect_layers": (1,)}, "needs allocation='global'"),
        ({"protect_layers": (30,), "allocation": "global"}, r"no layer 30 \(allowed: 0 to 29\)"),
    ],
)
def test_bad_settings_are_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        keep_units(scores_of(), 0.2, **settings)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_more_than_there_is_is_an_error(allocation):
    with pytest.raises(ValueError, match=r"sparsity 0\.999 is too much: each layer keeps at least 1 of 3 groups"):
        keep_units(scores_of(), 0.999, allocation=allocation)
