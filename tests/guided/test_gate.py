"""The gate on the collision probability: identities, known values, what counts as unsure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.guided.contrast import ALWAYS_OPEN, CollisionGate, root_collision, spread


def law(weights) -> np.ndarray:
    p = np.asarray(weights, np.float64)
    return p / p.sum()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=400).filter(lambda w: sum(w) > 1e-3))
def test_spread_squared_times_v_is_collision_less_one_over_v(weights):
    p = law(weights)
    assert abs(spread(p) ** 2 * len(p) - (root_collision(p) ** 2 - 1 / len(p))) < 1e-12


@pytest.mark.parametrize("size", [2, 50, 49_152])
def test_known_values(size):
    certain, uniform = np.eye(1, size)[0], np.full(size, 1 / size)
    assert spread(certain) == pytest.approx(np.sqrt((1 / size) * (1 - 1 / size)), rel=1e-12)
    assert spread(uniform) < 1e-15
    assert root_collision(certain) == 1
    assert root_collision(uniform) == pytest.approx(1 / np.sqrt(size), rel=1e-12)


def test_root_collision_is_the_renyi_entropy():
    p = law([5, 3, 1, 1])
    renyi = -np.log((p**2).sum())
    assert root_collision(p) == pytest.approx(np.exp(-renyi / 2), rel=1e-12)


def test_the_gate_opens_for_flat_laws_only():
    gate = CollisionGate(0.72)
    assert gate.opens(0.72) and gate.opens(0.1)
    assert not gate.opens(0.7201) and not gate.opens(1.0)
    assert ALWAYS_OPEN.opens(1.0) and ALWAYS_OPEN.always and not gate.always


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=60).filter(lambda w: sum(w) > 1e-3), st.floats(0.05, 0.95))
def test_the_papers_threshold_converted_decides_the_same(weights, share):
    p = law(weights)
    mu = share * spread(np.eye(1, len(p))[0])
    decided = spread(p)
    if abs(decided - mu) > 1e-9:
        assert CollisionGate.from_spread(mu, len(p)).opens(root_collision(p)) == (decided <= mu)


def test_the_papers_threshold_at_32_thousand_tokens_is_the_default():
    assert CollisionGate.from_spread(4e-3, 32_000).tau == pytest.approx(CollisionGate().tau, abs=0.005)


def test_a_threshold_that_means_nothing_for_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="same at every step"):
        CollisionGate.from_spread(4e-3, 262_144)


@pytest.mark.parametrize("tau", [0.0, 1.0001, -1.0, 2.0, float("nan")])
def test_tau_outside_its_range_is_refused(tau):
    with pytest.raises(ValueError, match="tau must lie"):
        CollisionGate(tau)
