"""Train a policy on items of any kind with AdamW: batches, pieces that fit in memory, schedule, checkpoints.  torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from likely.errors import CapabilityError, check_choice
from likely.training.checkpoints import Checkpoints
from likely.training.loop import LossOutput, train
from likely.training.lora import batches
from likely.training.metrics_log import MetricsLog
from likely.training.processes import Processes, is_sharded

if TYPE_CHECKING:
    import torch

    from likely.training.policy import Policy

T = TypeVar("T")
Decay = Literal["linear", "cosine", "constant"]
DECAYS = ("linear", "cosine", "constant")
PRECISIONS = ("float32", "bfloat16")
STATE = "training_state.safetensors"


@dataclass(frozen=True)
class TrainingSettings:
    """How a policy is trained.

    steps      of AdamW (β 0.9 and 0.999), each on `batch` items; every item comes up before one does again
    piece      items whose graphs are in memory together, of short ones as many as have the tokens of `piece` of the
               longest; it changes time and memory, not the numbers
    lr         reached after `warmup` (share of the steps) and then lowered by `decay`
    clip       largest norm of the gradient
    precision  "bfloat16": products in bfloat16 (fast where the processor has them); weights stay as they are
    dropout    whether the adapters' dropout is on; off for losses that compare with a reference
    checkpoint_every  steps between two checkpoints, where there is a folder for them
    """

    steps: int
    batch: int = 8
    piece: int = 2
    lr: float = 1e-4
    warmup: float = 0.1
    decay: Decay = "linear"
    clip: float = 1.0
    weight_decay: float = 0.0
    precision: str = "float32"
    dropout: bool = False
    checkpoint_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "piece", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must lie in [0, 1], got {self.warmup}")
        check_choice("decay", self.decay, DECAYS)
        check_choice("precision", self.precision, PRECISIONS)

    def rate(self, step: int) -> float:
        """The learning rate of a step over `lr`: it rises linearly, then falls to 0 behind the last step."""
        rise = max(1, round(self.warmup * self.steps)) if self.warmup else 0
        if step < rise:
            return (step + 1) / rise
        if self.decay == "constant":
            return 1.0
        done = (step - rise) / max(1, self.steps - rise)
        return 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


PieceLoss = Callable[[Seq[T]], LossOutput]


def fit(
    policy: Policy,
    items: Seq[Any],
    loss: PieceLoss[Any],
    settings: TrainingSettings,
    *,
    weight: Callable[[Any], float] = lambda item: 1.0,
    length: Callable[[Any], int] = lambda item: 1,
    expand: Callable[[int, Seq[Any]], Seq[Any]] | None = None,
    extra_parameters: Seq[torch.nn.Parameter] = (),
    folder: Path | None = None,
    recipe: dict[str, Any] | None = None,
    processes: Processes | None = None,
    shard: bool = False,
    log: MetricsLog | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train; returns the loss of each step, before it: Σ loss / Σ weight over the step's batch.

    loss     of a piece of a batch: the *sum* over its items, and metrics as (sum, count)
    weight   of an item in the mean: 1 for a pair, its target tokens for a text; the mean is over the whole batch,
             whatever its pieces and processes are
    length   by which items of one batch are chosen alike, so that little is padded
    expand   (step, items of the batch) -> what is trained on, such as samples of the policy as it is now: the runtime
             is refreshed before.  It must depend on step and items alone, beside the policy
    extra_parameters  trained beside the policy's own, such as the head of a reward model
    folder   for checkpoints: a run of the same recipe that was stopped goes on bit for bit;  recipe: what the numbers
             depend on beside policy and settings
    shard    each of several processes holds its share of weights, gradients and moments (FSDP2), not all of them; the
             loss must call `policy.module` as it is then, a module of its own.  Not with `expand`
    """
    import torch

    if not items:
        raise ValueError("nothing to train on: no items")
    processes = processes or Processes()
    if shard and processes.size > 1:
        if expand is not None or extra_parameters:
            raise CapabilityError("a sharded model draws no samples and has no parameters beside it: leave out shard")
        processes.share(p.data for p in policy.parameters())
        with policy.sharded(processes):
            return fit(
                policy, items, loss, settings, weight=weight, length=length, folder=folder, recipe=recipe,
                processes=processes, log=log, progress=progress,
            )  # fmt: skip
    parameters = [*policy.parameters(), *extra_parameters]
    sharded = is_sharded(policy.module)
    if not sharded:
        processes.share(p.data for p in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.rate)
    half = settings.precision == "bfloat16"
    device, together = policy.device.type, settings.piece * max(map(length, items))

    def step_loss(batch: tuple[int, list[int]]) -> Iterator[LossOutput]:
        step, chosen = batch
        if settings.dropout and processes.size > 1:  # checkpoints hold the first one's random state alone
            torch.manual_seed((settings.seed + 1) * 1_000_003 + step * processes.size + processes.rank)
        mine: Seq[Any] = [items[i] for i in processes.part(chosen)]
        idle = (
            not mine
        )  # of a small batch: something is computed, so that all have the same sums, and counts as nothing
        mine = mine or [items[chosen[0]]]
        if expand is not None:
            policy.refresh()
            mine = expand(step, mine)
        total = processes.sum_numbers({"weight": 0.0 if idle else sum(map(weight, mine), 0.0)})["weight"]
        pieces = pieces_of(mine, length, settings.piece, together)
        # sharded processes put layers together for each other, so that all compute as many pieces
        rounds = processes.most(len(pieces)) if sharded else len(pieces)
        for piece in pieces:
            with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
                found = loss(piece)
            yield _uncounted(found) if idle else LossOutput(found.loss / total, found.metrics)
        for _ in range(rounds - len(pieces)):
            yield _uncounted(loss(mine[:1]))

    checkpoints = None
    if folder is not None:
        everything = {**asdict(settings), **policy.recipe(), **(recipe or {})}
        everything.pop("checkpoint_every")
        checkpoints = Checkpoints(Path(folder) / STATE, settings.checkpoint_every, everything)
    order = batches([length(i) for i in items], batch=settings.batch, steps=settings.steps, seed=settings.seed)
    policy.module.train(settings.dropout)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed + 1 + processes.rank)  # dropout
            return train(
                list(enumerate(order)), step_loss, optimizer, schedule=schedule, clip=settings.clip,
                processes=processes, checkpoints=checkpoints, log=log, progress=progress,
            )  # fmt: skip
    finally:
        policy.module.eval()
        policy.refresh()


def _uncounted(found: LossOutput) -> LossOutput:
    return LossOutput(0 * found.loss, {name: (0.0, 0.0) for name in found.metrics})


def pieces_of(items: Seq[T], length: Callable[[T], int], piece: int, tokens: int) -> list[list[T]]:
    """Items by length, cut into pieces: of `piece` items each, of short ones as many as have `tokens` when padded."""
    found: list[list[T]] = []
    for item in sorted(items, key=length):
        if found and (len(found[-1]) < piece or (len(found[-1]) + 1) * length(item) <= tokens):
            found[-1].append(item)
        else:
            found.append([item])
    return found
