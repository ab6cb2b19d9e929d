"""Diagonal recurrences that all channels share: every channel writes to every state and reads from every state."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from likely.sequence.hippo import nplr
from likely.sequence.layers.diagonal import log_uniform
from likely.sequence.mixer import MixerRows
from likely.sequence.ops.scan import linear_scan
from likely.sequence.recurrent import RecurrentMixer, Streams, wide


class SharedDiagonalMixer(RecurrentMixer):
    """h_t = λ ⊙ h_{t−1} + B u_t, y = Re(C h) + D ⊙ u with complex λ (N,), B (N, D), C (D, N): subclasses say which."""

    d_state: int

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """log λ (N,), B (N, D), C (D, N), complex."""
        raise TypeError(f"{type(self).__name__} must say what its coefficients are")

    def recurrent_spec(self) -> tuple[tuple[int, ...], torch.dtype]:
        return (self.d_state,), self.state_dtype.to_complex()

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        return {"u": x}, {}

    def recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        u = streams["u"]
        log_a, B, C = self.coefficients()
        a = log_a.exp().expand(1, u.shape[1], -1)
        padding = rows.padding(u)
        if padding is not None:
            a = torch.where(padding[..., None], 1.0, a)
        if rows.starts is not None:
            a = torch.where(rows.starts[..., None], 0.0, a)
        states, h = linear_scan(a, u.to(B.dtype) @ B.T, h)
        return (states @ C.T).real + wide(self.D) * u, h

    def transition(self, streams: Streams, rows: MixerRows) -> Tensor:
        u, log_a = streams["u"], self.coefficients()[0]
        steps = torch.full((len(u),), u.shape[1], device=u.device) if rows.lengths is None else rows.lengths
        T = torch.exp(log_a * steps[:, None])
        return T if rows.starts is None else T.masked_fill(rows.starts.any(1)[:, None], 0.0)

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        y = gelu(y.to(self.D.dtype))
        return y * torch.sigmoid(self.gate(y))


class LRU(SharedDiagonalMixer):
    """Linear recurrent unit: λ = exp(−e^ν + i e^θ), inputs scaled by γ = √(1 − |λ|²); then y·σ(W y) of gelu(y).

    d_state N;  r_min, r_max: |λ| starts between them;  max_phase: its angle between 0 and this

    State: h (B, N), complex.  Orvieto et al. 2023 (arXiv:2303.06349).
    """

    def __init__(
        self, d_model: int, *, d_state: int = 64, r_min: float = 0.9, r_max: float = 0.999, max_phase: float = 6.28
    ):
        super().__init__(d_model)
        if not 0 <= r_min < r_max < 1:
            raise ValueError(f"r_min and r_max must hold 0 <= r_min < r_max < 1, got {r_min} and {r_max}")
        self.d_state = d_state
        squared = torch.rand(d_state) * (r_max**2 - r_min**2) + r_min**2
        self.nu_log = nn.Parameter((-0.5 * squared.log()).log())
        self.theta_log = nn.Parameter((max_phase * torch.rand(d_state)).clamp_min(1e-6).log())
        self.B = nn.Parameter(torch.randn(d_state, d_model, 2) * (2 * d_model) ** -0.5)
        self.C = nn.Parameter(torch.randn(d_model, d_state, 2) * d_state**-0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.gate = nn.Linear(d_model, d_model)

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        decay = wide(self.nu_log).exp()
        scale = torch.sqrt(-torch.expm1(-2 * decay))
        log_a = torch.complex(-decay, wide(self.theta_log).exp())
        return log_a, scale[:, None] * torch.view_as_complex(wide(self.B)), torch.view_as_complex(wide(self.C))


class S5(SharedDiagonalMixer):
    """One state space for all channels, zero-order hold, 2·Re of half the conjugate pairs; then y·σ(W y) of gelu(y).

    d_state N, even;  blocks: HiPPO matrices on the diagonal that the state matrix starts from

    State: h (B, N/2), complex.  Smith et al. 2022 (arXiv:2208.04933).
    """

    def __init__(self, d_model: int, *, d_state: int = 64, blocks: int = 1, dt_min: float = 1e-3, dt_max: float = 0.1):
        super().__init__(d_model)
        if blocks < 1 or d_state % (2 * blocks):
            raise ValueError(f"d_state must be a multiple of 2 · blocks = {2 * blocks}, got {d_state}")
        self.d_state = d_state // 2
        size = d_state // blocks
        start = nplr("legs", size)
        half = torch.block_diag(*[torch.from_numpy(start.basis)] * blocks)
        self.A_log = nn.Parameter(torch.full((self.d_state,), math.log(0.5)))
        self.A_imag = nn.Parameter(torch.from_numpy(start.eigenvalues.imag).float().repeat(blocks))
        self.log_dt = nn.Parameter(log_uniform(self.d_state, dt_min, dt_max))
        B0 = torch.randn(d_state, d_model, dtype=torch.float64) * d_model**-0.5
        C0 = torch.randn(d_model, d_state, dtype=torch.float64) * d_state**-0.5
        self.B = nn.Parameter(torch.view_as_real(half.mH @ B0.to(half.dtype)).float())
        self.C = nn.Parameter(torch.view_as_real(C0.to(half.dtype) @ half).float())
        self.D = nn.Parameter(torch.randn(d_model))
        self.gate = nn.Linear(d_model, d_model)

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        A = torch.complex(-wide(self.A_log).exp(), wide(self.A_imag))
        log_a = wide(self.log_dt).exp() * A
        hold = (torch.exp(log_a) - 1) / A
        return log_a, hold[:, None] * torch.view_as_complex(wide(self.B)), 2 * torch.view_as_complex(wide(self.C))
