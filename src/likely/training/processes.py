"""Several processes that train one model together: each computes its part of a step, gradients are summed.  torch.

`torchrun --nproc_per_node N` starts them; accelerate opens the group (gloo on processors, nccl on GPUs).  Each holds
the whole model, or its share of all weights, gradients and moments (FSDP2, `shard`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from likely.errors import needs

if TYPE_CHECKING:
    import torch
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
        with needs("accelerate", "train"):
            from accelerate import PartialState
        state = PartialState(cpu=cpu)
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Every size-th item from the rank-th on: parts of a batch that together are the batch."""
        return items[self.rank :: self.size]

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Every process holds the sum of the gradients of all; a parameter without one counts as 0.

        Of sharded parameters each holds its share of the sum already.
        """
        if self.size == 1:
            return
        import torch

        wanted = [p for p in parameters if p.requires_grad and not isinstance(p, _sharded_type())]
        if not wanted:
            return
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

    def most(self, number: int) -> int:
        """The largest of the numbers of all."""
        if self.size == 1:
            return number
        return int(max(self.sum_numbers({str(r): float(number * (r == self.rank)) for r in range(self.size)}).values()))

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            import torch

            torch.distributed.barrier()


def shard(module: torch.nn.Module, layers: Iterable[torch.nn.Module]) -> None:
    """Give every process its share of the parameters, for good; a layer is put together while it computes.

    Gradients are summed, not averaged.  Zhao et al. 2023, arXiv:2304.11277, as torch's `fully_shard`.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for part in (*layers, module):
        fully_shard(part, mesh=mesh)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether `shard` was called on it: it is to be called as a whole then, no layer of it alone."""
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, which all processes must ask for; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, _sharded_type()) else tensor


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, sharded as `like` is."""
    kind = _sharded_type()
    if not isinstance(like, kind):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, _sharded_type()) else tensor


def _sharded_type() -> Any:
    """torch's DTensor; an empty tuple, which nothing is an instance of, where one process works alone."""
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return ()
    from torch.distributed.tensor import DTensor

    return DTensor
