"""Thresholds of Prophet that change at most a stated share of answers, fitted to answers that were decoded to the end.

The scale of gaps differs between models, temperatures and regions: published thresholds hold for the model they were
chosen for.  Here they are chosen on one part of the traces and certified on the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from likely.decoding.diffusion.canvas import BoolArray
from likely.decoding.diffusion.convergence import ConvergenceTrace
from likely.decoding.diffusion.prophet import check_thresholds
from likely.errors import DataError
from likely.metrics.checks import Floats
from likely.metrics.intervals import upper_bound
from likely.runtimes.protocol import IntArray

LEVELS = 14  # thresholds that are tried in each phase, besides infinity
CANDIDATES = 24  # that are tested one after the other
PILOT = 0.35  # share of the traces that chooses the candidates


@dataclass(frozen=True)
class FittedThresholds:
    """Of new answers, decoding with these thresholds changes more than `epsilon` with probability <= `delta`.

    The probability is over the traces: of many sets like them, at most a share delta gives thresholds that break this.
    thresholds      for Prophet; infinite ones, which never stop, where nothing faster could be certified
    tested, changed traces that certified them, and how many of these answers they change
    bound           upper confidence bound (Clopper-Pearson, level 1 - delta) on the share of changed answers
    share_of_steps  mean steps over all steps, on the tested traces
    """

    thresholds: tuple[tuple[float, float], ...]
    epsilon: float
    delta: float
    tested: int
    changed: int
    bound: float
    share_of_steps: float


def stopping_steps(traces: Sequence[ConvergenceTrace], thresholds: Floats, ends: Floats) -> tuple[IntArray, BoolArray]:
    """(steps (C, N), changed (C, N)) of N traces under C thresholds (C, phases); the last step stops in any case."""
    shape = len(traces), max(len(trace.gaps) for trace in traces)
    gaps, same, last = np.zeros(shape), np.ones(shape, np.bool_), np.zeros(shape, np.bool_)
    phase = np.zeros(shape, np.int64)
    phases = {n: np.searchsorted(ends, np.arange(1, n + 1) / n, side="right") for n in {len(t.gaps) for t in traces}}
    for row, trace in enumerate(traces):
        n = len(trace.gaps)
        gaps[row, :n], same[row, : n - 1], last[row, n - 1] = trace.gaps, trace.same[:-1], True
        phase[row, :n] = np.minimum(phases[n], len(ends) - 1)
    found = np.empty((len(thresholds), len(traces)), np.int64)
    for number, one in enumerate(thresholds):
        limit = one[phase]
        found[number] = (last | ((gaps >= limit) & (limit < np.inf))).argmax(axis=1)
    return found + 1, ~same[np.arange(len(traces)), found]


def fit_thresholds(
    traces: Sequence[ConvergenceTrace], *, epsilon: float = 0.02, delta: float = 0.1, phases: int = 3, seed: int = 0
) -> FittedThresholds:
    """The fastest thresholds found whose share of changed answers is certified to be at most epsilon.

    traces  of answers like those to come, recorded with the region and aggregate that Prophet will use
    phases  of equal length, with falling thresholds

    A random third of the traces orders candidates from slow to fast: of about equal speed, the one that changes the
    fewest of its answers.  The others test them in this order, each by the Clopper-Pearson bound, and the last before
    the first failure is taken: fixed sequence testing, whose error is that of one test (Angelopoulos et al. 2021,
    Learn then Test, arXiv:2110.01052).  DataError where the traces are too few to certify anything.
    """
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    if phases < 1:
        raise ValueError(f"phases must be >= 1, got {phases}")
    order = np.random.default_rng(seed).permutation(len(traces))
    cut = int(PILOT * len(traces))
    if upper_bound(0, len(traces) - cut, delta) > epsilon:
        needed = int(np.ceil(np.log(delta) / np.log1p(-epsilon) / (1 - PILOT))) + 1
        raise DataError(
            f"{len(traces)} traces are too few for epsilon={epsilon:g} and delta={delta:g}: give at least {needed}, "
            f"or a larger epsilon"
        )
    pilot, rest = [traces[i] for i in order[:cut]], [traces[i] for i in order[cut:]]
    ends = np.arange(1, phases + 1) / phases
    chosen = _candidates(pilot, ends)
    steps, changed = stopping_steps(rest, chosen, ends)
    errors = changed.sum(axis=1)
    passed = 0
    while passed + 1 < len(chosen) and upper_bound(int(errors[passed + 1]), len(rest), delta) <= epsilon:
        passed += 1
    full = np.array([len(trace.gaps) for trace in rest])
    thresholds = tuple((float(end), float(value)) for end, value in zip(ends, chosen[passed], strict=True))
    check_thresholds(thresholds)
    return FittedThresholds(
        thresholds, epsilon, delta, len(rest), int(errors[passed]),
        upper_bound(int(errors[passed]), len(rest), delta), float((steps[passed] / full).mean()),
    )  # fmt: skip


def _candidates(pilot: Sequence[ConvergenceTrace], ends: Floats) -> Floats:
    """(C, phases) thresholds from slow to fast, the first of them infinite."""
    gaps = np.concatenate([np.empty(0), *(trace.gaps[np.isfinite(trace.gaps)] for trace in pilot)])
    never = np.full((1, len(ends)), np.inf)
    if not len(gaps):
        return never
    levels = np.unique(np.append(np.quantile(gaps, np.linspace(0, 1, LEVELS)), np.inf))[::-1]
    grid = np.array(list(itertools.combinations_with_replacement(levels, len(ends))))  # each falls
    steps, changed = stopping_steps(pilot, grid, ends)
    speed, wrong = steps.mean(axis=1), changed.sum(axis=1)
    edges = np.linspace(speed.min(), speed.max(), CANDIDATES + 1)[1:-1]
    part = np.searchsorted(edges, speed)
    best = [min(np.flatnonzero(part == p), key=lambda i: (wrong[i], speed[i])) for p in np.unique(part)[::-1]]
    return np.concatenate([never, grid[best]])
