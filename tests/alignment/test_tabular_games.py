"""Preference games with exact sums: closed forms, the iteration of the papers, gradients of autograd, cyclic games."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax

from likely.alignment.online.tabular import (
    best_response,
    bradley_terry_fit,
    descend,
    dpo_gradient,
    exploitability,
    ipo_gradient,
    kl,
    mirror_descent_fixed_point,
    mixture,
    nash,
    nash_md_gradient,
    reward_optimum,
    symmetrised,
)

CYCLE = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])  # each beats the next
SKEWED = np.log([0.6, 0.3, 0.1])
SEEDS = range(6)


def game(seed: int, k: int = 5):
    """(preferences, log reference, log policy), all random"""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(k, k))
    return expit(a - a.T), log_softmax(rng.normal(size=k)), log_softmax(rng.normal(size=k))


def damped(preferences, reference, tau, *, rate=0.1, steps=1500):
    """The papers' iteration: slow, and it converges where tau is large."""
    z = reference
    for _ in range(steps):
        z = log_softmax((1 - rate) * z + rate * (reference + preferences @ np.exp(z) / tau))
    return z


# --- the equilibrium ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_nash_is_where_the_papers_iteration_ends(seed, tau):
    p, reference, _ = game(seed)
    np.testing.assert_allclose(nash(p, reference, tau), damped(p, reference, tau), atol=1e-10)


@pytest.mark.parametrize("tau", [1e-3, 0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_nash_answers_itself_best_at_every_tau(seed, tau):
    p, reference, _ = game(seed, k=8)
    found = nash(p, reference, tau)
    assert abs(np.exp(found).sum() - 1) < 1e-12
    np.testing.assert_allclose(best_response(p, found, reference, tau), found, atol=1e-9)
    assert abs(exploitability(p, found, reference, tau)) < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_exploitability_is_what_the_best_response_gains(seed):
    p, reference, policy = game(seed)
    tau, against = 0.3, np.exp(policy)

    def payoff(other):
        return np.exp(other) @ p @ against - tau * kl(other, reference) + tau * kl(policy, reference)

    best = best_response(p, policy, reference, tau)
    assert exploitability(p, policy, reference, tau) == pytest.approx(payoff(best) - payoff(policy), abs=1e-12)
    rng = np.random.default_rng(seed)
    assert all(payoff(log_softmax(rng.normal(scale=2, size=5))) <= payoff(best) + 1e-12 for _ in range(50))
    assert payoff(policy) == pytest.approx(0.5, abs=1e-12)  # against itself


def test_known_equilibria():
    uniform = np.log(np.full(3, 1 / 3))
    np.testing.assert_allclose(nash(CYCLE, uniform, 0.05), uniform, atol=1e-12)
    for tau, share in ((1.0, 1 / (1 + np.exp(-0.2))), (0.1, 1 / (1 + np.exp(-2)))):  # two answers, p = 0.7
        two = nash([[0.5, 0.7], [0.3, 0.5]], np.log([0.5, 0.5]), tau)
        assert np.exp(two[0]) == pytest.approx(share, abs=1e-12)
    sharp = np.exp(nash(CYCLE, SKEWED, 1e-4))  # without regularisation: 1/3 each
    np.testing.assert_allclose(sharp, 1 / 3, atol=1e-3)


def test_answers_outside_the_reference_stay_out():
    found = nash(CYCLE, [np.log(0.5), np.log(0.5), -np.inf], 1.0)
    assert found[2] == -np.inf
    np.testing.assert_allclose(found[:2], nash(CYCLE[:2, :2], np.log([0.5, 0.5]), 1.0), atol=1e-12)


# --- fixed points of the methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.125, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_fixed_points_of_ipo_md_and_nash_md_are_one(seed, beta):
    p, reference, _ = game(seed)
    tau = 0.4
    found = mirror_descent_fixed_point(p, reference, tau, beta=beta)
    mixed = mixture(found, reference, beta)
    np.testing.assert_allclose(best_response(p, mixed, reference, tau), found, atol=1e-10)
    assert np.abs(ipo_gradient(p, found, reference, tau, log_sampling=mixed)).max() < 1e-10
    assert np.abs(nash_md_gradient(p, found, reference, tau, beta=beta)).max() < 1e-10
    if beta < 1:
        np.testing.assert_allclose(mixed, nash(p, reference, tau / (1 - beta)), atol=1e-10)


def test_with_two_answers_the_fixed_point_does_not_depend_on_beta():
    p, reference = [[0.5, 0.7], [0.3, 0.5]], np.log([0.2, 0.8])
    wanted = log_softmax(reference + np.array([0.2, 0.0]) / 0.3)
    for beta in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(mirror_descent_fixed_point(p, reference, 0.3, beta=beta), wanted, atol=1e-12)


# --- gradients --------------------------------------------------------------------------------------------------------


def autograd(p, policy, reference, sampling, link):
    """Gradient by the logits of E_{y,y'~ρ} p link(δ) + (1 - p) link(-δ), summed out pair by pair."""
    logits = torch.tensor(policy, requires_grad=True)
    ratio = torch.log_softmax(logits, 0) - torch.tensor(reference)
    margins = ratio[:, None] - ratio[None, :]
    rho, chance = torch.tensor(np.exp(sampling)), torch.tensor(p)
    (rho[:, None] * rho[None, :] * (chance * link(margins) + (1 - chance) * link(-margins))).sum().backward()
    return logits.grad.numpy()


@pytest.mark.parametrize("beta", [0.0, 0.125, 0.5, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_of_ipo_on_a_mixture(seed, beta):
    p, reference, policy = game(seed)
    tau, sampling = 0.7, mixture(policy, reference, beta)
    wanted = autograd(p, policy, reference, sampling, lambda d: (d - 1 / (2 * tau)) ** 2)
    np.testing.assert_allclose(ipo_gradient(p, policy, reference, tau, log_sampling=sampling), wanted, atol=1e-12)
    # without the centring term it is another direction, unless samples are the policy's own
    rho, ratio = np.exp(sampling), policy - reference
    uncentred = rho * (p @ rho - 0.5 - tau * ratio)
    uncentred = -4 / tau * (uncentred - np.exp(policy) * uncentred.sum())
    assert (np.abs(uncentred - wanted).max() < 1e-12) == (beta == 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_online_ipo_follows_self_play(seed):
    p, reference, policy = game(seed)
    np.testing.assert_allclose(
        ipo_gradient(p, policy, reference, 0.7), -4 / 0.7 * nash_md_gradient(p, policy, reference, 0.7), atol=1e-12
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_of_online_dpo(seed):
    p, reference, policy = game(seed)
    wanted = autograd(p, policy, reference, policy, lambda d: torch.nn.functional.softplus(-0.3 * d))
    np.testing.assert_allclose(dpo_gradient(p, policy, reference, 0.3), wanted, atol=1e-12)


def test_under_a_reward_online_dpo_stands_still_at_its_optimum():
    rewards = np.array([1.0, -0.5, 0.2, 0.0])
    p, reference = expit(rewards[:, None] - rewards), np.log([0.1, 0.4, 0.3, 0.2])
    assert np.abs(dpo_gradient(p, reward_optimum(rewards, reference, 0.3), reference, 0.3)).max() < 1e-12


# --- a cycle: what finds the equilibrium, and what does not ---------------------------------------------------------


def test_online_ipo_finds_the_equilibrium_of_a_cycle_and_others_do_not():
    tau = 0.5
    wanted, rng = nash(CYCLE, SKEWED, tau), np.random.default_rng(0)
    for _ in range(5):
        start = log_softmax(rng.normal(size=3))
        found = descend(lambda z: ipo_gradient(CYCLE, z, SKEWED, tau), start, learning_rate=0.4, steps=600)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    dpo = descend(lambda z: dpo_gradient(CYCLE, z, SKEWED, tau), SKEWED, learning_rate=5.0, steps=1000)
    assert np.abs(dpo_gradient(CYCLE, dpo, SKEWED, tau)).max() < 1e-6
    assert np.abs(np.exp(dpo) - np.exp(wanted)).max() > 1e-2
    collapsed = reward_optimum(bradley_terry_fit(CYCLE, SKEWED), SKEWED, 0.05)
    assert np.exp(collapsed).max() > 0.85 > np.exp(nash(CYCLE, SKEWED, 0.05)).max() + 0.4
    assert exploitability(CYCLE, collapsed, SKEWED, 0.05) > 0.3


def test_bradley_terry_recovers_its_own_rewards():
    rewards = np.array([0.7, -1.2, 0.5, 0.0])
    fitted = bradley_terry_fit(expit(rewards[:, None] - rewards), np.log([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(fitted, rewards - rewards.mean(), atol=1e-6)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_preferences_that_do_not_add_up_are_symmetrised_with_a_warning():
    with pytest.warns(UserWarning, match=r"preferences\[0, 1\] \+ preferences\[1, 0\] is 1.3"):
        found = symmetrised([[0.5, 0.9], [0.4, 0.5]])
    np.testing.assert_allclose(found, [[0.5, 0.75], [0.25, 0.5]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        symmetrised([[0.5, 0.7004], [0.3, 0.5]])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: nash([[0.5, 1.2], [0.3, 0.5]], [0, 0], 1.0), r"preferences\[0, 1\].*got 1.2"),
        (lambda: nash([[0.5, 0.5]], [0, 0], 1.0), "square"),
        (lambda: nash(CYCLE, SKEWED, 0.0), "tau must be a finite number > 0, got 0"),
        (lambda: nash(CYCLE, [0.0, np.nan, 0.0], 1.0), "NaN"),
        (lambda: nash(CYCLE, [0.0, 0.0], 1.0), r"shape \(3,\)"),
        (lambda: mixture(SKEWED, SKEWED, 1.5), r"beta must lie in \[0, 1\].*1.5"),
        (lambda: nash([[0.5, np.nan], [np.nan, 0.5]], [0, 0], 1.0), "got nan"),
    ],
)
def test_one_line_for_what_is_no_game(call, said):
    with pytest.raises(ValueError, match=said):
        call()
