"""A model as the C++ library reads it: sizes, and pointers to packed weights."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from likely.runtimes.native.architecture import ACTIVATIONS, Architecture
from likely.runtimes.native.library import LayerWeights, ModelShape, NativeModel, address


def native_model(s: Architecture, kind: int, weights: dict[str, np.ndarray]) -> tuple[NativeModel, Any, Any]:
    """The model as pointers; the other two keep alive what it points to."""
    frequencies = [np.ascontiguousarray(f, np.float32) for f in s.frequencies]
    layers = (LayerWeights * s.layers)()
    names = [field[0] for field in LayerWeights._fields_ if field[0] not in ("frequencies", "window")]
    for i, window in enumerate(s.windows):
        for name in names:
            setattr(layers[i], name, address(weights.get(f"layers.{i}.{name}")))
        layers[i].frequencies = address(frequencies[window > 0])
        layers[i].window = window
    shape = ModelShape(
        kind, s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.mlp, s.vocab_size, ACTIVATIONS[s.activation],
        s.epsilon, s.attention_scale, s.embedding_scale, s.logit_softcap,
    )  # fmt: skip
    model = NativeModel(
        shape,
        ctypes.addressof(layers),
        address(weights["final_norm"]),
        address(weights.get("embedding")),
        address(weights["head"]),
    )
    return model, layers, frequencies
