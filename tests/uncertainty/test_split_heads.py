"""Losses of split-point heads and their networks: closed forms, gradients, sides without rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from likely.errors import DataError
from likely.uncertainty.split_point.heads import (
    Training,
    class_targets,
    fit_base,
    pinball_loss,
    sides_loss,
)
from likely.uncertainty.split_point.network import Network, standardisation

torch = pytest.importorskip("torch")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_pinball_in_closed_form_and_least_at_the_quantile():
    assert float(pinball_loss(tensor([1.0, 1.0]), tensor([3.0, 0.0]), tau=0.9)) == pytest.approx((0.9 * 2 + 0.1) / 2)
    y = torch.arange(1, 101, dtype=torch.float64)
    losses = [float(pinball_loss(torch.full_like(y, q), y, tau=0.95)) for q in range(1, 101)]
    assert int(np.argmin(losses)) + 1 in (95, 96)


def test_losses_push_towards_the_level():
    y = torch.arange(1, 101, dtype=torch.float64)
    for q, sign in ((50.5, -1), (99.5, 1)):
        predicted = torch.full_like(y, q).requires_grad_()
        pinball_loss(predicted, y, tau=0.95).backward()
        assert float(predicted.grad.sum()) * sign > 0


def test_sides_loss_by_hand():
    heads = tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [1.5, 2.5, 3.5, 4.5, 5.5]])
    residual = tensor([2.0, -1.0])
    expected = (1 + 0.25) / 2 + 0 + (3.5 - 1) ** 2 + 0.1 * 2 + 0.1 * 4.5  # MAR, U, D, and both quantiles lie above
    assert float(sides_loss(heads, residual, tau=0.9)) == pytest.approx(expected)


@pytest.mark.parametrize("residual", [[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]])
def test_a_side_without_rows_is_skipped(residual):
    heads = tensor([[0.5, 0.6, 0.7, 0.8, 0.9], [2.5, 2.6, 2.7, 2.8, 2.9]]).requires_grad_()
    loss = sides_loss(heads, tensor(residual), tau=0.95)
    loss.backward()
    assert math.isfinite(loss.item()) and bool(torch.isfinite(heads.grad).all())
    assert (heads.grad[:, 2].abs().sum() == 0) == (min(residual) >= 0)
    assert float(pinball_loss(tensor([]), tensor([]), tau=0.9)) == 0


def test_class_targets_by_hand():
    mar, above, below = class_targets(np.array([[0.2, 0.8]]), np.array([0]))
    assert mar.tolist() == [[0.8, 0.8]] and above.tolist() == [[0.8, 0.0]] and below.tolist() == [[0.0, 0.8]]


@pytest.mark.slow
def test_a_base_learns_a_line_and_speaks_in_units_of_y():
    x = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    y = 1000 + 300 * x[:, 0]
    network = fit_base(x, y, (16,), Training(epochs=150, batch=50, learning_rate=1e-2))
    assert np.abs(network(x)[:, 0] - y).mean() < 15 and network.hidden(x).shape == (200, 16)


def test_a_network_is_what_torch_computes():
    generator = torch.Generator().manual_seed(0)
    layers = [(torch.randn(5, 3, generator=generator), torch.randn(5, generator=generator)),
              (torch.randn(2, 5, generator=generator), torch.randn(2, generator=generator))]  # fmt: skip
    x = np.random.default_rng(0).normal(3, 2, (7, 3))
    x[:, 2] = 4.0  # a column that does not vary
    mean, scale = standardisation(x)
    assert scale[2] == 1
    network = Network(mean, scale, *zip(*((w.numpy(), b.numpy()) for w, b in layers), strict=True))
    inputs = torch.tensor((x - mean) / scale, dtype=torch.float32)
    expected = torch.relu(inputs @ layers[0][0].T + layers[0][1]) @ layers[1][0].T + layers[1][1]
    assert np.abs(network(x) - expected.numpy()).max() < 1e-5
    again = Network.from_arrays(network.arrays("n"), "n")
    assert np.array_equal(again(x), network(x)) and (again.inputs, again.outputs) == (3, 2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n.scale": np.zeros(3)}, "n.scale: 3 positive"),
        ({"n.0.bias": np.zeros(4)}, r"n.0.weight: has shape \(5, 3\), expected \(4, 3\)"),
        ({"n.1.weight": np.full((2, 5), np.nan)}, "n.1.weight: must be an array of 2"),
        ({"n.mean": None}, "n.mean: is missing"),
    ],
)
def test_damaged_arrays_are_refused(change, message):
    network = Network(np.zeros(3), np.ones(3), (np.ones((5, 3)), np.ones((2, 5))), (np.ones(5), np.ones(2)))
    arrays = {k: v for k, v in (network.arrays("n") | change).items() if v is not None}
    with pytest.raises(DataError, match=message):
        Network.from_arrays(arrays, "n")


def test_impossible_trainings_are_refused():
    for wrong, message in (({"epochs": 0}, "epochs"), ({"batch": 0}, "batch"), ({"learning_rate": 0}, "learning_rate")):
        with pytest.raises(ValueError, match=f"{message} must be"):
            Training(**wrong)
    with pytest.raises(FloatingPointError, match="ran away"):
        fit_base(np.ones((4, 1)), np.arange(4.0) * 1e20, (2,), Training(epochs=3, learning_rate=1e38))
