"""The training loop of everything that takes gradients: batches, a loss, steps of an optimiser.  torch.

Each method brings its own batches, loss and metric; none steps an optimiser itself.  A batch that is too large for
memory is computed in pieces: its loss gives summands, each divided by the tokens or pairs of the *whole* batch, so that
their gradients add up to the large batch's.  Several processes share a step in the same way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from likely.errors import needs
from likely.training.checkpoints import Checkpoints
from likely.training.metrics_log import MetricsLog
from likely.training.processes import Processes, local, whole

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Batch = TypeVar("Batch")
Kept = TypeVar("Kept")


def import_torch() -> Any:
    with needs("torch", "torch"):
        import torch
    return torch


class TrainingDiverged(FloatingPointError, ValueError):
    """A loss or a parameter is no longer a finite number."""

    def __init__(self, what: str, optimizer: Optimizer):
        group = optimizer.param_groups[0]
        super().__init__(
            f"training ran away: {what} (learning_rate {group.get('initial_lr', group['lr']):g}): lower the learning "
            f"rate, or scale the inputs"
        )


@dataclass(frozen=True)
class LossOutput:
    """A loss, and what is to be logged of it as name -> (sum, count): means are taken over all pieces and processes."""

    loss: Tensor
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)


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
    loss: Callable[[Batch], Tensor | LossOutput | Iterable[Tensor | LossOutput]],
    optimizer: Optimizer,
    *,
    schedule: LRScheduler | None = None,
    clip: float | None = None,
    stopping: EarlyStopping[Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
    processes: Processes | None = None,
    checkpoints: Checkpoints | None = None,
    log: MetricsLog | None = None,
) -> list[float]:
    """One step of the optimiser for each batch; returns the loss of each step, before it.

    batches   read one at a time, each after the step before it, so that they may depend on what was learned so far
    loss      of a batch: a scalar, or its summands one after the other (gradients add up, and only one summand's graph
              is in memory)
    schedule  of the learning rate, advanced after every step
    clip      largest norm of the gradient
    progress  called with (step, loss), steps from 0
    processes  this one and others, whose losses of a step are summands of one loss; each must be given the same batches
              and take its own part of them
    checkpoints  a state found there is taken up and the batches of its steps are skipped: what a batch holds must not
              depend on the steps before (samples of the policy are drawn in `loss`).  Written every so many steps
    log       a line per step: loss, learning rate, norm of the gradient, the loss's metrics
    TrainingDiverged where the loss, or at the end a parameter, is not finite.
    """
    torch = import_torch()
    processes = processes or Processes()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    losses = checkpoints.restore(optimizer, schedule) if checkpoints else []
    log = log if processes.first else None
    if log is not None:
        log.begin(len(losses))
    for step, batch in enumerate(itertools.islice(batches, len(losses), None), len(losses)):
        optimizer.zero_grad()
        sums = {"loss": 0.0}
        for part in _summands(loss(batch)):
            sums["loss"] += part.loss.item()
            for name, (total, count) in part.metrics.items():
                sums[f"{name}/sum"] = sums.get(f"{name}/sum", 0.0) + float(total)
                sums[f"{name}/count"] = sums.get(f"{name}/count", 0.0) + float(count)
            if not math.isfinite(sums["loss"]) and processes.size == 1:
                break
            part.loss.backward()
        sums = processes.sum_numbers(sums)
        value = sums["loss"]
        if not math.isfinite(value):
            raise TrainingDiverged(f"the loss is not finite in step {step}", optimizer)
        processes.sum_gradients(parameters)
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, clip)) if clip is not None else None
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if schedule is not None:
            schedule.step(*([value] if plateau else []))
        losses.append(value)
        if log is not None:
            log.write(step, {"loss": value, "learning_rate": float(rate), **_logged(norm, sums)})
        if progress:
            progress(step, value)
        if checkpoints and (step + 1) % checkpoints.every == 0:
            checkpoints.save(losses, optimizer, schedule, write=processes.first)
        if stopping is not None and (step + 1) % stopping.every == 0 and not stopping.evaluate():
            break
    if not all(bool(torch.isfinite(local(parameter)).all()) for parameter in parameters):
        raise TrainingDiverged(f"a parameter is not finite after {len(losses)} steps", optimizer)
    return losses


def _summands(found: Any) -> Iterator[LossOutput]:
    import torch

    for part in (found,) if isinstance(found, torch.Tensor | LossOutput) else found:
        yield part if isinstance(part, LossOutput) else LossOutput(part)


def _logged(norm: Tensor | None, sums: Mapping[str, float]) -> dict[str, float]:
    names = [name.removesuffix("/sum") for name in sums if name.endswith("/sum")]
    means = {name: sums[f"{name}/sum"] / (sums[f"{name}/count"] or math.nan) for name in names}
    return means if norm is None else {"gradient_norm": norm.item(), **means}
