"""MergeQuant: static activation codes for each channel, their steps folded into norms and weights.

A norm n(x)·g becomes n(x)·(g/s), whose rounding is the code; the matrices behind it become W diag(s), rounded for each
output row.  Nothing is computed for activations as the model runs but a rounding, and an integer kernel sees one static
scale of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from likely.compression.architecture import DecoderBlock, DecoderMap
from likely.compression.calibration_set import CalibrationSet
from likely.compression.mergequant.merged import (
    SplitColumns,
    Steps,
    clip_channels,
    clip_layer,
    drop_columns,
    fit_steps,
    round_merged,
    row_scales,
    split_columns,
    split_integers,
)
from likely.compression.quantisers.activations import QuantLinear, code_range, to_codes
from likely.compression.quantisers.gptq import Column, round_in_order
from likely.compression.quantisers.walk import BlockWalk, Stage, replace_linear, second_moment
from likely.compression.quantized import Grid, QuantizedTensor
from likely.compression.schemes import QuantScheme, parse_scheme
from likely.compression.settings import MethodSettings, OtherInputs, Progress, Quantized, RoundingStep
from likely.errors import ModelError

LEAST_TOKENS = 128
Reconstruction = Literal["split", "split+prune"]


class QuantRMSNorm(torch.nn.Module):
    """A norm whose scale holds 1/s: it emits codes, as floats, gathered as the matrices behind it read them."""

    index: torch.Tensor | None

    def __init__(self, norm: torch.nn.Module, bits: int, index: torch.Tensor | None = None):
        super().__init__()
        self.norm, self.bits = norm, bits
        self.register_buffer("index", index)

    @property
    def weight(self) -> torch.Tensor:
        return self.norm.weight

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        codes = to_codes(self.norm(hidden_states), 1.0, self.bits)
        return codes if self.index is None else codes[..., self.index]


@dataclass(frozen=True)
class MergeQuant:
    """Static quantisation for each channel, without cost as the model runs.

    w_bits, a_bits  of weights (one scale for each output row) and of activations, 2 to 8
    other_inputs    of o and down, which come from no norm: "dynamic" for each token, "static" with their steps folded
                    one matrix back (into the rows of v and up), "float": not rounded
    reconstruct     "split" channels with a step above `threshold` times the median into several columns, at most
                    `growth` more; "split+prune": and drop as many weak channels;  None: leave the columns as they are
    clip            choose how much of the range codes cover, per channel and per layer
    rounding        of the merged weights: "gptq" on the codes, or "rtn"
    """

    w_bits: int = 4
    a_bits: int = 4
    other_inputs: OtherInputs = "dynamic"
    reconstruct: Reconstruction | None = "split"
    growth: float = 0.1
    threshold: float = 2.0
    clip: bool = True
    rounding: RoundingStep = "gptq"

    def __post_init__(self) -> None:
        for name, bits in (("w_bits", self.w_bits), ("a_bits", self.a_bits)):
            if not 2 <= bits <= 8:
                raise ValueError(f"{name} must lie between 2 and 8, got {bits}")

    def fit(self, decoder: DecoderMap, calibration: CalibrationSet, progress: Progress | None = None) -> Quantized:
        """Change the decoder in place; returns the codes of each matrix, with the columns that it now has."""
        if calibration.tokens < LEAST_TOKENS:
            raise ValueError(f"at least {LEAST_TOKENS} calibration tokens are needed, got {calibration.tokens}")
        if any(isinstance(b.input_norm, QuantRMSNorm) for b in decoder.blocks):
            raise ModelError("this model is quantised by MergeQuant already: start from the original")
        names = {(b.number, part): name for name, b, part, _ in decoder.linears()}
        walk = BlockWalk(decoder, calibration.input_ids)
        quantized: Quantized = {}
        for number in range(len(walk)):
            for stage in walk.stages(number):
                for part, tensor in self._stage(decoder, stage, quantized, names).items():
                    quantized[names[number, part]] = tensor
            if progress is not None:
                progress(number + 1, len(walk))
        return quantized

    def _stage(
        self, decoder: DecoderMap, stage: Stage, quantized: Quantized, names: dict[tuple[int, str], str]
    ) -> Quantized:
        block, parts, inputs = stage.block, stage.parts, stage.inputs
        linears = [block.linears()[part] for part in parts]
        if parts in (("q", "k", "v"), ("gate", "up")):
            matrix, steps, columns = self._merge(inputs, linears, split=True)
            norm = block.input_norm if "q" in parts else block.mlp_norm
            decoder.set_norm_scale(norm, decoder.norm_scale(norm) / steps.values)
            index = None if columns.unchanged else torch.from_numpy(columns.index)
            _set_norm(block, norm, QuantRMSNorm(norm, self.a_bits, index))
            return _replace(block, parts, matrix, self._reads_codes)
        [part] = parts
        if self.other_inputs == "static":
            feeding = "v" if part == "o" else "up"
            tied = _tie_heads(inputs, decoder) if part == "o" else inputs
            matrix, steps, _ = self._merge(inputs, linears, split=False, calibrate_on=tied)
            rows = _untie(steps.values, decoder) if part == "o" else steps.values
            _divide_rows(block, feeding, rows, quantized[names[block.number, feeding]])
            return _replace(block, parts, matrix, self._reads_codes)
        ones = Steps(torch.ones(inputs.shape[1]))
        matrix = self._round(linears[0].weight.detach(), ones, inputs, SplitColumns(np.ones(inputs.shape[1], np.int64)))
        dynamic = self.other_inputs == "dynamic"
        return _replace(block, parts, matrix, lambda linear: QuantLinear(linear, self.a_bits) if dynamic else linear)

    def _reads_codes(self, linear: torch.nn.Linear) -> QuantLinear:
        return QuantLinear(linear, self.a_bits, 1.0)

    def _merge(
        self, inputs: torch.Tensor, linears: Sequence[torch.nn.Linear], *, split: bool,
        calibrate_on: torch.Tensor | None = None,
    ) -> tuple[QuantizedTensor, Steps, SplitColumns]:  # fmt: skip
        """Codes of the merged matrices, one below the other, the steps of their inputs, and the columns they read."""
        weights = torch.cat([linear.weight.detach() for linear in linears])
        tied = inputs if calibrate_on is None else calibrate_on
        values = fit_steps(tied, self.a_bits)
        if self.clip:
            values = clip_channels(tied, values, self.a_bits)
        columns = SplitColumns(np.ones(len(values), np.int64))
        if split and self.reconstruct is not None:
            columns = split_columns(values.numpy(), threshold=self.threshold, growth=self.growth)
            if self.reconstruct == "split+prune":
                importance = (inputs.square().mean(0) * weights.square().sum(0)).numpy()
                columns = drop_columns(columns, importance)
        steps = Steps(values)
        if self.clip:
            copies = torch.from_numpy(columns.copies).float()
            steps = clip_layer(inputs, weights, values, copies, self.w_bits, self.a_bits)
        codes = to_codes(inputs, steps.values, self.a_bits)
        return self._round(weights, steps, codes, columns), steps, columns

    def _round(
        self, weights: torch.Tensor, steps: Steps, codes: torch.Tensor, columns: SplitColumns
    ) -> QuantizedTensor:
        """The merged weights rounded for inputs `codes` (n, in), then spread over their columns."""
        copies = torch.from_numpy(columns.copies).to(weights.dtype)
        if self.rounding == "gptq":
            merged = weights * steps.values
            scales = row_scales(merged, steps, copies, self.w_bits)
            most, column = (copies * code_range(self.w_bits)[1]).numpy(), scales[:, 0].numpy()

            def round_column(j: int, values: Column) -> Column:
                return np.clip(np.rint(values / column), -most[j], most[j]) * column

            order = torch.argsort(copies > 0, stable=True)  # what is dropped comes first: the others make up for it
            rounded = round_in_order(merged, second_moment(codes), round_column, order=order)
            integers = (rounded / scales).round()
        else:
            integers, scales = round_merged(weights, steps, copies, self.w_bits)
        split = split_integers(integers.numpy().astype(np.int64), columns).astype(np.int16)
        return QuantizedTensor(split, Grid(scales.numpy().astype(np.float32)), merged_scheme(self.w_bits))


def merged_scheme(bits: int) -> QuantScheme:
    return QuantScheme(bits=bits, group_size=None, symmetric=True, restricted=True)


def use_integer_products(decoder: DecoderMap, quantized: Quantized) -> None:
    """Run every matrix whose inputs are codes by int8 products: the same numbers as simulated ones."""
    for name, _, _, linear in decoder.linears():
        if isinstance(linear, QuantLinear):
            linear.use_integers(quantized[name])


@torch.no_grad()
def unfold(module: torch.nn.Module, original: torch.nn.Module) -> torch.nn.Module:
    """`original`, the model before `fit`, with the rounded weights of `module`; activations are floats in it.

    A column's step is what its norm lost; the columns of a split channel add up to one.
    """
    plain = DecoderMap.of(original)
    for ours, theirs in zip(DecoderMap.of(module).blocks, plain.blocks, strict=True):
        for part, linear in ours.linears().items():
            weights = linear.weight
            if part not in ("o", "down"):
                norm = "mlp_norm" if part in ("gate", "up") else "input_norm"
                folded: QuantRMSNorm = getattr(ours, norm)
                own = plain.norm_scale(getattr(theirs, norm))
                now = plain.norm_scale(folded.norm)
                steps = torch.where(now == 0, torch.ones_like(now), own / now)
                index = torch.arange(len(own)) if folded.index is None else folded.index
                weights = torch.zeros(len(weights), len(own)).index_add_(1, index, weights) / steps
            target = theirs.linears()[part]
            target.weight.copy_(weights)
            if target.bias is not None:
                target.bias.copy_(linear.bias)
    return original


def parse_merged(text: str | QuantScheme) -> QuantScheme:
    """A scheme that MergeQuant takes; ValueError for another."""
    scheme = parse_scheme(text)
    if scheme.group_size is not None or scheme.activation_bits is None or scheme.activation == "tensor":
        raise ValueError(
            f"mergequant rounds activations, by scales of its own, and weights by one a row: got {scheme.name}, "
            "write it as in w4a4, w4a8 or w8a8"
        )
    return scheme


def run_mergequant(decoder: DecoderMap, settings: MethodSettings) -> Quantized:
    """As a method of `compress`."""
    scheme, calibration = settings.needed()
    scheme = parse_merged(scheme)
    assert scheme.activation_bits is not None
    merging = MergeQuant(
        scheme.bits, scheme.activation_bits, other_inputs=settings.other_inputs, rounding=settings.rounding
    )
    return merging.fit(decoder, calibration, settings.progress)


def _set_norm(block: DecoderBlock, old: torch.nn.Module, new: torch.nn.Module) -> None:
    [name] = [name for name, child in block.module.named_children() if child is old]
    setattr(block.module, name, new)


def _tie_heads(inputs: torch.Tensor, decoder: DecoderMap) -> torch.Tensor:
    """(n · heads of a group, in) inputs of o with those of the query heads of a group in each other's place."""
    groups = decoder.heads // decoder.kv_heads
    heads = inputs.reshape(len(inputs), decoder.kv_heads, groups, decoder.head_dim)
    return torch.cat([heads.roll(i, dims=2) for i in range(groups)]).reshape(-1, inputs.shape[1])


def _untie(steps: torch.Tensor, decoder: DecoderMap) -> torch.Tensor:
    """(kv heads · head_dim) steps of the value channels from those of o's inputs, equal within a group."""
    heads = steps.reshape(decoder.kv_heads, -1, decoder.head_dim)
    return heads[:, 0].reshape(-1)


def _divide_rows(block: DecoderBlock, part: str, steps: torch.Tensor, tensor: QuantizedTensor) -> None:
    linear = block.linears()[part]
    with torch.no_grad():
        linear.weight /= steps[:, None]
        if linear.bias is not None:
            linear.bias /= steps
    tensor.grid.scales[...] /= steps.numpy()[:, None]


def _replace(
    block: DecoderBlock,
    parts: tuple[str, ...],
    matrix: QuantizedTensor,
    wrap: Callable[[torch.nn.Linear], torch.nn.Linear],
) -> Quantized:
    """Put the matrices, cut out of the one they were rounded in, into the block."""
    found, start = {}, 0
    for part in parts:
        old = block.linears()[part]
        tensor = matrix.rows(np.arange(start, start := start + old.out_features))
        linear = torch.nn.Linear(tensor.shape[1], old.out_features, bias=old.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(tensor.dequantize()))
            if old.bias is not None:
                linear.bias.copy_(old.bias)
        replace_linear(block, part, wrap(linear.requires_grad_(False)))
        found[part] = tensor
    return found
