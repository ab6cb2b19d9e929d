"""Causal convolutions: long ones by FFT, short ones with a window as state, and kernels of diagonal systems."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

ELEMENTS = 1 << 22  # numbers of a Vandermonde matrix that are held at once


def fft_conv(u: Tensor, kernel: Tensor, D: Tensor | None = None) -> Tensor:
    """y_t = Σ_{j≤t} kernel_j u_{t−j} (+ D u_t), causal, in O(L log L).

    u (B, L, D);  kernel (D, M), M ≤ L is enough;  D (D,) or None
    returns (B, L, D) in u's dtype; float32 at least inside
    """
    length = u.shape[1]
    wide = torch.promote_types(u.dtype, torch.float32)
    size = next_fast_len(length + min(kernel.shape[1], length) - 1, real=True)
    kernel_f = torch.fft.rfft(kernel[:, :length].to(wide), n=size)
    y = torch.fft.irfft(torch.fft.rfft(u.mT.to(wide), n=size) * kernel_f, n=size)[..., :length].mT
    return (y if D is None else y + u * D).to(u.dtype)


def conv_by_steps(u: Tensor, kernel: Tensor) -> Tensor:
    """`fft_conv` as a double loop over time and lag."""
    outputs = []
    for t in range(u.shape[1]):
        lags = range(min(t + 1, kernel.shape[1]))
        outputs.append(sum((kernel[:, j] * u[:, t - j] for j in lags), torch.zeros_like(u[:, 0])))
    return torch.stack(outputs, 1)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, state: Tensor | None = None, *,
    lengths: Tensor | None = None, starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Depthwise y_t = Σ_k weight_k x_{t−K+1+k} + bias, and the window that the next call continues from.

    x (B, L, D);  weight (D, K);  bias (D,);  state (B, K−1, D): the inputs before x, None for zeros
    lengths (B,)  real tokens of each row, padding after them;  starts (B, L) bool: inputs before it are not seen
    returns  y (B, L, D) and the last K−1 real inputs (B, K−1, D)
    """
    length, width = x.shape[1], weight.shape[1]
    if x.shape[2] != weight.shape[0]:
        raise ValueError(f"weight must be ({x.shape[2]}, K) for x {tuple(x.shape)}, got {tuple(weight.shape)}")
    before = x.new_zeros(len(x), width - 1, x.shape[2]) if state is None else state.to(x.dtype)
    seen = torch.cat([before, x], 1)
    if starts is None and length == 1:
        y = (seen * weight.T).sum(1, keepdim=True)
        y = y if bias is None else y + bias
    elif starts is None:
        y = F.conv1d(seen.mT, weight[:, None], bias, groups=weight.shape[0]).mT
    else:
        ids = F.pad(starts.cumsum(1), (width - 1, 0))
        y = x.new_zeros(x.shape) if bias is None else bias.expand_as(x)
        for k in range(width):
            other = (ids[:, k : k + length] != ids[:, width - 1 :])[..., None]
            y = y + weight[:, k] * seen[:, k : k + length].masked_fill(other, 0.0)
    if lengths is None and starts is None:
        return y, seen[:, length:]
    ends = torch.full((len(x),), length, device=x.device) if lengths is None else lengths
    index = ends[:, None] + torch.arange(width - 1, device=x.device)
    window = torch.take_along_dim(seen, index[..., None], 1)
    if starts is not None:
        last = ids.gather(1, (ends + width - 2).clamp_min(0)[:, None])
        window = window.masked_fill((ids.gather(1, index) != last)[..., None], 0.0)
    return y, window


def vandermonde(v: Tensor, log_w: Tensor, length: int) -> Tensor:
    """(H, L): Σ_n v_n exp(log_w_n l) for l = 0…L−1; of complex arguments (one of each conjugate pair) 2·Re of it.

    v, log_w (H, N).  The (H, N, L) matrix is made in pieces of bounded size.
    """
    piece = max(1, ELEMENTS // max(1, log_w.numel()))
    parts = [
        torch.einsum("hn,hnl->hl", v * torch.exp(log_w * begin), powers(log_w, min(piece, length - begin)))
        for begin in range(0, length, piece)
    ]
    total = torch.cat(parts, 1)
    return 2 * total.real if total.is_complex() else total


def powers(log_w: Tensor, length: int) -> Tensor:
    """exp(log_w l), l = 0…length−1, as (H, N, length)."""
    real = log_w.real if log_w.is_complex() else log_w
    return torch.exp(log_w[..., None] * torch.arange(length, dtype=real.dtype, device=log_w.device))
