"""Sampling from p(text | the text has this form), the model conditioned on a constraint.

Masking token by token ("local") samples from q, which is another distribution: it never looks ahead, so a likely first
token is taken even where the rest of the form is unlikely after it.  With m_t the model's probability of what was
allowed at position t, log p = log q + Σ log m_t exactly; hence weights Π m_t turn samples of q into samples of p( | L).

importance  N texts from q, weighted by Π m_t
smc         the same, texts resampled by weight on the way whenever the effective sample size falls under N/2
rejection   texts from the model itself; those that have the form are kept: exact, and slow where p(L) is small

L: the whole texts of the form of at most max_tokens tokens (end token included, if it is reached by then).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar, cast

import numpy as np

from likely.decoding.constraint import Constraint, ConstraintViolation, Mask, contains, mask_of, pack
from likely.decoding.particles import Floats, effective_sample_size, log_mean, none_whole, normalised, systematic
from likely.decoding.request import Finished, Request
from likely.decoding.sampling import Sampling, generator
from likely.errors import CapabilityError, ConstraintError

SAMPLERS = ("local", "importance", "smc", "rejection")
T = TypeVar("T")  # the record of a text
S = TypeVar("S")


@dataclass(frozen=True)
class SamplerSettings:
    """How texts of a form are sampled.

    sampler     "local": masked token by token, what all other options work with; else as this module says
    particles   N of importance and smc; for rejection, tries that run at once
    max_tries   rejection: texts sampled per prompt before it gives up
    """

    sampler: str = "local"
    particles: int = 64
    max_tries: int = 1024

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        for name in ("particles", "max_tries"):
            value = getattr(self, name)
            if not (isinstance(value, int) and 1 <= value <= (4096 if name == "particles" else 2**31)):
                raise ValueError(f"{name} must be a whole number >= 1 (particles <= 4096), got {value!r}")


@dataclass(frozen=True)
class Ensemble(Generic[T]):
    """Texts that stand for p( | L) together.

    texts         of importance and smc: N of them, some perhaps not whole (weight 0); of rejection: those accepted
    log_weights   (N,) mean over texts of exp(log_weight) f(text) estimates Σ p(text) f(text) over L without bias
    log_evidence  log of the unbiased estimate of p(L | prompt); None where one accepted text gives none (its weight
                  is then no estimate either)
    ess           effective sample size (Σ w)² / Σ w² of the texts as they stand
    noise, first_sample  key what `draw` samples
    resamplings   smc: how often texts were resampled;  tries: rejection: texts sampled up to the last accepted one
    """

    texts: list[T]
    log_weights: Floats
    log_evidence: float | None
    noise: int
    first_sample: int = 0
    resamplings: int = 0
    tries: int | None = None

    @property
    def ess(self) -> float:
        return effective_sample_size(self.log_weights)

    @property
    def probabilities(self) -> Floats:
        """(N,) normalised weights."""
        return normalised(self.log_weights)

    def holding(self, texts: list[S]) -> Ensemble[S]:
        """The same ensemble of other records of its texts."""
        return replace(cast(Any, self), texts=texts)

    def draw(self, n: int) -> list[T]:
        """n texts of equal weight, sampled by weight (rejection: the first n, each exact and independent)."""
        if self.tries is not None:
            return self.texts[:n]
        u = generator(self.noise, self.first_sample, 0, "ensemble").random()
        return [self.texts[i] for i in np.repeat(np.arange(len(self.texts)), systematic(self.probabilities, n, u))]


def prepare(request: Request, settings: SamplerSettings) -> Request:
    """The request that samples N texts from q; an error where other options ask for something else than p( | L)."""
    name = f'sampler="{settings.sampler}"'
    if request.constraint is None:
        raise ValueError(f"{name} needs a form (schema, regex, grammar, choices) or a constraint")
    if request.form is not None and request.form.settings.on_unsupported == "validate":
        raise CapabilityError(f'on_unsupported="validate" draws again what {name} would weigh: drop one of the two')
    if request.beams:
        raise CapabilityError(f"{name} draws texts, beam search does not: drop beams=")
    model_itself = Sampling(seed=request.sampling.seed)
    for field in fields(Sampling):
        value, plain = getattr(request.sampling, field.name), getattr(model_itself, field.name)
        if value != plain:
            wanted = "empty" if field.name == "logit_bias" else plain
            raise CapabilityError(
                f"{name} draws from the model itself, at temperature 1 without truncation, penalties and bias, given "
                f'the form: {field.name} must be {wanted}, got {value} (sampler="local" takes it)'
            )
    if request.logits_processors or request.min_tokens:
        changed = "logits_processors=" if request.logits_processors else "min_tokens="
        raise CapabilityError(f'{name} draws from the model itself given the form: drop {changed} or sampler="local"')
    if settings.sampler == "smc":
        return replace(request, samples=1, particles=settings.particles)
    return replace(request, samples=settings.particles)


def weighted(request: Request, texts: list[T], finished: Callable[[T], Finished]) -> Ensemble[T]:
    """The ensemble of N finished texts: weight Π m, or what resampling left of it; 0 for a text that is not whole."""
    ends = [finished(text) for text in texts]
    weights = np.array(
        [
            -np.inf if not e.complete else sum(e.log_masses) if e.particle_log_weight is None else e.particle_log_weight
            for e in ends
        ]
    )
    if weights.max() == -np.inf:
        raise ConstraintError(none_whole(len(texts), request.max_tokens))
    again = max(e.resamplings for e in ends)
    return Ensemble(texts, weights, log_mean(weights), request.noise, request.first_sample, again)


def reject(
    requests: Sequence[Request],
    run: Callable[[list[Request]], list[list[T]]],
    accepts: Callable[[T], bool],
    *,
    end_ids: frozenset[int],
    wanted: int,
    settings: SamplerSettings,
) -> list[Ensemble[T]]:
    """The first `wanted` texts of each request that the model itself writes in the form.

    run(requests) -> finished texts of each, in sample order.  Try i has the noise of sample first_sample + i, so what
    is accepted does not depend on how many run at once.
    """
    checks = []
    for request in requests:
        assert request.constraint is not None
        size = request.constraint.vocab_size
        checks.append(MembershipCheck(request.constraint, pack(np.ones(size, np.bool_)), mask_of(end_ids, size)))
    kept: list[list[tuple[int, T]]] = [[] for _ in requests]
    sampled = 0
    while missing := [i for i, found in enumerate(kept) if len(found) < wanted]:
        if sampled >= settings.max_tries:
            found = kept[missing[0]]
            raise ConstraintError(
                f'sampler="rejection": {len(found)} of {sampled} texts had the form ({len(found) / sampled:.2%}), '
                f'{wanted} wanted: raise max_tries, or use sampler="smc"'
            )
        count = min(settings.particles, settings.max_tries - sampled)
        tries = [
            replace(
                requests[i],
                samples=count,
                first_sample=requests[i].first_sample + sampled,
                constraint=checks[i],
            )
            for i in missing
        ]
        for i, texts in zip(missing, run(tries), strict=True):
            kept[i] += [(sampled + j + 1, text) for j, text in enumerate(texts) if accepts(text)]
        sampled += count
    return [_accepted(request, found[:wanted]) for request, found in zip(requests, kept, strict=True)]


def _accepted(request: Request, found: list[tuple[int, T]]) -> Ensemble[T]:
    """n accepted texts, the last at try M: (n - 1) / (M - 1) estimates p(L | prompt) without bias (Haldane 1945)."""
    n, tries = len(found), found[-1][0]
    evidence = float(np.log((n - 1) / (tries - 1))) if n > 1 else None
    weights = np.full(n, evidence or 0.0)
    return Ensemble([text for _, text in found], weights, evidence, request.noise, request.first_sample, tries=tries)


@dataclass(eq=False)
class MembershipCheck:
    """Forbids nothing; a text that leaves the language of another constraint is ended there."""

    inner: Constraint
    everything: Mask
    end: Mask
    broken_for: int = 0  # tokens since the text left the language, the one that did included

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    @property
    def accepting(self) -> bool:
        return not self.broken_for and self.inner.accepting

    @property
    def finished(self) -> bool:
        return bool(self.broken_for)

    @property
    def approximate(self) -> bool:
        return self.inner.approximate

    def allowed(self, remaining: int | None = None) -> Mask:
        return self.end if self.broken_for else self.everything

    def permits(self, token: int) -> bool:
        return not self.broken_for or contains(self.end, token)

    def advance(self, token: int) -> None:
        if not self.permits(token):
            raise ConstraintViolation(f"token {token} follows a text that already ended")
        if not self.broken_for and self.inner.permits(token):
            self.inner.advance(token)
        else:
            self.broken_for += 1

    def forced(self) -> list[int]:
        return []

    def fork(self) -> MembershipCheck:
        return MembershipCheck(self.inner.fork(), self.everything, self.end, self.broken_for)

    def rollback(self, n: int) -> None:
        since = min(n, self.broken_for)
        self.broken_for -= since
        self.inner.rollback(n - since)

    def ready(self, wait: bool = False) -> bool:
        return bool(self.broken_for) or self.inner.ready(wait)
