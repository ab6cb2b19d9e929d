"""Several processes that train one model together: each computes its part of a step, gradients are summed.  torch.

`torchrun --nproc_per_node N` starts them; accelerate opens the group (gloo on processors, nccl on GPUs).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from likely.errors import missing_extra

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    rank  0 for the one that writes files and speaks;  size: how many there are
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls, *, cpu: bool = False) -> Processes:
        """Join the processes that torchrun started; a process of its own where it did not."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        try:
            from accelerate import PartialState
        except ImportError:
            raise missing_extra("accelerate", "train") from None
        state = PartialState(cpu=cpu)
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Every size-th item from the rank-th on: parts of a batch that together are the batch."""
        return items[self.rank :: self.size]

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Every process holds the sum of the gradients of all; a parameter without one counts as 0."""
        if self.size == 1:
            return
        import torch

        wanted = [p for p in parameters if p.requires_grad]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in wanted if p.grad is not None])
        torch.distributed.all_reduce(flat)
        start = 0
        for parameter in wanted:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def sum_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums over all processes, which must give the same names."""
        if self.size == 1:
            return dict(numbers)
        import torch

        names = sorted(numbers)
        values = torch.tensor([numbers[name] for name in names], dtype=torch.float64)
        if torch.distributed.get_backend() == "nccl":
            values = values.cuda()
        torch.distributed.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Every process holds the first one's values."""
        if self.size > 1:
            import torch

            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            import torch

            torch.distributed.barrier()
