"""Diagonal state spaces, one for each channel: convolutions in training, a few numbers per channel in generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from likely.errors import check_choice
from likely.sequence.hippo import DIAGONALS, diagonal_initialisation
from likely.sequence.mixer import MixerRows
from likely.sequence.ops.conv import ELEMENTS, fft_conv, powers, vandermonde
from likely.sequence.ops.scan import linear_scan
from likely.sequence.recurrent import RecurrentMixer, Streams, wide

FEW = 16  # tokens up to which the recurrence is run as it is written


class DiagonalMixer(RecurrentMixer):
    """h_t = exp(log_a) h_{t−1} + b u_t and y = Σ_n c h (2·Re of it where complex) + D u, per channel.

    Subclasses say what u is (`project`), the numbers (`coefficients`), and what becomes of y (`finish`).
    """

    packs: ClassVar[bool] = False  # a convolution by FFT knows no document
    channels: int
    d_state: int
    complex_state: bool = True

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """log_a, b, c (channels, N); complex ones stand for conjugate pairs."""
        raise TypeError(f"{type(self).__name__} must say what its coefficients are")

    def direct(self) -> Tensor | None:
        """D (channels,), or None."""
        return None

    def kernel(self, length: int) -> Tensor:
        """The convolution's kernel (channels, length)."""
        log_a, b, c = self.coefficients()
        return vandermonde(b * c, log_a, length)

    def recurrent_spec(self) -> tuple[tuple[int, ...], torch.dtype]:
        dtype = self.state_dtype.to_complex() if self.complex_state else self.state_dtype
        return (self.channels, self.d_state), dtype

    def recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        u, D = streams["u"], self.direct()
        log_a, b, c = self.coefficients()
        if u.shape[1] <= FEW:
            a = log_a.exp().expand(len(u), u.shape[1], -1, -1)
            padding = rows.padding(u)
            a = a if padding is None else torch.where(padding[..., None, None], 1.0, a)
            states, h = linear_scan(a, u[..., None] * b, h)
            y = _real((states * c).sum(-1))
            return (y if D is None else y + wide(D) * u), h
        y = fft_conv(u, vandermonde(b * c, log_a, u.shape[1]), None if D is None else wide(D))
        if h.requires_grad or bool((h != 0).any()):
            y = y + _carried(log_a, c, h, u.shape[1])
        return y, _last_state(u, log_a, b, h, rows.lengths) if rows.state_wanted else h

    def transition(self, streams: Streams, rows: MixerRows) -> Tensor:
        log_a, u = self.coefficients()[0], streams["u"]
        steps = torch.full((len(u),), u.shape[1], device=u.device) if rows.lengths is None else rows.lengths
        return torch.exp(log_a * steps[:, None, None])


class ChannelStateSpaces(DiagonalMixer):
    """A state space per channel that also reads its input directly; then, if `out_proj`, GELU, a linear map, GLU."""

    D: nn.Parameter
    out_proj: nn.Linear | None

    def direct(self) -> Tensor:
        return self.D

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        return {"u": x}, {}

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        y = y.to(self.D.dtype)
        return y if self.out_proj is None else glu(self.out_proj(gelu(y)), -1)


class S4D(ChannelStateSpaces):
    """S4 with a diagonal state matrix, then GELU and a gated linear map (D → 2D, GLU) over channels.

    d_state   N, even: N/2 conjugate pairs;  init "lin", "inv", "real" or "legs": see `hippo.diagonal_initialisation`
    method    "zoh" or "bilinear" discretisation;  dt_min, dt_max: time steps start log-uniformly between them
    mix_channels  False: y alone, no activation and no linear map

    Gu et al. 2022 (arXiv:2206.11893).
    """

    def __init__(
        self, d_model: int, *, d_state: int = 64, init: Literal["lin", "inv", "real", "legs"] = "lin",
        method: Literal["zoh", "bilinear"] = "zoh", dt_min: float = 1e-3, dt_max: float = 0.1,
        mix_channels: bool = True,
    ):  # fmt: skip
        super().__init__(d_model)
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even and at least 2, got {d_state}")
        check_choice("init", init, DIAGONALS)
        check_choice("method", method, ("zoh", "bilinear"))
        self.channels, self.d_state, self.method = d_model, d_state // 2, method
        A, B = (torch.tensor(t) for t in diagonal_initialisation(init, d_state))
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max))
        self.A_log = nn.Parameter((-A.real).log().float().repeat(d_model, 1))
        self.A_imag = nn.Parameter(A.imag.float().repeat(d_model, 1))
        C = torch.complex(*torch.randn(2, d_model, self.d_state).unbind()) * 0.5**0.5
        self.C = nn.Parameter(torch.view_as_real(C * B.to(C.dtype)).contiguous())  # the kernel knows B·C alone
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model) if mix_channels else None

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        dt, C = wide(self.log_dt).exp()[:, None], torch.view_as_complex(wide(self.C))
        A = torch.complex(-wide(self.A_log).exp(), wide(self.A_imag))
        if self.method == "zoh":
            return dt * A, (torch.exp(dt * A) - 1) / A, C
        below = 1 - dt * A / 2
        return torch.log((1 + dt * A / 2) / below), dt / below, C


class DSS(ChannelStateSpaces):
    """Diagonal state space with a softmax over lags: K_l = Re Σ_n (C_n/Λ_n) e^{ΔΛ_n l} / Σ_{j<l_max} e^{ΔΛ_n j}.

    d_state  N, even: N/2 complex numbers;  l_max: the length that the softmax is over, stored with the layer so that
             steps and other lengths use the same kernel;  mix_channels: as `S4D`'s

    1/x is x̄/(|x|² + 1e−7).  State: h (B, D, N/2), complex.  Gupta et al. 2022 (arXiv:2203.14343).
    """

    l_max: Tensor

    def __init__(
        self, d_model: int, *, d_state: int = 64, l_max: int = 1024, dt_min: float = 1e-3, dt_max: float = 0.1,
        mix_channels: bool = True,
    ):  # fmt: skip
        super().__init__(d_model)
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even and at least 2, got {d_state}")
        if l_max < 1:
            raise ValueError(f"l_max must be at least 1, got {l_max}")
        self.channels, self.d_state = d_model, d_state // 2
        self.register_buffer("l_max", torch.tensor(l_max))
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.full((d_model, self.d_state), math.log(0.5)))
        self.A_imag = nn.Parameter((math.pi * torch.arange(self.d_state)).float().repeat(d_model, 1))
        self.C = nn.Parameter(torch.randn(d_model, self.d_state, 2))
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model) if mix_channels else None

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        A = torch.complex(-wide(self.A_log).exp(), wide(self.A_imag))
        log_a = wide(self.log_dt).exp()[:, None] * A
        total = (1 - torch.exp(log_a * self.l_max)) / (1 - torch.exp(log_a))
        c = torch.view_as_complex(wide(self.C)) * _reciprocal(A) * _reciprocal(total)
        return log_a, torch.ones_like(c), c / 2  # twice the real part is taken of conjugate pairs, here there are none


def _reciprocal(x: Tensor) -> Tensor:
    return x.conj() / (x.real.square() + x.imag.square() + 1e-7)


def log_uniform(count: int, smallest: float, largest: float) -> Tensor:
    """Logarithms of numbers that are log-uniform between the two."""
    return torch.rand(count) * math.log(largest / smallest) + math.log(smallest)


def _real(t: Tensor) -> Tensor:
    return 2 * t.real if t.is_complex() else t


def _carried(log_a: Tensor, c: Tensor, h: Tensor, length: int) -> Tensor:
    """(B, L, channels): what the state before the first token adds to the outputs."""
    piece = max(1, ELEMENTS // log_a.numel())
    parts = []
    for begin in range(0, length, piece):
        matrix = powers(log_a, min(piece, length - begin))
        parts.append(_real(torch.einsum("bdn,dnl->bld", h * c * torch.exp(log_a * (begin + 1)), matrix)))
    return torch.cat(parts, 1)


def _last_state(u: Tensor, log_a: Tensor, b: Tensor, h: Tensor, lengths: Tensor | None) -> Tensor:
    """exp(L log_a) h + Σ_j exp((L−1−j) log_a) b u_j."""
    batch, length = u.shape[:2]
    steps = torch.full((batch,), length, device=u.device)
    if lengths is not None:  # the last real token to the end: zeros before the first one add nothing
        steps = lengths
        index = torch.arange(length, device=u.device) - (length - lengths)[:, None]
        u = torch.take_along_dim(u, index.clamp_min(0)[..., None], 1).masked_fill((index < 0)[..., None], 0.0)
    found = torch.zeros_like(h)
    piece = max(1, ELEMENTS // log_a.numel())
    for begin in range(0, length, piece):
        part = u[:, begin : begin + piece]
        matrix = powers(log_a, part.shape[1]).flip(-1)
        found = torch.exp(log_a * part.shape[1]) * found + torch.einsum("bld,dnl->bdn", part.to(matrix.dtype), matrix)
    return torch.exp(log_a * steps[:, None, None]) * h + b * found
