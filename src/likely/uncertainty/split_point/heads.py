"""Training of the networks behind split points: base, heads of a regressor, heads of a classifier.  torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.metrics.checks import Floats, Ints
from likely.training.loop import import_torch, train
from likely.uncertainty.split_point.network import Network, standardisation

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-6  # added to every softplus output


@dataclass(frozen=True)
class Training:
    """Adam: passes over the rows, rows per step, step size, decay of weights, seed of weights and order.

    milestones  shares of the epochs after which the step size is a tenth of what it was
    """

    epochs: int = 400
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    milestones: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")


def pinball_loss(predicted: Tensor, target: Tensor, *, tau: float) -> Tensor:
    """mean of max(τ(y−q), (τ−1)(y−q)), least at the τ-quantile.  (n,) each; 0 for n = 0.  Koenker & Bassett 1978."""
    if not target.numel():
        return predicted.sum() * 0
    off = target - predicted
    return import_torch().maximum(tau * off, (tau - 1) * off).mean()


def sides_loss(heads: Tensor, residual: Tensor, *, tau: float) -> Tensor:
    """Squared errors of MAR (all rows), U (rows above), D (rows below), and a quantile of level τ for each side.

    heads (n, 5) positive: MAR, U, D, Q↑, Q↓;  residual (n,) y − v, v fixed.  A side without rows adds nothing: the mean
    of no rows would be NaN.
    """
    mar, upper, lower, high, low = heads.unbind(1)
    loss = (mar - residual.abs()).square().mean()
    for side, mean, quantile in ((residual, upper, high), (-residual, lower, low)):
        at = side > 0
        if bool(at.any()):
            loss = loss + (mean[at] - side[at]).square().mean() + pinball_loss(quantile[at], side[at], tau=tau)
    return loss


def class_targets(probs: Floats, labels: Ints) -> tuple[Floats, Floats, Floats]:
    """(MAR, A, B) of each row and class, (N, K): |1[y=k]−p|, (1−p)·1[y=k], p·1[y≠k]."""
    hit = np.zeros_like(probs)
    hit[np.arange(len(labels)), labels] = 1
    return np.abs(hit - probs), (1 - probs) * hit, probs * (1 - hit)


def fit_network(
    x: Floats,
    target: Floats,
    sizes: Sequence[int],
    loss: Callable[[Any, Any], Any],
    training: Training,
    *,
    standardise: bool = True,
) -> Network:
    """A network (N, F) -> (N, sizes[-1]), with ReLU layers of the sizes before, that minimises the mean of a loss.

    loss         of (outputs (n, sizes[-1]), targets of the same n rows), as tensors; target (N,) or (N, ...)
    standardise  the columns of x first
    """
    torch = import_torch()
    mean, scale = standardisation(x) if standardise else (np.zeros(x.shape[1]), np.ones(x.shape[1]))
    inputs, targets = _tensor((x - mean) / scale), _tensor(target)
    layers = _layers([x.shape[1], *sizes], training.seed)
    parameters = [p.requires_grad_() for layer in layers for p in layer]
    optimizer = torch.optim.Adam(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )  # fmt: skip
    order = torch.Generator().manual_seed(training.seed)
    batches = (
        rows
        for _ in range(training.epochs)
        for rows in torch.randperm(len(x), generator=order).split(training.batch)
    )  # fmt: skip
    per_epoch = -(-len(x) // training.batch)
    slower = {max(1, int(share * training.epochs)) * per_epoch for share in training.milestones}
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, sorted(slower))
    train(batches, lambda rows: loss(_forward(layers, inputs[rows]), targets[rows]), optimizer, schedule=schedule)
    weights, biases = zip(*((_array(w), _array(b)) for w, b in layers), strict=True)
    return Network(mean, scale, tuple(weights), tuple(biases))


def fit_base(x: Floats, y: Floats, hidden: Sequence[int], training: Training) -> Network:
    """A network (N, F) -> (N, 1) by squared error of the standardised y; its last layer gives units of y."""
    torch = import_torch()
    mean, spread = float(y.mean()), float(y.std()) or 1.0
    loss = torch.nn.functional.mse_loss
    made = fit_network(x, (y - mean)[:, None] / spread, [*hidden, 1], loss, training)
    weights = (*made.weights[:-1], made.weights[-1] * spread)
    return Network(made.mean, made.scale, weights, (*made.biases[:-1], made.biases[-1] * spread + mean))


def fit_side_heads(features: Floats, residual: Floats, *, tau: float, hidden: int, training: Training) -> Network:
    """The five outputs before softplus, in units of mean |residual|: one hidden layer, trained by `sides_loss`."""
    torch = import_torch()

    def loss(outputs: Any, target: Any) -> Any:
        return sides_loss(torch.nn.functional.softplus(outputs) + SMALLEST, target, tau=tau)

    return fit_network(features, residual / np.abs(residual).mean(), [hidden, 5], loss, training)


def fit_class_heads(
    features: Floats, probs: Floats, labels: Ints, *, hidden: int, training: Training
) -> tuple[Network, ...]:
    """Networks of MAR, A and B, each (N, F) -> (N, K) with one hidden layer, by squared error."""
    loss = import_torch().nn.functional.mse_loss
    return tuple(
        fit_network(features, target, [hidden, probs.shape[1]], loss, replace(training, seed=training.seed + i))
        for i, target in enumerate(class_targets(probs, labels))
    )


def _layers(sizes: Sequence[int], seed: int) -> list[tuple[Any, Any]]:
    """Weights and biases, uniform within 1/√inputs: torch's own start."""
    torch = import_torch()
    generator, layers = torch.Generator().manual_seed(seed), []
    for inside, outside in itertools.pairwise(sizes):
        bound = inside**-0.5
        weight = torch.empty(outside, inside).uniform_(-bound, bound, generator=generator)
        layers.append((weight, torch.empty(outside).uniform_(-bound, bound, generator=generator)))
    return layers


def _forward(layers: Sequence[tuple[Any, Any]], x: Any) -> Any:
    torch = import_torch()
    for number, (weight, bias) in enumerate(layers):
        x = torch.nn.functional.linear(x, weight, bias)
        x = torch.relu(x) if number < len(layers) - 1 else x
    return x


def _tensor(array: Floats) -> Any:
    return import_torch().as_tensor(np.ascontiguousarray(array), dtype=import_torch().float32)


def _array(tensor: Any) -> Floats:
    return np.array(tensor.detach().numpy(), np.float64)
