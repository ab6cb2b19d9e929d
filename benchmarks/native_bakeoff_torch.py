"""A decoder of the Llama family in few torch operations: fused matrices, keys and values written in place.

One forward for all of them; what differs is how a matrix is kept and multiplied (`KINDS`) and what runs the operations:
torch one by one, torch.compile, or a package that AOTInductor wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from native_bakeoff_tables import Shape, causal_mask, rotation
from torch import Tensor, nn
from torch.nn import functional as F

HIGHEST = 127  # of a symmetric signed byte
CENTRE = 128  # what zero is as an unsigned byte


@dataclass(frozen=True)
class Weights:
    """A decoder in fp32, matrices as (out, in): q, k, v under one another, gate and up likewise.

    embed (V, D), also the head; norm (D,); layers: (norm, qkv, o, norm, gate and up, down) each
    """

    shape: Shape
    embed: Tensor
    norm: Tensor
    layers: list[tuple[Tensor, ...]]

    @classmethod
    def of(cls, module: Any) -> Weights:
        """From a transformers module of the Llama architecture whose head is its embedding."""
        config = module.config
        if config.model_type != "llama" or not config.tie_word_embeddings:
            raise ValueError(f"{config.model_type} is not a llama with a tied head")
        shape = Shape(
            config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            config.rms_norm_eps, config.rope_parameters["rope_theta"],
        )  # fmt: skip
        layers = []
        for layer in module.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
            gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
            parts = (layer.input_layernorm.weight, qkv, attention.o_proj.weight)
            parts += (layer.post_attention_layernorm.weight, gate_up, mlp.down_proj.weight)
            layers.append(tuple(part.detach().float() for part in parts))
        outer = (module.model.embed_tokens.weight, module.model.norm.weight)
        return cls(shape, *(part.detach().float() for part in outer), layers)

    def save(self, path: Path) -> None:
        torch.save([astuple(self.shape), self.embed, self.norm, self.layers], path)

    @classmethod
    def load(cls, path: Path) -> Weights:
        """Pages of the file, read where they are used."""
        shape, embed, norm, layers = torch.load(path, mmap=True)
        return cls(Shape(*shape), embed, norm, layers)


# --- a matrix, kept in one way and multiplied: (T, in) -> (T, out) ---------------------------------------------------


class Plain(nn.Module):
    """As torch keeps it, in fp32 or bf16."""

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Packed(nn.Module):
    """bf16, in the order that oneDNN's kernels read."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.out = len(weight)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(torch.bfloat16), None)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, in) -> unsigned bytes around 128, and the scale (rows, 1) in fp32."""
    scale = (x.abs().amax(1, keepdim=True) / HIGHEST).float().clamp_min(1e-12)
    return (x / scale).round().add(CENTRE).to(torch.uint8), scale


class Int8(nn.Module):
    """Signed bytes with a scale per output; x as unsigned bytes around 128, a scale per token or one of the call."""

    def __init__(self, weight: Tensor, *, dtype: torch.dtype, per_token: bool):
        super().__init__()
        self.out, self.dtype, self.per_token = len(weight), dtype, per_token
        scale = weight.abs().amax(1).clamp_min(1e-12) / HIGHEST
        quantised = (weight / scale[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(quantised, None)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int32))
        self.register_buffer("one", torch.ones(1))
        self.register_buffer("centre", torch.full((1,), CENTRE, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.per_token:
            quantised, scale = quantise_rows(x)
            return (self.product(quantised, self.one) * scale).to(self.dtype)
        quantised, scale = quantise_rows(x.view(1, -1))
        return self.product(quantised.view(x.shape), scale.view(1))

    def product(self, quantised: Tensor, scale: Tensor) -> Tensor:
        """In fp32 where a scale of each token is still to come."""
        return torch.ops.onednn.qlinear_pointwise.tensor(
            quantised, scale, self.centre, self.packed, self.scale, self.zero, None, 1.0, 0,
            torch.float32 if self.per_token else self.dtype, "none", [], "",
        )  # fmt: skip


class Int8OneCall(nn.Module):
    """Signed bytes with a scale per output; quantising x, with one scale for the call, is part of the operation."""

    def __init__(self, weight: Tensor):
        super().__init__()
        torch.backends.quantized.engine = "onednn"
        scale = weight.abs().amax(1).clamp_min(1e-12).double() / HIGHEST
        zero = torch.zeros(len(scale), dtype=torch.int64)
        quantised = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(quantised, None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x, self.packed)


Linear = Callable[[Tensor], nn.Module]
BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Kind:
    """How matrices are kept, and the type of everything between them (residual, keys, values)."""

    linear: Linear
    dtype: torch.dtype


KINDS = {
    "fp32": Kind(lambda w: Plain(w, FP32), FP32),
    "bf16": Kind(lambda w: Plain(w, BF16), BF16),
    "bf16 packed": Kind(Packed, BF16),
    "int8 per token": Kind(lambda w: Int8(w, dtype=BF16, per_token=True), BF16),
    "int8 per call": Kind(lambda w: Int8(w, dtype=BF16, per_token=False), BF16),
    "int8 in one call": Kind(Int8OneCall, FP32),
}


# --- the forward -----------------------------------------------------------------------------------------------------


class Lean(nn.Module):
    """Tokens after `past` kept ones -> logits. Keys and values are written to `kept`, (2 kv heads, S, Dh) per layer."""

    def __init__(self, weights: Weights, kind: Kind):
        super().__init__()
        self.shape, self.dtype = weights.shape, kind.dtype
        self.embed = nn.Parameter(weights.embed.to(kind.dtype), requires_grad=False)
        self.norms = nn.ParameterList()
        self.matrices = nn.ModuleList()
        for first, qkv, o, second, gate_up, down in weights.layers:
            self.norms.extend(nn.Parameter(n.to(kind.dtype), requires_grad=False) for n in (first, second))
            self.matrices.extend(kind.linear(w) for w in (qkv, o, gate_up, down))
        self.norms.append(nn.Parameter(weights.norm.to(kind.dtype), requires_grad=False))
        self.matrices.append(kind.linear(weights.embed))

    def forward(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, kept: list[Tensor], past: int, last: bool
    ) -> Tensor:
        """tokens (T,), cos and sin (T, 1, Dh), mask (1, 1, group * T, past + T), None for one token -> (T or 1, V)"""
        x = self.states(tokens, cos, sin, mask, kept, past)
        return self.head(x[-1:] if last else x)

    def states(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, kept: list[Tensor], past: int
    ) -> Tensor:
        """(T, D), before the last norm."""
        x = F.embedding(tokens, self.embed)
        for layer in range(self.shape.layers):
            norms, matrices = self.norms[2 * layer :][:2], self.matrices[4 * layer :][:4]
            x = decoder_layer(self.shape, x, norms, matrices, cos, sin, mask, kept[layer], past)
        return x

    def head(self, x: Tensor) -> Tensor:
        return self.matrices[-1](F.rms_norm(x, x.shape[-1:], self.norms[-1], self.shape.eps))


def decoder_layer(
    shape: Shape, x: Tensor, norms: Sequence[Tensor], matrices: Sequence[Callable[[Tensor], Tensor]], cos: Tensor,
    sin: Tensor, mask: Tensor | None, kept: Tensor, past: int,
) -> Tensor:  # fmt: skip
    """x (T, D) -> (T, D); matrices are those of `Weights.layers`."""
    heads, kv, dim, new = shape.heads, shape.kv_heads, shape.head_dim, x.shape[0]
    qkv_of, o_of, gate_up_of, down_of = matrices
    qkv = qkv_of(F.rms_norm(x, x.shape[-1:], norms[0], shape.eps)).view(new, heads + 2 * kv, dim)
    turned = qkv[:, : heads + kv]
    turned = turned * cos + turned.roll(dim // 2, -1) * sin
    kept[:kv, past : past + new] = turned[:, heads:].transpose(0, 1)
    kept[kv:, past : past + new] = qkv[:, heads + kv :].transpose(0, 1)
    # the queries that share a head of keys stand under one another: no key is repeated
    q = turned[:, :heads].view(new, kv, heads // kv, dim).permute(1, 2, 0, 3).reshape(1, kv, heads // kv * new, dim)
    keys, values = kept[None, :kv, : past + new], kept[None, kv:, : past + new]
    seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    seen = seen.view(kv, heads // kv, new, dim).permute(2, 0, 1, 3).reshape(new, heads * dim)
    x = x + o_of(seen)
    gate, up = gate_up_of(F.rms_norm(x, x.shape[-1:], norms[1], shape.eps)).chunk(2, -1)
    return x + down_of(F.silu(gate) * up)


class Caller:
    """A forward as `extend`: tokens (T,) after `past` kept ones -> fp32 logits of all of them, or of the last."""

    def __init__(self, forward: Callable[..., Tensor], shape: Shape, dtype: torch.dtype, capacity: int):
        self._forward, self._shape, self._dtype = forward, shape, dtype
        size = (2 * shape.kv_heads, capacity, shape.head_dim)
        self._kept = [torch.zeros(size, dtype=dtype) for _ in range(shape.layers)]
        self._cos, self._sin = (torch.from_numpy(table).to(dtype) for table in rotation(shape, capacity))

    @torch.no_grad()
    def extend(self, tokens: list[int], past: int, *, last: bool) -> np.ndarray:
        rows = slice(past, past + len(tokens))
        mask = None
        if len(tokens) > 1:
            mask = torch.from_numpy(causal_mask(self._shape.group, len(tokens), past)).to(self._dtype)
        cos, sin = self._cos[rows], self._sin[rows]
        out: np.ndarray = self._forward(torch.tensor(tokens), cos, sin, mask, self._kept, past, last).float().numpy()
        return out


# --- compiled --------------------------------------------------------------------------------------------------------

_HELD: list[Packed | Int8] = []  # matrices by number: neither dynamo nor inductor takes tensors in oneDNN's layout


@cache
def _library() -> torch.library.Library:
    """bakeoff::product(x, number): one product with a packed matrix, closed to the compiler."""

    def product(x: Tensor, number: int) -> Tensor:
        matrix = _HELD[number]
        return matrix.product(x, matrix.one) if isinstance(matrix, Int8) else matrix.product(x)

    def empty(x: Tensor, number: int, out: int) -> Tensor:
        return x.new_empty((x.shape[0], out), dtype=FP32 if x.dtype == torch.uint8 else BF16)

    library = torch.library.Library("bakeoff", "DEF")
    library.define("product(Tensor x, SymInt number, int out) -> Tensor")
    library.impl("product", lambda x, number, out: product(x, number), "CPU")
    library.impl("product", empty, "Meta")
    return library


@dataclass(frozen=True)
class Numbered:
    """A packed matrix to the compiler, which still fuses what stands around the product."""

    number: int
    out: int
    int8: bool

    def __call__(self, x: Tensor) -> Tensor:
        if not self.int8:
            return torch.ops.bakeoff.product(x, self.number, self.out)
        quantised, scale = quantise_rows(x)
        return (torch.ops.bakeoff.product(quantised, self.number, self.out) * scale).to(BF16)


class LinearsAlone:
    """The products of a call, with what bytes need to be quantised, and nothing between them: a floor, no model."""

    def __init__(self, lean: Lean):
        self._matrices, self._dtype, self._layers = lean.matrices, lean.dtype, lean.shape.layers
        self._width, self._heads = lean.embed.shape[1], lean.shape.heads * lean.shape.head_dim

    @torch.no_grad()
    def extend(self, tokens: list[int], past: int, *, last: bool) -> np.ndarray:
        x = torch.ones(len(tokens), self._width, dtype=self._dtype)
        seen = torch.ones(len(tokens), self._heads, dtype=self._dtype)
        for layer in range(self._layers):
            qkv_of, o_of, gate_up_of, down_of = self._matrices[4 * layer :][:4]
            qkv_of(x)
            o_of(seen)
            half = gate_up_of(x).chunk(2, -1)[0]
            down_of(half)
        out: np.ndarray = self._matrices[-1](x[-1:] if last else x).float().numpy()
        return out


class Compiled:
    """`Lean` with its layer compiled, once for all layers: what differs between them comes in as arguments."""

    def __init__(self, lean: Lean):
        _library()
        self._lean, self._first = lean, len(_HELD)
        _HELD.extend(lean.matrices)
        outs = [matrix.out for matrix in lean.matrices[:4]]
        int8 = isinstance(lean.matrices[0], Int8)

        def layer(x, first, second, number, cos, sin, mask, kept, past):  # type: ignore[no-untyped-def]
            matrices = [Numbered(number + i, out, int8) for i, out in enumerate(outs)]
            return decoder_layer(lean.shape, x, (first, second), matrices, cos, sin, mask, kept, past)

        torch._dynamo.utils.counters.clear()
        self._layer = torch.compile(layer, dynamic=True, fullgraph=True)

    @property
    def graphs(self) -> int:
        """How many times the layer has been compiled."""
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def __call__(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, kept: list[Tensor], past: int, last: bool
    ) -> Tensor:
        lean = self._lean
        x = F.embedding(tokens, lean.embed)
        for at in range(lean.shape.layers):
            first, second = lean.norms[2 * at], lean.norms[2 * at + 1]
            x = self._layer(x, first, second, self._first + 4 * at, cos, sin, mask, kept[at], past)
        return lean.head(x[-1:] if last else x)


class Packaged:
    """`Lean` as AOTInductor packaged it: two tokens and two rows at least, so that one is computed as two."""

    def __init__(self, path: Path, shape: Shape):
        self._run, self._group = torch._inductor.aoti_load_package(str(path)), shape.group

    def __call__(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, kept: list[Tensor], past: int, last: bool
    ) -> Tensor:
        one = mask is None
        if mask is None:
            tokens, cos, sin = (part.repeat_interleave(2, 0) for part in (tokens, cos, sin))
            mask = torch.from_numpy(causal_mask(self._group, 2, past)).to(cos.dtype)
        rows = torch.full((2,), len(tokens) - 1) if last else torch.arange(len(tokens))
        out: Tensor = self._run(tokens, rows, cos, sin, mask, kept)
        return out[:1] if one or last else out
