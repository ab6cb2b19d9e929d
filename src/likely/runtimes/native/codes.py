"""Matrices as codes: a file's own, or 4 bits made here or by a quantiser; see cpp/codes.h for what becomes of them.

A matrix is packed some rows at a time, so that a model larger than memory's half can be packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from likely.errors import CapabilityError, ModelError
from likely.formats.weights import Weight, encode_blocks
from likely.runtimes.native.library import GROUP, PANEL, TYPES, Library
from likely.runtimes.protocol import FloatArray

ROWS = 128 * PANEL  # of a large matrix in memory at one time
FLOAT_TYPES = ("F32", "F16", "BF16")
Q4_0, Q8_0 = "Q4_0", "Q8_0"


@dataclass(frozen=True)
class PackedTensor:
    """One tensor of the packed file. write: its bytes, front to back."""

    name: str
    dtype: str
    nbytes: int
    write: Callable[[], Iterator[bytes]]


class Rounding(Protocol):
    """A quantiser of matrices to 4 bits in the rotated basis, for dtype "int4".

    fingerprint  of what its codes depend on, beside the model: other codes are another packed file
    """

    fingerprint: str

    def codes(self, name: str, weights: FloatArray) -> tuple[NDArray[np.int8], FloatArray] | None:
        """Codes (outputs, inputs) in -8..7 and scales (outputs, inputs / 32 or / 64); None: rounded here.

        name     of the matrix in transformers' words, such as "model.layers.0.mlp.down_proj.weight"
        weights  (outputs, inputs) fp32, rotated; inputs are padded with zeros to a multiple of 64
        """
        ...


def type_of(name: str) -> str | None:
    """The type of a matrix by its name in the packed file, "layers.0.down:Q4_K"; None for vectors and other panels."""
    return name.partition(":")[2] or None


def own_codes(name: str, weight: Weight, library: Library, outputs: int | None = None) -> PackedTensor:
    """A matrix in the codes of its file; CapabilityError for a type that the C++ library does not multiply.

    outputs  rows up to so many are zero
    """
    kind, (rows, inputs) = weight.stored.type, weight.stored.shape
    if kind not in TYPES:
        raise CapabilityError(f"the native runtime keeps codes of {', '.join(TYPES)}, not of {kind}: use dtype='int8'")
    wrong = f"{weight.stored.file}: a weight is not a finite number"
    return _packed(name, kind, (outputs or rows, inputs), lambda: weight.coded_rows(ROWS), library, wrong)


def merged_codes(
    name: str, kind: str, weight: Weight, library: Library, width: int, outputs: int | None = None
) -> PackedTensor:
    """A matrix of MergeQuant's codes, `width` columns in rows of bytes; see `likely.compression.packed_folder`."""
    shape = (outputs or weight.stored.shape[0], width)
    wrong = f"{weight.stored.file}: a scale is not a finite number, or a code of 8 bits is -128"
    return _packed(name, kind, shape, lambda: weight.coded_rows(ROWS), library, wrong)


def rounded_codes(
    name: str,
    source: str,
    weight: Weight,
    library: Library,
    *,
    bits: int,
    rounding: Rounding | None = None,
    outputs: int | None = None,
) -> PackedTensor:
    """A matrix in the rotated basis, in 4 or 8 bits with a scale per 32 inputs. source: its name in the file."""
    rows, inputs = weight.stored.shape
    width, kind = -(-inputs // GROUP) * GROUP, Q4_0 if bits == 4 else Q8_0

    def coded() -> Iterator[NDArray[np.uint8]]:
        if rounding is not None and bits == 4:
            given = rounding.codes(source, rotated(weight.whole()))
            if given is not None:
                yield int4_rows(*given, shape=(rows, width), name=source)
                return
        for block in weight.row_blocks(ROWS):
            yield library.round_rotated(bits, np.pad(block, ((0, 0), (0, width - inputs))))

    wrong = f"{weight.stored.file}: a weight of {source} is too large for 4 bits"
    return _packed(name, kind, (outputs or rows, width), coded, library, wrong)


def _packed(
    name: str,
    kind: str,
    shape: tuple[int, int],
    coded: Callable[[], Iterator[NDArray[np.uint8]]],
    library: Library,
    wrong: str,
) -> PackedTensor:
    """Coded rows as panels, with zeros up to `shape`; ModelError with `wrong` for rows that cannot be packed."""
    size = library.panels_bytes(kind, *shape)

    def write() -> Iterator[bytes]:
        left = size
        for block in coded():
            panels = library.pack_rows(kind, block, shape[1])
            if panels is None:
                raise ModelError(wrong)
            left -= len(panels)
            yield panels.tobytes()
        if left:
            yield bytes(left)

    return PackedTensor(f"{name}:{kind}", "U8", size, write)


def rotated(weights: FloatArray) -> FloatArray:
    """(outputs, inputs), every 64 inputs times the orthogonal Hadamard matrix; inputs padded to a multiple of 64."""
    from scipy.linalg import hadamard  # here: a start of the runtime does without

    weights = np.pad(weights, ((0, 0), (0, -weights.shape[1] % GROUP)))
    turned = weights.reshape(-1, GROUP) @ (hadamard(GROUP, dtype=np.float32) / np.float32(GROUP**0.5))
    return np.asarray(turned, np.float32).reshape(weights.shape)


def int4_rows(
    codes: NDArray[np.int8], scales: FloatArray, *, shape: tuple[int, int], name: str = "a matrix"
) -> NDArray[np.uint8]:
    """Codes in -8..7 and a scale per 32 or 64 inputs as rows of Q4_0; a scale of 64 inputs stands in two blocks."""
    codes, scales = np.asarray(codes), np.asarray(scales, np.float32)
    if codes.shape != shape or scales.shape not in ((shape[0], shape[1] // 32), (shape[0], shape[1] // 64)):
        raise ValueError(
            f"{name}: codes {codes.shape} and scales {scales.shape} do not fit {shape}: a scale per 32 or 64 inputs"
        )
    if codes.min() < -8 or codes.max() > 7:
        raise ValueError(f"{name}: codes must lie in -8..7, got {codes.min()}..{codes.max()}")
    with np.errstate(over="ignore"):
        halves = np.repeat(scales, shape[1] // 32 // scales.shape[1], axis=1).astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError(f"{name}: scales must be finite in half precision")
    return encode_blocks(codes, halves.astype(np.float32), None, bits=4)
