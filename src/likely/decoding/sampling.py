"""How a next token is chosen from a row of logits: settings, logits transforms as pure functions, and keyed noise.

Order, as in transformers: penalties, bias, temperature, top-k, top-p, min-p, typical.  Greedy is temperature 0.
Sampling takes the argmax of logits plus Gumbel noise that is a hash of (seed, sample, position, token id), the same on
every machine: the text is a function of model, prompt, settings and seed, not of drafts, batch companions or the order
in which logits were computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType

import numpy as np

from likely.decoding.options import check_number
from likely.runtimes.protocol import FloatArray, IntArray
from likely.runtimes.rows import logsumexp

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


def penalise(logits: FloatArray, settings: Sampling, prompt: Sequence[int], output: Sequence[int]) -> FloatArray:
    """Logits (V,) with penalties applied along one path; returns a new array."""
    logits = logits.copy()
    if settings.repetition_penalty != 1:
        seen = np.unique(np.asarray([*prompt, *output], np.int64))
        values = logits[seen]
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


def _kept(logits: FloatArray, settings: Sampling) -> tuple[IntArray, FloatArray]:
    """Ids that survive truncation and their tempered logits, both (M,), most likely first when truncated.

    Ties go to the smaller id.  Every rule keeps at least the most likely token.
    """
    possible = logits > -np.inf
    if not possible.all() and possible.any():  # a mask leaves few: nothing is computed for the others
        few = np.flatnonzero(possible)
        kept, values = _kept(logits[few], settings)
        return few[kept], values
    scaled = logits / np.float32(settings.temperature)
    k = settings.top_k if 0 < settings.top_k < len(scaled) else 0
    truncates = settings.top_p < 1 or settings.min_p > 0 or settings.typical_p < 1
    if not k and not truncates:
        return np.arange(len(scaled)), scaled
    if k:
        cut = np.partition(scaled, -k)[-k]
        ids = np.flatnonzero(scaled >= cut)
    elif settings.min_p > 0 and settings.top_p == 1 and settings.typical_p == 1:
        ids = np.flatnonzero(scaled >= scaled.max() + np.float32(np.log(settings.min_p)))
        return ids, scaled[ids]
    else:
        ids = np.arange(len(scaled))
    ids = ids[np.argsort(-scaled[ids], kind="stable")]
    if k:
        ids = ids[:k]
    values = scaled[ids]
    if settings.top_p < 1:
        p = _softmax(values)
        count = 1 + int(np.searchsorted(np.cumsum(p), settings.top_p))
        ids, values = ids[:count], values[:count]
    if settings.min_p > 0:
        keep = values >= values[0] + np.float32(np.log(settings.min_p))
        ids, values = ids[keep], values[keep]
    if settings.typical_p < 1:
        p = _softmax(values)
        surprise = -np.log(np.maximum(p, np.finfo(np.float64).tiny))
        entropy = float((p * surprise).sum())
        order = np.argsort(np.abs(surprise - entropy), kind="stable")
        count = 1 + int(np.searchsorted(np.cumsum(p[order]), settings.typical_p))
        keep = np.sort(order[:count])
        ids, values = ids[keep], values[keep]
    return ids, values


def _softmax(values: FloatArray) -> np.ndarray:
    p = np.exp(values.astype(np.float64) - float(values.max()))
    return p / p.sum()


def apply_penalties(logits: FloatArray, settings: Sampling, prompt: Sequence[int], output: Sequence[int]) -> FloatArray:
    """Penalised and biased logits (V,): everything that happens before temperature and truncation."""
    if settings.has_penalties:
        logits = penalise(logits, settings, prompt, output)
    if settings.logit_bias:
        logits = add_bias(logits, settings.logit_bias)
    return logits


def pick(logits: FloatArray, settings: Sampling, *, sample: int, position: int) -> int:
    """The token that the sampler emits at this position, a function of its arguments alone (rule G when sampling).

    logits (V,) already transformed.  Greedy: the argmax, ties to the smaller id.  Otherwise
    argmax over kept ids of (logit / T + g), g keyed by (seed, sample, position, id): a draw from what truncation left.
    """
    if settings.greedy:
        return int(logits.argmax())
    ids, values = _kept(logits, settings)
    return int(ids[(values + gumbel(settings.seed, sample, position, ids)).argmax()])


def processed_logprobs(logits: FloatArray, settings: Sampling) -> FloatArray:
    """Log-probabilities (V,) of the distribution that `pick` samples from; -inf outside it."""
    out = np.full(len(logits), -np.inf, np.float32)
    if settings.greedy:
        out[logits.argmax()] = 0.0
        return out
    ids, values = _kept(logits, settings)
    out[ids] = values - np.float32(logsumexp(values))
    return out


# --- keyed noise ------------------------------------------------------------------------------------------------------

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
