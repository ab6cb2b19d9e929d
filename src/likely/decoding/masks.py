"""Sets of tokens as packed bits: bit v % 32 of word v // 32 says whether token v is in the set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from likely.models.rows import logsumexp
from likely.models.runtime import FloatArray, IntArray

Mask = NDArray[np.uint32]  # (ceil(V / 32),); bits past V are 0
_MINUS_INF = np.float32(-np.inf).view(np.int32)


def no_tokens(vocab_size: int) -> Mask:
    return np.zeros((vocab_size + 31) // 32, np.uint32)


def mask_of(ids: Iterable[int], vocab_size: int) -> Mask:
    """The set of these ids."""
    mask = no_tokens(vocab_size)
    for token in ids:
        mask[token >> 5] |= np.uint32(1 << (token & 31))
    return mask


def pack(members: NDArray[np.bool_]) -> Mask:
    """From one bool per token (V,)."""
    padded = np.zeros(-(-len(members) // 32) * 32, np.bool_)
    padded[: len(members)] = members
    return np.packbits(padded, bitorder="little").view(np.uint32)


def unpack(mask: Mask, vocab_size: int) -> NDArray[np.bool_]:
    """One bool per token (V,)."""
    return np.unpackbits(mask.view(np.uint8), count=vocab_size, bitorder="little").view(np.bool_)


def members(mask: Mask) -> IntArray:
    """The ids of the set, ascending."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def contains(mask: Mask, token: int) -> bool:
    return bool(int(mask[token >> 5]) >> (token & 31) & 1)


def count(mask: Mask) -> int:
    return int(np.bitwise_count(mask).sum())


def only(logits: FloatArray, allowed: NDArray[np.bool_]) -> FloatArray:
    """Logits (V,) with -inf outside the set; a new array.

    By bits, without a branch per token: ten times as fast as np.where on a mixed set.
    """
    keep = allowed.astype(np.int32)
    np.negative(keep, out=keep)  # all ones where allowed
    bits = np.asarray(logits, np.float32).view(np.int32) & keep
    np.invert(keep, out=keep)
    keep &= _MINUS_INF
    bits |= keep
    return bits.view(np.float32)


def log_mass(logits: FloatArray, allowed: NDArray[np.bool_], norm: float) -> float:
    """log Σ p(v) over the set, p = softmax(logits), in nats; norm = logsumexp(logits).

    Summed over the set, its complement where that is small and loses no digits, or all tokens: whichever is cheapest.
    """
    inside, few = int(np.count_nonzero(allowed)), len(logits) // 16
    if len(logits) - inside <= few:
        outside = float(np.exp(logits[~allowed] - np.float32(norm)).sum(dtype=np.float64))
        if outside < 0.5:
            return float(np.log1p(-outside))
    chosen = logits[allowed] if inside <= few else only(logits, allowed)
    return min(0.0, logsumexp(chosen) - norm) if inside else -float("inf")
