"""How a next token is chosen from a row of logits: settings, and logits transforms as pure functions.

Order, as in transformers: penalties, bias, temperature, top-k, top-p, min-p, typical.  Greedy is temperature 0.
Sampling takes the argmax of logits plus Gumbel noise that is a hash of (seed, prompt, sample, position, token id), the
same on every machine: the text is a function of model, prompt, settings and seed, not of drafts, batch companions or
the order in which logits were computed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from likely.decoding.options import check_number
from likely.runtimes.protocol import FloatArray, IntArray
from likely.runtimes.rows import logsumexp

PromptTokens = Sequence[int] | IntArray
_NONE: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True)
class Sampling:
    """Settings of one request; the defaults sample from the model itself.

    temperature         0 is greedy
    top_k               keep the k most likely tokens; 0: all
    top_p               keep the smallest set of most likely tokens with probability >= top_p
    min_p               keep tokens with probability >= min_p times that of the most likely one
    typical_p           keep the tokens whose surprise is nearest the entropy, up to this probability (Meister et al.
                        2022, arXiv:2202.00666)
    repetition_penalty  > 1 divides positive and multiplies negative logits of tokens seen in prompt or output
                        (Keskar et al. 2019, arXiv:1909.05858)
    presence_penalty, frequency_penalty   subtracted once, and once per occurrence, for tokens of the output
    logit_bias          token id -> added to its logit
    seed                of the keyed noise
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NONE)
    seed: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name != "logit_bias":
                check_number(f.name, getattr(self, f.name))
        for name in ("top_k", "seed"):
            if getattr(self, name) != int(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)}")
        for token, bias in self.logit_bias.items():
            if not (isinstance(token, int) and token >= 0) or not (np.isfinite(bias) or bias == -np.inf):
                raise ValueError(f"logit_bias maps token ids to finite numbers or -inf, got {token!r}: {bias!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def penalise(logits: FloatArray, settings: Sampling, prompt: PromptTokens, output: Sequence[int]) -> FloatArray:
    """Logits (V,) with penalties applied along one path; returns a new array."""
    logits = logits.copy()
    if settings.repetition_penalty != 1:
        seen = np.concatenate([np.asarray(prompt, np.int64), np.asarray(output, np.int64)])
        values = logits[seen]  # a token that is seen twice is written twice, with the same value
        logits[seen] = np.where(values > 0, values / settings.repetition_penalty, values * settings.repetition_penalty)
    if output and (settings.presence_penalty or settings.frequency_penalty):
        counts = Counter(output)
        ids = np.fromiter(counts, np.int64)
        times = np.fromiter(counts.values(), np.float32)
        logits[ids] -= settings.presence_penalty + settings.frequency_penalty * times
    return logits


def add_bias(logits: FloatArray, bias: Mapping[int, float]) -> FloatArray:
    """Logits (V,) plus the bias; returns a new array."""
    logits = logits.copy()
    for token, value in bias.items():
        if token >= len(logits):
            raise ValueError(f"logit_bias names token {token}, the vocabulary has {len(logits)}")
        logits[token] += value
    return logits


def _kept(logits: FloatArray, settings: Sampling) -> tuple[IntArray | None, FloatArray]:
    """Ids that survive truncation (None: all) and their tempered logits, both (M,), most likely first when truncated.

    Ties go to the smaller id.  Every rule keeps at least the most likely token.  Nothing is sorted but what may stay.
    """
    possible = logits > -np.inf
    if not possible.all() and possible.any():  # a mask leaves few: nothing is computed for the others
        few = np.flatnonzero(possible)
        kept, values = _kept(logits[few], settings)
        return (few if kept is None else few[kept]), values
    values = logits / np.float32(settings.temperature)
    ids: IntArray | None = None

    def keep(places: IntArray) -> None:
        nonlocal ids, values
        ids, values = (places if ids is None else ids[places]), values[places]

    if 0 < settings.top_k < len(values):
        keep(_likeliest(values, settings.top_k))
    if settings.top_p < 1:
        keep(_nucleus(values, settings.top_p))
    if settings.min_p > 0:
        keep(np.flatnonzero(values >= values.max() + np.float32(np.log(settings.min_p))))
    if settings.typical_p < 1:
        keep(_typical(values, settings.typical_p))
    return ids, values


def _likeliest(values: FloatArray, k: int) -> IntArray:
    """Places of the k largest values, largest first."""
    cut = np.partition(values, -k)[-k]
    return _descending(values, np.flatnonzero(values >= cut))[:k]


def _nucleus(values: FloatArray, top_p: float) -> IntArray:
    """Places of the fewest largest values that together have probability >= top_p, largest first.

    All tokens of a probability below (1 - top_p) / M together have less than 1 - top_p: the others hold the nucleus.
    Higher bounds, which hold it most often, are tried first.
    """
    top = values.max()
    weights = np.exp(values - top)
    whole = weights.sum(dtype=np.float64)
    for bound in ((1 - top_p) / 64, (1 - top_p) / len(values), 0.0):
        cut = min(float(np.log(bound * whole)), 0.0) if bound else -np.inf
        places = _descending(values, np.flatnonzero(values >= top + np.float32(cut)))
        reached = np.cumsum(weights[places], dtype=np.float64)
        if reached[-1] >= top_p * whole:
            break
    return places[: 1 + int(np.searchsorted(reached, top_p * whole))]


def _typical(values: FloatArray, typical_p: float) -> IntArray:
    """Places of the values whose surprise is nearest the entropy, up to this probability; largest first."""
    top = values.max()
    shifted = values - top
    weights = np.exp(shifted)
    whole = weights.sum(dtype=np.float64)
    mean = float((weights * shifted).sum(dtype=np.float64) / whole)  # surprise - entropy = mean - shifted
    distance = np.abs(shifted - np.float32(mean))
    for most in (0.5, 2.0, 8.0, np.inf):
        places = np.flatnonzero(distance <= np.float32(most))
        places = places[np.lexsort((places, -values[places], distance[places]))]
        reached = np.cumsum(weights[places], dtype=np.float64)
        if len(places) and reached[-1] >= typical_p * whole:
            break
    return _descending(values, np.sort(places[: 1 + int(np.searchsorted(reached, typical_p * whole))]))


def _descending(values: FloatArray, places: IntArray) -> IntArray:
    """Ascending places in the order of their values, largest first."""
    return places[np.argsort(-values[places], kind="stable")]


def apply_penalties(logits: FloatArray, settings: Sampling, prompt: PromptTokens, output: Sequence[int]) -> FloatArray:
    """Penalised and biased logits (V,): everything that happens before temperature and truncation."""
    if settings.has_penalties:
        logits = penalise(logits, settings, prompt, output)
    if settings.logit_bias:
        logits = add_bias(logits, settings.logit_bias)
    return logits


def pick(logits: FloatArray, settings: Sampling, *, noise: int, sample: int, position: int) -> int:
    """The token that the sampler emits at this position, a function of its arguments alone (rule G when sampling).

    logits (V,) already transformed.  Greedy: the argmax, ties to the smaller id.  Otherwise
    argmax over kept ids of (logit / T + g), g keyed by (noise, sample, position, id): a draw from what truncation left.
    """
    if settings.greedy:
        return int(logits.argmax())
    ids, values = _kept(logits, settings)
    place = largest_with_noise(values, noise, sample, position, ids)
    return place if ids is None else int(ids[place])


def processed_logprobs(logits: FloatArray, settings: Sampling) -> FloatArray:
    """Log-probabilities (V,) of the distribution that `pick` samples from; -inf outside it."""
    out = np.full(len(logits), -np.inf, np.float32)
    if settings.greedy:
        out[logits.argmax()] = 0.0
        return out
    ids, values = _kept(logits, settings)
    logprobs = values - np.float32(logsumexp(values))
    if ids is None:
        return logprobs
    out[ids] = logprobs
    return out


# --- keyed noise ------------------------------------------------------------------------------------------------------
# A request's noise is keyed by its seed and its prompt, so that equal requests get equal texts, whatever else is in the
# batch, and different prompts independent ones.  Below it come the sample, the position and the token id.

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
