"""Hyena: long convolutions between gates, with a network of the lag as filter.  It keeps its history as its state."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from likely.sequence.mixer import MixerRows, MixerState, SequenceMixer, StateKind
from likely.sequence.ops.conv import causal_conv1d, fft_conv
from likely.sequence.recurrent import wide

FEW = 8  # new tokens up to which sums over the past are cheaper than transforms


class HyenaFilter(nn.Module):
    """h_j of each channel: three sine layers over features of the lag j, times exp(−α j), plus a bias at lag 0.

    l_max  scales time: lag j enters as j / l_max; longer lags are allowed
    """

    def __init__(self, d_model: int, *, width: int, features: int, l_max: int):
        super().__init__()
        self.features, self.l_max = features, l_max
        sizes = (1 + 2 * features, width, width)
        self.layers = nn.ModuleList(nn.Linear(n, width) for n in sizes)
        self.out = nn.Linear(width, d_model, bias=False)
        fastest, slowest = math.log(100.0) / 0.3, math.log(100.0) / 1.5
        self.decay = nn.Parameter(torch.linspace(slowest, fastest, d_model))
        self.bias = nn.Parameter(torch.randn(d_model))

    def forward(self, length: int) -> Tensor:
        """(D, length)."""
        weight = self.out.weight
        t = torch.arange(length, dtype=wide(weight).dtype, device=weight.device)[:, None] / self.l_max
        angle = 2 * math.pi * t * torch.arange(1, self.features + 1, dtype=t.dtype, device=t.device)
        x = torch.cat([t, angle.sin(), angle.cos()], 1).to(weight.dtype)
        for layer in self.layers:
            x = torch.sin(layer(x))
        kernel = wide(self.out(x)) * torch.exp(-wide(self.decay).abs() * t)
        return kernel.T + torch.nn.functional.pad(wide(self.bias)[:, None], (0, length - 1))


class Hyena(SequenceMixer):
    """y = W_o(x₂ ⊙ (h₂ ∗ (x₁ ⊙ (h₁ ∗ v)))), order 2, with a short convolution of width 3 over v, x₁, x₂.

    l_max, filter_width, features of the filters (`HyenaFilter`)

    State: all inputs of the two long convolutions, (B, T, D) each, and the short one's window: a step costs O(T).
    Poli et al. 2023 (arXiv:2302.10866).
    """

    state_kind: ClassVar[StateKind] = "history"

    def __init__(self, d_model: int, *, l_max: int = 1024, filter_width: int = 64, features: int = 16):
        super().__init__(d_model)
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.short = nn.Conv1d(3 * d_model, 3 * d_model, 3, groups=3 * d_model)
        self.filters = nn.ModuleList(
            HyenaFilter(d_model, width=filter_width, features=features, l_max=l_max) for _ in range(2)
        )
        self.out_proj = nn.Linear(d_model, d_model)

    def state_spec(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        dtype = self.out_proj.weight.dtype
        history = (length, self.d_model), dtype
        return {
            "first": history,
            "second": history,
            "short": ((2, 3 * self.d_model), dtype),
            "length": ((), torch.int64),
        }

    def mix(self, x: Tensor, state: MixerState, rows: MixerRows) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        projected, window = causal_conv1d(
            self.in_proj(x), self.short.weight[:, 0], self.short.bias, state["short"], lengths=rows.lengths
        )
        v, x1, x2 = projected.chunk(3, -1)
        padding = rows.padding(x)
        lengths = state["length"] + (x.shape[1] if rows.lengths is None else rows.lengths)
        histories = {}
        for name, filter_, gate in (("first", self.filters[0], x1), ("second", self.filters[1], x2)):
            v = v if padding is None else v.masked_fill(padding[..., None], 0.0)
            y, histories[name] = _continued(state[name], v, filter_, state["length"], lengths)
            v = gate * y
        return self.out_proj(v), MixerState({**histories, "short": window, "length": lengths}), {}


def _continued(
    history: Tensor, new: Tensor, filter_: nn.Module, before: Tensor, after: Tensor
) -> tuple[Tensor, Tensor]:
    """The convolution's outputs at the new tokens (B, L, D), and the history with them; rows may differ in length."""
    count, device = new.shape[1], new.device
    place = before[:, None] + torch.arange(count, device=device)
    grown = torch.cat([history.to(new.dtype), torch.zeros_like(new)], 1)
    whole = grown.scatter(1, place[..., None].expand_as(new), new)
    kernel = filter_(whole.shape[1])
    if count <= FEW and history.shape[1]:
        lags = place[..., None] - torch.arange(whole.shape[1], device=device)  # (B, L, T)
        taps = kernel.T[lags.clamp_min(0)].masked_fill((lags < 0)[..., None], 0.0)
        y = torch.einsum("bltd,btd->bld", taps, wide(whole)).to(new.dtype)
    else:
        y = torch.take_along_dim(fft_conv(whole, kernel), place[..., None], 1)
    return y, whole[:, : int(after.max())]
