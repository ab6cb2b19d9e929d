"""The training loop of everything that takes gradients: batches, a loss, steps of an optimiser.  torch.

Each method brings its own batches, loss and metric; none steps an optimiser itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from likely.errors import missing_extra

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Batch = TypeVar("Batch")
Kept = TypeVar("Kept")


def import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "torch") from None
    return torch


class TrainingDiverged(FloatingPointError, ValueError):
    """A loss or a parameter is no longer a finite number."""

    def __init__(self, what: str, optimizer: Optimizer):
        super().__init__(
            f"training ran away: {what} (learning_rate {optimizer.param_groups[0]['lr']:g}): lower the learning rate, "
            f"or scale the inputs"
        )


@dataclass
class EarlyStopping(Generic[Kept]):
    """Keep the state of the lowest metric, and stop once `patience` evaluations in a row bring no lower one.

    metric    what is to be low, evaluated every so many steps;  snapshot: a copy of what is kept
    Afterwards: best, the state of the lowest metric (None before any);  lowest;  curve, every metric in order.
    """

    metric: Callable[[], float]
    snapshot: Callable[[], Kept]
    every: int
    patience: int
    best: Kept | None = None
    lowest: float = math.inf
    curve: list[float] = field(default_factory=list)
    _since: int = 0

    def evaluate(self) -> bool:
        """Whether to go on."""
        self.curve.append(self.metric())
        if self.curve[-1] < self.lowest:
            self.best, self.lowest, self._since = self.snapshot(), self.curve[-1], 0
        else:
            self._since += 1
        return self._since < self.patience


def train(
    batches: Iterable[Batch],
    loss: Callable[[Batch], Tensor | Iterable[Tensor]],
    optimizer: Optimizer,
    *,
    schedule: LRScheduler | None = None,
    clip: float | None = None,
    stopping: EarlyStopping[Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """One step of the optimiser for each batch; returns the loss of each step, before it.

    batches   read one at a time, each after the step before it, so that they may depend on what was learned so far
    loss      of a batch: a scalar, or its summands one after the other (gradients add up, and only one summand's graph
              is in memory)
    schedule  of the learning rate, advanced after every step
    clip      largest norm of the gradient
    progress  called with (step, loss), steps from 0
    TrainingDiverged where the loss, or at the end a parameter, is not finite.
    """
    torch = import_torch()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    losses: list[float] = []
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        found, value = loss(batch), 0.0
        for part in (found,) if isinstance(found, torch.Tensor) else found:
            value += part.item()
            if not math.isfinite(value):
                raise TrainingDiverged(f"the loss is not finite in step {step}", optimizer)
            part.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        if schedule is not None:
            schedule.step(*([value] if plateau else []))
        losses.append(value)
        if progress:
            progress(step, value)
        if stopping is not None and (step + 1) % stopping.every == 0 and not stopping.evaluate():
            break
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise TrainingDiverged(f"a parameter is not finite after {len(losses)} steps", optimizer)
    return losses
