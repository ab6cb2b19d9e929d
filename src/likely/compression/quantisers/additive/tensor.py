"""A matrix as codes into codebooks: what it stands for, what it takes packed, and its scheme ("2x8", "3x8g4")."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.compression.quantized import FloatArray

_FORM = re.compile(r"(?P<codebooks>\d+)x(?P<bits>\d+)(?:g(?P<group>\d+))?")
EXAMPLES = "2x8, 3x8, 1x12, 2x8g4"
MOST_BITS, MOST_CODEBOOKS, GROUP_SIZE = 15, 8, 8


@dataclass(frozen=True)
class AdditiveScheme:
    """`codebooks` of 2^`bits` codewords, each `group_size` neighbours along the input long: M B / g bits per weight."""

    codebooks: int
    bits: int
    group_size: int = GROUP_SIZE

    def __post_init__(self) -> None:
        if not 1 <= self.codebooks <= MOST_CODEBOOKS:
            raise ValueError(f"codebooks must lie between 1 and {MOST_CODEBOOKS}, got {self.codebooks}")
        if not 1 <= self.bits <= MOST_BITS:
            raise ValueError(f"bits of a code must lie between 1 and {MOST_BITS}, got {self.bits}")
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")

    @property
    def name(self) -> str:
        return f"{self.codebooks}x{self.bits}" + (f"g{self.group_size}" if self.group_size != GROUP_SIZE else "")

    def groups_of(self, width: int) -> int:
        """How many groups an output row of `width` weights has; ValueError where they do not divide it."""
        if width % self.group_size:
            raise ValueError(f"groups of {self.group_size} do not divide rows of {width} weights")
        return width // self.group_size


def parse_additive(text: str | AdditiveScheme) -> AdditiveScheme:
    """MxB[gG]: codebooks, bits of each code, neighbours along the input that are coded together (8)."""
    if isinstance(text, AdditiveScheme):
        return text
    found = _FORM.fullmatch(str(text).strip().lower())
    if found is None:
        raise ValueError(f'scheme "{text}" is not codebooks x bits: write it as in {EXAMPLES}')
    return AdditiveScheme(int(found["codebooks"]), int(found["bits"]), int(found["group"] or GROUP_SIZE))


@dataclass(frozen=True, eq=False)
class AdditiveTensor:
    """Group k of row i is ŵ_ik = s_i Σ_m C_m[b_ikm].

    codes      (out, groups, M), each below 2^B
    codebooks  (M, 2^B, g) fp32, each a number of fp16
    scales     (out,) fp32, each a number of fp16
    """

    codes: NDArray[np.int16]
    codebooks: FloatArray
    scales: FloatArray
    scheme: AdditiveScheme

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.codes), self.codes.shape[1] * self.codebooks.shape[2]

    def dequantize(self) -> FloatArray:
        """(out, in) fp32."""
        total = sum(book[self.codes[:, :, m]] for m, book in enumerate(self.codebooks))
        dense: FloatArray = (total * self.scales[:, None, None]).reshape(self.shape)
        return dense

    @property
    def nbytes(self) -> int:
        """Of `pack`: whole bytes for each code, 2 bytes for each number of a codebook and each scale."""
        return self.codes.size * (1 if self.scheme.bits <= 8 else 2) + 2 * (self.codebooks.size + self.scales.size)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / math.prod(self.shape)

    def pack(self) -> PackedAdditive:
        """As AQLM's files store it: codes from 2^(B-1) on are negative."""
        wide = self.codes.astype(np.int32)
        signed = np.where(wide >= 1 << (self.scheme.bits - 1), wide - (1 << self.scheme.bits), wide)
        return PackedAdditive(
            signed.astype(np.int8) if self.scheme.bits <= 8 else signed.astype(np.int16),
            self.codebooks.astype(np.float16)[:, :, None],
            self.scales.astype(np.float16).reshape(-1, 1, 1, 1),
        )


@dataclass(frozen=True, eq=False)
class PackedAdditive:
    """codes (out, groups, M) of 1 or 2 bytes, codebooks (M, 2^B, 1, g) and scales (out, 1, 1, 1) in fp16."""

    codes: NDArray[np.int8] | NDArray[np.int16]
    codebooks: NDArray[np.float16]
    scales: NDArray[np.float16]

    def unpack(self) -> AdditiveTensor:
        """The inverse of `AdditiveTensor.pack`."""
        count, words, _, size = self.codebooks.shape
        return AdditiveTensor(
            (self.codes.astype(np.int32) % words).astype(np.int16),
            self.codebooks[:, :, 0].astype(np.float32),
            self.scales.reshape(-1).astype(np.float32),
            AdditiveScheme(count, words.bit_length() - 1, size),
        )
