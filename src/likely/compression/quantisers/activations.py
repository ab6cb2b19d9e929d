"""Matrices whose inputs are rounded, too: simulated in floats, or with integer products that give the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from likely.compression.architecture import DecoderMap
from likely.compression.calibration_set import CalibrationSet
from likely.compression.quantisers.walk import BlockWalk, replace_linear
from likely.compression.quantized import QuantizedTensor
from likely.compression.schemes import QuantScheme
from likely.errors import CapabilityError

_LEAST_SCALE = 1e-12
MOST_INPUTS = 1 << 17  # int8 products of so many terms fit into 32 bits
Backend = Literal["fake", "int8"]


def code_range(bits: int) -> tuple[int, int]:
    """Lowest and highest symmetric code."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def activation_scale(inputs: torch.Tensor, bits: int) -> torch.Tensor:
    """(..., 1) scale of each token: its largest magnitude on the highest code."""
    return (inputs.abs().amax(-1, keepdim=True) / code_range(bits)[1]).clamp_min(_LEAST_SCALE)


def to_codes(inputs: torch.Tensor, scale: torch.Tensor | float, bits: int) -> torch.Tensor:
    """clamp(round(x / s)) as floats, ties to even."""
    return (inputs / scale).round().clamp(*code_range(bits))


class QuantLinear(torch.nn.Linear):
    """y = W x̂ with x̂ rounded to `bits` bits.

    scale    None: one for each token, computed at each call; a number: one for all (static); (in,): one for each
             channel, static, which no integer kernel can do as it stands
    backend  "fake": floats that equal the rounded numbers, slower than no quantisation and no basis for a figure of
             speed.  "int8": integer products (see `use_integers`)
    exact    inputs are not rounded (see `exact_inputs`)
    """

    scale: torch.Tensor | None

    def __init__(self, linear: torch.nn.Linear, bits: int, scale: torch.Tensor | float | None = None):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.bits = bits
        self.register_buffer("scale", None if scale is None else torch.as_tensor(scale, dtype=torch.float32))
        self.backend: Backend = "fake"
        self.exact = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.exact:
            return torch.nn.functional.linear(input, self.weight, self.bias)
        scale = activation_scale(input, self.bits) if self.scale is None else self.scale
        codes = to_codes(input, scale, self.bits)
        if self.backend == "fake":
            return torch.nn.functional.linear(codes * scale, self.weight, self.bias)
        rows = codes.reshape(-1, codes.shape[-1]).to(torch.int8)
        sums: torch.Tensor = torch._int_mm(rows, self.codes.T)
        found = sums.reshape(*codes.shape[:-1], -1).float() * self.row_scale * scale
        return found if self.bias is None else found + self.bias

    def use_integers(self, tensor: QuantizedTensor) -> None:
        """Multiply codes of inputs by these codes of the weights, sums in 32 bits, scales afterwards."""
        if tensor.grid.scales.shape[1] != 1 or tensor.grid.minimums is not None:
            raise CapabilityError("integer products need symmetric weights with one scale for each row")
        if self.scale is not None and self.scale.numel() > 1:
            raise CapabilityError("a scale for each input channel cannot be taken out of an integer product")
        if tensor.shape[1] > MOST_INPUTS:
            raise CapabilityError(
                f"sums of {tensor.shape[1]} int8 products may not fit 32 bits (at most {MOST_INPUTS})"
            )
        self.register_buffer("codes", torch.from_numpy(tensor.codes).to(torch.int8))
        self.register_buffer("row_scale", torch.from_numpy(tensor.grid.scales[:, 0].copy()))
        self.backend = "int8"

    def extra_repr(self) -> str:
        kind = "token" if self.scale is None else "tensor" if self.scale.numel() == 1 else "channel"
        return f"{super().extra_repr()}, inputs of {self.bits} bits per {kind}, backend {self.backend}"


@contextmanager
def exact_inputs(module: torch.nn.Module) -> Iterator[None]:
    """No inputs are rounded meanwhile: for checks of a model's form, which the last bit of a float may not decide.

    Rounding has steps: two sums of other order, 1e-7 apart, may get codes that are one apart, in every layer.
    """
    linears = [part for part in module.modules() if isinstance(part, QuantLinear)]
    for linear in linears:
        linear.exact = True
    try:
        yield
    finally:
        for linear in linears:
            linear.exact = False


def quantize_inputs(decoder: DecoderMap, scheme: QuantScheme, calibration: CalibrationSet | None = None) -> None:
    """Round the inputs of every matrix as the scheme says, simulated.

    With `scheme.activation` "tensor" the calibration set gives the largest magnitude that each input had, in the model
    as it is now, earlier inputs rounded already.
    """
    if scheme.activation_bits is None:
        return
    if scheme.activation == "token":
        for block in decoder.blocks:
            for part, linear in block.linears().items():
                replace_linear(block, part, QuantLinear(linear, scheme.activation_bits))
        return
    if calibration is None:
        raise ValueError("static scales of activations need a calibration set")
    walk, highest = BlockWalk(decoder, calibration.input_ids), code_range(scheme.activation_bits)[1]
    for number in range(len(walk)):
        for stage in walk.stages(number):
            scale = float((stage.inputs.abs().max() / highest).clamp_min(_LEAST_SCALE))
            for part in stage.parts:
                replace_linear(
                    stage.block, part, QuantLinear(stage.block.linears()[part], scheme.activation_bits, scale)
                )
