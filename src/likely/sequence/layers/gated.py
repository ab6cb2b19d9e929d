"""Layers that multiply the output of a time-invariant state space by a function of the token: GSS and H3."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from likely.sequence.layers.diagonal import DSS, S4D, DiagonalMixer
from likely.sequence.mixer import MixerRows
from likely.sequence.ops.conv import causal_conv1d
from likely.sequence.recurrent import Streams


class _AroundStateSpace(DiagonalMixer):
    """A diagonal state space in the middle; the subclass makes its input and uses its output."""

    ssm: DiagonalMixer

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.ssm.coefficients()

    def direct(self) -> Tensor | None:
        return self.ssm.direct()


class GSS(_AroundStateSpace):
    """o = W₄((W₃ DSS(gelu(W₁x))) ⊙ gelu(W₂x)): the state space runs on a quarter of the width.

    d_state of the DSS in the middle;  width: its channels (default d_model / 4);  gate_width: default 4 · d_model
    l_max    length that the DSS is normalised for

    State: h (B, width, N), complex.  Mehta et al. 2022 (arXiv:2206.13947).
    """

    def __init__(
        self, d_model: int, *, d_state: int = 64, width: int | None = None, gate_width: int | None = None,
        l_max: int = 1024,
    ):  # fmt: skip
        super().__init__(d_model)
        width, gate_width = width or max(1, d_model // 4), gate_width or 4 * d_model
        self.ssm = DSS(width, d_state=d_state, l_max=l_max, mix_channels=False)
        self.channels, self.d_state = width, self.ssm.d_state
        self.in_proj = nn.Linear(d_model, width)
        self.gate_proj = nn.Linear(d_model, gate_width)
        self.up_proj = nn.Linear(width, gate_width)
        self.out_proj = nn.Linear(gate_width, d_model)

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        u, gate, padding = gelu(self.in_proj(x)), gelu(self.gate_proj(x)), rows.padding(x)
        return {"u": u if padding is None else u.masked_fill(padding[..., None], 0.0), "gate": gate}, {}

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        return self.out_proj(self.up_proj(y.to(self.up_proj.weight.dtype)) * streams["gate"])


class H3(_AroundStateSpace):
    """y = W_o(q ⊙ S4D(shift(k) ⊙ v)): a learned short filter over keys, then a diagonal state space.

    d_state of the S4D;  shift: taps of the filter

    State: h (B, D, N/2), complex, and the filter's window.  Fu et al. 2022 (arXiv:2212.14052).
    """

    def __init__(self, d_model: int, *, d_state: int = 64, shift: int = 4):
        super().__init__(d_model)
        self.ssm = S4D(d_model, d_state=d_state, mix_channels=False)
        self.channels, self.d_state, self.halo = d_model, self.ssm.d_state, shift - 1
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.shift = nn.Parameter(torch.randn(d_model, shift) * shift**-0.5)
        self.out_proj = nn.Linear(d_model, d_model)

    def windows(self) -> dict[str, int]:
        return {"shift": self.channels}

    def project(self, x: Tensor, windows: Mapping[str, Tensor], rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        q, k, v = self.qkv_proj(x).chunk(3, -1)
        k, window = causal_conv1d(k, self.shift, None, windows["shift"], lengths=rows.lengths, starts=rows.starts)
        u, padding = k * v, rows.padding(x)
        return {"u": u if padding is None else u.masked_fill(padding[..., None], 0.0), "q": q}, {"shift": window}

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        return self.out_proj(y.to(self.out_proj.weight.dtype) * streams["q"])
