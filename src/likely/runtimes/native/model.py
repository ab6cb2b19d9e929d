"""A model as the C++ library reads it: sizes, and pointers to packed weights."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from likely.runtimes.native.architecture import ACTIVATIONS, Architecture
from likely.runtimes.native.codes import FLOAT_TYPES, type_of
from likely.runtimes.native.library import (
    CODES,
    GROUP,
    TYPES,
    LayerWeights,
    ModelShape,
    NativeModel,
    PackedMatrix,
    address,
)


def native_model(
    s: Architecture, kind: int, weights: dict[str, np.ndarray], *, rotated: bool = False
) -> tuple[NativeModel, Any, Any]:
    """The model as pointers; the other two keep alive what it points to. rotated: see cpp/codes.h."""
    frequencies = [np.ascontiguousarray(f, np.float32) for f in s.frequencies]
    layers = (LayerWeights * s.layers)()
    found = {name.partition(":")[0]: (type_of(name), values) for name, values in weights.items()}

    def matrix(name: str, outputs: int) -> PackedMatrix:
        type_name, values = found.get(name, (None, None))
        return PackedMatrix(address(values), TYPES.index(type_name or TYPES[0]), outputs if values is not None else 0)

    q, kv, rows = s.heads * s.head_dim, s.kv_heads * s.head_dim, -(-s.mlp // GROUP) * GROUP
    for i, window in enumerate(s.windows):
        of, at = layers[i], f"layers.{i}."
        if kind == CODES:
            of.qkv = (matrix(at + "q", q), matrix(at + "k", kv), matrix(at + "v", kv))
            of.out, of.gate_up = matrix(at + "o", s.hidden), (matrix(at + "gate", rows), matrix(at + "up", rows))
        else:
            of.qkv = (matrix(at + "qkv", q + 2 * kv), PackedMatrix(), PackedMatrix())
            of.out, of.gate_up = matrix(at + "out", s.hidden), (matrix(at + "gate_up", 2 * rows), PackedMatrix())
        of.down = matrix(at + "down", s.hidden)
        for name in _VECTORS:
            setattr(of, name, address(weights.get(at + name)))
        of.frequencies = address(frequencies[window > 0])
        of.window = window
    shape = ModelShape(
        kind, s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.mlp, s.vocab_size, ACTIVATIONS[s.activation],
        rotated, any(type_name in FLOAT_TYPES for type_name, _ in found.values()),
        s.epsilon, s.attention_scale, s.embedding_scale, s.logit_softcap,
    )  # fmt: skip
    tables = (matrix("embedding", s.vocab_size), matrix("head", s.vocab_size))
    return NativeModel(shape, ctypes.addressof(layers), address(weights["final_norm"]), *tables), layers, frequencies


_VECTORS = ("qkv_bias", "attention_norm", "mlp_norm", "query_norm", "key_norm", "attention_after", "mlp_after")
