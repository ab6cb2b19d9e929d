"""Block floating point in torch: tensors to packed mantissas and shared exponents, and back.

Rouhani et al. 2023 (MX formats), arXiv:2310.10537; keys and values: Accurate Block Quantization, arXiv:2403.20137.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from likely.runtimes.kv_format import LEAST_EXPONENT, MOST_EXPONENT, BFPFormat

_BIAS = 127  # of fp32


@dataclass(frozen=True, eq=False)
class BlockFloatTensor:
    """Values (..., width) as they are stored, blocks along the last axis.

    packed     (..., bytes) uint8: mantissas of p bits, least significant first; two to a byte where p = 4
    exponents  (..., width / block) int8
    """

    packed: torch.Tensor
    exponents: torch.Tensor
    fmt: BFPFormat
    width: int

    def codes(self) -> torch.Tensor:
        """(..., width) int16: the mantissas q."""
        return unpack(self.packed, self.fmt.mantissa_bits, self.width).to(torch.int16)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(..., width): q 2^(e - (p - 1)), exact in fp32."""
        return decode(unpack(self.packed, self.fmt.mantissa_bits, self.width), self.exponents, self.fmt).to(dtype)

    @property
    def nbytes(self) -> int:
        return self.packed.numel() + self.exponents.numel()

    @property
    def bits_per_value(self) -> float:
        """What is stored, exponents included."""
        return 8 * self.nbytes / (self.packed.shape[:-1].numel() * self.width)


def bfp_quantize(x: torch.Tensor, fmt: BFPFormat, dim: int = -1) -> BlockFloatTensor:
    """Round x in blocks along `dim`, which becomes the last axis.  ValueError for a number that is not finite."""
    x = x.movedim(dim, -1)
    codes, exponents = encode(x, fmt)
    return BlockFloatTensor(pack(codes, fmt.mantissa_bits), exponents, fmt, x.shape[-1])


def encode(x: torch.Tensor, fmt: BFPFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """x (..., width) -> codes (..., width) in fp32, exponents (..., blocks) int8; the formula stands at BFPFormat."""
    blocks = x.float().reshape(*x.shape[:-1], fmt.blocks_of(x.shape[-1]), fmt.block)
    largest = blocks.abs().amax(-1)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("block floating point has no inf and no NaN: a value is not a finite number")
    exponents = torch.frexp(largest).exponent
    if fmt.overflow == "bump":
        rounded = torch.round(_scaled(largest, -exponents) * 2.0 ** (fmt.mantissa_bits - 1))
        exponents = exponents + (rounded > fmt.highest)
    zero = (largest == 0) | (exponents < LEAST_EXPONENT)
    exponents = exponents.masked_fill(zero, LEAST_EXPONENT)
    if bool((exponents > MOST_EXPONENT).any()):
        raise ValueError(f"a value of {float(largest.max()):.3g} is too large for an exponent of 8 bits")
    scale = 2.0 ** (fmt.mantissa_bits - 1)
    codes = torch.round(_scaled(blocks, -exponents[..., None]) * scale).clamp_(fmt.lowest, fmt.highest)
    codes = codes.masked_fill_(zero[..., None], 0)
    return codes.reshape(x.shape), exponents.to(torch.int8)


def decode(codes: torch.Tensor, exponents: torch.Tensor, fmt: BFPFormat) -> torch.Tensor:
    """The inverse of `encode` but for what was rounded away: (..., width) fp32."""
    blocks = codes.reshape(*exponents.shape, fmt.block).float() * 2.0 ** (1 - fmt.mantissa_bits)
    return (blocks * _power(exponents)[..., None]).flatten(-2)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Two's complement codes (..., width), any dtype, to (..., ceil(width bits / 8)) bytes, least significant first."""
    if bits == 8:
        return codes.to(torch.int8).view(torch.uint8)
    whole = codes.to(torch.int32)
    if bits == 4 and codes.shape[-1] % 2 == 0:
        low, high = (whole & 15).unflatten(-1, (-1, 2)).unbind(-1)
        return (low | (high << 4)).to(torch.uint8)
    digits = ((whole[..., None] >> torch.arange(bits, device=codes.device)) & 1).flatten(-2)
    digits = torch.nn.functional.pad(digits, (0, -digits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (digits << torch.arange(8, device=codes.device)).sum(-1).to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """The inverse of `pack`: (..., width) signed integers."""
    if bits == 8:
        return packed.view(torch.int8)
    if bits == 4 and width % 2 == 0:
        signed = packed.view(torch.int8)
        low = (signed << 4) >> 4  # of signed numbers: the sign is carried along
        return torch.stack([low, signed >> 4], dim=-1).flatten(-2)
    digits = (packed[..., None].to(torch.int32) >> torch.arange(8, device=packed.device)) & 1
    digits = digits.flatten(-2)[..., : width * bits].unflatten(-1, (width, bits))
    whole = (digits << torch.arange(bits, device=packed.device)).sum(-1)
    return whole - ((whole >> (bits - 1)) << bits)


def _power(exponents: torch.Tensor) -> torch.Tensor:
    """2^e in fp32, exactly, for -127 < e <= 127."""
    return ((exponents.to(torch.int32) + _BIAS) << 23).view(torch.float32)


def _scaled(x: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """x 2^exponents in two factors, since 2^128 is no number of fp32; exact where the result is no subnormal."""
    half = exponents.clamp(-126, 126)
    return x * _power(half) * _power((exponents - half).clamp(-126, 126))
