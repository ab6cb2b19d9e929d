"""The state of a training run in one file, so that a run that was stopped goes on bit for bit.  No pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likely.errors import DataError
from likely.io.whole_file import write_for_user
from likely.training.processes import share_of, whole

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@dataclass
class Checkpoints:
    """Parameters, optimiser, schedule, random numbers and losses, written every `every` steps to one file.

    path    a .safetensors file; its metadata hold what is not a tensor
    every   steps between two writes
    recipe  what the numbers depend on, as JSON: a file of another recipe is refused
    """

    path: Path
    every: int
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be >= 1 step, got {self.every}")

    def save(
        self, losses: list[float], optimizer: Optimizer, schedule: LRScheduler | None, *, write: bool = True
    ) -> None:
        """The state after len(losses) steps takes the place of the earlier one.

        Sharded tensors are put together, for which every process must call this; one of them writes.
        """
        import torch
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {"random/cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        for i, parameter in enumerate(_parameters(optimizer)):
            tensors[f"parameter/{i}"] = whole(parameter.detach()).cpu().contiguous()
        found = optimizer.state_dict()
        numbers: dict[str, Any] = {}
        for i, state in found["state"].items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{i}/{name}"] = whole(value.detach()).cpu().contiguous()
                elif value is not None:
                    numbers[f"{i}/{name}"] = value
        if not write:
            return
        about = {
            "recipe": self.recipe, "losses": losses, "numbers": numbers, "groups": found["param_groups"],
            "schedule": None if schedule is None else _plain(schedule.state_dict()),
        }  # fmt: skip
        write_for_user(self.path, save(tensors, {"training": json.dumps(about)}))

    def restore(self, optimizer: Optimizer, schedule: LRScheduler | None) -> list[float]:
        """Take up the state of the file; gives the losses of the steps that are done, [] where there is no file."""
        import torch
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return []
        try:
            with safe_open(self.path, "pt") as file:
                about = json.loads((file.metadata() or {})["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DataError(f"{self.path}: not a checkpoint of a training run ({error}): remove it") from None
        wanted = json.loads(json.dumps(self.recipe))
        for name in wanted.keys() | about["recipe"].keys():
            if about["recipe"].get(name) != wanted.get(name):
                raise DataError(
                    f"{self.path} was made with another {name} ({about['recipe'].get(name)!r}, now "
                    f"{wanted.get(name)!r}): choose another folder or --overwrite"
                )
        parameters = _parameters(optimizer)
        if len(parameters) != sum(name.startswith("parameter/") for name in tensors):
            raise DataError(f"{self.path}: a checkpoint of other parameters: remove it")
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                parameter.copy_(share_of(tensors[f"parameter/{i}"], parameter))
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, i, entry = name.split("/")
                known = parameters[int(i)]  # its moments are sharded as it is
                state.setdefault(int(i), {})[entry] = share_of(tensor, known) if tensor.shape == known.shape else tensor
        for name, value in about["numbers"].items():
            i, entry = name.split("/")
            state.setdefault(int(i), {})[entry] = value
        optimizer.load_state_dict({"state": state, "param_groups": about["groups"]})
        if schedule is not None and about["schedule"] is not None:
            schedule.load_state_dict(about["schedule"])
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random/cuda"])
        return list(about["losses"])


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """What of a schedule's state is data: functions are made anew by whoever makes the schedule."""
    kept = {}
    for name, value in state.items():
        try:
            json.dumps(value)
        except TypeError:
            continue
        kept[name] = value
    return kept
