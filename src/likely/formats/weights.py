"""Weights on their way from one file to another: read in pieces, decoded, changed, encoded again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from likely.errors import ModelError, missing_extra
from likely.formats.families import Change, Floats
from likely.formats.gguf import GgufHeader, tensor_bytes
from likely.formats.safetensors_file import FLOATS, Entry, floats_from, floats_to

_PIECE_VALUES = 1 << 22  # values decoded at one time: 16 MiB as fp32


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: shape outermost first, type as GGUF names it."""

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    type: str

    @classmethod
    def in_gguf(cls, path: Path, header: GgufHeader) -> dict[str, Stored]:
        """Every tensor of a GGUF file by name."""
        return {t.name: cls(path, header.data_offset + t.offset, t.nbytes, t.shape, t.type) for t in header.tensors}

    @classmethod
    def in_safetensors(cls, entry: Entry) -> Stored:
        return cls(entry.file, entry.start, entry.end - entry.start, entry.shape, entry.dtype)


@dataclass(frozen=True)
class Step:
    """One tensor of the target: where it comes from and what it becomes. A change needs the whole tensor in memory."""

    name: str
    shape: tuple[int, ...]
    type: str
    source: Stored | Floats
    change: Change | None = None

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.shape, self.type)

    def pieces(self) -> Iterator[bytes]:
        """The encoded tensor, front to back."""
        if isinstance(self.source, Stored) and self.source.type == self.type and self.change is None:
            yield from _raw_pieces(self.source)
            return
        for values in self._values():
            yield _encode(values, self.type, self.shape[-1])

    def _values(self) -> Iterator[Floats]:
        if not isinstance(self.source, Stored):
            yield self.source
        elif self.change is None:
            yield from read_values(self.source)
        else:
            whole = np.concatenate(list(read_values(self.source))).reshape(self.source.shape)
            yield np.ascontiguousarray(self.change(whole), np.float32).reshape(-1)


def read_values(stored: Stored) -> Iterator[Floats]:
    """The values of a tensor as flat fp32 arrays, a few rows at a time."""
    width = stored.shape[-1]
    for raw in _raw_pieces(stored):
        if stored.type in FLOATS:
            yield floats_from(raw, stored.type)
            continue
        quants, kind = _quants(stored.type)
        rows = len(raw) // (stored.nbytes // (int(np.prod(stored.shape, dtype=np.int64)) // width))
        try:
            values = quants.dequantize(np.frombuffer(raw, np.uint8).reshape(rows, -1), kind)
        except NotImplementedError:
            raise ModelError(f"{stored.file}: weights of type {stored.type} cannot be decoded here") from None
        yield np.asarray(values, np.float32).reshape(-1)


def _raw_pieces(stored: Stored) -> Iterator[bytes]:
    """Whole rows, about _PIECE_VALUES values at a time. The file is read, not mapped: mapped pages count as ours."""
    width = stored.shape[-1]
    rows = int(np.prod(stored.shape, dtype=np.int64)) // width
    row_bytes = stored.nbytes // rows
    step = max(1, _PIECE_VALUES // width) * row_bytes
    with stored.file.open("rb") as file:
        file.seek(stored.offset)
        for at in range(0, stored.nbytes, step):
            raw = file.read(min(step, stored.nbytes - at))
            if len(raw) != min(step, stored.nbytes - at):
                raise ModelError(f"{stored.file}: the file became shorter while it was read")
            yield raw


def _encode(values: Floats, type_name: str, width: int) -> bytes:
    if type_name in FLOATS:
        return floats_to(values, type_name)
    quants, kind = _quants(type_name)
    return quants.quantize(values.reshape(-1, width), kind).tobytes()


def _quants(type_name: str):  # type: ignore[no-untyped-def]  # a module and an enum member of an optional package
    """The codec of block formats and its name for a type."""
    try:
        import gguf
    except ImportError:
        raise missing_extra("gguf", "torch") from None
    return gguf.quants, gguf.GGMLQuantizationType[type_name]
