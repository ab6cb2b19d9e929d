"""A model as the C++ library reads it: sizes, and pointers to packed weights."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.errors import CapabilityError, ModelError
from likely.io.hashes import fingerprint
from likely.runtimes.kv_format import BFPFormat, KvFormat, parse_kv_format
from likely.runtimes.native.architecture import ACTIVATIONS, STATIC, Architecture
from likely.runtimes.native.codes import FLOAT_TYPES, type_of
from likely.runtimes.native.library import (
    CODES,
    FP32,
    GROUP,
    KV_FORMS,
    TYPES,
    ExtraColumns,
    LayerWeights,
    ModelShape,
    NativeModel,
    PackedMatrix,
    address,
    form_of,
)


@dataclass(frozen=True, eq=False)
class KvOrders:
    """In which order the channels of a head are stored, so that those of one size share a block.

    keys, values  per layer (H_kv, d): place c holds channel order[c].  No other number depends on it, but for rounding
    """

    keys: Sequence[NDArray[np.int64]]
    values: Sequence[NDArray[np.int64]]

    def checked(self, s: Architecture) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Of each layer; ValueError for what is no order of these heads."""
        if len(self.keys) != s.layers or len(self.values) != s.layers:
            raise ValueError(f"orders of {len(self.keys)} and {len(self.values)} layers do not fit {s.layers}")
        usual = np.tile(np.arange(s.head_dim), (s.kv_heads, 1))
        for order in (*self.keys, *self.values):
            if np.shape(order) != usual.shape or not np.array_equal(np.sort(order, axis=1), usual):
                raise ValueError(f"an order must name each of {s.head_dim} channels once, for {s.kv_heads} heads")
        pairs = zip(self.keys, self.values, strict=True)
        return [(np.ascontiguousarray(k, np.int32), np.ascontiguousarray(v, np.int32)) for k, v in pairs]

    def fingerprint(self) -> str:
        return fingerprint([np.asarray(order).tolist() for order in (*self.keys, *self.values)])


def native_model(
    s: Architecture,
    kind: int,
    weights: dict[str, np.ndarray],
    *,
    rotated: bool = False,
    kv: KvFormat | None = None,
    orders: KvOrders | None = None,
) -> tuple[NativeModel, Any, Any]:
    """The model as pointers; the other two keep alive what it points to.

    rotated  see cpp/codes.h;  kv  of keys and values, None: what attention computes in;  orders  of their channels
    """
    merged = s.merged
    stored, kept = kv or plain_kv(kind), orders.checked(s) if orders else []
    frequencies = [np.ascontiguousarray(f, np.float32) for f in s.frequencies]
    layers = (LayerWeights * s.layers)()
    found = {name.partition(":")[0]: (type_of(name), values) for name, values in weights.items()}

    def matrix(name: str, outputs: int) -> PackedMatrix:
        type_name, values = found.get(name, (None, None))
        return PackedMatrix(address(values), TYPES.index(type_name or TYPES[0]), outputs if values is not None else 0)

    q, width, rows = s.heads * s.head_dim, s.kv_heads * s.head_dim, -(-s.mlp // GROUP) * GROUP
    for i, window in enumerate(s.windows):
        of, at = layers[i], f"layers.{i}."
        if kind == CODES:
            of.qkv = (matrix(at + "q", q), matrix(at + "k", width), matrix(at + "v", width))
            of.out, of.gate_up = matrix(at + "o", s.hidden), (matrix(at + "gate", rows), matrix(at + "up", rows))
        else:
            of.qkv = (matrix(at + "qkv", q + 2 * width), PackedMatrix(), PackedMatrix())
            of.out, of.gate_up = matrix(at + "out", s.hidden), (matrix(at + "gate_up", 2 * rows), PackedMatrix())
        of.down = matrix(at + "down", s.hidden)
        for name in _VECTORS:
            setattr(of, name, address(weights.get(at + name)))
        of.attention_extra, of.mlp_extra = (_extra(weights.get(f"{at}{of_norm}_extra")) for of_norm in _NORMS)
        of.frequencies = address(frequencies[window > 0])
        of.window = window
        of.key_order, of.value_order = map(address, kept[i]) if kept else (None, None)
    codes_of_inputs = (merged.activation_bits, STATIC.index(merged.static)) if merged else (0, 0)
    shape = ModelShape(
        kind, s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.mlp, s.vocab_size, ACTIVATIONS[s.activation],
        rotated, any(type_name in FLOAT_TYPES for type_name, _ in found.values()),
        computes_in_half(kind, stored), *codes_of_inputs, *form_of(stored.keys), *form_of(stored.values),
        s.epsilon, s.attention_scale, s.embedding_scale, s.logit_softcap, s.attention_softcap,
    )  # fmt: skip
    tables = (matrix("embedding", s.vocab_size), matrix("head", s.vocab_size))
    return (
        NativeModel(shape, ctypes.addressof(layers), address(weights["final_norm"]), *tables),
        layers,
        (
            frequencies,
            kept,
        ),
    )


def plain_kv(kind: int) -> KvFormat:
    """What keys and values are stored as where nobody says otherwise."""
    name = "f32" if kind == FP32 else "bf16"
    return KvFormat(name, name)


def native_kv_format(text: str | None, s: Architecture, kind: int) -> KvFormat:
    """NAME, or KEYS/VALUES: f32, bf16, f16; q8_0 (int8 with a scale in half precision per 32 along the head, as ggml
    has it); bfp12 and bfp16, whose blocks may be another multiple of 16, as in bfp12n64.

    None: as attention computes.  CapabilityError for a format that the native runtime or this head does not take.
    """
    if text is None:
        return plain_kv(kind)
    try:
        kv = parse_kv_format(text, plain=KV_FORMS[:4])
    except ValueError as error:
        raise ModelError(str(error)) from None
    for stored in (kv.keys, kv.values):
        blocks = BFPFormat(8, 32) if stored == "q8_0" else stored
        if isinstance(blocks, str):
            continue
        if blocks.mantissa_bits not in (4, 8) or blocks.block % 16:
            raise CapabilityError(
                f"the native runtime has bfp12 and bfp16, in blocks of a multiple of 16, not kv_dtype={kv.name}: use "
                f"runtime='torch'"
            )
        try:
            blocks.blocks_of(s.head_dim)
        except ValueError as error:
            raise CapabilityError(f"kv_dtype={kv.name} does not fit this model: {error}") from None
    return kv


def computes_in_half(kind: int, kv: KvFormat) -> bool:
    """Whether attention computes in bf16: where nothing that it reads has more digits."""
    return kind != FP32 and not {kv.keys, kv.values} & {"f32", "f16"}


def _extra(values: np.ndarray | None) -> ExtraColumns:
    return ExtraColumns() if values is None else ExtraColumns(address(values), int((values.view(np.int32) >= 0).sum()))


_NORMS = ("attention", "mlp")
_VECTORS = ("qkv_bias", "attention_norm", "mlp_norm", "query_norm", "key_norm", "attention_after", "mlp_after")
