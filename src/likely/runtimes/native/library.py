"""The functions of the C++ library as ctypes sees them: pointers and sizes, nothing else."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.runtimes.kinds import KINDS
from likely.runtimes.kv_format import BFPFormat, StoredAs

DTYPES = KINDS["native"].dtypes[:3]  # of models whose matrices are all alike, in the order of the C++ `Kind`
INT8, BF16, FP32, CODES = range(4)  # CODES: each matrix has one of TYPES
# as C++ numbers them; MQ: MergeQuant's codes, with one scale per output
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MQ4", "MQ8", "F32", "F16", "BF16")
KV_FORMS = ("f32", "bf16", "f16", "q8_0", "bfp12", "bfp16")  # of keys and values, as C++ numbers them
GROUP, PANEL = 64, 32
PANEL_GROUP_BYTES = (2 * 1024 + 64, 4096, 8192)  # of 32 outputs by 64 inputs
FEATURES = ("avx512", "avx512_vnni", "avx512_bf16", "amx_int8", "avx2", "avx_vnni")

_pointer = ctypes.c_void_p
_int, _long, _float = ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class PackedMatrix(ctypes.Structure):
    _fields_ = [("panels", _pointer), ("type", _int), ("outputs", _int)]


class ExtraColumns(ctypes.Structure):
    _fields_ = [("channel", _pointer), ("count", _int)]


class LayerWeights(ctypes.Structure):
    _fields_ = [
        ("qkv", PackedMatrix * 3), ("out", PackedMatrix), ("gate_up", PackedMatrix * 2), ("down", PackedMatrix),
        *[(name, _pointer) for name in ("qkv_bias", "attention_norm", "mlp_norm", "query_norm", "key_norm",
                                        "attention_after", "mlp_after", "frequencies", "key_order", "value_order")],
        ("attention_extra", ExtraColumns), ("mlp_extra", ExtraColumns), ("window", _int),
    ]  # fmt: skip


class ModelShape(ctypes.Structure):
    _fields_ = [
        *[(name, _int) for name in ("kind", "layers", "hidden", "heads", "kv_heads", "dim", "mlp", "vocabulary",
                                    "activation", "rotated", "floats", "half", "merged", "per_token", "key_form",
                                    "key_block", "value_form", "value_block")],
        *[(name, _float) for name in ("epsilon", "attention_scale", "embedding_scale", "logit_softcap",
                                      "attention_softcap")],
    ]  # fmt: skip


class NativeModel(ctypes.Structure):
    _fields_ = [
        ("shape", ModelShape),
        *[(name, _pointer) for name in ("layers", "final_norm")],
        ("embedding", PackedMatrix),
        ("head", PackedMatrix),
    ]


class Queries(ctypes.Structure):
    _fields_ = [
        ("pieces", _pointer),
        ("pieces_count", _int),
        *[(name, _pointer) for name in ("slots", "position", "shared", "own_at", "own")],
    ]


class NativeCall(ctypes.Structure):
    _fields_ = [
        ("tokens", _int),
        *[(name, _pointer) for name in ("token", "position", "slot")],
        ("queries", Queries),
        ("wanted", _int),
        *[(name, _pointer) for name in ("wanted_rows", "hidden", "skip_attention", "skip_mlp")],
        ("apart", _int),
    ]


def padded(outputs: int) -> int:
    """Outputs rounded up to whole panels."""
    return -(-outputs // PANEL) * PANEL


def packed_bytes(kind: int, outputs: int, inputs: int) -> int:
    return padded(outputs) // PANEL * -(-inputs // GROUP) * PANEL_GROUP_BYTES[kind]


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Bytes that start on a cache line."""
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def form_of(stored: StoredAs) -> tuple[int, int]:
    """The number of a format of keys or values, and how many of them share a scale; see cpp/attention/formats.h."""
    if isinstance(stored, BFPFormat):
        return KV_FORMS.index(replace(stored, block=32).name), stored.block
    return KV_FORMS.index(stored), 32 if stored == "q8_0" else 0


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


class Library:
    """The compiled functions; see cpp/native.cpp."""

    def __init__(self, handle: Any):
        self._handle = handle
        signatures = {
            "likely_features": (_int, []),
            "likely_open": (_pointer, [_pointer, _int]),
            "likely_close": (None, [_pointer]),
            "likely_reserve": (_int, [_pointer, _long]),
            "likely_kv_bytes": (_long, [_pointer]),
            "likely_keep_processors": (None, [_pointer]),
            "likely_columns_read": (_long, [_pointer]),
            "likely_store_rows": (None, [*[_int] * 4, _pointer, _int, _int, _pointer, _pointer]),
            "likely_forward": (_int, [_pointer, _pointer]),
            "likely_head": (None, [_pointer, _int, _int, _pointer, _long]),
            "likely_reduce": (None, [_pointer, _pointer, _int, _long, _pointer, _pointer, _int, _pointer, _pointer]),
            "likely_pack": (None, [_int, _pointer, _int, _int, _pointer]),
            "likely_pack_rows": (_int, [_int, _pointer, _int, _int, _pointer]),
            "likely_panel_bytes": (_long, [_int, _int]),
            "likely_round_rotated": (None, [_int, _pointer, _int, _int, _pointer]),
            "likely_unpack_row": (None, [_int, _pointer, _int, _int, _int, _pointer]),
            "likely_multiply": (_int, [_pointer, *[_int] * 3, _pointer, _int, _int, _pointer, _int, _pointer, _long]),
            "likely_stepper_open": (_pointer, [_int] * 3),
            "likely_stepper_close": (None, [_pointer]),
            "likely_stepper_run": (None, [*[_pointer] * 3, _int, _int, _int, _pointer, _int]),
            "likely_stepper_multiply": (None, [_pointer, _pointer, _int, _pointer, _pointer]),
            "likely_selective_scan": (None, [_pointer] * 2),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(handle, name)
            function.restype, function.argtypes = result, arguments
        self.open, self.close, self.reserve = handle.likely_open, handle.likely_close, handle.likely_reserve
        self.forward, self.head, self.reduce = handle.likely_forward, handle.likely_head, handle.likely_reduce
        self.kv_bytes, self.columns_read = handle.likely_kv_bytes, handle.likely_columns_read
        self.stepper_open, self.stepper_close = handle.likely_stepper_open, handle.likely_stepper_close
        self.stepper_run, self.stepper_multiply = handle.likely_stepper_run, handle.likely_stepper_multiply
        self.selective_scan, self.keep_processors = handle.likely_selective_scan, handle.likely_keep_processors

    def features(self) -> list[str]:
        """The instructions it was compiled for."""
        bits = self._handle.likely_features()
        return [name for i, name in enumerate(FEATURES) if bits >> i & 1]

    def pack(self, kind: int, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(outputs, inputs) fp32 -> panels, see cpp/linear.h."""
        weights = np.ascontiguousarray(weights, np.float32)
        panels = aligned(packed_bytes(kind, *weights.shape))
        self._handle.likely_pack(kind, address(weights), *weights.shape, address(panels))
        return panels

    def panels_bytes(self, type_name: str, outputs: int, inputs: int) -> int:
        """Of a matrix of codes, see cpp/codes.h."""
        return padded(outputs) // PANEL * int(self._handle.likely_panel_bytes(TYPES.index(type_name), inputs))

    def pack_rows(self, type_name: str, rows: NDArray[np.uint8], inputs: int) -> NDArray[np.uint8] | None:
        """(outputs, bytes of a row in a GGUF file) -> panels, see cpp/codes.h; None if a number is not finite."""
        rows = np.ascontiguousarray(rows)
        panels = aligned(self.panels_bytes(type_name, len(rows), inputs))
        number = TYPES.index(type_name)
        bad = self._handle.likely_pack_rows(number, address(rows), len(rows), inputs, address(panels))
        return None if bad else panels

    def round_rotated(self, bits: int, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(outputs, inputs) fp32, inputs a multiple of 64 -> rows of Q4_0 or Q8_0 in the rotated basis."""
        weights = np.ascontiguousarray(weights, np.float32)
        rows = np.empty((len(weights), weights.shape[1] // 32 * (18 if bits == 4 else 34)), np.uint8)
        self._handle.likely_round_rotated(bits, address(weights), *weights.shape, address(rows))
        return rows

    def unpack_row(
        self, type_name: str, panels: NDArray[np.uint8], inputs: int, row: int, *, rotated: bool = False
    ) -> NDArray[np.float32]:
        """(inputs,) numbers of one output."""
        to = np.empty(inputs, np.float32)
        self._handle.likely_unpack_row(TYPES.index(type_name), address(panels), inputs, row, rotated, address(to))
        return to

    def stored(
        self, as_stored: StoredAs, x: NDArray[np.float32], *, half: bool, keys: bool, slots: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Rows x (n, head width) as keys or values in `slots`, and as attention reads them. half: in bf16."""
        x, slots = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(slots, np.int32)
        out = np.empty_like(x)
        self._handle.likely_store_rows(
            *form_of(as_stored), half, keys, address(x), *x.shape, address(slots), address(out)
        )
        return out

    @contextmanager
    def team(self, threads: int) -> Iterator[Team]:
        """Threads without a model, for products alone."""
        session = self.open(ctypes.byref(NativeModel()), threads)
        try:
            yield Team(self._handle, session)
        finally:
            self.close(session)


class Team:
    def __init__(self, handle: Any, session: int):
        self._handle, self._session = handle, session

    def multiply(
        self,
        kind: int,
        x: NDArray[np.float32],
        panels: NDArray[np.uint8],
        outputs: int,
        *,
        type_name: str = TYPES[0],
        rotated: bool = False,
        merged_bits: int = 0,
    ) -> NDArray[np.float32]:
        """x (n, inputs) times packed weights -> (n, padded outputs). type_name, rotated: of CODES.

        merged_bits  of MergeQuant's types: x is rounded to codes of so many bits; negative: with a scale for each row
        """
        x = np.ascontiguousarray(x, np.float32)
        out = np.empty((len(x), padded(outputs)), np.float32)
        self._handle.likely_multiply(
            self._session, kind, TYPES.index(type_name), merged_bits or rotated, address(x), *x.shape, address(panels),
            outputs, address(out), out.shape[1],
        )  # fmt: skip
        return out
