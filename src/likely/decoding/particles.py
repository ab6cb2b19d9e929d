"""Sequential Monte Carlo: N weighted texts of one request grow together; the light ones give way to the heavy ones.

Each text is sampled from q, the model masked and renormalised token by token; its weight is the product of the masses
m = p(allowed) along it, so that weighted texts stand for the model itself given the constraint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from likely.decoding.constraint import ConstraintDeadEnd, log_mass
from likely.decoding.request import Finished, Request
from likely.decoding.sampling import generator
from likely.decoding.sequence_state import Allowed, SequenceState
from likely.errors import ConstraintError
from likely.metrics.checks import Floats, Ints
from likely.runtimes.protocol import FloatArray, Output
from likely.runtimes.rows import logsumexp


def normalised(log_weights: Floats) -> Floats:
    """Floats proportional to exp(log_weights) (N,); at least one must be finite."""
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def log_mean(log_weights: Floats) -> float:
    """log of the mean of exp(log_weights) (N,); -inf if all are -inf."""
    peak = float(log_weights.max())
    return peak if peak == -np.inf else peak + float(np.log(np.exp(log_weights - peak).mean()))


def effective_sample_size(log_weights: Floats) -> float:
    """(Σ w)² / Σ w² of weights (N,): N where they are equal, 1 where one has everything, 0 where all are 0."""
    if log_weights.max() == -np.inf:
        return 0.0
    return float(1 / (normalised(log_weights) ** 2).sum())


def systematic(probabilities: Floats, count: int, u: float) -> Ints:
    """How often each of N is chosen (N,), `count` draws in all, on average in proportion to `probabilities`.

    One uniform u in [0, 1) places `count` equally spaced points on the cumulative probabilities.
    Kitagawa 1996, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space models", appendix A.
    """
    edges = np.cumsum(probabilities)
    points = (np.arange(count) + u) / count * edges[-1]
    found = np.searchsorted(edges, points, side="right")
    # a rounded sum must not reach one of probability 0
    return np.bincount(np.minimum(found, np.flatnonzero(probabilities)[-1]), minlength=len(probabilities))


def none_whole(count: int, max_tokens: int) -> str:
    return f"none of {count} texts was whole within max_tokens={max_tokens}: raise it, or set close_on_budget=True"


@dataclass(eq=False)
class _Particle:
    """One text: on its way (`state`) or at its end (`finished`); log_weight with what resampling left it."""

    state: SequenceState
    log_weight: float
    finished: Finished | None = None
    seen: tuple[FloatArray, Allowed | None] | None = None

    @property
    def alive(self) -> bool:
        return self.finished is None


@dataclass(eq=False)
class Particles:
    """The selection between two calls of the model.

    A step weighs every text by the mass of what may follow it, resamples N texts where the effective sample size is
    under `threshold` N, and then picks the next token of each.  Finished texts keep their weight and wait; one that
    ended without being whole has weight 0.  The mean weight is an unbiased estimate of p(constraint | prompt) whether
    or not texts were resampled (Del Moral 2004, "Feynman-Kac Formulae", section 7.4.1).  The mass after a text is
    known before its next token is, so copies part at once (the "fully adapted" filter of Pitt and Shephard 1999).
    """

    request: Request
    end_ids: frozenset[int]
    threshold: float = 0.5
    resamplings: int = 0
    _all: list[_Particle] = field(default_factory=list)
    _fresh: int = 0  # the next unused sample number: copies must not share noise

    def select(
        self,
        states: list[SequenceState],
        fork: Callable[[SequenceState], SequenceState],
        drop: Callable[[SequenceState], None],
        advance_text: Callable[[SequenceState, int], tuple[str | None, str]],
    ) -> tuple[list[SequenceState], list[Finished] | None]:
        """(texts that go on, all N once every one has ended).  Every state has its row of logits."""
        if not self._all:
            self._begin(states[0], fork)
        for particle in self._all:
            if particle.alive and particle.seen is None:
                try:
                    self._weigh(particle)
                except ConstraintDeadEnd:  # nothing may follow: a text of weight 0
                    self._end(particle, "dead end", drop)
        weights = np.array([p.log_weight for p in self._all])
        if weights.max() == -np.inf:
            raise ConstraintError(none_whole(len(self._all), self.request.max_tokens))
        if effective_sample_size(weights) < self.threshold * len(self._all):
            self._resample(weights, fork, drop)
        for particle in self._all:
            if particle.alive:
                self._advance(particle, drop, advance_text)
        going = [p.state for p in self._all if p.alive]
        if all(p.log_weight == -np.inf for p in self._all):
            raise ConstraintError(none_whole(len(self._all), self.request.max_tokens))
        return going, None if going else self._finished()

    def end(self, running: list[SequenceState], reason: str) -> list[Finished]:
        """All texts, those that still went on ended for this reason; ConstraintError if none is whole."""
        for particle in self._all:
            if particle.alive:
                self._end(particle, reason, lambda state: None)
        return self._finished()

    def _finished(self) -> list[Finished]:
        if all(p.log_weight == -np.inf for p in self._all):
            raise ConstraintError(none_whole(len(self._all), self.request.max_tokens))
        return [
            replace(p.finished, particle_log_weight=p.log_weight, resamplings=self.resamplings)
            for p in self._all
            if p.finished
        ]

    def _begin(self, root: SequenceState, fork: Callable[[SequenceState], SequenceState]) -> None:
        self._fresh = root.sample + 1
        self._all = [_Particle(root, 0.0)]
        self._weigh(self._all[0])
        self._all += [self._copy(self._all[0], fork) for _ in range(1, self.request.particles)]

    def _copy(self, particle: _Particle, fork: Callable[[SequenceState], SequenceState]) -> _Particle:
        """The same text with the same weight, and noise of its own from here on."""
        if not particle.alive:
            return _Particle(particle.state, particle.log_weight, particle.finished)
        state = fork(particle.state)
        state.sample, state.row = self._fresh, particle.state.row
        self._fresh += 1
        assert state.constraint is not None
        state.constraint.allowed(self.request.max_tokens - len(state.tokens))  # `permits` goes by it
        return _Particle(state, particle.log_weight, seen=particle.seen)

    def _weigh(self, particle: _Particle) -> None:
        state = particle.state
        assert state.row is not None
        row, allowed = state.row_for_choice(state.row, (), self.end_ids)
        particle.seen = state.held(row, allowed, ()), allowed
        assert allowed is not None
        particle.log_weight += log_mass(state.row, allowed, logsumexp(state.row))

    def _resample(
        self, weights: Floats, fork: Callable[[SequenceState], SequenceState], drop: Callable[[SequenceState], None]
    ) -> None:
        """N texts resampled by weight, each with the mean weight; the first copy of a text is the text itself."""
        position = len(self.request.prompt) + max(len(p.state.tokens) for p in self._all)
        draws = generator(self.request.noise, self.request.first_sample, position, "resample")
        counts = systematic(normalised(weights), len(weights), draws.random())
        mean = log_mean(weights)
        kept = []
        for particle, count in zip(self._all, counts.tolist(), strict=True):
            if not count and particle.alive:
                drop(particle.state)  # before any fork: its room may be needed
        for particle, count in zip(self._all, counts.tolist(), strict=True):
            if count:
                particle.log_weight = mean
                kept += [particle, *(self._copy(particle, fork) for _ in range(1, count))]
        self._all = kept
        self.resamplings += 1

    def _advance(
        self,
        particle: _Particle,
        drop: Callable[[SequenceState], None],
        advance_text: Callable[[SequenceState, int], tuple[str | None, str]],
    ) -> None:
        state, seen = particle.state, particle.seen
        assert state.row is not None and state.constraint is not None and seen is not None
        row, allowed = seen
        token = state.pick(row)
        while not state.constraint.permits(token):  # judged only now: `approximate` says so
            assert allowed is not None
            allowed[token] = False
            row = state.held(row, allowed, ())
            token = state.pick(row)
        state.constraint.advance(token)
        state.append(token, state.report(Output(logits=state.row[None]), 0, token, seen))
        state.row = particle.seen = None
        state.continue_with(token)
        reason, _ = advance_text(state, token)
        if reason:
            self._end(particle, reason, drop)

    def _end(self, particle: _Particle, reason: str, drop: Callable[[SequenceState], None]) -> None:
        state = particle.state
        state.stream.finish()
        state.row = None
        particle.finished = state.finished(reason)
        drop(state)
        if not particle.finished.complete:
            particle.log_weight = -np.inf
