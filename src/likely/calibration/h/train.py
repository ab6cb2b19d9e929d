"""Training the maps of h-calibration: Adam on the loss, the best step by a metric kept.  torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.calibration.h.loss import fitting_window, hcal_loss
from likely.calibration.h.maps import FLATTEST, LOWEST, HMap, cells, clipped, dense_nodes, integral
from likely.metrics.checks import Floats, Ints
from likely.training.loop import EarlyStopping, import_torch, train

TEMPERATURES, SEGMENTS, HIDDEN, NODES = 16, 10, 10, 65
LEARNING_RATE = 0.005
PATIENCE, SLOWER_AFTER = 160, 20  # steps without a better metric; without a lower loss
CHECKED_EVERY = 5
PAIRS = 100_000  # (row, class) pairs in one step; of more, rows are sampled
LEFT_OUT = 2  # classes left out in turn in each step: over the steps all classes, at a cost that does not grow with K

Metric = Callable[[Floats, Ints], float]


@dataclass(frozen=True)
class Setting:
    """window, eps, weighting of `hcal_loss`;  loco: leave classes out in turn;  metric of (probs, labels): lower is
    better;  max_steps and seed of training."""

    metric: Metric
    window: int = 200
    eps: float = 0.0
    weighting: Any = "cluster"
    loco: bool = True
    max_steps: int = 2000
    seed: int = 0


@dataclass
class Trainable:
    """A map being trained: its parameters, probabilities of chosen rows as a tensor, and its state as a fitted map."""

    parameters: list[Any]
    forward: Callable[[Any], Any]
    export: Callable[[], HMap]


def temperature_map(beta: float) -> HMap:
    return HMap("temperature", {"inverse_temperatures": np.array([beta])})


def train_map(kind: str, logp: Floats, labels: Ints, beta: float, setting: Setting) -> HMap:
    """The map of this kind with the lowest metric on these rows among the steps of training.

    logp (N, K) log-probabilities, labels (N,);  beta: inverse temperature to start from
    Full batches up to 100,000 pairs; the learning rate is halved after 20 steps without a lower loss, and training
    ends after 160 without a better metric, or after max_steps.
    """
    torch = import_torch()
    n, k = logp.shape
    torch_seed = torch.Generator().manual_seed(setting.seed)
    rng = np.random.default_rng(setting.seed)
    made = TRAINABLE[kind](logp, beta, torch_seed)
    optimizer = torch.optim.Adam(made.parameters, lr=LEARNING_RATE)
    slower = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=SLOWER_AFTER)
    targets = torch.as_tensor(labels)
    window = fitting_window(setting.window, min(n * k, PAIRS))
    size = max(1, PAIRS // k)
    classes = np.flatnonzero(np.bincount(labels, minlength=k))
    classes = classes[np.bincount(labels, minlength=k)[classes] < n]
    turn = _turns(classes, rng)

    def batches() -> Iterator[tuple[Ints, list[int]]]:
        """Rows, and the classes that are left out in turn."""
        for _ in range(setting.max_steps):
            rows = np.arange(n) if n <= size else rng.choice(n, size, replace=False)
            yield rows, _present(turn, min(LEFT_OUT, len(classes)), labels[rows]) if setting.loco else []

    def loss(batch: tuple[Ints, list[int]]) -> Any:
        rows, left_out = batch
        return hcal_loss(
            made.forward(rows), targets[rows], window=window, eps=setting.eps, weighting=setting.weighting,
            loco=left_out or False,
        )  # fmt: skip

    def metric() -> float:
        return setting.metric(made.export().predict(logp), labels)

    stopping = EarlyStopping(metric, made.export, CHECKED_EVERY, PATIENCE // CHECKED_EVERY)
    stopping.evaluate()  # before training it is temperature scaling
    train(batches(), loss, optimizer, schedule=slower, stopping=stopping)
    assert stopping.best is not None
    return stopping.best


def _turns(classes: Ints, rng: np.random.Generator) -> Any:
    """All classes in a random order, again and again."""
    while len(classes):
        yield from rng.permutation(classes).tolist()


def _present(turn: Any, count: int, labels: Ints) -> list[int]:
    """The next classes whose rows can be left out: of sampled rows, a rare class may have none."""
    asked = [next(turn) for _ in range(count)]
    return [one for one in asked if 0 < (labels == one).sum() < len(labels)]


def _linear(logp: Floats, beta: float, generator: Any) -> Trainable:
    """Σ_r w_r softmax(|β_r| z): temperatures spread around the best one, weights normalised absolute values."""
    torch = import_torch()
    z, impossible = torch.as_tensor(clipped(logp)), torch.as_tensor(np.isneginf(logp))
    betas = torch.as_tensor(beta * np.geomspace(0.5, 2, TEMPERATURES)).requires_grad_()
    weights = torch.ones(TEMPERATURES, dtype=torch.float64, requires_grad=True)

    def forward(rows: Any) -> Any:
        scaled = betas.abs()[:, None, None] * z[rows]  # masked after the product: 0 · −inf would spoil gradients
        parts = torch.softmax(scaled.masked_fill(impossible[rows], -np.inf), dim=2)
        return torch.tensordot(weights.abs() / weights.abs().sum(), parts, 1)

    def export() -> HMap:
        w = weights.detach().abs()
        return HMap("linear", {"inverse_temperatures": _array(betas.abs()), "weights": _array(w / w.sum())})

    return Trainable([betas, weights], forward, export)


def _piecewise(logp: Floats, beta: float, generator: Any) -> Trainable:
    """Ten slopes over segments of equal length, all equal to β at first: then it is temperature scaling."""
    torch = import_torch()
    nodes = np.linspace(LOWEST, 0, SEGMENTS + 1)
    slopes = torch.full((SEGMENTS,), beta, dtype=torch.float64, requires_grad=True)

    def density() -> Any:
        return slopes.abs().clamp_min(FLATTEST)

    forward = _monotone(logp, nodes, lambda: (density(), density()))
    return Trainable([slopes], forward, lambda: HMap("piecewise", {"nodes": nodes, "density": _array(density())}))


def _nonlinear(logp: Floats, beta: float, generator: Any) -> Trainable:
    """An unconstrained monotone network: the integral of a positive network of two hidden layers.

    The density is evaluated at 65 nodes and integrated as straight between them, so that its cost does not grow with
    N K.  At first it is β everywhere: temperature scaling.
    """
    torch = import_torch()
    nodes = dense_nodes(NODES)
    place = torch.as_tensor(2 * np.log1p(-nodes) / np.log1p(-nodes[0]) - 1)[:, None]
    sizes = [1, HIDDEN, HIDDEN, 1]
    layers = []
    for inside, outside in itertools.pairwise(sizes):
        weight = torch.randn(outside, inside, generator=generator, dtype=torch.float64) / np.sqrt(inside)
        layers.append((weight, torch.zeros(outside, dtype=torch.float64)))
    layers[-1] = (0.01 * layers[-1][0], layers[-1][1] + float(np.log(np.expm1(max(beta, 1e-3)))))
    parameters = [one.requires_grad_() for layer in layers for one in layer]

    def density() -> Any:
        h = place
        for number in range(len(sizes) - 1):
            h = h @ parameters[2 * number].T + parameters[2 * number + 1]
            h = torch.tanh(h) if number < len(sizes) - 2 else torch.nn.functional.softplus(h)
        return h[:, 0].clamp_min(FLATTEST)

    def ends() -> tuple[Any, Any]:
        g = density()
        return g[:-1], g[1:]

    forward = _monotone(logp, nodes, ends)
    return Trainable(parameters, forward, lambda: HMap("nonlinear", {"nodes": nodes, "density": _array(density())}))


def _monotone(logp: Floats, nodes: Floats, ends: Callable[[], tuple[Any, Any]]) -> Callable[[Any], Any]:
    """softmax(f(z)) of chosen rows, f the integral of the density whose values at cells' ends `ends` gives."""
    torch = import_torch()
    at, above = (torch.as_tensor(one) for one in cells(nodes, clipped(logp)))
    where, impossible = torch.as_tensor(nodes), torch.as_tensor(np.isneginf(logp))

    def forward(rows: Any) -> Any:
        f = integral(where, *ends(), at[rows], above[rows])
        return torch.softmax(f.masked_fill(impossible[rows], -np.inf), dim=1)

    return forward


def _array(tensor: Any) -> Floats:
    return np.array(tensor.detach().numpy(), np.float64)


TRAINABLE: dict[str, Callable[[Floats, float, Any], Trainable]] = {
    "linear": _linear, "piecewise": _piecewise, "nonlinear": _nonlinear,
}  # fmt: skip
