"""Integer codes with their scales: weights (out, in) rounded in groups along the input, packed, and read back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from likely.compression.schemes import QuantScheme

FloatArray = NDArray[np.float32]
_LEAST_FP16, _MOST_FP16 = float(np.finfo(np.float16).smallest_subnormal), float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where each group of a matrix is rounded to: ŵ = scale · code + minimum.

    scales    (out, groups) fp32, each a number of fp16, > 0
    minimums  (out, groups) fp32; None: symmetric.  With zero_point="int" they are -scale · zero point
    """

    scales: FloatArray
    minimums: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """codes (out, in) integers of the scheme, and the grid they stand on."""

    codes: NDArray[np.int16]
    grid: Grid
    scheme: QuantScheme

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def dequantize(self) -> FloatArray:
        """(out, in) fp32: ŵ = s q (+ m)."""
        rows, width = self.codes.shape
        codes = self.codes.reshape(rows, self.grid.scales.shape[1], -1).astype(np.float32)
        values = codes * self.grid.scales[:, :, None]
        if self.grid.minimums is not None:
            values += self.grid.minimums[:, :, None]
        return values.reshape(rows, width)

    @property
    def nbytes(self) -> int:
        """Packed: the codes' bits, and 2 bytes for each scale and each minimum."""
        numbers = self.grid.scales.size * (1 if self.grid.minimums is None else 2)
        return -(-self.codes.size * self.scheme.bits // 8) + 2 * numbers

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.codes.size

    def rows(self, order: NDArray[np.int64]) -> QuantizedTensor:
        """The same tensor with its output rows in another order."""
        minimums = None if self.grid.minimums is None else self.grid.minimums[order]
        return replace(self, codes=self.codes[order], grid=Grid(self.grid.scales[order], minimums))


def check_finite(weights: FloatArray, name: str = "the weights") -> FloatArray:
    if not np.isfinite(weights).all():
        raise ValueError(f"{name}: a weight is not a finite number")
    return np.ascontiguousarray(weights, np.float32)


def fit_grid(weights: FloatArray, scheme: QuantScheme, clip: FloatArray | float | None = None) -> Grid:
    """The grid of min-max rounding of weights (out, in).

    Symmetric: s = c max|w| / (2^(b-1) - 1).  Asymmetric: s = c (max - min) / (2^b - 1), m = c min about the middle.
    clip  c, of the scheme by default; (out, groups) or one number.  Scales are rounded to fp16, as files store them,
    before any code is chosen.  A group of equal weights gets s = 1, and is exact in the "min" form.
    """
    rows, width = weights.shape
    grouped = weights.reshape(rows, scheme.groups_of(width), -1)
    ratio = scheme.clip_ratio if clip is None else clip
    if scheme.symmetric:
        return Grid(_scale(ratio * np.abs(grouped).max(axis=2) / np.float32(scheme.highest)))
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    if scheme.zero_point == "int":
        low, high = np.minimum(low, 0) * ratio, np.maximum(high, 0) * ratio
        scales = _scale((high - low) / np.float32(scheme.highest))
        zeros = np.clip(np.round(-low / scales), 0, scheme.highest)
        return Grid(scales, (-scales * zeros).astype(np.float32))
    middle, half = (low + high) / 2, ratio * (high - low) / 2
    scales = _scale(2 * half / np.float32(scheme.highest))
    return Grid(scales, _fp16(middle - half))


def round_to_grid(weights: FloatArray, grid: Grid, scheme: QuantScheme) -> QuantizedTensor:
    """The nearest code of each weight (ties to even), within the scheme's range."""
    rows, width = weights.shape
    grouped = weights.reshape(rows, grid.scales.shape[1], -1)
    if grid.minimums is not None:
        grouped = grouped - grid.minimums[:, :, None]
    codes = np.clip(np.round(grouped / grid.scales[:, :, None]), scheme.lowest, scheme.highest)
    return QuantizedTensor(codes.reshape(rows, width).astype(np.int16), grid, scheme)


def round_to_nearest(weights: FloatArray, scheme: QuantScheme, *, name: str = "the weights") -> QuantizedTensor:
    """RTN: each weight to the nearest point of its group's min-max grid; weights (out, in)."""
    weights = check_finite(weights, name)
    return round_to_grid(weights, fit_grid(weights, scheme), scheme)


def pack_codes(codes: NDArray[np.int16], bits: int, lowest: int) -> NDArray[np.uint8]:
    """Codes as a stream of `bits` bits each, least significant first, offset by `lowest` so that none is negative."""
    unsigned = (codes.astype(np.int32) - lowest).reshape(-1, 1)
    return np.packbits((unsigned >> np.arange(bits)) & 1, bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], bits: int, lowest: int, shape: tuple[int, ...]) -> NDArray[np.int16]:
    """The inverse of `pack_codes`."""
    count = int(np.prod(shape))
    digits = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return ((digits.astype(np.int32) << np.arange(bits)).sum(axis=1) + lowest).astype(np.int16).reshape(shape)


def _scale(values: FloatArray) -> FloatArray:
    """Positive fp16 numbers; 1 where a group has no extent."""
    return np.where(values > 0, np.maximum(_fp16(values), np.float32(_LEAST_FP16)), np.float32(1))


def _fp16(values: FloatArray) -> FloatArray:
    if np.abs(values).max(initial=0) > _MOST_FP16:
        raise ValueError(f"a scale of {float(np.abs(values).max()):.3g} is no fp16 number: the weights are too large")
    return values.astype(np.float16).astype(np.float32)
