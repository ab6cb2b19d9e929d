"""Folders that keep the codes, in formats that vLLM runs and transformers reads.

Integers: compressed-tensors' format.  Codes are stored as they are, with nothing rounded again: fewer than 8 bits
packed into 32-bit words ("pack-quantized"), 8 bits of weights and activations as bytes ("int-quantized").  transformers
computes with them as floats.  Additive codes: the format of the package aqlm.  MergeQuant's codes, whose columns are
not those of the model: a form of our own, which the native runtime multiplies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from likely.compression.architecture import DecoderMap
from likely.compression.export import RECORD, changed_steps
from likely.compression.mergequant.method import QuantRMSNorm
from likely.compression.quantisers.activations import QuantLinear
from likely.compression.quantisers.additive.tensor import AdditiveScheme, AdditiveTensor
from likely.compression.quantized import QuantizedTensor, pack_codes
from likely.compression.schemes import QuantScheme
from likely.compression.settings import Codes
from likely.errors import CapabilityError
from likely.formats.weights import EncodedTensor, Step
from likely.models.plans import Changes

WORD_BITS, MERGED_GROUP = 32, 64
NO_FLOAT_INPUTS = "inputs that are floats have no integer products: other_inputs must be dynamic or static"


def quantization_config(scheme: QuantScheme) -> dict[str, Any]:
    """What config.json says; CapabilityError for a scheme that the format has no place for."""
    if not scheme.symmetric:
        raise CapabilityError(
            f"compressed-tensors has no float minimums: {scheme.name} cannot be written; choose "
            f"{replace(scheme, symmetric=True).name}"
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


def merged_changes(module: torch.nn.Module, quantized: Codes, original: torch.nn.Module, record: str) -> Changes:
    """MergeQuant's model as its codes; CapabilityError where inputs of o and down are floats.

    X.weight_packed      (out, bytes) of each matrix, see `merged_rows`; columns are the channels of its input, then
                         those that stand a second time, then zeros up to a multiple of 64
    NORM.weight          with the steps of its output folded in
    NORM.extra_columns   (n,) I32: the channels that stand a second time, in their order
    """
    decoder = DecoderMap.of(module)
    static = {_static(linear) for _, _, part, linear in decoder.linears() if part in ("o", "down")}
    if len(static) > 1 or None in static:
        raise CapabilityError(NO_FLOAT_INPUTS)
    names = {(block.number, part): name for name, block, part, _ in decoder.linears()}
    places = {id(part): name for name, part in module.named_modules()}
    tensors = {name: tensor for name, tensor in quantized.items() if isinstance(tensor, QuantizedTensor)}
    made: list[Step] = []
    bits, folded = 0, set()
    for block in decoder.blocks:
        own = {part: names[block.number, part] for part in block.linears()}
        for part in ("o", "down"):
            made += _reader_steps({own[part]: tensors[own[part]]}, np.arange(tensors[own[part]].shape[1]))
        for norm, parts in ((block.input_norm, ("q", "k", "v")), (block.mlp_norm, ("gate", "up"))):
            assert isinstance(norm, QuantRMSNorm)
            place, bits, channels = places[id(norm)], norm.bits, np.arange(len(norm.weight))
            index = channels if norm.index is None else norm.index.numpy()
            made.append(Step(f"{place}.weight", "F32", norm.weight.detach().float().numpy()))
            made += _reader_steps({own[part]: tensors[own[part]] for part in parts}, index, place, len(channels))
            folded.add(f"{place}.norm.weight")
    floats = changed_steps(module, quantized, original)
    made += [step for name, step in floats.items() if name not in folded and name not in quantized]
    tables = {name: p for name, p in module.named_parameters() if p.ndim > 1 and name not in quantized}
    made += [Step(name, "F16", table.detach().float().numpy()) for name, table in tables.items()]
    described = {
        "quant_method": "mergequant",
        "weight_bits": next(iter(tensors.values())).scheme.bits,
        "activation_bits": bits,
        "static": "all" if static.pop() else "norms",
    }
    config = {"tie_word_embeddings": module.config.tie_word_embeddings, "quantization_config": described}
    return Changes({step.name: step for step in made}, {}, config, {RECORD: record}, dropped=frozenset(tensors))


def _static(linear: torch.nn.Linear) -> bool | None:
    """Whether its inputs are codes without a scale; None: floats."""
    return linear.scale is not None if isinstance(linear, QuantLinear) else None


def _reader_steps(
    tensors: dict[str, QuantizedTensor], index: NDArray[np.int64], norm: str = "", channels: int | None = None
) -> list[Step]:
    """The matrices that read one input, and its channels that stand a second time."""
    first, extra = _arranged(index, len(index) if channels is None else channels, list(tensors.values()))
    steps = []
    if len(extra):
        further = index[extra].astype("<i4")
        steps.append(Step(f"{norm}.extra_columns", "I32", EncodedTensor(further.shape, further.view(np.uint8))))
    for name, tensor in tensors.items():
        codes = np.concatenate([np.where(first < 0, 0, tensor.codes[:, first]), tensor.codes[:, extra]], axis=1)
        rows = merged_rows(codes, tensor.grid.scales[:, 0], tensor.scheme.bits)
        steps.append(Step(f"{name}_packed", "I8", EncodedTensor(rows.shape, rows)))
    return steps


def _arranged(
    index: NDArray[np.int64], channels: int, tensors: list[QuantizedTensor]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(channels,) the first column that reads each channel, -1: none; and the others, but for columns of zeros."""
    first = np.full(channels, -1)
    first[index[::-1]] = np.arange(len(index))[::-1]
    used = np.any([(tensor.codes != 0).any(0) for tensor in tensors], axis=0)
    return first, np.flatnonzero((first[index] != np.arange(len(index))) & used)


def merged_rows(codes: NDArray[np.int16], scales: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    """Rows (out, 4 + bytes of the codes): the scale in fp32, then codes, zeros up to a multiple of 64.

    Up to 4 bits a byte holds codes i and i + 16 of 32, 8 added; else a code takes a byte.
    """
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % MERGED_GROUP)))
    packed: NDArray[np.uint8] = codes.astype(np.int8).view(np.uint8)
    if bits <= 4:
        halves = (codes + 8).astype(np.uint8).reshape(len(codes), -1, 2, 16)
        packed = (halves[:, :, 0] | halves[:, :, 1] << 4).astype(np.uint8).reshape(len(codes), -1)
    return np.concatenate([scales.astype("<f4")[:, None].view(np.uint8), packed], axis=1)


def _arguments(bits: int, strategy: str) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy}
