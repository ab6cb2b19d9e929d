"""Processes that hold parts of the same sequences, and the messages they exchange, counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from likely.errors import CapabilityError

SEQUENCE_DIMENSION = "sp"  # of a DeviceMesh
TORCHRUN = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # what it sets


@dataclass
class Traffic:
    """What this process sent in collectives and messages.

    calls     of collectives, and of messages to a neighbour
    payload   bytes of this process's own contributions
    received  bytes that arrived from others
    serial    messages that had to wait for one another (a ring of W takes W − 1, a collective takes one)
    """

    calls: int = 0
    payload: int = 0
    received: int = 0
    serial: int = 0

    def add(self, payload: int, received: int, serial: int = 1) -> None:
        """One more call."""
        self.calls += 1
        self.payload += payload
        self.received += received
        self.serial += serial

    def clear(self) -> None:
        self.calls = self.payload = self.received = self.serial = 0


@dataclass(frozen=True)
class SequenceGroup:
    """This process among those that share sequences.

    rank, size  within the group;  ranks: the members' numbers in the whole world
    process_group  None: this process alone
    """

    rank: int = 0
    size: int = 1
    ranks: tuple[int, ...] = (0,)
    process_group: dist.ProcessGroup | None = None
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    @classmethod
    def of(cls, over: dist.ProcessGroup | DeviceMesh | None = None) -> SequenceGroup:
        """The members of a torch process group that this process belongs to; None: all processes.

        A DeviceMesh: those along its dimension "sp", or along its only one.
        CapabilityError where torch.distributed is not started.
        """
        if not dist.is_available() or not dist.is_initialized():
            raise CapabilityError(
                "torch.distributed has no process group: start with torchrun and call init_process_group first, "
                "or use SequenceGroup() for one process"
            )
        process_group = _along_sequences(over) if isinstance(over, DeviceMesh) else over or dist.group.WORLD
        ranks = tuple(dist.get_process_group_ranks(process_group))
        here = dist.get_rank()
        if here not in ranks:
            raise CapabilityError(f"process {here} is not a member of the group {list(ranks)}")
        return cls(ranks.index(here), len(ranks), ranks, process_group)

    @classmethod
    def from_environment(cls) -> SequenceGroup:
        """All processes that torchrun started (nccl where there are GPUs, else gloo); without it, this one alone."""
        if not dist.is_initialized():
            if not os.environ.keys() >= TORCHRUN:
                return cls()
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls.of()

    def gather(self, t: Tensor) -> Tensor:
        """(W, ...): every member's tensor, in order of rank; all must have the same shape."""
        t = t.detach().contiguous()
        if self.size == 1:
            return t[None].clone()
        parts = [torch.empty_like(t) for _ in range(self.size)]
        dist.all_gather(parts, t, group=self.process_group)
        self.traffic.add(nbytes(t), nbytes(t) * (self.size - 1))
        return torch.stack(parts)

    def scatter_sum(self, t: Tensor) -> Tensor:
        """t (W, ...) -> the sum over members of their entry for this one: what `gather` turns into backwards."""
        if self.size == 1:
            return t[0]
        received = self._exchange(t.contiguous())
        return received.sum(0)

    def exchange(self, t: Tensor) -> Tensor:
        """t (W, ...) -> (W, ...): entry s goes to member s, and entry s came from member s (all-to-all)."""
        return t.clone() if self.size == 1 else self._exchange(t.contiguous())

    def shift(self, t: Tensor) -> Tensor:
        """The tensor of the member before, around the ring."""
        if self.size == 1:
            return t.clone()
        t, received = t.contiguous(), torch.empty_like(t, memory_format=torch.contiguous_format)
        after, before = self.ranks[(self.rank + 1) % self.size], self.ranks[self.rank - 1]
        pending = dist.isend(t, after, group=self.process_group)
        dist.recv(received, before, group=self.process_group)
        if pending is not None:
            pending.wait()
        self.traffic.add(nbytes(t), nbytes(t))
        return received

    def pass_on(self, t: Tensor, *, back: bool = False) -> Callable[[], object]:
        """Start to send to the next member (back: to the one before); the last one sends nothing.  Call to wait."""
        other = self.rank + (-1 if back else 1)
        if not 0 <= other < self.size:
            return lambda: None
        sent = _as_real(t.detach()).contiguous()
        pending = dist.isend(sent, self.ranks[other], group=self.process_group)
        self.traffic.add(nbytes(sent), 0, 0)
        return lambda: None if pending is None else pending.wait() and sent

    def take_over(self, like: Tensor, *, back: bool = False) -> Tensor:
        """What the member before passed on (back: the next one); zeros where there is none."""
        other = self.rank + (1 if back else -1)
        received = torch.zeros_like(like, memory_format=torch.contiguous_format)
        if 0 <= other < self.size:
            dist.recv(_as_real(received), self.ranks[other], group=self.process_group)
            self.traffic.received += nbytes(received)
        return received

    def sum(self, t: Tensor) -> Tensor:
        """Over all members, on all of them; no gradient."""
        t = t.detach().clone(memory_format=torch.contiguous_format)  # strides may differ between members
        if self.size > 1:
            dist.all_reduce(t, group=self.process_group)
        return t

    def _exchange(self, t: Tensor) -> Tensor:
        received = torch.empty_like(t)
        dist.all_to_all_single(received, t, group=self.process_group)
        self.traffic.add(nbytes(t[0]), nbytes(t[0]) * (self.size - 1))
        return received


def _along_sequences(mesh: DeviceMesh) -> dist.ProcessGroup:
    names = mesh.mesh_dim_names or ()
    if mesh.ndim > 1 and SEQUENCE_DIMENSION not in names:
        raise CapabilityError(
            f'a mesh of {mesh.ndim} dimensions must name that of sequences "{SEQUENCE_DIMENSION}", got {list(names)}'
        )
    return mesh.get_group(SEQUENCE_DIMENSION if SEQUENCE_DIMENSION in names else 0)


def _as_real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def nbytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def sum_gradients(parameters: Sequence[torch.nn.Parameter], group: SequenceGroup) -> None:
    """Every member holds the sum of the gradients of all; a parameter without one counts as 0."""
    if group.size == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    by_dtype: dict[torch.dtype, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for members in by_dtype.values():
        flat = group.sum(torch.cat([p.grad.flatten() for p in members if p.grad is not None]))
        for parameter, summed in zip(members, flat.split([p.numel() for p in members]), strict=True):
            parameter.grad = summed.view_as(parameter)


def each_block(world: int, make: Callable[[tuple[int, ...]], object]) -> None:
    """Call `make` with every aligned block of a power of two of `world` processes, large ones last."""
    degree = 1
    while degree <= world:
        for first in range(0, world - degree + 1, degree):
            make(tuple(range(first, first + degree)))
        degree *= 2
