"""Pair losses: identities of the soft-label form, and their population minimisers on small sets."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")

import torch

from likely.alignment.links import (
    Hinge,
    Logistic,
    Square,
    pair_loss,
    robust_preference,
    smoothed_preference,
)
from likely.alignment.methods import cdpo, dpo, implied_preference, ipo, robust_dpo

MARGINS = torch.linspace(-6, 6, 25, dtype=torch.float64)
LINKS = [Logistic(0.7), Hinge(0.5), Square(0.3)]


@pytest.mark.parametrize("link", LINKS)
def test_swapping_a_pair_with_its_preference_changes_nothing(link):
    p = torch.linspace(0, 1, 25, dtype=torch.float64)
    torch.testing.assert_close(pair_loss(link, MARGINS, p), pair_loss(link, -MARGINS, 1 - p))


@pytest.mark.parametrize("link", LINKS)
def test_links_are_convex(link):
    values = link(MARGINS)
    assert (values[2:] + values[:-2] - 2 * values[1:-1] >= -1e-12).all()


@pytest.mark.parametrize("link, expected", [(Logistic(0.1), math.log(2)), (Hinge(0.1), 1), (Square(0.1), 25)])
def test_loss_without_a_margin(link, expected):
    zero = torch.zeros(3, dtype=torch.float64)
    assert pair_loss(link, zero, torch.tensor([0.0, 0.3, 1.0])).tolist() == pytest.approx([expected] * 3, abs=1e-12)


def test_the_soft_square_is_a_square_around_another_place():
    tau, p = 0.4, torch.tensor(0.8, dtype=torch.float64)
    expected = (MARGINS - (2 * p - 1) / (2 * tau)) ** 2 + (1 - (2 * p - 1) ** 2) / (4 * tau**2)
    torch.testing.assert_close(pair_loss(Square(tau), MARGINS, p.expand(25)), expected, atol=1e-12, rtol=0)


def test_the_slope_of_the_soft_logistic():
    gamma, p = 0.7, torch.linspace(0, 1, 25, dtype=torch.float64)
    margins = MARGINS.clone().requires_grad_()
    pair_loss(Logistic(gamma), margins, p).sum().backward()
    expected = -gamma * (p - torch.sigmoid(gamma * MARGINS))
    torch.testing.assert_close(margins.grad, expected, atol=1e-12, rtol=0)


def test_far_margins_stay_finite():
    far = torch.tensor([-1e4, 1e4])
    assert Logistic(1.0)(far).tolist() == pytest.approx([1e4, 0.0])


def test_robust_weights_are_unbiased_under_flips():
    """Mean over flipped labels of the robust loss = the loss of the true label; smoothing is not."""
    epsilon, true = 0.2, torch.ones(25, dtype=torch.float64)
    link = Logistic(0.7)

    def mean_over_flips(transform):
        return (1 - epsilon) * pair_loss(link, MARGINS, transform(true, epsilon)) + epsilon * pair_loss(
            link, MARGINS, transform(1 - true, epsilon)
        )

    torch.testing.assert_close(mean_over_flips(robust_preference), link(MARGINS), atol=1e-12, rtol=0)
    assert not torch.allclose(mean_over_flips(smoothed_preference), link(MARGINS))


@pytest.mark.parametrize("make", [Logistic, Hinge, Square])
@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_slopes_must_be_positive(make, value):
    with pytest.raises(ValueError, match="must be > 0"):
        make(value)


def minimise(loss, start, steps=400):
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=steps, tolerance_grad=1e-14, tolerance_change=1e-18,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = loss(torch.log_softmax(theta, 0))
        value.backward()
        return value

    optimizer.step(closure)
    return torch.log_softmax(theta, 0).exp().detach()


def population(link, preferences, reference, weights):
    """The mean pair loss over all ordered pairs drawn from weights × weights."""

    def loss(log_policy):
        ratio = log_policy - reference.log()
        margins = ratio[:, None] - ratio[None, :]
        return (weights[:, None] * weights[None, :] * pair_loss(link, margins, preferences)).sum()

    return loss


def test_dpo_on_bradley_terry_preferences_finds_the_kl_regularised_optimum():
    reward = torch.tensor([0.3, -0.5, 1.0, 0.0, 0.6], dtype=torch.float64)
    reference = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.15], dtype=torch.float64)
    preferences, beta = torch.sigmoid(reward[:, None] - reward[None, :]), 0.5
    found = minimise(population(Logistic(beta), preferences, reference, torch.full_like(reference, 0.2)),
                     torch.zeros_like(reference))  # fmt: skip
    expected = reference * (reward / beta).exp()
    torch.testing.assert_close(found, expected / expected.sum(), atol=1e-6, rtol=0)


def test_ipo_with_cyclic_preferences_finds_its_formula():
    p = 5 / 9
    preferences = torch.tensor([[0.5, p, 1 - p], [1 - p, 0.5, p], [p, 1 - p, 0.5]], dtype=torch.float64)
    reference, mu, tau = torch.full((3,), 1 / 3, dtype=torch.float64), torch.tensor([0.6, 0.3, 0.1]).double(), 0.1
    found = minimise(population(Square(tau), preferences, reference, mu), torch.zeros_like(reference))
    expected = reference * (preferences @ mu / tau).exp()
    torch.testing.assert_close(found, expected / expected.sum(), atol=1e-6, rtol=0)
    assert found.tolist() == pytest.approx([0.366, 0.248, 0.387], abs=1e-3)


@pytest.mark.parametrize("method", [dpo(), cdpo(epsilon=0.2), robust_dpo(epsilon=0.2), ipo()], ids=lambda m: m.name)
@pytest.mark.parametrize("share", [0.35, 0.5, 0.7])
def test_the_preference_that_a_margin_stands_for_has_its_lowest_loss_there(method, share):
    """Also where labels are smoothed or made unbiased: what calibration is measured of."""
    p = torch.tensor([share], dtype=torch.float64)
    margin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    best = torch.optim.LBFGS([margin], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        best.zero_grad()
        found = pair_loss(method.link, margin, method.labels(p)).sum()
        found.backward()
        return found

    best.step(loss)
    torch.testing.assert_close(implied_preference(method, margin.detach()), p, atol=1e-4, rtol=0)
