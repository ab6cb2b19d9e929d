"""Scalarizers: values by hand, the sign of every gradient, and abstentions that leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from likely.weak_supervision.train import SCALARIZERS, linear, pareto_loss, quadratic, source_losses

LOSSES = torch.tensor([[3.0, 4.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("linear", [7, 3]), ("quadratic", [49, 9]), ("euclidean", [5, 3**0.5]), ("chebyshev", [4, 1])],
)
def test_values(name, expected):
    np.testing.assert_allclose(SCALARIZERS[name](LOSSES), expected)


@pytest.mark.parametrize("name", sorted(SCALARIZERS))
def test_every_loss_pulls_the_right_way(name):
    rng = np.random.default_rng(0)
    losses = torch.tensor(rng.exponential(size=(200, 5)), requires_grad=True)
    (gradient,) = torch.autograd.grad(SCALARIZERS[name](losses).sum(), losses)
    if name == "chebyshev":
        assert (gradient >= 0).all() and (gradient.sum(-1) == 1).all()
        assert (gradient.argmax(-1) == losses.argmax(-1)).all()
    else:
        assert (gradient > 0).all()


@pytest.mark.parametrize("name", sorted(SCALARIZERS))
def test_gradients_agree_with_differences(name):
    losses = torch.tensor([[0.3, 1.2, 0.7]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SCALARIZERS[name], (losses,))


@pytest.mark.parametrize("name", sorted(SCALARIZERS))
@pytest.mark.parametrize("normalize", [False, True])
def test_abstentions_leave_no_gradient(name, normalize):
    logits = torch.tensor([[0.2, -0.5, 0.1], [1.0, 0.0, -1.0], [0.3, 0.2, 0.1]], dtype=torch.float64)
    votes = torch.tensor([[-1, 2, -1], [-1, -1, -1], [0, -1, 1]])
    logits.requires_grad_()
    loss = pareto_loss(torch.log_softmax(logits, -1), votes, scalarizer=SCALARIZERS[name], normalize_by_votes=normalize)
    assert loss[1] == 0
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (gradient[1] == 0).all() and torch.isfinite(gradient).all() and (gradient[[0, 2]] != 0).all()
    fewer = pareto_loss(
        torch.log_softmax(logits, -1)[:1], votes[:1, 1:2], scalarizer=SCALARIZERS[name], normalize_by_votes=normalize
    )
    assert torch.equal(fewer, loss[:1])  # a column of abstentions changes nothing


def test_an_abstention_is_zero_even_where_its_class_is_impossible():
    logp = torch.tensor([[-torch.inf, 0.0]], dtype=torch.float64)
    assert source_losses(logp, torch.tensor([[-1, 1]])).tolist() == [[0, 0]]
    assert source_losses(logp, torch.tensor([[0, 1]])).tolist() == [[torch.inf, 0]]


def test_weights_and_votes():
    logp = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))
    votes = torch.tensor([[0, 1, -1, 1]])
    weights = torch.tensor([1.0, 2.0, 5.0, 1.0], dtype=torch.float64)
    ln2 = np.log(2)
    assert pareto_loss(logp, votes, scalarizer=linear, weights=weights).item() == pytest.approx(7 * ln2)
    assert pareto_loss(logp, votes, scalarizer=quadratic).item() == pytest.approx((5 * ln2) ** 2)
    normal = pareto_loss(logp, votes, scalarizer=quadratic, normalize_by_votes=True).item()
    assert normal == pytest.approx((5 * ln2 / 3) ** 2)


def test_one_more_vote_counts_with_its_square_unless_normalized():
    logp = torch.log(torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    one, four = torch.tensor([[0, -1, -1, -1]]), torch.tensor([[0, 0, 0, 0]])
    assert (pareto_loss(logp, four) / pareto_loss(logp, one)).item() == pytest.approx(16)
    same = [pareto_loss(logp, v, normalize_by_votes=True).item() for v in (one, four)]
    assert same[0] == pytest.approx(same[1])
