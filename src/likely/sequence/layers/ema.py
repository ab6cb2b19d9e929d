"""The moving average with damping of Mega and SeqBoat: a real diagonal recurrence with a few numbers per channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from likely.sequence.layers.diagonal import DiagonalMixer
from likely.sequence.mixer import MixerRows
from likely.sequence.recurrent import Streams, wide


class EMA(DiagonalMixer):
    """h_t = Q ⊙ h_{t−1} + P ⊙ β x_t, y = Σ_n γ_n h_n / √n + ω x, P = σ(δ), Q = 1 − σ(δ)σ(α), per channel.

    d_state  n numbers per channel;  activation: silu(y), as the layers built on it take it;  False: y

    State: h (B, D, n), real.  Ma et al. 2022 (Mega, arXiv:2209.10655), eqs. 2 and 3.
    """

    complex_state = False

    def __init__(self, d_model: int, *, d_state: int = 16, activation: bool = True):
        super().__init__(d_model)
        self.channels, self.d_state, self.activation = d_model, d_state, activation
        shape = d_model, d_state
        self.delta, self.alpha = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.2, a=-0.4, b=0.4)) for _ in range(2)
        )
        signs = torch.ones(d_state)
        signs[1::2] = -1.0
        self.beta = nn.Parameter(signs + 0.02 * torch.randn(shape))
        self.gamma = nn.Parameter(torch.randn(shape))
        self.omega = nn.Parameter(torch.randn(d_model))

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        P = torch.sigmoid(wide(self.delta))
        log_q = torch.log1p(-P * torch.sigmoid(wide(self.alpha)))
        return log_q, P * wide(self.beta), wide(self.gamma) * self.d_state**-0.5

    def direct(self) -> Tensor:
        return self.omega

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        return {"u": x}, {}

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        y = y.to(self.omega.dtype)
        return silu(y) if self.activation else y
