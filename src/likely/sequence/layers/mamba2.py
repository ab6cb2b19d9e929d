"""Mamba-2: one selective scalar decay per head, in chunks of matrix products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from likely.sequence.mixer import MixerRows
from likely.sequence.ops.chunked import ssd
from likely.sequence.ops.conv import causal_conv1d
from likely.sequence.recurrent import GroupRMSNorm, RecurrentMixer, Streams, wide


def inverse_softplus_of_steps(count: int, smallest: float, largest: float, floor: float = 1e-4) -> Tensor:
    """Biases whose softplus is log-uniform in [smallest, largest]: how time steps Δ start."""
    steps = torch.exp(torch.rand(count) * math.log(largest / smallest) + math.log(smallest)).clamp_min(floor)
    return steps + torch.log(-torch.expm1(-steps))


class Mamba2(RecurrentMixer):
    """y = norm(SSD(conv([x; B; C]), Δ) · silu(z)); parameters have the names of transformers' Mamba-2.

    d_state N, groups G, d_conv K;  chunk: tokens that the kernel takes at once
    head_dim   P, by default 64 or the largest power of two below that divides expand · d_model
    heads      by default expand · d_model / head_dim
    dt_limit   Δ is clamped to it, in training and generation
    norm       "gate_first": norm(y·silu(z)), Mamba-2;  "norm_first": norm(y)·silu(z), "none": y·silu(z), Falcon-H1
    scales     factors on the z, x, B, C, Δ slices of the projection, and `in_scale` on its input (Falcon-H1)

    State: h (B, H, P, N), and the convolution's last K−1 inputs.  Dao and Gu 2024 (arXiv:2405.21060).
    """

    def __init__(
        self, d_model: int, *, d_state: int = 64, head_dim: int | None = None, expand: int = 2,
        heads: int | None = None, groups: int = 1, d_conv: int = 4, chunk: int = 64, dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_limit: tuple[float, float] = (0.0, math.inf), bias: bool = False, conv_bias: bool = True,
        norm: Literal["gate_first", "norm_first", "none"] = "gate_first", eps: float = 1e-5,
        scales: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0), in_scale: float = 1.0,
    ):  # fmt: skip
        super().__init__(d_model)
        head_dim = head_dim or math.gcd(64, expand * d_model)
        if heads is None and expand * d_model % head_dim:
            raise ValueError(f"head_dim must divide expand · d_model = {expand * d_model}, got {head_dim}")
        self.heads = expand * d_model // head_dim if heads is None else heads
        if self.heads % groups:
            raise ValueError(f"groups must divide the {self.heads} heads, got {groups}")
        self.d_state, self.head_dim, self.groups, self.chunk = d_state, head_dim, groups, chunk
        self.dt_limit, self.in_scale, self.halo = dt_limit, in_scale, d_conv - 1
        self.width = self.heads * head_dim
        self.sizes = (self.width, self.width, groups * d_state, groups * d_state, self.heads)
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=bias)
        channels = sum(self.sizes[1:4])
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, bias=conv_bias)
        self.dt_bias = nn.Parameter(inverse_softplus_of_steps(self.heads, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        gate_first = norm == "gate_first"
        self.norm = None if norm == "none" else GroupRMSNorm(self.width, groups=groups, eps=eps, gate_first=gate_first)
        self.out_proj = nn.Linear(self.width, d_model, bias=bias)
        factors = [torch.full((size,), float(scale)) for size, scale in zip(self.sizes, scales, strict=True)]
        self.register_buffer("scales", None if set(scales) == {1.0} else torch.cat(factors), persistent=False)

    def recurrent_spec(self) -> tuple[tuple[int, ...], torch.dtype]:
        return (self.heads, self.head_dim, self.d_state), self.state_dtype

    def windows(self) -> dict[str, int]:
        return {"conv": sum(self.sizes[1:4])}

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        projected = self.in_proj(x if self.in_scale == 1.0 else x * self.in_scale)
        projected = projected if self.scales is None else projected * self.scales
        z, xbc, dt = projected.split([self.sizes[0], sum(self.sizes[1:4]), self.heads], -1)
        xbc, window = causal_conv1d(
            xbc, self.conv1d.weight[:, 0], self.conv1d.bias, windows["conv"], lengths=rows.lengths, starts=rows.starts
        )
        u, B, C = silu(xbc).split(self.sizes[1:4], -1)
        dt = softplus(wide(dt) + wide(self.dt_bias)).clamp(*self.dt_limit)
        padding = rows.padding(x)
        dt = dt if padding is None else dt.masked_fill(padding[..., None], 0.0)
        return {"z": z, "u": u, "B": B, "C": C, "dt": dt}, {"conv": window}

    def recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        u = streams["u"].unflatten(-1, (self.heads, self.head_dim))
        B, C = (streams[name].unflatten(-1, (self.groups, self.d_state)) for name in ("B", "C"))
        y, h = ssd(u * streams["dt"][..., None], self._log_decay(streams, rows), B, C, h0=h, chunk=self.chunk)
        return (y + wide(self.D)[:, None] * u).flatten(2), h

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        y = y * silu(wide(streams["z"])) if self.norm is None else self.norm(y, streams["z"])
        return self.out_proj(y.to(self.out_proj.weight.dtype))

    def transition(self, streams: Streams, rows: MixerRows) -> Tensor:
        return self._log_decay(streams, rows).sum(1).exp()[..., None, None]

    def _log_decay(self, streams: Streams, rows: MixerRows) -> Tensor:
        log_a = -streams["dt"] * wide(self.A_log).exp()
        return log_a if rows.starts is None else log_a.masked_fill(rows.starts[..., None], -torch.inf)
