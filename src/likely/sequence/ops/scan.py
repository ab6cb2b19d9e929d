"""h_t = a_t h_{t−1} + b_t along time, in parallel, with gradients by the same scan run backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SHORT = 64  # below it a loop over time is faster than pairing steps


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """All states of h_t = a_t ⊙ h_{t−1} + b_t, t = 1…L, real or complex.

    a   broadcastable to b, with as many dimensions (size 1 or L along dimension 1)
    b   (B, L, ...);  h0: (B, ...) or None for zeros;  reverse: from the last step to the first
    returns  h (B, L, ...) and the state after the last step that was taken (B, ...)

    O(L) work in O(log L) tensor operations (odd-even recursion; Blelloch 1990).  The gradient is the reversed scan
    g_t = ∂h_t + ā_{t+1} g_{t+1}, ∂b = g, ∂a_t = g_t h̄_{t−1}: a loop under plain autograd would cost O(L²).
    """
    fits = a.ndim == b.ndim >= 2 and all(one in (1, all_) for one, all_ in zip(a.shape, b.shape, strict=True))
    if not fits or not b.shape[1]:
        raise ValueError(f"a must broadcast to b (B, L, ...) with L > 0, got a {tuple(a.shape)} and b {tuple(b.shape)}")
    start = torch.zeros_like(b[:, 0]) if h0 is None else h0
    if start.shape != b[:, 0].shape:
        raise ValueError(f"h0 must be {tuple(b[:, 0].shape)}, got {tuple(start.shape)}")
    if a.shape[1] == 1:
        a = a.expand(-1, b.shape[1], *a.shape[2:])
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), start.dtype)
    if reverse:
        a, b = a.flip(1), b.flip(1)
    states: Tensor = _Scan.apply(a, b.to(dtype), start.to(dtype))
    return (states.flip(1) if reverse else states), states[:, -1]


def scan_by_steps(a: Tensor, b: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`linear_scan` as a loop: h_t = a_t h_{t−1} + b_t."""
    h, states = torch.zeros_like(b[:, 0]) if h0 is None else h0, []
    for t in range(b.shape[1]):
        h = a[:, t if a.shape[1] > 1 else 0] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1), h


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor) -> Tensor:
        states = _states(a, _with_start(a, b, start))
        ctx.save_for_backward(a, states, start)
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, states, start = ctx.saved_tensors
        after = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1).conj()  # ā_{t+1}
        g = _states(after.flip(1), gradient.flip(1)).flip(1)
        before = torch.cat([start[:, None], states[:, :-1]], 1)
        for_a = g * before.conj()
        if not a.is_complex():
            for_a = for_a.real if for_a.is_complex() else for_a
        return for_a.sum_to_size(a.shape), g, (a[:, 0].conj() * g[:, 0]).expand_as(start)


def _with_start(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    first = b[:, :1] + (a[:, 0] * start)[:, None]
    return torch.cat([first, b[:, 1:]], 1) if b.shape[1] > 1 else first


def _states(a: Tensor, b: Tensor) -> Tensor:
    """The scan from a start of zero; no gradients of its own."""
    length = b.shape[1]
    h = torch.empty_like(b)
    if length < SHORT:
        h[:, 0] = b[:, 0]
        for t in range(1, length):
            torch.add(a[:, t] * h[:, t - 1], b[:, t], out=h[:, t])
        return h
    even, odd = slice(0, length - 1, 2), slice(1, length, 2)
    a_odd = a[:, odd]
    h[:, odd] = _states(a_odd * a[:, even], a_odd * b[:, even] + b[:, odd])
    h[:, 0] = b[:, 0]
    h[:, 2::2] = a[:, 2::2] * h[:, 1 : length - 1 : 2] + b[:, 2::2]
    return h


ScanKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_KERNEL: ContextVar[ScanKernel | None] = ContextVar("selective scan", default=None)


@contextmanager
def selective_scans_by(kernel: ScanKernel | None) -> Iterator[None]:
    """Inside, `kernel(u, delta, A, B, C, h0)` computes scans without gradients or documents, in float32 on a CPU."""
    before = _KERNEL.set(kernel)
    try:
        yield
    finally:
        _KERNEL.reset(before)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, h0: Tensor | None = None,
    starts: Tensor | None = None, segment: int = 256,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mamba's recurrence h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t, y_t = C_tᵀ h_t, per channel and state.

    u, delta (B, L, E);  A (E, N) < 0;  B, C (B, L, N);  h0 (B, E, N);  starts (B, L) bool: forget the past before it
    segment  steps whose (B, L, E, N) tensors are held at once; the backward pass makes them again
    returns  y (B, L, E) and the last state (B, E, N).  A step with Δ = 0 leaves the state as it is.

    Gu and Dao 2023 (arXiv:2312.00752), eq. 4 with Euler's B̄ = ΔB, as the published weights were trained.
    """

    def run(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, h: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        a = torch.exp(delta[..., None] * A)
        if starts is not None:
            a = a.masked_fill(starts[..., None, None], 0.0)
        states, last = linear_scan(a, (delta * u)[..., None] * B[:, :, None], h)
        return torch.einsum("blen,bln->ble", states, C), last

    h = u.new_zeros(u.shape[0], *A.shape) if h0 is None else h0
    kernel, given = _KERNEL.get(), (u, delta, A, B, C, h)
    plain = starts is None and not torch.is_grad_enabled()
    if kernel is not None and plain and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in given):
        return kernel(*given)
    outputs, length = [], u.shape[1]
    many = length > segment and torch.is_grad_enabled()
    for begin in range(0, length, segment):
        part = slice(begin, begin + segment)
        args = (u[:, part], delta[:, part], B[:, part], C[:, part], h, None if starts is None else starts[:, part])
        y, h = checkpoint(run, *args, use_reentrant=False) if many else run(*args)
        outputs.append(y)
    return torch.cat(outputs, 1), h
