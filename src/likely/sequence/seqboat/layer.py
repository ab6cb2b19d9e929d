"""SeqBoat: a cheap recurrence for every token, and attention only for the tokens that the layer itself picks.

Ren et al. 2023, arXiv:2306.11197, section 4.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from likely.errors import check_choice
from likely.sequence.mixer import MixerRows, MixerState, SequenceMixer
from likely.sequence.seqboat.sma import ActiveTokens, compress, extract, route
from likely.sequence.seqboat.windowed import AttentionKind, WindowedKeys, rotate, windowed_attention
from likely.sequence.table import make_mixer

SSM = "ssm."  # before the names of the recurrence's tensors in the state
Positions = Literal["rotary", "bias", "local_bias"]


class SeqBoat(SequenceMixer):
    """H = silu(SSM(x)), [u, hx] = H W; where u₁ > u₀ a gated attention unit runs: y = hx + p₁·unit(H).

    z_dim, h_dim  widths of queries and keys, and of values and gates (h_dim None: 2·d_model)
    ema_dim       averages of each channel, where ssm is "ema"
    window        a query sees the keys of that many activated tokens before it (bidirectional: and after it)
    attn          "softmax" or "relu2", relu(q·k/ℓ + bias)²
    pos           "rotary" or "bias" by the tokens' times, "local_bias" by their distance among activated tokens
    max_positions distances in time that "bias" tells apart
    init_temp_scale  the router's temperature starts at this times √d_model
    ssm           "ema", "s4d" or "mamba2"
    always_act    the unit runs on every token, and its output is not scaled: the dense baseline

    State: the recurrence's, and keys, values and times of the last `window` activated tokens: a step costs O(window),
    and where nothing is activated only the recurrence.  The paper wraps the residual, too, in a silu; here the block
    around the layer adds it.  aux: `activation_rate`, `mean_span` (time between a query and its oldest key, in tokens).
    """

    def __init__(
        self, d_model: int, *, z_dim: int = 96, h_dim: int | None = None, ema_dim: int = 16, window: int = 128,
        attn: AttentionKind = "softmax", pos: Positions = "rotary", max_positions: int = 1024,
        init_temp_scale: float = 1.0, ssm: Literal["ema", "s4d", "mamba2"] = "ema", bidirectional: bool = False,
        always_act: bool = False, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__(d_model)
        check_choice("attn", attn, ("softmax", "relu2"))
        check_choice("pos", pos, ("rotary", "bias", "local_bias"))
        check_choice("ssm", ssm, ("ema", "s4d", "mamba2"))
        for name, value in (("window", window), ("z_dim", z_dim), ("max_positions", max_positions)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if pos == "rotary" and z_dim % 2:
            raise ValueError(f"z_dim must be even for rotary positions, got {z_dim}")
        if init_temp_scale <= 0:
            raise ValueError(f"init_temp_scale must be positive, got {init_temp_scale}")
        if bidirectional and ssm != "ema":
            raise ValueError(f"a bidirectional layer needs the ssm that sees both directions, ema; got {ssm}")
        self.z_dim, self.h_dim, self.window = z_dim, h_dim or 2 * d_model, window
        self.attn, self.pos, self.always_act, self.causal = attn, pos, always_act, not bidirectional
        settings: dict[str, dict[str, object]] = {
            "ema": {"d_state": ema_dim, "activation": False, "bidirectional": bidirectional},
            "s4d": {"mix_channels": False}, "mamba2": {},
        }  # fmt: skip
        self.ssm = make_mixer(ssm, d_model, settings[ssm])
        self.hx_proj = _linear(d_model, 2 + d_model)
        self.mx_proj = _linear(d_model, z_dim + 2 * self.h_dim)
        self.out_proj = _linear(self.h_dim, d_model)
        self.gamma = nn.Parameter(0.02 * torch.randn(2, z_dim))
        self.beta = nn.Parameter(torch.zeros(2, z_dim))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(init_temp_scale * d_model**0.5)))
        distances = {"rotary": 0, "bias": max_positions, "local_bias": window + 1}[pos]
        self.bias = (
            nn.Parameter(0.02 * torch.randn(distances if self.causal else 2 * distances - 1)) if distances else None
        )
        self.dropout = nn.Dropout(dropout)

    def state_spec(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        if not self.causal:
            return {}
        dtype = self.mx_proj.weight.dtype
        return {f"{SSM}{name}": spec for name, spec in self.ssm.state_spec(length).items()} | {
            "keys": ((self.window, self.z_dim), dtype), "values": ((self.window, self.h_dim), dtype),
            "times": ((self.window,), torch.int64), "activated": ((), torch.int64), "length": ((), torch.int64),
        }  # fmt: skip

    def mix(self, x: Tensor, state: MixerState, rows: MixerRows) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        if not self.causal and rows.state_wanted:
            raise ValueError("return_state: a bidirectional SeqBoat has no state")
        before = MixerState({k.removeprefix(SSM): t for k, t in state.tensors.items() if k.startswith(SSM)})
        if not self.causal:
            before = self.ssm.init_state(len(x), device=x.device)
        y, after, _ = self.ssm.mix(x, before, rows)
        hidden = self.dropout(F.silu(y))
        logits, hx = self.hx_proj(hidden).split([2, self.d_model], -1)
        padding = rows.padding(x)
        real = None if padding is None else ~padding
        found = route(logits, temperature=self.log_temperature.exp(), mask=real, always=self.always_act)
        times = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        if rows.positions is not None:
            times = rows.positions
        elif self.causal:
            times = times + state["length"][:, None]
        unit, kept, span = self._unit(hidden, found, times, state)
        aux = {"activation_rate": found.rate(rows.lengths).to(y.dtype), "mean_span": span.to(y.dtype)}
        y = self.dropout(hx + unit)
        if not self.causal:
            return y, MixerState({}), aux
        lengths = state["length"] + (x.shape[1] if rows.lengths is None else rows.lengths)
        tensors = {f"{SSM}{name}": t for name, t in after.tensors.items()} | kept
        return y, MixerState(tensors | {"length": lengths}), aux

    def _unit(
        self, hidden: Tensor, found: ActiveTokens, times: Tensor, state: MixerState
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The attention unit's output for all tokens, what is kept of it, and the mean span."""
        kept = {name: state[name] for name in ("keys", "values", "times", "activated")} if self.causal else {}
        if not found.longest:
            parts = (self.mx_proj, self.out_proj)
            unused = [p.sum() for part in parts for p in part.parameters()] + [self.gamma.sum(), self.beta.sum()]
            unused += [] if self.bias is None else [self.bias.sum()]
            nothing = 0.0 * (torch.stack(unused).sum() + found.confidence.sum())  # gradients of 0, not none
            return torch.zeros_like(hidden) + nothing, kept, hidden.new_zeros(())
        z, gate, values = F.silu(self.mx_proj(compress(hidden, found))).split([self.z_dim, self.h_dim, self.h_dim], -1)
        queries, keys = (z * self.gamma[i] + self.beta[i] for i in range(2))
        when = compress(times, found)
        if self.pos == "rotary":
            queries, keys = rotate(queries, when), rotate(keys, when)
        given = torch.arange(found.longest, device=z.device) < found.counts[:, None]
        memory = WindowedKeys(keys, values, when, given)
        if self.causal:
            held = torch.arange(self.window, device=z.device) >= self.window - state["activated"][:, None]
            old = WindowedKeys(state["keys"].to(z.dtype), state["values"].to(z.dtype), state["times"], held)
            memory = WindowedKeys(*(torch.cat(pair, 1) for pair in zip(old, memory, strict=True)))
            last = found.counts[:, None] + torch.arange(self.window, device=z.device)
            kept = {
                "keys": memory.keys.take_along_dim(last[..., None], 1).to(state["keys"].dtype),
                "values": memory.values.take_along_dim(last[..., None], 1).to(state["values"].dtype),
                "times": memory.times.take_along_dim(last, 1),
                "activated": state["activated"] + found.counts,
            }
        attended = self.attend(queries, memory)
        unit = extract(self.out_proj(attended * gate), found)
        scale = found.active if self.always_act else found.confidence * found.active
        return unit * scale[..., None].to(unit.dtype), kept, self._span(memory, found)

    def attend(self, queries: Tensor, memory: WindowedKeys) -> Tensor:
        """(B, R, h): attention of activated tokens among each other."""
        return windowed_attention(
            queries, memory, window=self.window, causal=self.causal, kind=self.attn,
            bias=None if self.bias is None else self._bias,
        )  # fmt: skip

    def _bias(self, time: Tensor, place: Tensor) -> Tensor:
        assert self.bias is not None
        distance = time if self.pos == "bias" else place
        middle = 0 if self.causal else len(self.bias) // 2
        return self.bias[(distance + middle).clamp(0, len(self.bias) - 1)]

    def _span(self, memory: WindowedKeys, found: ActiveTokens) -> Tensor:
        """Mean time from the oldest key that an activated token may see to the newest."""
        count, device = found.longest, memory.times.device
        place = torch.arange(count, device=device).expand(len(found.counts), count)
        first = memory.given.int().argmax(1, keepdim=True)
        if self.causal:
            oldest, newest = place.maximum(first), place + self.window
        else:
            oldest = (place - self.window).clamp_min(0)
            newest = (place + self.window).minimum((found.counts - 1).clamp_min(0)[:, None])
        spans = memory.times.take_along_dim(newest, 1) - memory.times.take_along_dim(oldest, 1)
        real = place < found.counts[:, None]
        return (spans * real).sum() / real.sum().clamp_min(1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(made.weight, std=0.02, a=-0.04, b=0.04)
    nn.init.zeros_(made.bias)
    return made
