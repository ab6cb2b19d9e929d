"""A Transformer without a causal mask that predicts the masked tokens of a canvas: LLaDA, Dream and tiny ones.

Pre-norm, RMSNorm, SwiGLU, rotary or learned positions; what differs among the families is in `MaskedShape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from likely.errors import ModelError

KeyValues = list[tuple[Tensor, Tensor]]  # per layer: keys and values, each (B, kv_heads, T, head width)


@dataclass(frozen=True)
class MaskedShape:
    """The dimensions of a masked language model.

    mask_id     the token that stands for "not known yet"
    context     longest canvas
    kv_heads    heads of keys and values, each shared by heads / kv_heads heads
    hidden      width of the SwiGLU
    positions   "rotary" (base `rotary_base`), or "learned": one vector per position of the context
    shift       the logits at position i are those of position i + 1, as in models adapted from causal ones (Dream)
    block       > 0: block-causal.  A position sees its own block of so many positions and those before
    """

    vocab_size: int
    mask_id: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_base: float = 10_000.0
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tied: bool = False
    shift: bool = False
    block: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "hidden", "context"):
            if not (isinstance(value := getattr(self, name), int) and value >= 1):
                raise ModelError(f"{name} must be a whole number >= 1, got {value!r}")
        if not 0 <= self.mask_id < self.vocab_size:
            raise ModelError(f"mask_id must lie in 0..{self.vocab_size - 1}, got {self.mask_id}")
        if self.width % self.heads or self.heads % self.kv_heads or self.width // self.heads % 2:
            raise ModelError(
                f"width {self.width} must be an even multiple of heads {self.heads}, and heads a multiple of kv_heads "
                f"{self.kv_heads}"
            )
        if self.positions not in ("rotary", "learned"):
            raise ModelError(f'positions must be "rotary" or "learned", got {self.positions!r}')
        if not (isinstance(self.block, int) and self.block >= 0):
            raise ModelError(f"block must be a whole number >= 0, got {self.block!r}")


class MaskedTransformer(nn.Module):
    """ids (B, t) -> logits (B, t, V) of every position, given all others.

    Parameters have the names that transformers gives Llama and Qwen 2, `model.layers.0.self_attn.q_proj.weight` ...
    """

    def __init__(self, shape: MaskedShape):
        super().__init__()
        self.shape = shape
        self.model = _Body(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        window: tuple[int, int] | None = None,
        kept: KeyValues | None = None,
        collect: KeyValues | None = None,
    ) -> Tensor:
        """Logits of the positions that are computed.

        positions  (B, t) of each token; default 0..t-1
        attend     (B, 1, t, T) or (1, 1, t, T), True where a query sees a key; None: all of them
        window     ids are those of positions start..end-1 of a canvas whose other keys and values are in `kept`, or of
                   several versions of them, one after the other
        collect    takes the keys and values of every layer
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return self.lm_head(self.model(ids, positions, attend, window, kept, collect))


class TinyMaskedLM(MaskedTransformer):
    """A small masked language model with learned positions, to be trained in minutes.

    head width = width / heads; the SwiGLU is 8/3 of the width, rounded up to a multiple of 8
    """

    def __init__(
        self,
        vocab_size: int,
        mask_id: int,
        *,
        context: int,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        positions: Literal["rotary", "learned"] = "learned",
        block: int = 0,
    ):
        hidden = -(-width * 8 // 24) * 8
        super().__init__(
            MaskedShape(
                vocab_size, mask_id, width, layers, heads, heads, hidden, context, positions=positions, block=block
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for layer in self.model.layers:  # residual branches begin small (Radford et al. 2019)
            for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(out.weight, std=0.02 / (2 * layers) ** 0.5)


class _Body(nn.Module):
    layers: Sequence[_Layer]

    def __init__(self, shape: MaskedShape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.embed_positions = nn.Embedding(shape.context, shape.width) if shape.positions == "learned" else None
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self._shape = shape

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Tensor | None,
        window: tuple[int, int] | None,
        kept: KeyValues | None,
        collect: KeyValues | None,
    ) -> Tensor:
        x, turn = self.embed_tokens(ids), None
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        else:
            turn = _rotation(positions, self._shape.width // self._shape.heads, self._shape.rotary_base, x.dtype)
        for number, layer in enumerate(self.layers):
            x, keys_values = layer(x, turn, attend, window, None if kept is None else kept[number])
            if collect is not None:
                collect.append(keys_values)
        return self.norm(x)


class _Layer(nn.Module):
    def __init__(self, shape: MaskedShape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.mlp = _SwiGLU(shape)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        attend: Tensor | None,
        window: tuple[int, int] | None,
        kept: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        found, keys_values = self.self_attn(self.input_layernorm(x), turn, attend, window, kept)
        x = x + found
        return x + self.mlp(self.post_attention_layernorm(x)), keys_values


class _Attention(nn.Module):
    def __init__(self, shape: MaskedShape):
        super().__init__()
        self.heads, self.kv_heads, self.each = shape.heads, shape.kv_heads, shape.width // shape.heads
        self.q_proj = nn.Linear(shape.width, shape.heads * self.each, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * self.each, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * self.each, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(shape.heads * self.each, shape.width, bias=False)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        attend: Tensor | None,
        window: tuple[int, int] | None,
        kept: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows, length, _ = x.shape
        queries = self.q_proj(x).view(rows, length, self.heads, self.each).transpose(1, 2)
        keys = self.k_proj(x).view(rows, length, self.kv_heads, self.each).transpose(1, 2)
        values = self.v_proj(x).view(rows, length, self.kv_heads, self.each).transpose(1, 2)
        if turn is not None:
            queries, keys = _turned(queries, *turn), _turned(keys, *turn)
        if kept is not None and window is not None:
            keys, values = (
                _with_window(old, new, window) for old, new in zip(kept, (keys, values), strict=True)
            )  # fmt: skip
        shared = self.heads // self.kv_heads
        found = F.scaled_dot_product_attention(
            queries, keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1), attn_mask=attend
        )
        return self.o_proj(found.transpose(1, 2).reshape(rows, length, -1)), (keys, values)


class _SwiGLU(nn.Module):
    def __init__(self, shape: MaskedShape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _with_window(old: Tensor, new: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, H, T, E): the old keys or values with the new ones, of one window or several side by side, in its place."""
    return torch.cat([old[:, :, : window[0]], new, old[:, :, window[1] :]], 2)


def _rotation(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, t, width) of the rotary angles, computed in fp32."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions[:, None, :, None].float() * base**-exponents
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
