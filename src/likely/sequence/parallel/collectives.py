"""Exchanges that gradients flow through: each is one function that owns its message forward and its message backward.

A graph must be the same on all members: where one member would not use what it received, the others would wait for its
backward message for ever.  `tie` makes every output depend on everything received.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from likely.sequence.parallel.group import SequenceGroup


def all_gather(t: Tensor, group: SequenceGroup) -> Tensor:
    """(W, ...): every member's tensor.  Backward: each member gets the sum of all gradients of its own."""
    found: Tensor = _AllGather.apply(t, group)
    return found


def all_to_all(t: Tensor, group: SequenceGroup) -> Tensor:
    """t (W, ...) -> (W, ...): entry s goes to member s, and entry s came from member s."""
    found: Tensor = _AllToAll.apply(t, group)
    return found


def shift(t: Tensor, group: SequenceGroup) -> Tensor:
    """The tensor of the member before; zeros on the first.  Backward: gradients go back to where it came from."""
    found: Tensor = _FromBefore.apply(t, group)
    return found


def ring_fold(state: Tensor, transition: Tensor, group: SequenceGroup) -> Tensor:
    """The state before this member's chunk, handed on from member to member: S_out = T · S_in + S (LASP-1).

    state, transition  of this member's chunk; T is a factor that broadcasts to S.  W − 1 messages wait for one another.
    """
    found: Tensor = _RingFold.apply(state, transition, group)
    return found


def tie(y: Tensor, *received: Tensor) -> Tensor:
    """y itself, whose backward pass reaches everything received on every member."""
    found: Tensor = _Tie.apply(y, *received)
    return found


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return group.gather(t)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.group.scatter_sum(gradient), None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return group.exchange(t.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.group.exchange(gradient), None


class _FromBefore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _from_neighbour(group, t, back=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _from_neighbour(ctx.group, gradient, back=True), None


class _RingFold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, transition: Tensor, group: SequenceGroup) -> Tensor:
        before = group.take_over(state)
        group.pass_on(transition * before + state)()
        group.traffic.serial += group.size - 1  # the last member has waited for all others
        ctx.group = group
        ctx.save_for_backward(before, transition)
        return before

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        before, transition = ctx.saved_tensors
        of_out = ctx.group.take_over(before, back=True)
        ctx.group.pass_on(transition.conj() * of_out + gradient, back=True)()
        ctx.group.traffic.serial += ctx.group.size - 1
        of_transition = of_out * before.conj()
        if not transition.is_complex() and of_transition.is_complex():
            of_transition = of_transition.real
        return of_out, of_transition.sum_to_size(transition.shape), None


class _Tie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, *received: Tensor) -> Tensor:
        ctx.shapes = [(t.shape, t.dtype, t.device) for t in received]
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.shapes]
        return gradient, *zeros


def _from_neighbour(group: SequenceGroup, t: Tensor, *, back: bool) -> Tensor:
    wait = group.pass_on(t, back=back)
    received = group.take_over(t, back=back)
    wait()
    group.traffic.serial += 1
    return received
