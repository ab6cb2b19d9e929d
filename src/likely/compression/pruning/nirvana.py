"""NIRVANA: structured pruning by first-order saliency, and the choice of the text that it is computed on.

Scores say which units matter; budgets of attention and MLP say how many go; the plan says which stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
import torch

from likely.compression.calibration_set import CalibrationSet
from likely.compression.evaluate import RememberedRows
from likely.compression.pruning.allocation import AllocationOptions, keep_units
from likely.compression.pruning.plan import PruningPlan
from likely.compression.pruning.recovery import Target, recover
from likely.compression.pruning.scores import Objective, UnitScores, saliency
from likely.runtimes.protocol import Runtime
from likely.runtimes.torch.runtime import TorchRuntime
from likely.tokenizers.protocol import Tokenizer

Progress = Callable[[int, int], None]  # done, in all


class PruningOptions(AllocationOptions, total=False):
    """How a model is pruned, beside its sparsity; gamma, allocation, multiple_of, protect_layers as in `keep_units`.

    objective           of the saliency: "max_logit" (default) or "loss", see `saliency`
    select_calibration  so many calibration sets are tried, and the plan of the lowest KL is taken; 1: the first is
    recovery            "distill" or "loss": train low-rank factors after pruning and add them, see `recover`; none
                        by default
    recovery_steps      of that training, 200;  recovery_windows  of its text, 256
    """

    objective: Objective
    select_calibration: int
    recovery: Target | None
    recovery_steps: int
    recovery_windows: int


@dataclass
class _OnTorch:
    runtime: Runtime
    tokenizer: Tokenizer


@dataclass(frozen=True, eq=False)
class CalibrationTrials:
    """What trying several calibration sets found: each candidate's plan, and its mean KL per token on the holdout."""

    plans: list[PruningPlan]
    kl: list[float]

    @property
    def best(self) -> int:
        """Number of the candidate with the lowest KL."""
        return int(np.argmin(self.kl))


def make_plan(
    module: torch.nn.Module, scores: UnitScores, sparsity: float, **options: Unpack[AllocationOptions]
) -> PruningPlan:
    """The plan of any scores of this model, settings as for `keep_units`."""
    groups, neurons = keep_units(scores, sparsity, **options)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return PruningPlan(scores.model, parameters, scores.sizes, groups, neurons)


def select_calibration(
    module: torch.nn.Module,
    tokenizer: Tokenizer,
    candidates: Sequence[CalibrationSet],
    holdout: CalibrationSet,
    sparsity: float,
    *,
    objective: Objective = "max_logit",
    progress: Progress | None = None,
    **options: Unpack[AllocationOptions],
) -> CalibrationTrials:
    """A plan from each candidate set, judged by KL(original ‖ pruned) on a holdout that shares no window with them.

    One backward pass over each candidate and one forward pass over the holdout; one pruned copy exists at a time.
    """
    if len(candidates) < 2:
        raise ValueError(f"a selection needs at least 2 calibration sets, got {len(candidates)}")
    if any(_share_a_window(candidate, holdout) for candidate in candidates):
        raise ValueError("the holdout shares a window with a calibration set: its KL would flatter that one")
    plans, found = [], []
    remembered = RememberedRows(_OnTorch(TorchRuntime(module), tokenizer), holdout)
    try:
        for number, data in enumerate(candidates):
            plan = make_plan(module, saliency(module, data, objective=objective), sparsity, **options)
            pruned = TorchRuntime(plan.apply(module), revision=f"pruned-{number}")
            found.append(remembered.compare(_OnTorch(pruned, tokenizer)).kl)
            plans.append(plan)
            if progress is not None:
                progress(number + 1, len(candidates))
    finally:
        remembered.close()
    return CalibrationTrials(plans, found)


def nirvana_plan(
    module: torch.nn.Module,
    tokenizer: Tokenizer,
    data: CalibrationSet,
    sparsity: float,
    *,
    progress: Progress | None = None,
    **options: Unpack[PruningOptions],
) -> PruningPlan:
    """The plan of one calibration set; with select_calibration=N the set is dealt out to N candidates and a holdout."""
    allocation, objective = allocation_of(options), options.get("objective", "max_logit")
    if (trials := options.get("select_calibration", 1)) == 1:
        return make_plan(module, saliency(module, data, objective=objective, progress=progress), sparsity, **allocation)
    *candidates, holdout = deal(data, trials + 1)
    found = select_calibration(
        module, tokenizer, candidates, holdout, sparsity, objective=objective, progress=progress, **allocation
    )
    return found.plans[found.best]


def prune(
    module: torch.nn.Module, plan: PruningPlan, text: CalibrationSet | None = None, *, seed: int = 0,
    progress: Progress | None = None, **options: Unpack[PruningOptions],
) -> None:  # fmt: skip
    """Prune the module itself; where `recovery` asks for it, train what is left on a text, against the whole model."""
    target = options.get("recovery")
    reference = copy.deepcopy(module) if target is not None else None
    plan.apply(module, inplace=True)
    if target is None or reference is None:
        return
    if text is None:
        raise ValueError("recovery needs a text to train on")
    steps = options.get("recovery_steps", 200)

    def report(step: int, loss: float) -> None:
        if progress is not None:
            progress(step + 1, steps)

    recover(module, reference, text, target=target, steps=steps, seed=seed, progress=report)


def deal(data: CalibrationSet, parts: int) -> list[CalibrationSet]:
    """The windows of a set dealt out in turn, so that every part comes from the whole text."""
    if len(data) < parts:
        raise ValueError(f"{len(data)} windows cannot be dealt out to {parts} sets: ask for more windows")
    return [replace(data, input_ids=data.input_ids[number::parts]) for number in range(parts)]


def allocation_of(options: PruningOptions) -> AllocationOptions:
    """Those that say which units go."""
    names = AllocationOptions.__annotations__
    return {name: value for name, value in options.items() if name in names}  # type: ignore[return-value]


def _share_a_window(one: CalibrationSet, other: CalibrationSet) -> bool:
    return bool({row.tobytes() for row in one.input_ids} & {row.tobytes() for row in other.input_ids})
