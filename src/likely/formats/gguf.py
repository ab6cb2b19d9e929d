"""The header of a GGUF file (versions 2 and 3, little endian), read with suspicion.

A file may come from anywhere, so every count and length is compared with what is left of the file before anything is
allocated for it. What passes here is safe to map: names are unique, tensors lie inside the file and do not overlap.
Arrays stay undecoded until somebody asks: a vocabulary of 262,144 strings costs one walk over its lengths.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.errors import ModelError

# value types; 8 is a string, 9 an array
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
BOOL, STRING, ARRAY = 7, 8, 9

# tensor type number: (name, values per block, bytes per block)
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip

MAX_HEADER_BYTES = 64 << 20  # ten times the largest vocabulary in use; bounds time and memory of a hostile file
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_NAME_BYTES = 64
MAX_KEY_BYTES = (1 << 16) - 1
MAX_DIMENSIONS = 4
MAX_DEPTH = 3
MAX_NESTED = 1 << 16  # arrays inside arrays, over the whole header

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, eq=False)
class ArrayRef:
    """An array value, still encoded. `item_type` is its GGUF value type, `data` the encoded items."""

    item_type: int
    count: int
    data: bytes = field(repr=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def numpy(self) -> NDArray[Any]:
        """Numbers and booleans as a flat array (read only)."""
        if self.item_type not in SCALARS:
            raise ModelError(f"an array of numbers was expected, found GGUF item type {self.item_type}")
        return np.frombuffer(self.data, np.dtype(SCALARS[self.item_type]), self.count)

    def raw_strings(self) -> list[bytes]:
        """Strings as the bytes in the file."""
        if self.item_type != STRING:
            raise ModelError(f"an array of strings was expected, found GGUF item type {self.item_type}")
        data, unpack, at, out = self.data, _U64.unpack_from, 0, []
        for _ in range(self.count):
            start = at + 8
            at = start + unpack(data, at)[0]
            out.append(data[start:at])
        return out

    def strings(self) -> list[str]:
        """Strings; ModelError where one is no UTF-8."""
        raw = self.raw_strings()
        try:
            return [item.decode() for item in raw]
        except UnicodeDecodeError:
            bad = next(i for i, item in enumerate(raw) if not _is_utf8(item))
            raise ModelError(f"string {bad} of the array is not UTF-8: {raw[bad][:40]!r}") from None

    def tolist(self) -> list[Any]:
        """Plain Python values; an array of arrays gives a list of ArrayRef."""
        if self.item_type == STRING:
            return self.strings()
        if self.item_type == ARRAY:
            reader = _Reader(self.data, len(self.data), "array")
            return [reader.array() for _ in range(self.count)]
        return self.numpy().tolist()


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. shape is in numpy order (outermost first); offset counts from the header's data_offset."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """All that a GGUF file says before its weights. spans: byte range of each key-value pair in the file."""

    version: int
    metadata: dict[str, Any]
    tensors: list[TensorInfo]
    data_offset: int
    alignment: int
    spans: dict[str, tuple[int, int]] = field(repr=False, default_factory=dict)

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def hparam(self, name: str, default: Any = None) -> Any:
        """The value of "<architecture>.<name>"."""
        return self.metadata.get(f"{self.architecture}.{name}", default)


def read_header(path: str | Path) -> GgufHeader:
    """Parse and check; ModelError in one line for anything but a sound file."""
    path = Path(path)
    try:
        if not path.is_file():
            raise ModelError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size == 0:
            raise ModelError(f"{path}: the file is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data, size)
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:  # unreadable, or shortened between stat and mmap
        raise ModelError(f"{path}: cannot be read ({error})") from None


class _Reader:
    """A position in a buffer that never passes `end`."""

    def __init__(self, data: bytes | mmap.mmap, end: int, what: str = "header"):
        self.data, self.end, self.at, self.what, self.nested = data, end, 0, what, 0

    def need(self, count: int) -> None:
        if count > self.end - self.at:
            raise ModelError(
                f"the {self.what} is cut or damaged: {count} bytes needed at byte {self.at}, {self.end - self.at} left"
            )

    def u32(self) -> int:
        self.need(4)
        self.at += 4
        return int(_U32.unpack_from(self.data, self.at - 4)[0])

    def u64(self) -> int:
        self.need(8)
        self.at += 8
        return int(_U64.unpack_from(self.data, self.at - 8)[0])

    def string(self, limit: int = MAX_HEADER_BYTES, what: str = "string") -> bytes:
        length = self.u64()
        if length > limit:
            raise ModelError(f"a {what} of {length} bytes at byte {self.at}; at most {limit} are allowed")
        self.need(length)
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string().decode("utf-8", "replace")
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise ModelError(f"unknown value type {kind} at byte {self.at} (known: 0..12)")
        code = struct.Struct(SCALARS[kind])
        self.need(code.size)
        if kind == BOOL and self.data[self.at] > 1:
            raise ModelError(f"a boolean at byte {self.at} is {self.data[self.at]} instead of 0 or 1")
        self.at += code.size
        return code.unpack_from(self.data, self.at - code.size)[0]

    def array(self) -> ArrayRef:
        kind, count = self.u32(), self.u64()
        start = self.at
        self.skip_items(kind, count, depth=1)
        return ArrayRef(kind, count, bytes(self.data[start : self.at]))

    def skip_items(self, kind: int, count: int, depth: int) -> None:
        """Step over `count` items of an array; counts are checked against the bytes left before the walk."""
        if kind in SCALARS:
            self.need(count * struct.calcsize(SCALARS[kind]))
            start, self.at = self.at, self.at + count * struct.calcsize(SCALARS[kind])
            if kind == BOOL and count and np.frombuffer(self.data, np.uint8, count, start).max() > 1:
                raise ModelError(f"an array of booleans at byte {start} holds values other than 0 and 1")
        elif kind == STRING:
            self.need(8 * count)
            self.at = _after_strings(self.data, self.at, count, self.end)
            self.need(0)
        elif kind == ARRAY:
            if depth >= MAX_DEPTH:
                raise ModelError(f"arrays are nested deeper than {MAX_DEPTH} at byte {self.at}")
            self.need(12 * count)
            self.nested += count
            if self.nested > MAX_NESTED:
                raise ModelError(f"more than {MAX_NESTED} arrays inside arrays at byte {self.at}")
            for _ in range(count):
                self.skip_items(self.u32(), self.u64(), depth + 1)
        else:
            raise ModelError(f"unknown array item type {kind} at byte {self.at} (known: 0..12)")


def _after_strings(data: bytes | mmap.mmap, at: int, count: int, end: int) -> int:
    unpack, last = _U64.unpack_from, end - 8
    for _ in range(count):
        if at > last:
            raise ModelError(f"the header is cut or damaged: an array of {count} strings runs past byte {end}")
        at += 8 + unpack(data, at)[0]
    if at > end:
        raise ModelError(f"the header is cut or damaged: an array of {count} strings runs past byte {end}")
    return at


def _parse(data: mmap.mmap, size: int) -> GgufHeader:
    if data[:4] != b"GGUF":
        raise ModelError(_what_else(bytes(data[:64])))
    reader = _Reader(data, min(size, MAX_HEADER_BYTES))
    reader.at = 4
    version = reader.u32()
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in (1, 2, 3):
            raise ModelError("a big-endian GGUF file; only little-endian ones can be read: convert it again")
        raise ModelError(f"GGUF version {version} is not supported (2 and 3 are)")
    tensor_count, key_count = reader.u64(), reader.u64()
    if tensor_count > MAX_TENSORS:
        raise ModelError(f"the header announces {tensor_count} tensors; at most {MAX_TENSORS} are allowed")
    if key_count > MAX_KEYS:
        raise ModelError(f"the header announces {key_count} keys; at most {MAX_KEYS} are allowed")
    reader.need(13 * key_count + 32 * tensor_count)  # the least that so many entries take

    metadata: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        start = reader.at
        key = _text(reader.string(MAX_KEY_BYTES, "key"), "key")
        if not key:
            raise ModelError(f"an empty key at byte {start}")
        if key in metadata:
            raise ModelError(f'the key "{key}" occurs twice')
        metadata[key] = reader.value(reader.u32())
        spans[key] = (start, reader.at)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelError('the key "general.architecture" is missing or no text')
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise ModelError(f"general.alignment must be a power of two from 8 to 65536, got {alignment!r}")

    tensors = [_tensor_info(reader, alignment) for _ in range(tensor_count)]
    data_offset = -(-reader.at // alignment) * alignment
    _check_layout(tensors, data_offset, size)
    return GgufHeader(version, metadata, tensors, data_offset, alignment, spans)


def _tensor_info(reader: _Reader, alignment: int) -> TensorInfo:
    name = _text(reader.string(MAX_NAME_BYTES, "tensor name"), "tensor name")
    if not name:
        raise ModelError(f"an empty tensor name before byte {reader.at}")
    n_dims = reader.u32()
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise ModelError(f'tensor "{name}" has {n_dims} dimensions; 1 to {MAX_DIMENSIONS} are allowed')
    dims = [reader.u64() for _ in range(n_dims)]
    kind, offset = reader.u32(), reader.u64()
    if kind not in TENSOR_TYPES:
        raise ModelError(f'tensor "{name}" has the unknown type {kind}')
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    if 0 in dims:
        raise ModelError(f'tensor "{name}" has a dimension of zero: {dims}')
    if math.prod(dims) >= 1 << 63:
        raise ModelError(f'tensor "{name}" has too many values: {dims}')
    if dims[0] % block:
        raise ModelError(f'tensor "{name}" has rows of {dims[0]} values; {type_name} needs a multiple of {block}')
    if offset % alignment:
        raise ModelError(f'tensor "{name}" starts at {offset}, which is no multiple of the alignment {alignment}')
    return TensorInfo(name, tuple(reversed(dims)), type_name, offset, math.prod(dims) // block * block_bytes)


def _check_layout(tensors: list[TensorInfo], data_offset: int, size: int) -> None:
    """Unique names, all inside the file, no overlap."""
    names = {tensor.name for tensor in tensors}
    if len(names) < len(tensors):
        seen: set[str] = set()
        double = next(t.name for t in tensors if t.name in seen or seen.add(t.name))  # type: ignore[func-returns-value]
        raise ModelError(f'the tensor "{double}" occurs twice')
    room, before, end = size - data_offset, "", 0
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            raise ModelError(f'the tensors "{before}" and "{tensor.name}" overlap')
        before, end = tensor.name, tensor.offset + tensor.nbytes
        if end > room:
            raise ModelError(
                f'the file is cut: tensor "{tensor.name}" ends at byte {data_offset + end}, the file has {size} bytes'
            )


def _text(raw: bytes, what: str) -> str:
    if not _is_utf8(raw):
        raise ModelError(f"a {what} is not UTF-8: {raw[:40]!r}")
    return raw.decode()


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _what_else(start: bytes) -> str:
    """Why this is no GGUF file, with a guess at what it is."""
    guesses = (
        (b"version https://git-lfs", "a Git LFS pointer: the weights themselves were not fetched"),
        (b"PK\x03\x04", "a ZIP archive, perhaps a PyTorch checkpoint"),
        (b"\x1f\x8b", "a gzip archive: unpack it first"),
        (b"FUGG", "a big-endian GGUF file"),
        (b"tjgg", "a GGML file from before GGUF: convert the model again"),
        (b"lmgg", "a GGML file from before GGUF: convert the model again"),
    )
    guess = next((text for magic, text in guesses if start.startswith(magic)), None)
    if guess is None and start.lstrip()[:1] == b"<":
        guess = "an HTML or XML page: the download failed"
    if guess is None and start[8:9] == b"{":
        guess = "perhaps a safetensors file: give its folder instead"
    return f"not a GGUF file, it begins with {start[:8]!r}" + (f" ({guess})" if guess else "")
