"""The cost model of sequence parallelism: its formula, what fitting finds again, what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from likely.errors import DataError
from likely.sequence.parallel.planner.cost import CostModel, GroupTiming, exchanged_bytes, published_cost

COST = published_cost("gpt-7b")
KNOWN = {
    "layers": 32, "hidden": 4096, "bandwidth": COST.bandwidth, "token_mb": 4.4804, "state_mb": 1e5, "memory_mb": 36864.0
}  # fmt: skip


def profile(seed, n, noise=0.0):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        lengths = tuple(rng.integers(100, 60_000, rng.integers(1, 6)).tolist())
        degree = int(rng.choice(COST.degrees))
        rows.append(GroupTiming(lengths, degree, COST.time(lengths, degree) * (1 + noise * rng.standard_normal())))
    return rows


def test_time_is_the_written_formula():
    lengths, degree = [1024, 512], 16
    compute = sum(5.128e-6 * s * s + 0.18396 * s for s in lengths) / degree
    exchanged = 4 * 2 * 32 * 4096 * 2 * sum(lengths) / degree / (10.33e9) * 1e3
    assert COST.time(lengths, degree) == pytest.approx(629.36 + compute + exchanged, rel=1e-12)
    assert COST.time([], 4) == 0
    assert COST.sequence_ms([1000], 1) == pytest.approx(5.128e-6 * 1e6 + 183.96)  # nothing is exchanged


def test_capacity_leaves_room_for_the_states():
    each = (36 * 1024 - 16 * 7e9 / 2**20 / 64) / 4.4804
    assert COST.capacity(1, 64) == int(each)
    assert COST.capacity(8, 64) == 8 * int(each)
    with pytest.raises(DataError, match="no token fits"):
        COST.capacity(1, 2)


def test_fitting_finds_the_constants_again():
    found = CostModel.fit(profile(0, 12), **KNOWN)
    assert (found.quadratic_ms, found.linear_ms, found.fixed_ms) == pytest.approx((5.128e-6, 0.18396, 629.36))
    assert found.token_bytes == exchanged_bytes(32, 4096)


def test_a_fit_to_noisy_timings_predicts_new_ones_within_a_tenth():
    found = CostModel.fit(profile(1, 40, noise=0.03), **KNOWN)
    assert found.relative_errors(profile(2, 40)).max() < 0.1


def test_timings_that_cannot_tell_the_terms_apart_are_refused():
    with pytest.raises(DataError, match="cannot tell"):
        CostModel.fit([GroupTiming((1000,), 8, 700.0)] * 5, **KNOWN)


def test_states_in_place_of_activations_cost_the_same_for_every_length():
    linear = COST.linear_attention(layers=32, hidden=4096, head_size=128)
    extra = {s: linear.time([s], 8) - linear.fixed_ms - 0.18396 * s / 8 for s in (1_000, 50_000)}
    assert extra[1_000] == pytest.approx(extra[50_000]) and extra[1_000] > 0
    assert linear.time([1000], 1) == pytest.approx(linear.fixed_ms + 183.96)


def test_an_unknown_degree_or_model_is_an_error():
    with pytest.raises(ValueError, match="degree must be one of"):
        COST.time([10], 3)
    with pytest.raises(ValueError, match='did you mean "gpt-7b"'):
        published_cost("gpt-7")
