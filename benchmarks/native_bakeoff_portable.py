"""The lean forward for other engines: keys and values are inputs and outputs, every operation one that ONNX has."""

from __future__ import annotations

from pathlib import Path

import torch
from native_bakeoff_tables import CAPACITY, causal_mask, rotation
from native_bakeoff_torch import Weights
from torch import Tensor, nn
from torch.nn import functional as F

INPUTS = ("tokens", "rows", "cos", "sin", "mask", "kept")


class Portable(nn.Module):
    """tokens (T,), rows (R,) of them to return, cos and sin (T, 1, Dh), mask (1, group * T, S + T),
    kept (layers, 2 kv heads, S, Dh) -> logits (R, V), new keys and values (layers, 2 kv heads, T, Dh).

    Scores of kept and of new tokens are put beside one another, keys and values are not: nothing of `kept` is copied.
    """

    def __init__(self, weights: Weights):
        super().__init__()
        self.shape = weights.shape
        self.embed, self.norm = self._constant(weights.embed), self._constant(weights.norm)
        self.layers = nn.ModuleList(nn.ParameterList(self._constant(p) for p in layer) for layer in weights.layers)

    def _constant(self, weight: Tensor) -> nn.Parameter:
        return nn.Parameter(weight, requires_grad=False)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.shape.eps) * weight

    def forward(
        self, tokens: Tensor, rows: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        heads, kv, dim, group = self.shape.heads, self.shape.kv_heads, self.shape.head_dim, self.shape.group
        width = kept.shape[2]
        x, new = F.embedding(tokens, self.embed), []
        for layer, (first, qkv_w, o_w, second, gate_up_w, down_w) in enumerate(self.layers):
            qkv = F.linear(self._norm(x, first), qkv_w).view(-1, heads + 2 * kv, dim)
            turned = qkv[:, : heads + kv]
            rolled = torch.cat([turned[..., dim // 2 :], turned[..., : dim // 2]], -1)
            turned = turned * cos + rolled * sin
            keys, values = turned[:, heads:].transpose(0, 1), qkv[:, heads + kv :].transpose(0, 1)
            new.append(torch.cat([keys, values]).to(kept.dtype))
            old_keys, old_values = kept[layer, :kv].to(x.dtype), kept[layer, kv:].to(x.dtype)
            q = turned[:, :heads].view(-1, kv, group, dim).permute(1, 2, 0, 3).reshape(kv, -1, dim) * dim**-0.5
            scores = torch.cat([q @ old_keys.transpose(1, 2), q @ keys.transpose(1, 2)], -1) + mask
            shares = torch.softmax(scores, -1)
            seen = shares[..., :width] @ old_values + shares[..., width:] @ values
            seen = seen.view(kv, group, -1, dim).permute(2, 0, 1, 3).reshape(-1, heads * dim)
            x = x + F.linear(seen, o_w)
            gate, up = F.linear(self._norm(x, second), gate_up_w).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down_w)
        return F.linear(self._norm(x[rows], self.norm), self.embed), torch.stack(new)


def example(weights: Weights, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs to trace with: 4 tokens after 7 kept ones."""
    shape, new, past = weights.shape, 4, 7
    cos, sin = (torch.from_numpy(table)[past : past + new] for table in rotation(shape, past + new))
    kept = torch.zeros(shape.layers, 2 * shape.kv_heads, past, shape.head_dim, dtype=dtype)
    mask = torch.from_numpy(causal_mask(shape.group, new, past)[0])
    return torch.zeros(new, dtype=torch.int64), torch.arange(new), cos, sin, mask, kept


@torch.no_grad()
def make_openvino(folder: Path, *, int8: bool) -> None:
    import openvino

    weights = Weights.load(folder / "weights.pt")
    model = openvino.convert_model(Portable(weights).eval(), example_input=example(weights, torch.float16))
    if int8:
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(model, folder / f"openvino-{'int8' if int8 else 'bf16'}.xml", compress_to_fp16=True)


@torch.no_grad()
def make_onnx(folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = Weights.load(folder / "weights.pt")
    axes = {"tokens": {0: "T"}, "rows": {0: "R"}, "cos": {0: "T"}, "sin": {0: "T"}, "mask": {1: "G", 2: "W"}}
    torch.onnx.export(
        Portable(weights).eval(), example(weights, torch.float32), str(folder / "whole.onnx"), dynamo=False,
        input_names=INPUTS, output_names=("logits", "new"), dynamic_axes={**axes, "kept": {2: "S"}}, opset_version=17,
    )  # fmt: skip
    quantize_dynamic(folder / "whole.onnx", folder / "onnx-int8.onnx", weight_type=QuantType.QInt8, per_channel=True)


class OneGraph(nn.Module):
    """The whole lean forward for torch.export: how many tokens are kept is read off the mask."""

    def __init__(self, lean: nn.Module):
        super().__init__()
        self.lean = lean

    def forward(
        self, tokens: Tensor, rows: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, kept: list[Tensor]
    ) -> Tensor:
        past = mask.shape[-1] - tokens.shape[0]
        out: Tensor = self.lean.head(self.lean.states(tokens, cos, sin, mask, kept, past)[rows])
        return out


@torch.no_grad()
def make_aoti(folder: Path) -> None:
    """bf16; AOTInductor packs the matrices for oneDNN when it freezes them into the package."""
    import torch._inductor.config
    from native_bakeoff_torch import KINDS, Lean

    weights = Weights.load(folder / "weights.pt")
    tokens, rows, cos, sin, mask, _ = example(weights, torch.bfloat16)
    kept = [
        torch.zeros(2 * weights.shape.kv_heads, CAPACITY, weights.shape.head_dim).bfloat16() for _ in weights.layers
    ]
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto}, {0: auto}, {0: auto}, {0: auto}, {2: auto, 3: auto}, [{} for _ in kept])
    inputs = (tokens, rows[:3], cos.bfloat16(), sin.bfloat16(), mask[None].bfloat16(), kept)
    graph = OneGraph(Lean(weights, KINDS["bf16"]).eval())
    with torch._inductor.config.patch(freezing=True):
        exported = torch.export.export(graph, inputs, dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "aoti-bf16.pt2"))
