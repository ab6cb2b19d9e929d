"""The harmonizer's small network: the loss that fuses the votes of several sources, and its training on them.  torch.

A Pareto scalarizer makes one number of the losses (..., M) of M sources, ℓ_j >= 0 and 0 where a source abstains.  It
grows with every loss (Chebyshev: never falls), so at a minimum no source can be fitted better without another being
fitted worse.  Zhao et al. 2023, arXiv:2306.16564.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.metrics.checks import Floats, Ints, softmax
from likely.training.loop import EarlyStopping, TrainingDiverged, import_torch, train

if TYPE_CHECKING:
    from torch import Tensor

EPOCHS, STEPS = 20, 500
Layers = list[tuple[Floats, Floats]]  # weights (out, in), biases (out,); ReLU between two
Scalarizer = Callable[["Tensor"], "Tensor"]


def linear(losses: Tensor) -> Tensor:
    """Σ_j ℓ_j: the fit is to the shares of the votes."""
    return losses.sum(-1)


def quadratic(losses: Tensor) -> Tensor:
    """(Σ_j ℓ_j)²: texts on which many sources disagree with the fit count most.  The paper's default."""
    return losses.sum(-1) ** 2


def euclidean(losses: Tensor) -> Tensor:
    """sqrt(Σ_j ℓ_j²), with gradient 0 where all losses are 0."""
    return losses.norm(dim=-1)


def chebyshev(losses: Tensor) -> Tensor:
    """max_j ℓ_j: only the worst fitted source counts (of equal ones, all in equal parts)."""
    return losses.amax(-1)


SCALARIZERS: dict[str, Scalarizer] = {
    "linear": linear,
    "quadratic": quadratic,
    "euclidean": euclidean,
    "chebyshev": chebyshev,
}


def source_losses(logp: Tensor, votes: Tensor) -> Tensor:
    """ℓ_j = −log h(x)[Λ_j(x)], (B, M); exactly 0, without a gradient, where source j abstains.

    logp (B, K) log-probabilities, votes (B, M) classes or -1
    """
    voted = votes >= 0
    picked = -logp.gather(-1, votes.clamp(min=0))
    return picked.where(voted, picked.new_zeros(()))  # not a product: 0 · inf is NaN


def pareto_loss(
    logp: Tensor,
    votes: Tensor,
    *,
    scalarizer: Scalarizer = quadratic,
    weights: Tensor | None = None,
    normalize_by_votes: bool = False,
) -> Tensor:
    """G(w_1 ℓ_1, ..., w_M ℓ_M) of each text, (B,); 0 where nobody votes.

    weights             (M,) > 0 per source, None: 1 each
    normalize_by_votes  divide the losses by the number of sources that vote on the text.  Under the quadratic
                        scalarizer a text with many votes otherwise counts with their number squared
    """
    losses = source_losses(logp, votes)
    if weights is not None:
        losses = losses * weights
    if normalize_by_votes:
        losses = losses / (votes >= 0).sum(-1, keepdim=True).clamp(min=1)
    return scalarizer(losses)


@dataclass(kw_only=True, eq=False)
class Recipe:
    """How a network is trained: see `Harmonizer`."""

    scalarizer: str = "quadratic"
    hidden: int = 64
    normalize_by_votes: bool = False
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch: int = 64
    epochs: int | None = None
    validation: float = 0.1
    patience: int = 3
    seed: int = 0


def forward(layers: Layers, x: Any) -> Floats:
    """(N, K) probabilities of features (N, D), dense or sparse."""
    for i, (weight, bias) in enumerate(layers):
        x = np.asarray(x @ weight.T) + bias
        if i < len(layers) - 1:
            x = np.maximum(x, 0)
    return softmax(x)


def train_network(
    x: Any, votes: Ints, classes: int, weights: Floats | None, recipe: Recipe
) -> tuple[Layers, list[float]]:
    """(the layers with the lowest scalarised loss on rows kept apart, that loss after each epoch).

    x (N, D) dense or sparse, votes (N, M).  With validation 0 the last epoch's layers and the training loss.
    ValueError if a loss is not finite: the learning rate is too high.
    """
    torch = import_torch()
    rng = np.random.default_rng(recipe.seed)
    order = rng.permutation(len(votes))
    apart = round(recipe.validation * len(votes))
    held, used = np.sort(order[:apart]), order[apart:]
    layers = _initial(x.shape[1], recipe.hidden, classes, rng)
    parameters = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for pair in layers for array in pair]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    weight = None if weights is None else torch.as_tensor(weights)

    def loss(rows: Ints) -> Any:
        out = torch.as_tensor(_dense(x, rows))
        for i in range(0, len(parameters), 2):
            out = out @ parameters[i].T + parameters[i + 1]
            if i < len(parameters) - 2:
                out = torch.relu(out)
        logp = torch.log_softmax(out, dim=-1)
        return pareto_loss(
            logp, torch.as_tensor(votes[rows]), scalarizer=SCALARIZERS[recipe.scalarizer], weights=weight,
            normalize_by_votes=recipe.normalize_by_votes,
        )  # fmt: skip

    def mean_loss(rows: Ints) -> float:
        with torch.no_grad():
            parts = [loss(rows[at : at + recipe.batch]).numpy() for at in range(0, len(rows), recipe.batch)]
        mean = float(np.concatenate(parts).mean())
        if not np.isfinite(mean):
            raise TrainingDiverged("the harmonizer's loss is not finite after an epoch", optimizer)
        return mean

    per_epoch = -(-len(used) // recipe.batch)
    epochs = recipe.epochs or max(EPOCHS, -(-STEPS // per_epoch))
    batches = (rows for _ in range(epochs) for rows in _batches(used, recipe.batch, rng))
    stopping = EarlyStopping(lambda: mean_loss(held), lambda: _copied(parameters), per_epoch, recipe.patience)
    losses = train(batches, lambda rows: loss(rows).mean(), optimizer, stopping=stopping if apart else None)
    if stopping.best is not None:
        return stopping.best, stopping.curve
    mean_loss(used)  # the curve knows nothing of the last step
    return _copied(parameters), np.reshape(losses, (-1, per_epoch)).mean(axis=1).tolist()


def _initial(features: int, hidden: int, classes: int, rng: np.random.Generator) -> Layers:
    """He et al. 2015 for the hidden layer; the last one begins at 0, so that h begins uniform."""
    if not hidden:
        return [(np.zeros((classes, features)), np.zeros(classes))]
    first = rng.normal(size=(hidden, features)) * np.sqrt(2 / features)
    second = rng.normal(size=(classes, hidden)) * np.sqrt(1 / hidden) * 0.1
    return [(first, np.zeros(hidden)), (second, np.zeros(classes))]


def _dense(x: Any, rows: Ints) -> Floats:
    part = x[rows]
    return np.asarray(part.toarray() if hasattr(part, "toarray") else part, np.float64)


def _batches(rows: Ints, size: int, rng: np.random.Generator) -> Iterator[Ints]:
    mixed = rng.permutation(rows)
    return (mixed[start : start + size] for start in range(0, len(mixed), size))


def _copied(parameters: list[Any]) -> Layers:
    arrays = [p.detach().numpy().copy() for p in parameters]
    return list(zip(arrays[::2], arrays[1::2], strict=True))
