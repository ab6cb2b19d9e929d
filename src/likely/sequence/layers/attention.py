"""Softmax attention as a sequence layer: rotary positions, grouped keys and values, and the cache as its state."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from likely.sequence.mixer import MixerRows, MixerState, SequenceMixer, StateKind
from likely.sequence.recurrent import wide


class SoftmaxAttention(SequenceMixer):
    """softmax(q·k/√d) v over all tokens so far.

    heads, kv_heads  query heads, and key/value heads that groups of them share (default: as many)
    head_dim         width of a head (default: d_model // heads)
    rope_theta       base of the rotary positions (halves rotated, as in Llama); None: no positions
    key_scale        factor on keys (Falcon-H1's key multiplier)

    State: keys (B, T, kv_heads, head_dim) after rotation, values alike, and the length (B,) of each row.
    """

    state_kind: ClassVar[StateKind] = "kv"

    def __init__(
        self, d_model: int, *, heads: int = 4, kv_heads: int | None = None, head_dim: int | None = None,
        rope_theta: float | None = 10_000.0, bias: bool = False, key_scale: float = 1.0,
    ):  # fmt: skip
        super().__init__(d_model)
        kv_heads, head_dim = kv_heads or heads, head_dim or d_model // heads
        if heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads = {heads}, got {kv_heads}")
        if head_dim < 1 or (rope_theta is not None and head_dim % 2):
            raise ValueError(
                f"head_dim must be even and positive for rotary positions, got {head_dim} "
                f"(d_model = {d_model}, heads = {heads})"
            )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.rope_theta, self.key_scale = rope_theta, key_scale
        self.q_proj = nn.Linear(d_model, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(d_model, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * head_dim, d_model, bias=bias)

    def state_spec(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        shape, dtype = (length, self.kv_heads, self.head_dim), self.k_proj.weight.dtype
        return {"keys": (shape, dtype), "values": (shape, dtype), "length": ((), torch.int64)}

    def mix(self, x: Tensor, state: MixerState, rows: MixerRows) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        batch, count = x.shape[:2]
        held = state["length"]
        positions = held[:, None] + torch.arange(count, device=x.device)
        q, k, v = self.queries_keys_values(x, positions if rows.positions is None else rows.positions)
        old = state["keys"].shape[1]
        if even := bool((held == old).all()):
            keys, values = torch.cat([state["keys"].to(k.dtype), k], 1), torch.cat([state["values"].to(v.dtype), v], 1)
        else:  # rows of different lengths: each continues at its own place
            keys, values = (
                torch.cat([state[name].to(new.dtype), new.new_zeros(batch, count, *new.shape[2:])], 1)
                .scatter(1, positions[..., None, None].expand_as(new), new)
                for name, new in (("keys", k), ("values", v))
            )  # fmt: skip
        visible = None
        if not even or (old and count > 1):
            visible = (torch.arange(keys.shape[1], device=x.device) <= positions[..., None])[:, None]
        y = self.attend(q, keys, values, visible)
        lengths = held + (count if rows.lengths is None else rows.lengths)
        if rows.lengths is not None or not even:
            size = int(lengths.max())
            past = torch.arange(size, device=x.device) >= lengths[:, None]
            keys, values = (t[:, :size].masked_fill(past[..., None, None], 0.0) for t in (keys, values))
        return self.o_proj(y.flatten(2)), MixerState({"keys": keys, "values": values, "length": lengths}), {}

    def queries_keys_values(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, heads, head_dim) each, queries and keys rotated to their positions (B, L)."""
        q = self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim)) * self.key_scale
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        return (q, k, v) if self.rope_theta is None else (self._rotate(q, positions), self._rotate(k, positions), v)

    @staticmethod
    def attend(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
        """(B, L, H, d); keys (B, T, kv_heads, d);  visible (B, 1, L, T) to each query, None: causal with L = T or 1."""
        q, keys, values = (t.transpose(1, 2) for t in (q, keys, values))
        causal = visible is None and q.shape[2] > 1
        shared = q.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
        return scaled_dot_product_attention(q, keys, values, visible, is_causal=causal).transpose(1, 2)

    def _rotate(self, t: Tensor, positions: Tensor) -> Tensor:
        assert self.rope_theta is not None
        half = torch.arange(0, self.head_dim, 2, dtype=wide(t).dtype, device=t.device)
        angles = positions[..., None] * self.rope_theta ** (-half / self.head_dim)
        cos, sin = (f(angles)[:, :, None].to(t.dtype) for f in (torch.cos, torch.sin))
        first, second = t.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
