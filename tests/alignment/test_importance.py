"""Self-normalised weights against sums over whole distributions."""

from __future__ import annotations

import numpy as np
import pytest

from likely.alignment.importance import (
    effective_sample_size,
    normalized_weights,
    temperature,
    temperature_for_ess,
    tilted_kl,
    weighted_mean,
)
from likely.errors import DataError

RNG = np.random.default_rng(0)


def test_over_all_outcomes_the_estimates_are_exact():
    """A uniform distribution over K outcomes, each drawn once: sample means are expectations."""
    rewards, beta = RNG.normal(size=8), 0.7
    tilted = np.exp(rewards / beta) / np.exp(rewards / beta).sum()
    assert normalized_weights(rewards / beta) == pytest.approx(tilted, abs=1e-12)
    assert weighted_mean(rewards, rewards / beta) == pytest.approx(tilted @ rewards, abs=1e-12)
    assert tilted_kl(rewards, beta) == pytest.approx(tilted @ np.log(tilted * 8), abs=1e-12)


def test_ess_counts_samples():
    assert effective_sample_size(np.zeros((2, 5))) == pytest.approx([5, 5])
    assert effective_sample_size([0.0, -np.inf, 0.0]) == pytest.approx(2)
    assert effective_sample_size([1000.0, 0.0]) == pytest.approx(1)
    weights = normalized_weights(RNG.normal(size=9) * 3)
    assert effective_sample_size(np.log(weights)) == pytest.approx(1 / (weights**2).sum())


def test_impossible_samples_weigh_nothing():
    assert weighted_mean([np.inf, 2.0], [-np.inf, 0.0]) == 2.0
    with pytest.raises(DataError, match="-inf"):
        normalized_weights([[0.0, 1.0], [-np.inf, -np.inf]])
    with pytest.raises(DataError, match="NaN"):
        normalized_weights([0.0, np.nan])
    with pytest.raises(DataError, match="empty"):
        normalized_weights([])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_temperature_has_the_ess_that_was_asked_for(share, scale):
    rewards = RNG.normal(size=64) * scale
    beta = temperature_for_ess(rewards, share)
    assert effective_sample_size(rewards / beta) / 64 == pytest.approx(share, rel=1e-6)
    assert temperature(rewards, f"ess:{share}") == beta


def test_ties_and_equal_rewards():
    assert temperature_for_ess(np.ones(5), 0.1) == 1.0
    assert temperature_for_ess([1.0] * 5 + [0.0] * 5, 0.1) == pytest.approx(1e-3)  # the ties alone are half
    assert temperature_for_ess([0.0, 1.0, -np.inf, -np.inf], 0.9) == pytest.approx(1e6)


@pytest.mark.parametrize(
    "beta", [0.0, -1.0, np.nan, np.inf, "ess", "ess:", "ess:x", "0.5", "top:0.1", "ess:1", "ess:0"]
)
def test_other_temperatures_are_refused(beta):
    with pytest.raises(ValueError, match=r"beta|share"):
        temperature([0.0, 1.0], beta)


def test_rewards_without_a_number_are_refused():
    with pytest.raises(DataError, match="finite"):
        temperature_for_ess([-np.inf], 0.1)
    with pytest.raises(ValueError, match="NaN"):
        temperature_for_ess([np.nan], 0.1)
