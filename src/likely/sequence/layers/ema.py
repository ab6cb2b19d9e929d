"""Damped moving averages, several for each channel.  Mega, Ma et al. 2022, arXiv:2209.10655, section 3.1."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from likely.sequence.layers.diagonal import DiagonalMixer
from likely.sequence.mixer import MixerRows, MixerState
from likely.sequence.ops.conv import fft_conv, vandermonde
from likely.sequence.recurrent import Streams, wide


class EMA(DiagonalMixer):
    """h_t = Q h_{t−1} + P β u_t, y_t = Σ_n γ_n h_n/√N + ω u_t, with P = σ(δ) and Q = 1 − σ(δ)σ(α), per channel.

    d_state        N averages of each channel
    bidirectional  averages of the future too, from lag 1 on; there is no state then
    """

    complex_state = False

    def __init__(self, d_model: int, *, d_state: int = 16, bidirectional: bool = False):
        super().__init__(d_model)
        if d_state < 1:
            raise ValueError(f"d_state must be at least 1, got {d_state}")
        self.channels, self.d_state, self.causal = d_model, d_state, not bidirectional
        shape = (2 if bidirectional else 1, d_model, d_state)
        signs = 1.0 - 2.0 * (torch.arange(d_state) % 2)
        self.delta = nn.Parameter(_normal(shape, 0.2))
        self.alpha = nn.Parameter(_normal(shape, 0.2))
        self.beta = nn.Parameter(_normal(shape, 0.02) + signs)
        self.gamma = nn.Parameter(_normal(shape, 1.0))
        self.omega = nn.Parameter(_normal((d_model,), 1.0))

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """log Q, P β and γ/√N (D, N) of the averages of the past."""
        log_q, b, c = self._both()
        return log_q[0], b[0], c[0]

    def _both(self) -> tuple[Tensor, Tensor, Tensor]:
        p = wide(self.delta).sigmoid()
        log_q = torch.log1p(-p * wide(self.alpha).sigmoid())
        return log_q, p * wide(self.beta), wide(self.gamma) / self.d_state**0.5

    def direct(self) -> Tensor:
        return self.omega

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        return {"u": x}, {}

    def recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        if self.causal:
            return super().recur(streams, h, rows)
        u = streams["u"]
        log_q, b, c = self._both()
        past, future = (vandermonde(b[i] * c[i], log_q[i], u.shape[1]) for i in range(2))
        later = F.pad(future[:, 1:], (1, 0))  # lags of at least 1: the present is counted once
        return fft_conv(u, past, wide(self.omega)) + fft_conv(u.flip(1), later).flip(1), h

    def mix(self, x: Tensor, state: MixerState, rows: MixerRows) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        if not self.causal and rows.state_wanted:
            raise ValueError("return_state: a bidirectional EMA has no state")
        return super().mix(x, state, rows)

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        return y.to(self.omega.dtype)


def _normal(shape: tuple[int, ...], deviation: float) -> Tensor:
    """Normal, cut off at two standard deviations."""
    return nn.init.trunc_normal_(torch.empty(shape), std=deviation, a=-2 * deviation, b=2 * deviation)
