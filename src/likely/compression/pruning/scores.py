"""What each group of heads and each neuron means to the output, to first order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from likely.compression.architecture import DecoderMap
from likely.compression.calibration_set import CalibrationSet
from likely.compression.pruning.sizes import BlockSizes, by_unit, unit_parameters
from likely.errors import ModelError, check_choice
from likely.runtimes.torch.module import weights_digest

Objective = Literal["max_logit", "loss"]


@dataclass(frozen=True, eq=False)
class UnitScores:
    """One number >= 0 for every unit of a model: the lowest go first.

    groups (L, G); neurons (L, M); model: digest of the weights they are about
    """

    groups: NDArray[np.float64]
    neurons: NDArray[np.float64]
    sizes: BlockSizes
    model: str

    def __post_init__(self) -> None:
        for name, values in (("groups", self.groups), ("neurons", self.neurons)):
            if values.shape != (self.sizes.layers, getattr(self.sizes, name)):
                raise ValueError(f"scores of {name} have shape {values.shape}, not one for each of every layer's")
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ValueError(f"a score of {name} is negative or not a finite number")


def saliency(
    module: torch.nn.Module,
    data: CalibrationSet,
    *,
    objective: Objective = "max_logit",
    micro_batch: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> UnitScores:
    """S(unit) = Σ |w ∂f/∂w| over its weights, f of the whole calibration set.

    objective    "max_logit": the largest logit of each token of the vocabulary over a window's positions, averaged
                 over the vocabulary and over windows.  "loss": the mean −log p of the next token (Taylor pruning)
    micro_batch  windows that are computed at once; gradients add up, so that it changes memory and not the scores
    progress     called with (windows done, in all)

    |w ∂f/∂w| is what the output loses to first order when w becomes 0, in the L1 norm that goes with steps of Adam:
    the diagonal of its neural tangent kernel is ‖∂f‖₁.  NIRVANA, as its official code has it.  KL to the model itself
    is no objective: it is smallest there, so that every first-order score would be 0.
    """
    functional = _OBJECTIVES.get(objective)
    if functional is None:
        check_choice("objective", objective, _OBJECTIVES)
    assert functional is not None
    if micro_batch < 1:
        raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")
    decoder = DecoderMap.of(module)
    sizes, model = BlockSizes.of(decoder), weights_digest(module)
    wanted = unit_parameters(decoder)
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in module.parameters()]
    training = module.training
    module.eval()
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in wanted:
            parameter.requires_grad_(True)
        device = wanted[0].device
        with torch.enable_grad():
            for start in range(0, len(data), micro_batch):
                ids = torch.from_numpy(data.input_ids[start : start + micro_batch]).long().to(device)
                logits = module(input_ids=ids, use_cache=False).logits.float()
                (functional(logits, ids).sum() / len(data)).backward()
                if progress is not None:
                    progress(start + len(ids), len(data))
        if not all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in wanted):
            raise ModelError("a gradient is not finite: prune in float32")
        groups, neurons = by_unit(decoder, _first_order, sizes)
    finally:
        module.train(training)
        for parameter, asked, gradient in before:
            parameter.requires_grad_(asked)
            parameter.grad = gradient
    return UnitScores(groups.cpu().numpy(), neurons.cpu().numpy(), sizes, model)


def magnitude(module: torch.nn.Module) -> UnitScores:
    """S(unit) = Σ |w|: what no data are needed for."""
    decoder = DecoderMap.of(module)
    sizes = BlockSizes.of(decoder)
    groups, neurons = by_unit(decoder, lambda parameter: parameter.detach().abs(), sizes)
    return UnitScores(groups.cpu().numpy(), neurons.cpu().numpy(), sizes, weights_digest(module))


def _first_order(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return (parameter.detach() * parameter.grad).abs()


def _max_logit(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(B,) of logits (B, T, V)."""
    return logits.max(dim=1).values.mean(dim=1)


def _loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    each = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(dim=1)


_OBJECTIVES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "max_logit": _max_logit,
    "loss": _loss,
}
