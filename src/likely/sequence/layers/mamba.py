"""Mamba: a diagonal recurrence per channel whose step, input and read depend on the token."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from likely.sequence.layers.mamba2 import inverse_softplus_of_steps
from likely.sequence.mixer import MixerRows
from likely.sequence.ops.conv import causal_conv1d
from likely.sequence.ops.scan import selective_scan
from likely.sequence.recurrent import RecurrentMixer, Streams, wide


class Mamba(RecurrentMixer):
    """y = (C_tᵀ h_t + D u) · silu(z), h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t; parameters as in transformers' Mamba.

    d_state N, expand: inner width E over d_model, d_conv K, rank R of Δ's projection (default ⌈d_model/16⌉)
    segment  tokens whose (E, N) states are held at once in training

    State: h (B, E, N), and the convolution's last K−1 inputs.  Gu and Dao 2023 (arXiv:2312.00752).
    """

    def __init__(
        self, d_model: int, *, d_state: int = 16, expand: int = 2, d_conv: int = 4, rank: int | None = None,
        dt_min: float = 1e-3, dt_max: float = 0.1, bias: bool = False, conv_bias: bool = True, segment: int = 256,
    ):  # fmt: skip
        super().__init__(d_model)
        self.width, self.d_state, self.segment = expand * d_model, d_state, segment
        self.rank = rank or math.ceil(d_model / 16)
        self.halo = d_conv - 1
        self.in_proj = nn.Linear(d_model, 2 * self.width, bias=bias)
        self.conv1d = nn.Conv1d(self.width, self.width, d_conv, groups=self.width, bias=conv_bias)
        self.x_proj = nn.Linear(self.width, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.width)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus_of_steps(self.width, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.width, 1))
        self.D = nn.Parameter(torch.ones(self.width))
        self.out_proj = nn.Linear(self.width, d_model, bias=bias)

    def recurrent_spec(self) -> tuple[tuple[int, ...], torch.dtype]:
        return (self.width, self.d_state), self.state_dtype

    def windows(self) -> dict[str, int]:
        return {"conv": self.width}

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        u, z = self.in_proj(x).chunk(2, -1)
        u, window = causal_conv1d(
            u, self.conv1d.weight[:, 0], self.conv1d.bias, windows["conv"], lengths=rows.lengths, starts=rows.starts
        )
        u = silu(u)
        low, B, C = self.x_proj(u).split([self.rank, self.d_state, self.d_state], -1)
        dt = softplus(wide(linear(low, self.dt_proj.weight)) + wide(self.dt_proj.bias))
        padding = rows.padding(x)
        dt = dt if padding is None else dt.masked_fill(padding[..., None], 0.0)
        return {"u": u, "z": z, "B": B, "C": C, "dt": dt}, {"conv": window}

    def recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        u, A = streams["u"], -wide(self.A_log).exp()
        y, h = selective_scan(
            u, streams["dt"], A, streams["B"], streams["C"], h0=h, starts=rows.starts, segment=self.segment
        )
        return y + wide(self.D) * u, h

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        return self.out_proj((y * silu(wide(streams["z"]))).to(self.out_proj.weight.dtype))

    def transition(self, streams: Streams, rows: MixerRows) -> Tensor:
        T = torch.exp(streams["dt"].sum(1)[..., None] * -wide(self.A_log).exp())
        return T if rows.starts is None else T.masked_fill(rows.starts.any(1)[:, None, None], 0.0)
