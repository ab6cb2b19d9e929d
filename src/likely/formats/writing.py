"""GGUF and safetensors files written front to back, in pieces: a conversion needs no more memory than a piece.

The packages of those names do it a whole tensor (gguf) or a whole dictionary (safetensors) at a time, and gguf has to
decode the key-value pairs that a conversion copies byte for byte.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from likely.formats.gguf import ARRAY, BOOL, SCALARS, STRING, TENSOR_TYPES, ArrayRef
from likely.formats.safetensors_file import ITEM_BYTES

ALIGNMENT = 32
TYPE_NUMBER = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
UINT32, INT32, FLOAT32 = 4, 5, 6


@dataclass(frozen=True)
class Typed:
    """A number with the GGUF value type it is written as."""

    kind: int
    value: float | int


def u32(value: int) -> Typed:
    return Typed(UINT32, value)


def f32(value: float) -> Typed:
    return Typed(FLOAT32, value)


def string_array(values: Iterable[str]) -> ArrayRef:
    """Strings as they stand in a file."""
    raw = [value.encode() for value in values]
    return ArrayRef(STRING, len(raw), b"".join(struct.pack("<Q", len(item)) + item for item in raw))


def number_array(values: Sequence[float], kind: int) -> ArrayRef:
    """Numbers of one GGUF value type."""
    return ArrayRef(kind, len(values), np.asarray(values, np.dtype(SCALARS[kind])).tobytes())


def encode_pair(key: str, value: str | bool | Typed | ArrayRef) -> bytes:
    """One key-value pair: text, truth values, typed numbers and arrays."""
    head = _string(key)
    if isinstance(value, ArrayRef):
        return head + struct.pack("<IIQ", ARRAY, value.item_type, value.count) + value.data
    if isinstance(value, str):
        return head + struct.pack("<I", STRING) + _string(value)
    if isinstance(value, bool):
        return head + struct.pack("<IB", BOOL, value)
    return head + struct.pack("<I", value.kind) + struct.pack(SCALARS[value.kind], value.value)


def tensor_bytes(shape: tuple[int, ...], type_name: str) -> int:
    """Size of a tensor, whose rows must be whole blocks."""
    _, block, block_bytes = TENSOR_TYPES[TYPE_NUMBER[type_name]]
    count = math.prod(shape)
    if shape[-1] % block:
        raise ValueError(f"rows of {shape[-1]} values are not whole blocks of {type_name} ({block})")
    return count // block * block_bytes


class GgufWriter:
    """pairs: encoded key-value pairs; tensors: (name, shape outermost first, type name) in the order they come."""

    def __init__(
        self,
        file: BinaryIO,
        pairs: Sequence[bytes],
        tensors: Sequence[tuple[str, tuple[int, ...], str]],
        *,
        alignment: int = ALIGNMENT,
    ):
        self._file, self._alignment = file, alignment
        self._sizes = [tensor_bytes(shape, type_name) for _, shape, type_name in tensors]
        self._index, self._left = -1, 0
        infos, offset = [], 0
        for (name, shape, type_name), size in zip(tensors, self._sizes, strict=True):
            dims = b"".join(struct.pack("<Q", d) for d in reversed(shape))
            place = struct.pack("<IQ", TYPE_NUMBER[type_name], offset)
            infos.append(_string(name) + struct.pack("<I", len(shape)) + dims + place)
            offset += -(-size // alignment) * alignment
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(infos)
        file.write(head + bytes(-len(head) % alignment))

    def begin_tensor(self) -> None:
        """The bytes of the next tensor follow."""
        self._finish_tensor()
        self._index += 1
        self._left = self._sizes[self._index]

    def write(self, data: bytes | memoryview) -> None:
        if len(data) > self._left:
            raise ValueError(f"tensor {self._index} gets {len(data) - self._left} bytes too many")
        self._file.write(data)
        self._left -= len(data)

    def close(self) -> None:
        """Check that every tensor was written whole. The file stays open."""
        self._finish_tensor()
        if self._index + 1 != len(self._sizes):
            raise ValueError(f"{len(self._sizes) - self._index - 1} tensors were not written")

    def _finish_tensor(self) -> None:
        if self._left:
            raise ValueError(f"tensor {self._index} lacks {self._left} bytes")
        if self._index >= 0:
            self._file.write(bytes(-self._sizes[self._index] % self._alignment))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def write_safetensors_header(
    file: BinaryIO,
    tensors: Sequence[tuple[str, tuple[int, ...], str]],
    *,
    align: int = 8,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """The header for tensors (name, shape, dtype) whose bytes will follow in this order, from a multiple of `align`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, shape, dtype in tensors:
        size = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % align)
    file.write(len(raw).to_bytes(8, "little") + raw)
