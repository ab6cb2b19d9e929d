"""A small network of sequence layers, how it is trained, and figures over seeds.  Part of s4.py and seqboat.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from study import figure_with
from torch import Tensor, nn

from likely.bench.sequence import Examples
from likely.evidence import Figure
from likely.sequence import SequenceMixer
from likely.training.loop import train

SLOW = 1e-3  # the most that the numbers of a state space learn at
# log_decay, frequency, low_rank, inputs, log_step of S4; log_dt, A_log, A_imag of S4D: names of Λ, P, B and Δ
STATE_SPACE = ("log_decay", "frequency", "low_rank", "inputs", "log_step", "log_dt", "A_log", "A_imag")


class SmallNetwork(nn.Module):
    """Embedding, then x + layer(norm(x)) for each layer, then a linear map of every place or of their mean.

    inputs  numbers per step, or ids if `tokens`;  norm False: the layers alone;  dropout: of what a layer adds
    tied    the head's weight is the embedding's
    """

    def __init__(
        self, inputs: int, outputs: int, layers: Sequence[nn.Module], *, width: int = 64, norm: bool = True,
        pool: bool = False, tokens: bool = False, dropout: float = 0.0, tied: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.embed = nn.Embedding(inputs, width) if tokens else nn.Linear(inputs, width)
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in layers) if norm else None
        self.last_norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, outputs)
        if tied:
            self.head.weight = self.embed.weight
        self.pool, self.dropout = pool, nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        for i, layer in enumerate(self.layers):
            inner = x if self.norms is None else self.norms[i](x)
            y = layer(inner, mask=mask).y if isinstance(layer, SequenceMixer) else layer(inner)[0]  # or an LSTM
            x = y if self.norms is None else x + self.dropout(y)
        x = self.last_norm(x)
        if self.pool:
            real = torch.ones_like(x[..., :1]) if mask is None else mask[..., None].to(x.dtype)
            x = (x * real).sum(1) / real.sum(1)
        return self.head(x)


def loss_of(network: SmallNetwork, examples: Examples) -> Tensor:
    inputs, targets = torch.as_tensor(examples.inputs), torch.as_tensor(examples.targets)
    mask = None if examples.meta.padding is None else torch.as_tensor(examples.mask)
    found = network(inputs, mask)
    if examples.meta.targets == "values":
        real = ~targets.isnan()
        return F.mse_loss(found[real], targets[real])
    return F.cross_entropy(found.flatten(0, -2), targets.flatten(), ignore_index=-100)


def fit(
    network: SmallNetwork, data: Examples | Callable[[int], Examples], *, rate: float, steps: int = 0,
    epochs: int = 0, batch: int = 32, decay: float = 0.01, seed: int = 0,
) -> list[float]:  # fmt: skip
    """AdamW with warm-up and cosine; Λ, P, B and Δ of state spaces at most at 1e-3 and without weight decay.

    data  examples for `epochs` in batches, or what makes the batch of each of `steps`;  returns the losses
    """
    kinds = itertools.groupby(network.named_parameters(), lambda named: named[0].rpartition(".")[2] in STATE_SPACE)
    rates = {True: {"lr": min(rate, SLOW), "weight_decay": 0.0}, False: {"lr": rate, "weight_decay": decay}}
    optimiser = torch.optim.AdamW([{"params": [p for _, p in named], **rates[slow]} for slow, named in kinds])
    random = np.random.default_rng(seed)
    if isinstance(data, Examples):
        per_epoch = math.ceil(len(data.inputs) / batch)
        order = np.concatenate([random.permutation(len(data.inputs)) for _ in range(epochs)])
        cuts = np.array_split(order, per_epoch * epochs)
        batches: Callable[[int], Examples] = lambda i: data._replace(  # noqa: E731
            inputs=data.inputs[cuts[i]], targets=data.targets[cuts[i]]
        )
        steps = len(cuts)
    else:
        batches = data
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / warm, 0.5 * (1 + math.cos(math.pi * i / steps)))
    )
    network.train()
    losses = train(map(batches, range(steps)), lambda part: loss_of(network, part), optimiser,
                   schedule=schedule, clip=1.0)  # fmt: skip
    network.eval()
    return losses


@torch.no_grad()
def predictions(network: SmallNetwork, examples: Examples, *, batch: int = 64) -> Any:
    """What the head gives, as numpy."""
    mask = None if examples.meta.padding is None else torch.as_tensor(examples.mask)
    inputs = torch.as_tensor(examples.inputs)
    parts = [
        network(inputs[i : i + batch], None if mask is None else mask[i : i + batch])
        for i in range(0, len(inputs), batch)
    ]
    return torch.cat(parts).numpy()


def mean_figure(subject: str, quantity: str, values: Sequence[float], unit: str) -> Figure:
    """Mean over seeds with Student's interval."""
    mean, n = float(np.mean(values)), len(values)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    return figure_with(subject, quantity, mean, (mean - half, mean + half), unit=unit, n=n, of="seeds")
