"""Folders that keep the codes, in formats that vLLM runs and transformers reads.

Integers: compressed-tensors' format.  Codes are stored as they are, with nothing rounded again: fewer than 8 bits
packed into 32-bit words ("pack-quantized"), 8 bits of weights and activations as bytes ("int-quantized").  transformers
computes with them as floats.  Additive codes: the format of the package aqlm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from likely.compression.architecture import DecoderMap
from likely.compression.export import RECORD, changed_steps
from likely.compression.quantisers.activations import QuantLinear
from likely.compression.quantisers.additive.tensor import AdditiveScheme, AdditiveTensor
from likely.compression.quantized import QuantizedTensor, pack_codes
from likely.compression.schemes import QuantScheme
from likely.compression.settings import Codes
from likely.errors import CapabilityError
from likely.formats.weights import EncodedTensor, Step
from likely.models.plans import Changes

WORD_BITS = 32


def quantization_config(scheme: QuantScheme) -> dict[str, Any]:
    """What config.json says; CapabilityError for a scheme that the format has no place for."""
    if not scheme.symmetric:
        raise CapabilityError(
            f"compressed-tensors has no float minimums: {scheme.name} cannot be written; choose {scheme.name}-sym"
        )
    weights = _arguments(scheme.bits, "group" if scheme.group_size else "channel") | {"group_size": scheme.group_size}
    inputs = None
    if scheme.activation_bits is not None:
        inputs = _arguments(scheme.activation_bits, scheme.activation) | {"dynamic": scheme.activation == "token"}
    packed = inputs is None
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if packed else "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": inputs,
                "output_activations": None,
            }
        },
        "ignore": ["lm_head"],
    }


def packed_changes(module: torch.nn.Module, quantized: Codes, original: torch.nn.Module, record: str) -> Changes:
    """What the folder has instead of the original's; static scales of activations are those the module runs with."""
    integers = {name: tensor for name, tensor in quantized.items() if isinstance(tensor, QuantizedTensor)}
    if not integers:
        return _additive_changes(module, quantized, original, record)
    scheme = next(iter(integers.values())).scheme
    described = quantization_config(scheme)
    packed = described["format"] == "pack-quantized"
    floats = changed_steps(module, integers, original)
    steps = {name: step for name, step in floats.items() if name not in integers}
    for name, tensor in integers.items():
        steps.update((step.name, step) for step in tensor_steps(name.removesuffix(".weight"), tensor, packed=packed))
    if scheme.activation == "tensor":
        for name, _, _, linear in DecoderMap.of(module).linears():
            assert isinstance(linear, QuantLinear) and linear.scale is not None
            own = f"{name.removesuffix('.weight')}.input_scale"
            steps[own] = Step(own, "F32", linear.scale.reshape(1).float().numpy())
    tied = module.config.tie_word_embeddings
    config = {"tie_word_embeddings": tied, "quantization_config": described}
    return Changes(steps, {}, config, {RECORD: record}, dropped=frozenset(integers) if packed else frozenset())


def tensor_steps(name: str, tensor: QuantizedTensor, *, packed: bool) -> list[Step]:
    """What stands for one matrix: weight_packed and weight_shape, or weight in bytes; and weight_scale."""
    scale = Step(f"{name}.weight_scale", "F16", tensor.grid.scales)
    if not packed:
        codes = tensor.codes.astype(np.int8)
        return [Step(f"{name}.weight", "I8", EncodedTensor(tensor.shape, codes.view(np.uint8))), scale]
    rows, width = tensor.shape
    if width * tensor.scheme.bits % WORD_BITS:
        raise CapabilityError(f"rows of {width} codes of {tensor.scheme.bits} bits are not whole 32-bit words")
    words = pack_codes(tensor.codes, tensor.scheme.bits, -(1 << (tensor.scheme.bits - 1)))
    shape = np.array(tensor.shape, "<i8").view(np.uint8)
    return [
        Step(f"{name}.weight_packed", "I32", EncodedTensor((rows, width * tensor.scheme.bits // WORD_BITS), words)),
        Step(f"{name}.weight_shape", "I64", EncodedTensor((2,), shape)),
        scale,
    ]


def additive_config(scheme: AdditiveScheme) -> dict[str, Any]:
    """What config.json says of additive codes."""
    return {
        "quant_method": "aqlm",
        "in_group_size": scheme.group_size,
        "out_group_size": 1,
        "num_codebooks": scheme.codebooks,
        "nbits_per_codebook": scheme.bits,
        "linear_weights_not_to_quantize": ["lm_head"],
    }


def _additive_changes(module: torch.nn.Module, codes: Codes, original: torch.nn.Module, record: str) -> Changes:
    tensors = {name: tensor for name, tensor in codes.items() if isinstance(tensor, AdditiveTensor)}
    floats = changed_steps(module, tensors, original)
    steps = {name: step for name, step in floats.items() if name not in tensors}
    for name, tensor in tensors.items():
        own, packed = name.removesuffix("weight"), tensor.pack()
        kind = f"I{8 * packed.codes.itemsize}"
        stored = EncodedTensor(packed.codes.shape, np.ascontiguousarray(packed.codes).view(np.uint8))
        for step in (
            Step(f"{own}codes", kind, stored),
            Step(f"{own}codebooks", "F16", packed.codebooks.astype(np.float32)),
            Step(f"{own}scales", "F16", packed.scales.astype(np.float32)),
        ):
            steps[step.name] = step
    config = {
        "tie_word_embeddings": module.config.tie_word_embeddings,
        "quantization_config": additive_config(next(iter(tensors.values())).scheme),
    }
    return Changes(steps, {}, config, {RECORD: record}, dropped=frozenset(tensors))


def _arguments(bits: int, strategy: str) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy}
