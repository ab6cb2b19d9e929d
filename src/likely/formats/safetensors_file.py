"""The headers of safetensors files, and their floats (https://github.com/huggingface/safetensors, format section).

The package of that name gives bfloat16 only through torch; here weights are read in pieces, as numpy arrays.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.errors import ModelError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F32", "F16", "BF16")
MOST_DIMENSIONS = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library


@dataclass(frozen=True)
class Entry:
    """One tensor: its file, type, shape and byte range in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_entries(path: Path) -> dict[str, Entry]:
    """The tensors of one file; ModelError for a header that does not fit it."""
    header, start = _header(path)
    header.pop("__metadata__", None)
    size = path.stat().st_size
    entries = {name: _entry(path, name, item, start, size) for name, item in header.items()}
    end, before = start, ""
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].end)):
        if entry.start != end:
            raise ModelError(f'{path}: the tensors "{before}" and "{name}" overlap or leave a gap')
        end, before = entry.end, name
    if end != size:
        raise ModelError(f"{path}: {size - end} bytes after the last tensor")
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """What the header says beside the tensors."""
    found = _header(path)[0].get("__metadata__")
    return found if isinstance(found, dict) else {}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """(the header, where the tensors begin)"""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ModelError(f"{path}: not a safetensors file (a header of {length} bytes in {size})")
            header = json.loads(file.read(length), object_pairs_hook=lambda pairs: _unique(path, pairs))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: the safetensors header is not JSON") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: the safetensors header is no object")
    return header, 8 + length


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(double, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ModelError(f'{path}: the name "{double}" occurs twice in the safetensors header')
    return found


def _entry(path: Path, name: str, item: object, base: int, size: int) -> Entry:
    match item:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            if dtype not in ITEM_BYTES:
                raise ModelError(f'{path}: tensor "{name}" has type {dtype} (known: {", ".join(ITEM_BYTES)})')
            if len(shape) > MOST_DIMENSIONS or not all(type(d) is int and 0 <= d < 1 << 63 for d in shape):
                raise ModelError(f'{path}: tensor "{name}" has the shape {str(shape)[:80]}')
            if not 0 <= start <= end <= size - base or end - start != math.prod(shape) * ITEM_BYTES[dtype]:
                raise ModelError(f'{path}: tensor "{name}" does not fit its place ({start}..{end})')
            return Entry(path, dtype, tuple(shape), base + start, base + end)
    raise ModelError(f'{path}: tensor "{name}" is not described')


def floats_from(raw: bytes, dtype: str) -> NDArray[np.float32]:
    """Flat fp32 values of F32, F16 or BF16 bytes."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32)


def floats_to(values: NDArray[np.float32], dtype: str) -> bytes:
    """The bytes of fp32 values as F32, F16 or BF16, rounded to nearest, ties to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    return values.astype("<f4").tobytes()
