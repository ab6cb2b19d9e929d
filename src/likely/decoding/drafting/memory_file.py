"""Files that hold what a drafter remembers: arrays of token ids and weights, bound to the tokenizer that made them.

A safetensors file (no code can hide in it) whose metadata say what it is; written to a temporary name and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from likely.errors import DataError
from likely.io.whole_file import write_whole_file

_FORMAT = "likely-draft-memory-1"


def save_memory(
    path: str | Path, kind: str, arrays: Mapping[str, np.ndarray], *, tokenizer: str, settings: Mapping[str, str]
) -> None:
    """Write the arrays; `tokenizer` is the fingerprint of the tokenizer whose ids they hold."""
    from safetensors.numpy import save

    path = Path(path)
    metadata = {"format": _FORMAT, "kind": kind, "tokenizer": tokenizer, **settings}
    data = save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, metadata)
    write_whole_file(path, data)


@dataclass(frozen=True)
class MemoryInfo:
    """What a memory file says about itself; arrays: name -> shape."""

    kind: str
    tokenizer: str
    size_bytes: int
    settings: dict[str, str]
    arrays: dict[str, tuple[int, ...]]


def describe_memory(path: str | Path) -> MemoryInfo:
    """Kind, tokenizer and size of any memory file; DataError for another file."""
    found, metadata = _read(path)
    settings = {key: value for key, value in metadata.items() if key not in ("format", "kind", "tokenizer")}
    arrays = {name: array.shape for name, array in sorted(found.items())}
    size = Path(path).stat().st_size
    return MemoryInfo(metadata.get("kind", ""), metadata.get("tokenizer", ""), size, settings, arrays)


def load_memory(
    path: str | Path, kind: str, *, tokenizer: str, names: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, settings) of a memory of this kind and tokenizer; DataError for anything else.  Arrays are mapped,
    read-only, and not read until they are used."""
    found, metadata = _read(path)
    if metadata.get("kind") != kind:
        raise DataError(f"{path}: a memory of the drafter {metadata.get('kind')}, not {kind}")
    if metadata.get("tokenizer") != tokenizer:
        raise DataError(
            f"{path}: made with another tokenizer ({metadata.get('tokenizer', '')[:12]}, this model has "
            f"{tokenizer[:12]}): build it again with this model"
        )
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{path}: the array {missing[0]} is missing: build the memory again")
    return found, metadata


def _read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
        found = _mapped(Path(path))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a draft memory ({error}): build one with likely draft build") from None
    if metadata.get("format") != _FORMAT:
        raise DataError(f"{path}: not a draft memory of likely: build one with likely draft build")
    return found, metadata


_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "U32": "<u4", "I32": "<i4",
    "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file whose header was found valid, read-only; safetensors itself would copy them."""
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        found[name] = raw[begin:end].view(np.ndarray).view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def checked_ids(path: str | Path, name: str, ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Token ids of a memory; DataError if one lies outside the vocabulary."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise DataError(f"{path}: {name} holds a token outside 0..{vocab_size - 1}: build the memory again")
    return ids
