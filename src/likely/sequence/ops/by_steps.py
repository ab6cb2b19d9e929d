"""The definitions, one step at a time: slow, obvious, and what the fast kernels are tested and timed against."""

from __future__ import annotations

import torch
from torch import Tensor


def scan_by_steps(a: Tensor, b: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`linear_scan` as a loop: h_t = a_t h_{t−1} + b_t."""
    h, states = torch.zeros_like(b[:, 0]) if h0 is None else h0, []
    for t in range(b.shape[1]):
        h = a[:, t if a.shape[1] > 1 else 0] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1), h


def ssd_by_steps(x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, *, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`ssd` as a loop: S_t = exp(log_a_t) S_{t−1} + x_t B_tᵀ, y_t = S_t C_t."""
    B, C = (t.repeat_interleave(x.shape[2] // B.shape[2], 2) for t in (B, C))
    S = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1]) if h0 is None else h0
    outputs = []
    for t in range(x.shape[1]):
        S = log_a[:, t, :, None, None].exp() * S + x[:, t, ..., None] * B[:, t, :, None]
        outputs.append((S @ C[:, t, ..., None])[..., 0])
    return torch.stack(outputs, 1), S


def linear_attention_by_steps(
    q: Tensor, k: Tensor, v: Tensor, *, log_decay: Tensor | None = None, beta: Tensor | None = None,
    h0: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`linear_attention` as a loop: decay, then (delta rule) correct what the key recalls, then read."""
    S = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]) if h0 is None else h0
    outputs = []
    for t in range(q.shape[1]):
        if log_decay is not None:
            decay = log_decay[:, t].exp()
            S = S * (decay[..., None, None] if decay.ndim == 2 else decay[..., None])
        value = v[:, t]
        if beta is not None:
            value = beta[:, t, :, None] * (value - (k[:, t, :, None] @ S)[..., 0, :])
        S = S + k[:, t, ..., None] * value[..., None, :]
        outputs.append((q[:, t, :, None] @ S)[..., 0, :])
    return torch.stack(outputs, 1), S


def conv_by_steps(u: Tensor, kernel: Tensor) -> Tensor:
    """`fft_conv` as a double loop over time and lag."""
    outputs = []
    for t in range(u.shape[1]):
        lags = range(min(t + 1, kernel.shape[1]))
        outputs.append(sum((kernel[:, j] * u[:, t - j] for j in lags), torch.zeros_like(u[:, 0])))
    return torch.stack(outputs, 1)
