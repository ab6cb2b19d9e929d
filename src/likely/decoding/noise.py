"""Keyed Gumbel noise: a portable counter hash of (seed, sample, position, token id).

Sampling with it makes the text a function of (model, prompt, settings, seed): not of drafts, batch companions,
runtime or the order in which logits were computed.  The same numbers come out on every machine.
"""

from __future__ import annotations

import numpy as np

from likely.models.runtime import FloatArray, IntArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_LARGEST_BELOW_ONE = np.float32(1 - 2**-24)


def stream_key(seed: int, sample: int, position: int) -> int:
    """64 well-mixed bits for one emitted token (three rounds of the splitmix64 finaliser, one per argument)."""
    key = 0
    for part in (seed, sample, position):
        key = (key + (part & _MASK) * 2 + 1) * _GOLDEN & _MASK
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        key = (key ^ key >> 27) * 0x94D049BB133111EB & _MASK
        key ^= key >> 31
    return key


def _mix32(h: np.ndarray) -> np.ndarray:
    """In-place 32-bit finaliser with low bias (constants of the public-domain "lowbias32")."""
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def uniform_bits(key: int, ids: IntArray) -> np.ndarray:
    """(len(ids),) uint32, one per token id."""
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    with np.errstate(over="ignore"):
        h = ids.astype(np.uint32) * np.uint32(0x9E3779B9) + low
        _mix32(h)
        h ^= high
        return _mix32(h)


def gumbel(seed: int, sample: int, position: int, ids: IntArray) -> FloatArray:
    """Standard Gumbel noise g, one per id: argmax over ids of (log p + g) is a draw from p.

    g = -log(E), E = -log(1 - u), u = (h + ½)/2³² exact near 0, where E is small and g is large: fp32 keeps full
    resolution in the tail that decides the winner.  g <= 22.9, so an event of probability below 2^-32 per token is
    never drawn against its odds.
    """
    u = (uniform_bits(stream_key(seed, sample, position), ids).astype(np.float32) + np.float32(0.5)) * np.float32(
        2**-32
    )
    np.minimum(u, _LARGEST_BELOW_ONE, out=u)  # the cast to fp32 may round up to 1
    np.negative(u, out=u)
    np.log1p(u, out=u)
    np.negative(u, out=u)
    np.log(u, out=u)
    return np.negative(u, out=u)


def generator(seed: int, sample: int, position: int, purpose: str) -> np.random.Generator:
    """Independent random numbers for one round and one purpose ("accept", "draft", ...), the same on every machine."""
    salt = int.from_bytes(purpose.encode()[:8].ljust(8, b"\0"), "little")
    return np.random.Generator(np.random.Philox(key=stream_key(seed, sample, position) | salt << 64))
