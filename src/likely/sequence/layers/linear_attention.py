"""Attention without softmax, whose memory is a matrix per head: plain, and with fixed or learned decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, logsigmoid

from likely.errors import check_choice
from likely.sequence.mixer import MixerRows
from likely.sequence.ops import chunked
from likely.sequence.recurrent import GroupRMSNorm, RecurrentMixer, Streams, wide


class LinearAttention(RecurrentMixer):
    """y = φ(q)·Σ φ(k) vᵀ, divided by φ(q)·Σ φ(k) where φ(x) = elu(x) + 1; with φ = "none", a norm per head instead.

    heads; key_dim, value_dim: of a head (default d_model // heads);  gate: norm(y)·silu(W x) with φ = "none"

    State: h (B, H, K, V), one column more with the normaliser.  Katharopoulos et al. 2020 (arXiv:2006.16236).
    """

    def __init__(
        self, d_model: int, *, heads: int = 4, key_dim: int | None = None, value_dim: int | None = None,
        feature: Literal["elu", "none"] = "elu", gate: bool = False, chunk: int = 64,
    ):  # fmt: skip
        super().__init__(d_model)
        check_choice("feature", feature, ("elu", "none"))
        self.heads, self.feature, self.chunk = heads, feature, chunk
        self.key_dim, self.value_dim = key_dim or d_model // heads, value_dim or d_model // heads
        if min(heads, self.key_dim, self.value_dim) < 1:
            raise ValueError(f"heads must be from 1 to d_model = {d_model}, got {heads}")
        self.q_proj = nn.Linear(d_model, heads * self.key_dim, bias=False)
        self.k_proj = nn.Linear(d_model, heads * self.key_dim, bias=False)
        self.v_proj = nn.Linear(d_model, heads * self.value_dim, bias=False)
        self.g_proj = nn.Linear(d_model, heads * self.value_dim, bias=False) if gate else None
        self.norm = None if feature == "elu" else GroupRMSNorm(heads * self.value_dim, groups=heads, gate_first=False)
        self.o_proj = nn.Linear(heads * self.value_dim, d_model, bias=False)

    def recurrent_spec(self) -> tuple[tuple[int, ...], torch.dtype]:
        return (self.heads, self.key_dim, self.value_dim + (self.feature == "elu")), self.state_dtype

    def log_decay(self, x: Tensor) -> Tensor | None:
        """(B, L, H), or (B, L, H, K) for a decay per key dimension; None without decay."""
        return None

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        q, k = (p(x).unflatten(-1, (self.heads, self.key_dim)) for p in (self.q_proj, self.k_proj))
        v = self.v_proj(x).unflatten(-1, (self.heads, self.value_dim))
        if self.feature == "elu":
            q, k = elu(q) + 1, elu(k) + 1
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        else:
            q = q * self.key_dim**-0.5
        streams = {"q": q, "k": k, "v": v}
        decay = self.log_decay(x)
        padding = rows.padding(x)
        if padding is not None:
            streams["k"] = k.masked_fill(padding[..., None, None], 0.0)
            decay = None if decay is None else decay.masked_fill(padding[(..., *(None,) * (decay.ndim - 2))], 0.0)
        if decay is None and rows.starts is not None:
            decay = wide(q).new_zeros(q.shape[:3])
        if decay is not None:
            streams["decay"] = decay
        if self.g_proj is not None:
            streams["gate"] = self.g_proj(x)
        return streams, {}

    def recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        y, h = chunked.linear_attention(
            streams["q"], streams["k"], streams["v"], log_decay=self._decay(streams, rows), h0=h, chunk=self.chunk
        )
        if self.feature == "elu":
            y = y[..., :-1] / y[..., -1:].clamp_min(1e-12)
        return y.flatten(2), h

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        y = y if self.norm is None else self.norm(y, streams.get("gate"))
        return self.o_proj(y.to(self.o_proj.weight.dtype))

    def transition(self, streams: Streams, rows: MixerRows) -> Tensor:
        decay = self._decay(streams, rows)
        if decay is None:
            return streams["q"].new_ones(len(streams["q"]), self.heads, 1, 1)
        total = decay.sum(1).exp()
        return total[..., None, None] if total.ndim == 2 else total[..., None]

    def _decay(self, streams: Streams, rows: MixerRows) -> Tensor | None:
        decay = streams.get("decay")
        if decay is None or rows.starts is None:
            return decay
        return decay.masked_fill(rows.starts[(..., *(None,) * (decay.ndim - 2))], -torch.inf)


class RetNet(LinearAttention):
    """Linear attention with a fixed decay 1 − 2^{−5−h} for head h, a norm per head and an output gate.

    Sun et al. 2023 (arXiv:2307.08621), without its rotary positions.
    """

    def __init__(
        self, d_model: int, *, heads: int = 4, key_dim: int | None = None, value_dim: int | None = None, chunk: int = 64
    ):
        super().__init__(
            d_model, heads=heads, key_dim=key_dim, value_dim=value_dim, feature="none", gate=True, chunk=chunk
        )

    def log_decay(self, x: Tensor) -> Tensor:
        head = torch.arange(self.heads, dtype=wide(x).dtype, device=x.device)
        return torch.log1p(-(2.0 ** (-5 - head))).expand(*x.shape[:2], -1)


class GatedLinearAttention(LinearAttention):
    """Linear attention with a learned decay per key dimension, σ(W₂W₁x)^{1/16}, a norm per head and an output gate.

    rank  of the decay's projection.  Yang et al. 2023 (arXiv:2312.06635).
    """

    def __init__(
        self, d_model: int, *, heads: int = 4, key_dim: int | None = None, value_dim: int | None = None, rank: int = 16
    ):
        super().__init__(d_model, heads=heads, key_dim=key_dim, value_dim=value_dim, feature="none", gate=True)
        self.decay_in = nn.Linear(d_model, rank, bias=False)
        self.decay_out = nn.Linear(rank, heads * self.key_dim)

    def log_decay(self, x: Tensor) -> Tensor:
        return logsigmoid(wide(self.decay_out(self.decay_in(x)))).unflatten(-1, (self.heads, self.key_dim)) / 16
