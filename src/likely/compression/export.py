"""Compressed models as files that engines run: GGUF with the codes as they are, and folders for transformers.

Codes are packed, not rounded again: a GGUF block holds 32 neighbours of a row, so a larger group repeats its scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from likely.compression.pruning.plan import with_equal_layers
from likely.compression.quantized import QuantizedTensor
from likely.compression.schemes import QuantScheme
from likely.compression.settings import Codes
from likely.errors import CapabilityError
from likely.formats import families
from likely.formats.families import Change
from likely.formats.weights import EncodedTensor, Step, encode_blocks
from likely.formats.writing import u32
from likely.models.plans import Changes

BLOCK = 32
# (bits, symmetric) -> GGUF type and its number as general.file_type
TYPES = {
    (4, True): ("Q4_0", 2),
    (4, False): ("Q4_1", 3),
    (5, True): ("Q5_0", 8),
    (5, False): ("Q5_1", 9),
    (8, True): ("Q8_0", 7),
}
RECORD = "likely_compression.json"
SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")  # what pruning changes


def gguf_type(scheme: QuantScheme) -> tuple[str, int]:
    """The GGUF type that holds a scheme's codes, and its number; CapabilityError that lists those that exist."""
    found = TYPES.get((scheme.bits, scheme.symmetric))
    if found is None or (scheme.group_size or BLOCK) % BLOCK:
        kinds = ", ".join(QuantScheme(bits, None, symmetric).name for bits, symmetric in TYPES)
        raise CapabilityError(
            f"no GGUF type holds the codes of {scheme.name}: {kinds} with groups of a multiple of {BLOCK} can be "
            "written; give a folder as --out for any other scheme"
        )
    return found


def blocks_of(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """The tensor's bytes in its GGUF type, (out, bytes of a row)."""
    gguf_type(tensor.scheme)
    if tensor.codes.shape[1] % BLOCK:
        raise CapabilityError(f"rows of {tensor.codes.shape[1]} weights are not whole GGUF blocks of {BLOCK}")
    return encode_blocks(tensor.codes, tensor.grid.scales, tensor.grid.minimums, bits=tensor.scheme.bits)


def gguf_changes(module: torch.nn.Module, quantized: Codes, original: torch.nn.Module, record: str) -> Changes:
    """A GGUF file that llama.cpp and the native runtime load; the settings stand in its key likely.compression.

    Matrices that were rounded keep their codes.  Others keep the type that the source has them in, where compression
    left their numbers alone, else they become F16 (norms and biases F32), additive codes included.  Layers of a pruned
    model that differ are filled up with zeros to the largest, since one size per model is all that these engines read.
    """
    module = with_equal_layers(module)
    config: dict[str, Any] = module.config.to_dict()
    family = families.family_of_config(config)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    steps: dict[str, Step] = {}
    file_type = 1
    for name, parameter in _changed_parameters(module, quantized, original):
        own = families.gguf_name(family, name)
        change = families.change_to_gguf(family, own, heads, kv_heads)
        if isinstance(tensor := quantized.get(name), QuantizedTensor):
            if change is not None:
                numbers = change(np.arange(tensor.shape[0], dtype=np.float32))
                tensor = tensor.rows(numbers.astype(np.int64))
            kind, file_type = gguf_type(tensor.scheme)
            steps[own] = Step(own, kind, EncodedTensor(tensor.shape, blocks_of(tensor)))
        else:
            steps[own] = _as_floats(own, parameter, change)
    metadata: families.Metadata = {
        "general.file_type": u32(file_type),
        "general.quantization_version": u32(2),
        "likely.compression": record,
    }
    if families.block_sizes(config) != families.block_sizes(original.config.to_dict()):
        metadata |= families.block_sizes(config)
    return Changes(steps, metadata, {}, {})


def folder_changes(module: torch.nn.Module, quantized: Codes, original: torch.nn.Module, record: str) -> Changes:
    """A folder with the weights as floats (F16 matrices), for any scheme: as accurate as the codes, and no smaller.

    The settings stand beside them in likely_compression.json.  Pruned layers that differ are filled up as in
    GGUF files.
    """
    module = with_equal_layers(module)
    steps = changed_steps(module, quantized, original)
    ours, theirs = (m.config.to_dict() for m in (module, original))
    config = {name: ours[name] for name in SIZES if ours.get(name) != theirs.get(name)}
    config |= {"tie_word_embeddings": ours["tie_word_embeddings"], "dtype": "float32"}
    return Changes(steps, {}, config, {RECORD: record})


def changed_steps(module: torch.nn.Module, quantized: Codes, original: torch.nn.Module) -> dict[str, Step]:
    """Parameters whose numbers are not the original's, as floats: matrices F16, others F32."""
    changed = _changed_parameters(module, quantized, original)
    return {name: _as_floats(name, parameter) for name, parameter in changed}


def _as_floats(name: str, parameter: torch.nn.Parameter, change: Change | None = None) -> Step:
    values = parameter.detach().float().numpy()
    values = np.ascontiguousarray(values if change is None else change(values))
    return Step(name, "F16" if values.ndim > 1 else "F32", values)


def _changed_parameters(
    module: torch.nn.Module, quantized: Codes, original: torch.nn.Module
) -> list[tuple[str, torch.nn.Parameter]]:
    """Of the module, those whose numbers are not the original's."""
    before = dict(original.named_parameters())
    return [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if name in quantized or name not in before or not _same(parameter, before[name])
    ]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
