"""Rows of matrices as GGUF files hold them, with random codes: types that no Python package encodes, too."""

from __future__ import annotations

import gguf
import numpy as np

# type -> where its half-precision numbers are in a block, and what they are for values of standard deviation 1
_HALVES = {
    "Q4_0": {0: 0.22}, "Q4_1": {0: 0.22, 2: -1.65}, "Q5_0": {0: 0.11}, "Q5_1": {0: 0.11, 2: -1.7}, "Q8_0": {0: 0.0135},
    "Q4_K": {0: 0.0055, 2: 0.041}, "Q5_K": {0: 0.0027, 2: 0.042}, "Q6_K": {208: 0.00073},
}  # fmt: skip
CODED = tuple(_HALVES)


def size_of(kind):
    """(values, bytes) of a block."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


def random_rows(kind, shape, rng, std=1.0):
    """(rows, bytes): random codes, scales and minima; numbers of about this standard deviation."""
    values, nbytes = size_of(kind)
    raw = rng.integers(0, 256, (shape[0], shape[1] // values, nbytes)).astype(np.uint8)
    for at, size in _HALVES[kind].items():
        halves = (std * size * rng.uniform(0.5, 1.5, raw.shape[:2])).astype(np.float16)
        raw[..., at : at + 2] = halves[..., None].view(np.uint8)
    return raw.reshape(shape[0], -1)


def with_extreme_scales(kind, raw):
    """The same with scales of every size that half precision has: the largest, subnormal, zero, negative."""
    _, nbytes = size_of(kind)
    blocks = raw.copy().reshape(len(raw), -1, nbytes)
    sizes = np.array([65504, -65504, 6e-8, -6e-8, 6.1e-5, 0, -0.0, 1, 1e-3], np.float16)
    for at in _HALVES[kind]:
        count = blocks.shape[0] * blocks.shape[1]
        halves = np.resize(np.roll(sizes, at), count).reshape(blocks.shape[:2])
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(len(raw), -1)


def numbers(kind, raw):
    """What the rows stand for, by the gguf package."""
    return np.asarray(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]), np.float32)
