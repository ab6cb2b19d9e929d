"""The delta rule: a matrix memory that overwrites what a key recalls, with a forgetting gate or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from likely.sequence.layers.mamba2 import inverse_softplus_of_steps
from likely.sequence.mixer import MixerRows
from likely.sequence.ops.chunked import linear_attention
from likely.sequence.ops.conv import causal_conv1d
from likely.sequence.recurrent import GroupRMSNorm, RecurrentMixer, Streams, wide


class DeltaNet(RecurrentMixer):
    """S_t = (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ, y = norm(Sᵀq), with k and q of unit length, β = σ(W x).

    heads of queries and keys, value_heads (a multiple of them);  key_dim, value_dim: of a head
    d_conv   width of the short convolution over q, k and v
    beta_max 2 lets β reach beyond 1: transitions with negative eigenvalues, which track parity

    State: h (B, value_heads, K, V), and the convolution's window.  Yang et al. 2024 (arXiv:2406.06484).
    """

    def __init__(
        self, d_model: int, *, heads: int = 4, value_heads: int | None = None, key_dim: int | None = None,
        value_dim: int | None = None, d_conv: int = 4, chunk: int = 64, beta_max: Literal[1, 2] = 1,
        eps: float = 1e-6,
    ):  # fmt: skip
        super().__init__(d_model)
        self.heads, self.value_heads = heads, value_heads or heads
        if heads < 1 or self.value_heads % heads:
            raise ValueError(f"heads must divide value_heads = {self.value_heads}, got {heads}")
        self.key_dim, self.value_dim = key_dim or d_model // heads, value_dim or d_model // self.value_heads
        if min(self.key_dim, self.value_dim) < 1:
            raise ValueError(f"heads must be at most d_model = {d_model}, got {max(heads, self.value_heads)}")
        self.chunk, self.beta_max, self.halo = chunk, beta_max, d_conv - 1
        self.sizes = (heads * self.key_dim, heads * self.key_dim, self.value_heads * self.value_dim)
        channels = sum(self.sizes)
        self.qkv_proj = nn.Linear(d_model, channels, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, bias=False)
        self.beta_proj = nn.Linear(d_model, self.value_heads, bias=False)
        self.norm = GroupRMSNorm(self.sizes[2], groups=self.value_heads, eps=eps, gate_first=False)
        self.o_proj = nn.Linear(self.sizes[2], d_model, bias=False)

    def recurrent_spec(self) -> tuple[tuple[int, ...], torch.dtype]:
        return (self.value_heads, self.key_dim, self.value_dim), self.state_dtype

    def windows(self) -> dict[str, int]:
        return {"conv": sum(self.sizes)}

    def log_decay(self, x: Tensor) -> Tensor:
        """(B, L, value_heads), ≤ 0."""
        return wide(x).new_zeros(*x.shape[:2], self.value_heads)

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        mixed, window = causal_conv1d(
            self.qkv_proj(x), self.conv1d.weight[:, 0], None, windows["conv"], lengths=rows.lengths, starts=rows.starts
        )
        q, k, v = silu(mixed).split(self.sizes, -1)
        beta = self.beta_max * torch.sigmoid(wide(self.beta_proj(x)))
        decay = self.log_decay(x)
        padding = rows.padding(x)
        if padding is not None:
            beta, decay = (t.masked_fill(padding[..., None], 0.0) for t in (beta, decay))
        return {"q": q, "k": k, "v": v, "beta": beta, "decay": decay}, {"conv": window}

    def recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        q, k, v, decay = self._kernel_inputs(streams, rows)
        y, h = linear_attention(q, k, v, log_decay=decay, beta=streams["beta"], h0=h, chunk=self.chunk)
        return y.flatten(2), h

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        return self.o_proj(self.norm(y, streams.get("gate")).to(self.o_proj.weight.dtype))

    def transition(self, streams: Streams, rows: MixerRows) -> Tensor:
        """(B, value_heads, K, K): what becomes of the unit matrix when nothing is written."""
        q, k, _, decay = self._kernel_inputs(streams, rows)
        unit = torch.eye(self.key_dim, dtype=k.dtype, device=k.device).expand(len(k), self.value_heads, -1, -1)
        return linear_attention(
            q, k, torch.zeros_like(k), log_decay=decay, beta=streams["beta"], h0=unit, chunk=self.chunk
        )[1]  # fmt: skip

    def fold(self, transition: Tensor, state: Tensor, before: Tensor) -> Tensor:
        return transition @ before + state

    def _kernel_inputs(self, streams: Streams, rows: MixerRows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k = (streams[name].unflatten(-1, (self.heads, self.key_dim)) for name in ("q", "k"))
        q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
        shared = self.value_heads // self.heads
        q, k = (t.repeat_interleave(shared, 2) for t in (q * self.key_dim**-0.5, k))
        v = streams["v"].unflatten(-1, (self.value_heads, self.value_dim))
        decay = streams["decay"]
        return q, k, v, decay if rows.starts is None else decay.masked_fill(rows.starts[..., None], -torch.inf)


class GatedDeltaNet(DeltaNet):
    """The delta rule on a memory that decays, exp(−softplus(W x + b)·A) per head, and norm(y)·silu(z) at the output.

    Settings as `DeltaNet`'s.  Yang et al. 2024 (arXiv:2412.06464); Qwen3-Next shares the norm's weight by heads.
    """

    def __init__(
        self, d_model: int, *, heads: int = 4, value_heads: int | None = None, key_dim: int | None = None,
        value_dim: int | None = None, d_conv: int = 4, chunk: int = 64, beta_max: Literal[1, 2] = 1,
        eps: float = 1e-6,
    ):  # fmt: skip
        super().__init__(
            d_model, heads=heads, value_heads=value_heads, key_dim=key_dim, value_dim=value_dim, d_conv=d_conv,
            chunk=chunk, beta_max=beta_max, eps=eps,
        )  # fmt: skip
        self.decay_proj = nn.Linear(d_model, self.value_heads, bias=False)
        self.gate_proj = nn.Linear(d_model, self.sizes[2], bias=False)
        self.dt_bias = nn.Parameter(inverse_softplus_of_steps(self.value_heads, 1e-3, 0.1))
        self.A_log = nn.Parameter(torch.empty(self.value_heads).uniform_(1, 16).log())

    def log_decay(self, x: Tensor) -> Tensor:
        return -wide(self.A_log).exp() * softplus(wide(self.decay_proj(x)) + wide(self.dt_bias))

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        streams, after = super().project(x, windows, rows)
        return streams | {"gate": self.gate_proj(x)}, after
