"""Weights of a file: read in pieces, decoded, changed into those of transformers or GGUF, encoded again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from likely.errors import ModelError, needs
from likely.formats import families
from likely.formats.families import Change, FloatArray
from likely.formats.gguf import GgufHeader
from likely.formats.safetensors_file import FLOATS, Entry, floats_from, floats_to
from likely.formats.writing import tensor_bytes

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
        """ModelError for one number without a shape, and for none at all: they are not read by rows."""
        if not entry.shape or 0 in entry.shape:
            raise ModelError(f"{entry.file}: a tensor of shape {entry.shape} cannot be read here")
        return cls(entry.file, entry.start, entry.end - entry.start, entry.shape, entry.dtype)


@dataclass(frozen=True)
class Weight:
    """A tensor in a file, and what turns its numbers into those of the other format; None: nothing."""

    stored: Stored
    change: Change | None = None

    def values(self) -> Iterator[FloatArray]:
        """Flat fp32 arrays, front to back, a few rows at a time; a change needs the whole tensor in memory."""
        if self.change is None:
            yield from read_values(self.stored)
        else:
            whole = np.concatenate(list(read_values(self.stored))).reshape(self.stored.shape)
            yield np.ascontiguousarray(self.change(whole), np.float32).reshape(-1)

    def whole(self) -> FloatArray:
        """In memory at once, as fp32; ModelError for a number that is not finite."""
        pieces = list(self.values())
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return _finite(whole, self.stored).reshape(self.stored.shape)

    def coded_rows(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        """(rows, bytes) from the top, encoded as in the file; the last block perhaps shorter.

        Only one is in memory, but for a tensor whose rows stand in another order than the other format's.
        """
        stored = self.stored
        row_bytes = stored.nbytes // stored.shape[0]
        blocks = (np.frombuffer(raw, np.uint8).reshape(-1, row_bytes) for raw in _read(stored, rows * row_bytes))
        if self.change is None:
            yield from blocks
            return
        numbers = np.arange(stored.shape[0], dtype=np.float32).reshape(-1, 1)
        order = self.change(numbers).reshape(-1).astype(np.int64)
        if not np.array_equal(np.sort(order), np.arange(stored.shape[0])):
            raise ModelError(f"{stored.file}: codes of a tensor whose numbers change cannot be kept")
        whole = np.concatenate(list(blocks))[order]
        for at in range(0, len(whole), rows):
            yield whole[at : at + rows]

    def row_blocks(self, rows: int) -> Iterator[FloatArray]:
        """(rows, width) fp32 blocks from the top, the last one perhaps shorter; only one is in memory."""
        width = self.stored.shape[-1]
        kept = np.empty((0, width), np.float32)
        for values in self.values():
            kept = np.concatenate([kept, _finite(values, self.stored).reshape(-1, width)])
            while len(kept) >= rows:
                yield kept[:rows]
                kept = kept[rows:]
        if len(kept):
            yield kept


@dataclass(frozen=True, eq=False)
class EncodedTensor:
    """A tensor whose bytes are made already; shape outermost first."""

    shape: tuple[int, ...]
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class Step:
    """One tensor of a file to write: what it becomes, and where it comes from."""

    name: str
    type: str
    source: Weight | EncodedTensor | FloatArray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.stored.shape if isinstance(self.source, Weight) else self.source.shape

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.shape, self.type)

    def pieces(self) -> Iterator[bytes]:
        """The encoded tensor, front to back."""
        if isinstance(self.source, EncodedTensor):
            yield self.source.data.tobytes()
        elif not isinstance(self.source, Weight):
            yield _encode(self.source, self.type, self.shape[-1])
        elif self.source.stored.type == self.type and self.source.change is None:
            yield from _raw_pieces(self.source.stored)
        else:
            for values in self.source.values():
                yield _encode(values, self.type, self.shape[-1])


def weights_of_gguf(path: Path, header: GgufHeader) -> tuple[dict[str, Weight], FloatArray | None]:
    """The weights of a GGUF file by transformers' names, and what divides the rotary frequencies (None: nothing)."""
    family, stored = families.family_of_header(header), Stored.in_gguf(path, header)
    rope = stored.pop(families.ROPE_FACTORS, None)
    heads = families.head_counts(header)
    weights = {
        families.folder_name(family, name): Weight(tensor, families.change_to_folder(family, name, *heads))
        for name, tensor in stored.items()
    }
    return weights, None if rope is None else Weight(rope).whole()


def read_values(stored: Stored) -> Iterator[FloatArray]:
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
    return _read(stored, max(1, _PIECE_VALUES // width) * (stored.nbytes // rows))


def _read(stored: Stored, step: int) -> Iterator[bytes]:
    with stored.file.open("rb") as file:
        file.seek(stored.offset)
        for at in range(0, stored.nbytes, step):
            raw = file.read(min(step, stored.nbytes - at))
            if len(raw) != min(step, stored.nbytes - at):
                raise ModelError(f"{stored.file}: the file became shorter while it was read")
            yield raw


def _finite(values: FloatArray, stored: Stored) -> FloatArray:
    if not np.isfinite(values).all():
        raise ModelError(f"{stored.file}: a weight is not a finite number")
    return values


def _encode(values: FloatArray, type_name: str, width: int) -> bytes:
    if type_name in FLOATS:
        return floats_to(values, type_name)
    quants, kind = _quants(type_name)
    return quants.quantize(values.reshape(-1, width), kind).tobytes()


def _quants(type_name: str):  # type: ignore[no-untyped-def]  # a module and an enum member of an optional package
    """The codec of block formats and its name for a type."""
    with needs("gguf", "torch"):
        import gguf
    if type_name not in gguf.GGMLQuantizationType.__members__:
        raise ModelError(f"weights of type {type_name} cannot be decoded here")
    return gguf.quants, gguf.GGMLQuantizationType[type_name]


def encode_blocks(
    codes: NDArray[np.integer], scales: FloatArray, minimums: FloatArray | None, *, bits: int
) -> NDArray[np.uint8]:
    """Codes (out, in) as the bytes of GGUF blocks of 32, (out, bytes of a row): 4, 5 or 8 bits, nothing rounded.

    scales, minimums (out, in / n), numbers of fp16, n a multiple of 32; without minimums codes are signed
    Q4_0, Q5_0: fp16 d, [fifth bits,] nibbles of q + 8 (16), value i below value i + 16.  Q4_1, Q5_1: d, m, nibbles.
    Q8_0: d and 32 int8.
    """
    rows = len(codes)
    blocks = codes.reshape(rows, -1, 32).astype(np.int32)
    repeats = blocks.shape[1] // scales.shape[1]

    def stored(values: FloatArray) -> NDArray[np.uint8]:
        return np.repeat(values, repeats, axis=1).astype("<f2")[:, :, None].view(np.uint8)

    parts: list[NDArray[np.uint8]] = [stored(scales)]
    if minimums is not None:
        parts.append(stored(minimums))
    if bits == 8:
        parts.append(blocks.astype(np.int8).view(np.uint8))
    else:
        unsigned = blocks if minimums is not None else blocks + (1 << (bits - 1))
        if bits == 5:
            parts.append(np.packbits((unsigned >> 4).astype(np.uint8), axis=2, bitorder="little"))
        low = unsigned & 15
        parts.append((low[:, :, :16] | (low[:, :, 16:] << 4)).astype(np.uint8))
    return np.concatenate(parts, axis=2).reshape(rows, -1)
