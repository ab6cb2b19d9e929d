"""S4: a state space with a HiPPO matrix, trained as one long convolution, generating with a state of fixed size.

Gu, Goel, Ré 2021, arXiv:2111.00396.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from likely.errors import check_choice
from likely.sequence.hippo import RANKS, nplr
from likely.sequence.mixer import MixerRows, MixerState
from likely.sequence.ops import dplr
from likely.sequence.ops.conv import fft_conv
from likely.sequence.recurrent import RecurrentMixer, Streams

SHORTEST = 256  # of kernels, where no length is given: C̃ of very short ones is a difference of almost equal numbers
BY_STEPS = 8  # tokens that continue a state one by one
LEAST_DECAY = 1e-4  # of −Re Λ, which is 0 in LegT and FouT


class S4(RecurrentMixer):
    """y = GLU(W·GELU(K∗u + D u)), K the impulse response of x' = (Λ − P P*)x + B u, y = 2 Re(C x), per channel.

    d_state        N, even: numbers that each channel remembers
    l_max          length that the kernel is trained at; None: 256, and more when it is asked for
    init           HiPPO method: "legs", "legt" or "fout";  rank: of P, None: that of the method
    dt_min, dt_max Δ is drawn log-uniformly between them
    bidirectional  a second kernel sees the future, from lag 1 on; there is no state then
    n_ssm          systems (Λ, P, B) that channels share, a divisor of d_model; None: one for each channel
    mix_channels   False: K∗u + D u alone, no activation and no linear map

    What is trained is C̃ = C(I − Ā^ℓ) for the length ℓ = `kernel_length`, which is part of the state dict.  Asked for a
    longer kernel, the layer doubles ℓ, C̃ ← C̃(I + Ā^ℓ): the old kernel goes on.  An optimiser step that moves Ā moves
    the C that C̃ stands for.  Λ, P, B and Δ want a learning rate of at most 1e-3
    and no weight decay.  All but the linear map stays in float32 where the layer is made half or bfloat16.  The kernel
    of "fout" is computed in float64, 2 to 3 times as long: its Λ, almost without decay, cancels against P to 4 digits.
    Section 3 of the paper; the mathematics is in ops/dplr.py.
    """

    packs: ClassVar[bool] = False
    kernel_length: Tensor

    def __init__(
        self, d_model: int, d_state: int = 64, *, l_max: int | None = None, init: str = "legs",
        rank: int | None = None, dt_min: float = 1e-3, dt_max: float = 0.1, bidirectional: bool = False,
        n_ssm: int | None = None, mix_channels: bool = True, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__(d_model)
        check_choice("init", init, RANKS)
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even and at least 2, got {d_state}")
        if l_max is not None and l_max < 1:
            raise ValueError(f"l_max must be at least 1, got {l_max}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"dt_min must be positive and at most dt_max = {dt_max}, got {dt_min}")
        copies = d_model if n_ssm is None else n_ssm
        if copies < 1 or d_model % copies:
            raise ValueError(f"n_ssm must divide d_model = {d_model}, got {n_ssm}")
        self.d_state, self.causal, self._rate = d_state, not bidirectional, 1.0
        self._wide = init == "fout"
        found = nplr(init, d_state, rank=rank)
        real = torch.promote_types(torch.get_default_dtype(), torch.float32)

        def copied(values: Tensor) -> nn.Parameter:
            return nn.Parameter(values.unsqueeze(-2).expand(*values.shape[:-1], copies, values.shape[-1]).clone())

        def pairs(values: Tensor) -> nn.Parameter:
            return nn.Parameter(torch.view_as_real(copied(values)).to(real).contiguous())

        eigenvalues = torch.tensor(found.eigenvalues)
        self.log_decay = nn.Parameter(copied((-eigenvalues.real).clamp_min(LEAST_DECAY).log()).to(real))
        self.frequency = nn.Parameter(copied(eigenvalues.imag).to(real))
        self.low_rank = pairs(torch.tensor(found.low_rank))  # (r, n_ssm, n, 2)
        self.inputs = pairs(torch.tensor(found.inputs))  # (n_ssm, n, 2)
        self.log_step = nn.Parameter(torch.empty(d_model, dtype=real).uniform_(math.log(dt_min), math.log(dt_max)))
        self.skip = nn.Parameter(torch.randn(d_model, dtype=real))
        directions = 2 if bidirectional else 1
        outputs = torch.randn(directions, d_model, d_state // 2, 2, dtype=real) * math.sqrt(0.5)
        self.outputs = nn.Parameter(outputs)  # C̃, as real pairs: (1 or 2, D, n, 2)
        self.register_buffer("kernel_length", torch.tensor(l_max or SHORTEST))
        self.out_proj = nn.Linear(d_model, 2 * d_model) if mix_channels else None
        self.dropout = nn.Dropout(dropout)
        self._kept: tuple[tuple[object, ...], tuple[dplr.DplrSystem, Tensor]] | None = None
        with torch.no_grad():
            start = dplr.truncated_outputs(self.system(), torch.view_as_complex(outputs), l_max or SHORTEST)
            self.outputs.copy_(torch.view_as_real(start))
        self.register_forward_pre_hook(_reach_rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> S4:
        """As of every module, but no narrower than float32 where this layer itself holds the parameter."""
        own = {id(t) for p in self.parameters(recurse=False) for t in (p, p.grad) if t is not None}

        def wide_enough(t: Tensor) -> Tensor:
            moved = fn(t)
            narrow = id(t) in own and moved.is_floating_point() and moved.itemsize < 4
            return t.to(moved.device, torch.float32) if narrow else moved

        return super()._apply(wide_enough, recurse)

    @property
    def rate(self) -> float:
        """Steps of the training data in one of today's: 2 for data sampled half as often.  Multiplies Δ."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._rate = _checked_rate(rate)

    def system(self, *, rate: float = 1.0) -> dplr.DplrSystem:
        """Λ, P, B and Δ·rate of every channel."""
        dtype = self.log_step.dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"S4 needs its parameters in float32 or float64, got {dtype}: keep them and use autocast")
        times = self.d_model // len(self.inputs)
        eigenvalues = torch.complex(-self.log_decay.exp(), self.frequency)
        low_rank, inputs = torch.view_as_complex(self.low_rank), torch.view_as_complex(self.inputs)
        return dplr.DplrSystem(
            eigenvalues.repeat_interleave(times, 0), low_rank.repeat_interleave(times, 1),
            inputs.repeat_interleave(times, 0), self.log_step.exp() * rate,
        )  # fmt: skip

    def kernel(self, length: int, *, rate: float = 1.0) -> Tensor:
        """K (D, length); of a bidirectional layer (2, D, length).

        rate  of sampling, see `rate`: exactly the kernel of the same system with Δ·rate, which costs O(N³ log length)
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if _checked_rate(rate) == 1:
            self._reach(length)
            kernel = self._kernel_of(self.system(), torch.view_as_complex(self.outputs), int(self.kernel_length))
        else:
            faster = self.system(rate=rate)
            truncated = dplr.truncated_outputs(faster, self._untruncated(self.system()), length)
            kernel = self._kernel_of(faster, truncated, length)
        return kernel[..., :length] if not self.causal else kernel[0, :, :length]

    def _kernel_of(self, system: dplr.DplrSystem, truncated: Tensor, length: int) -> Tensor:
        if not self._wide:
            return dplr.dplr_kernel(system, truncated, length)
        wide = [part.to(torch.promote_types(part.dtype, torch.float64)) for part in (*system, truncated)]
        return dplr.dplr_kernel(dplr.DplrSystem(*wide[:4]), wide[4], length).to(system.step.dtype)

    def _untruncated(self, system: dplr.DplrSystem) -> Tensor:
        return dplr.untruncated_outputs(system, torch.view_as_complex(self.outputs), int(self.kernel_length))

    @torch.no_grad()
    def _reach(self, length: int) -> None:
        """Double the kernel's length until it holds `length`."""
        while (held := int(self.kernel_length)) < length:
            doubled = dplr.doubled_outputs(self.system(), torch.view_as_complex(self.outputs), held)
            self.outputs.copy_(torch.view_as_real(doubled))
            self.kernel_length.mul_(2)

    # --- the recurrence -----------------------------------------------------------------------------------------------

    def recurrent_spec(self) -> tuple[tuple[int, ...], torch.dtype]:
        return (self.d_model, self.d_state), self.state_dtype

    def project(self, x: Tensor, windows: object, rows: MixerRows) -> tuple[Streams, dict[str, Tensor]]:
        return {"x": x}, {}

    def recur(self, streams: Streams, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        """h (B, D, N): the real parts of each channel's state, then the imaginary ones."""
        if h.shape[1:] != (self.d_model, self.d_state):
            raise ValueError(f"state must hold h of (B, {self.d_model}, {self.d_state}), got {tuple(h.shape)}")
        x = streams["x"].to(h.dtype)
        if not self.causal:
            forward, backward = self.kernel(x.shape[1], rate=self.rate)
            later = F.pad(backward[:, 1:], (1, 0))  # lags of at least 1: the present is counted once
            return fft_conv(x, forward) + fft_conv(x.flip(1), later).flip(1), h
        continues = h.requires_grad or bool(h.any())
        if x.shape[1] <= BY_STEPS and (continues or x.shape[1] == 1):
            return self._by_steps(x, h, rows)
        y = None if continues else fft_conv(x, self.kernel(x.shape[1], rate=self.rate))
        if y is not None and not rows.state_wanted:
            return y, h
        system, outputs = self._stepped()
        discrete, values = dplr.discretise(system), x.mT
        if y is None:
            found, last = dplr.run_blocks(discrete, values, h, dplr.real_outputs(outputs))
            assert found is not None
            y = found.mT
            if rows.lengths is None:
                return y, last
        return y, dplr.last_state(discrete, values, h, rows.lengths)

    def _stepped(self) -> tuple[dplr.DplrSystem, Tensor]:
        """The system and C (D, n) that steps read; kept until a parameter changes, as C costs O(N³)."""
        if torch.is_grad_enabled():
            return self.system(rate=self.rate), self._untruncated(self.system())[0]
        parts = (self.log_decay, self.frequency, self.low_rank, self.inputs, self.log_step, self.outputs)
        key = (self.rate, int(self.kernel_length), *((part.data_ptr(), part._version) for part in parts))
        if self._kept is None or self._kept[0] != key:
            self._kept = key, (self.system(rate=self.rate), self._untruncated(self.system())[0])
        return self._kept[1]

    def _by_steps(self, x: Tensor, h: Tensor, rows: MixerRows) -> tuple[Tensor, Tensor]:
        system, outputs = self._stepped()
        padding, y = rows.padding(x), []
        for t in range(x.shape[1]):
            after = dplr.dplr_step(system, dplr.complex_state(h), x[:, t])
            y.append(2 * (outputs * after).sum(-1).real)
            new = dplr.real_state(after)
            h = new if padding is None else torch.where(padding[:, t, None, None], h, new)
        return torch.stack(y, 1), h

    def transition(self, streams: Streams, rows: MixerRows) -> Tensor:
        """Ā^L over real states, of every row's own L: (B, D, N, N)."""
        matrix, x = dplr.discretise(self.system(rate=self.rate)).matrix, streams["x"]
        lengths = [x.shape[1]] * len(x) if rows.lengths is None else rows.lengths.tolist()
        powers = {n: torch.linalg.matrix_power(matrix, n) for n in set(lengths)}
        return torch.stack([powers[n] for n in lengths])

    def fold(self, transition: Tensor, state: Tensor, before: Tensor) -> Tensor:
        return (transition @ before[..., None]).squeeze(-1) + state

    def finish(self, y: Tensor, streams: Streams) -> Tensor:
        x = streams["x"]
        y = (y + self.skip * x).to(x.dtype)
        if self.out_proj is None:
            return self.dropout(y)
        return F.glu(self.out_proj(self.dropout(F.gelu(y))), -1)

    def mix(self, x: Tensor, state: MixerState, rows: MixerRows) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        if not self.causal and rows.state_wanted:
            raise ValueError("return_state: a bidirectional S4 has no state")
        return super().mix(x, state, rows)


def _checked_rate(rate: float) -> float:
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate must be positive, got {rate}")
    return float(rate)


def _reach_rows(layer: S4, inputs: tuple[object, ...]) -> None:
    """The kernel is as long as the rows before the first of their documents is computed: growing changes C̃ in place."""
    x = inputs[0] if inputs else None
    if isinstance(x, Tensor) and x.ndim == 3 and layer.rate == 1:
        layer._reach(x.shape[1])
