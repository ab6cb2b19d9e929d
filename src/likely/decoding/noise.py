"""Random numbers as a function of what they are for: no generator has a state that could be used in another order.

A request's noise is keyed by its seed and its prompt, so that equal requests get equal texts, whatever else is in the
batch, and different prompts independent ones.  Below it come the sample, the position and the token id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from likely.runtimes.protocol import FloatArray, IntArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_LARGEST_BELOW_ONE = np.float32(1 - 2**-24)
_FEW = 1024  # of as many values all noise is computed


def noise_of(seed: int, prompt: Sequence[int]) -> int:
    """64 bits that key all noise of the requests with this seed and this prompt (token ids)."""
    digest = hashlib.blake2b(np.asarray(prompt, "<i8").tobytes(), digest_size=8).digest()
    return stream_key(seed, int.from_bytes(digest, "little"))


def stream_key(*parts: int) -> int:
    """64 well-mixed bits of some numbers (a round of the splitmix64 finaliser for each)."""
    key = 0
    for part in parts:
        key = (key + (part & _MASK) * 2 + 1) * _GOLDEN & _MASK
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        key = (key ^ key >> 27) * 0x94D049BB133111EB & _MASK
        key ^= key >> 31
    return key


def _mix32(h: np.ndarray, between: np.uint32) -> np.ndarray:
    """In-place 32-bit finaliser with low bias (constants of the public-domain "lowbias32")."""
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h += between
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def _mixed(ids: IntArray) -> np.ndarray:
    """(len(ids),) uint32, well mixed: no two ids alike."""
    return _mix32(ids.astype(np.uint32) * np.uint32(_GOLDEN >> 32), np.uint32(0))


@lru_cache(maxsize=4)
def _all_mixed(size: int) -> np.ndarray:
    return _mixed(np.arange(size))


def uniform_bits(key: int, ids: IntArray | int) -> np.ndarray:
    """(n,) uint32, one per token id; ids: the ids, or how many of them, from 0 on."""
    with np.errstate(over="ignore"):
        mixed = _all_mixed(ids) if isinstance(ids, int) else _mixed(ids)
        return _mix32(mixed + np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32))


def gumbel(noise: int, sample: int, position: int, ids: IntArray | int) -> FloatArray:
    """Standard Gumbel noise g, one per id: argmax over ids of (log p + g) is a draw from p.

    noise  of `noise_of`;  ids: as in `uniform_bits`
    """
    return _gumbel(uniform_bits(stream_key(noise, sample, position), ids))


def _gumbel(bits: np.ndarray) -> FloatArray:
    """g = -log(E), E = -log(1 - u), u = (bits + ½)/2³².

    u is exact near 0, where E is small and g is large: fp32 keeps full resolution in the tail that decides the winner.
    g <= 22.9, so an event of probability below 2^-32 per token is never drawn against its odds.
    """
    u = (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2**-32)
    np.minimum(u, _LARGEST_BELOW_ONE, out=u)  # the cast to fp32 may round up to 1
    np.negative(u, out=u)
    np.log1p(u, out=u)
    np.negative(u, out=u)
    np.log(u, out=u)
    return np.negative(u, out=u)


def largest_with_noise(values: FloatArray, noise: int, sample: int, position: int, ids: IntArray | None) -> int:
    """The place of the largest of values (M,) + g, the first of equals; g of these ids (None: 0 .. M - 1).

    Of many, logarithms are taken for those alone that can win: with a value B reached by one of the likeliest,
    v + g >= B needs u <= exp(v - B), for g <= -log u.
    """
    bits = uniform_bits(stream_key(noise, sample, position), len(values) if ids is None else ids)
    if len(values) <= _FEW:
        return int((values + _gumbel(bits)).argmax())
    top = float(values.max())
    likely = np.flatnonzero(values >= top - 2)
    reached = float((values[likely] + _gumbel(bits[likely])).max()) - 1e-3 - 1e-5 * abs(top)  # sums round
    chance = np.exp(values - np.float32(reached))
    chance *= np.float32(2**32)
    open_to = np.flatnonzero(chance >= bits.astype(np.float32))
    return int(open_to[(values[open_to] + _gumbel(bits[open_to])).argmax()])


def generator(noise: int, sample: int, position: int, purpose: str) -> np.random.Generator:
    """Independent random numbers for one round and one purpose ("accept", "draft", ...), the same on every machine."""
    salt = int.from_bytes(purpose.encode()[:8].ljust(8, b"\0"), "little")
    return np.random.Generator(np.random.Philox(key=stream_key(noise, sample, position) | salt << 64))
