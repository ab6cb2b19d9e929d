"""How much of a data set can be forced with k tokens: k–ε curves, targets by rank, and reachable sets.

ε(k) = 1 − the share of (state, target) pairs that a control of at most k tokens reaches.  A search may miss controls,
so that a measured ε(k) is an upper bound.  Bhargava et al. 2023, arXiv:2310.04444.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.audit.reach.problem import CandidateTest, ReachProblem, next_logprobs
from likely.audit.reach.search import ControlResult, check_exhaustive, in_batches
from likely.errors import DataError
from likely.metrics.intervals import wilson
from likely.runtimes.protocol import Runtime

RANDOM_SHARE = 0.01  # of the vocabulary, put in front of a member of the pool
POOL = 100


@dataclass(frozen=True)
class ControllabilityCurve:
    """ε(k) of n pairs at each length, with Wilson's 95 % interval.

    k         rising, from 0;  eps, low, high: one for each
    reached   pairs that a control of at most k tokens reaches
    """

    k: tuple[int, ...]
    eps: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    reached: tuple[int, ...]
    n: int

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def controllability_curve(controls: Iterable[ControlResult], lengths: Sequence[int]) -> ControllabilityCurve:
    """The curve of controls that were searched for with these lengths, one for each pair.

    An `ε` is non-increasing in k by its definition: whoever reaches with k tokens counts for every larger k.
    """
    found = list(controls)
    if not found:
        raise DataError("there are no controls: search for some first")
    ladder = (0, *sorted({*lengths} - {0}))
    counts = [sum(c.token_reachable and c.k <= k for c in found) for k in ladder]
    ends = [wilson(len(found) - count, len(found)) for count in counts]
    return ControllabilityCurve(
        ladder, tuple(1 - count / len(found) for count in counts), tuple(low for low, _ in ends),
        tuple(high for _, high in ends), tuple(counts), len(found),
    )  # fmt: skip


def ranked_targets(
    runtime: Runtime, state: Sequence[int], ranks: Sequence[int], *, before: Sequence[int] = ()
) -> list[ReachProblem]:
    """A problem for each rank: the target is the token of that rank after the state (1: the most likely one)."""
    if not ranks or not all(1 <= rank <= runtime.vocab_size for rank in ranks):
        raise DataError(f"ranks must lie in 1..{runtime.vocab_size}, got {list(ranks)}")
    order = np.argsort(-next_logprobs(runtime, [*before, *state]), kind="stable")
    return [ReachProblem(tuple(state), (int(order[rank - 1]),), tuple(before)) for rank in ranks]


@dataclass(frozen=True)
class ReachableSet:
    """Next tokens that were seen to be reached, each with its shortest control.

    exact  whether every control of these lengths was tried, so that no other token can be reached with them
    """

    controls: dict[int, tuple[int, ...]]
    evaluations: int
    exact: bool

    @property
    def tokens(self) -> frozenset[int]:
        return frozenset(self.controls)


def reachable_set(
    runtime: Runtime, state: Sequence[int], k: int, *, before: Sequence[int] = (), forbid: Sequence[int] = ()
) -> ReachableSet:
    """R^k(x0) of single tokens by enumeration of every control of at most k tokens: exact, and |V|^k evaluations."""
    outputs = _Outputs(runtime, state, before)
    allowed = np.setdiff1d(np.arange(runtime.vocab_size), np.asarray(list(forbid), np.int64))
    check_exhaustive(len(allowed), k)
    for length in range(k + 1):
        if length == 0 and not (state or before):
            continue
        for controls in in_batches(allowed, length):
            outputs.add(controls)
    return ReachableSet(outputs.controls, outputs.test.evaluations, True)


def explore(
    runtime: Runtime, state: Sequence[int], budget: int, *, before: Sequence[int] = (), forbid: Sequence[int] = (),
    share: float = RANDOM_SHARE, push: float = 1.0, pull: float = 1.0, seed: int = 0,
) -> ReachableSet:  # fmt: skip
    """Open-ended search for next tokens that can be reached, within `budget` evaluations.

    First every control of one token; then, again and again, a random member of a pool of controls with a random share
    of the vocabulary put in front.  The pool holds the controls with the lowest
    J(u) = −push · CE(p(· | u ⊕ x0), Uniform(R)) + pull · H(p outside R, renormalised): far from the tokens R that were
    reached, sharp on a new one.
    """
    if budget < 1 or not 0 < share <= 1:
        raise ValueError(f"budget must be >= 1 and share in (0, 1], got {budget} and {share}")
    rng = np.random.default_rng(seed)
    outputs = _Outputs(runtime, state, before)
    allowed = np.setdiff1d(np.arange(runtime.vocab_size), np.asarray(list(forbid), np.int64))
    first = allowed if len(allowed) <= budget else np.sort(rng.choice(allowed, budget, replace=False))
    outputs.add(first[:, None])
    pool: list[tuple[int, ...]] = sorted(outputs.controls.values())[:POOL]
    width = max(1, round(share * len(allowed)))
    longest = runtime.context_length - len(state) - len(before) - 1
    while (left := budget - outputs.test.evaluations) > 0 and pool:
        tail = pool[int(rng.integers(len(pool)))]
        if len(tail) >= longest:
            break
        heads = rng.choice(allowed, min(width, left), replace=False)
        outputs.add(np.asarray([[head, *tail] for head in heads.tolist()], np.int64))
        fresh = {*pool, *outputs.newest}
        scored = [(_interest(outputs, u, push, pull), u) for u in sorted(fresh)]
        pool = [u for _, u in sorted(scored)[:POOL]]
    return ReachableSet(outputs.controls, outputs.test.evaluations, False)


class _Outputs:
    """The shortest control of each next token; `newest` are the controls whose token was new in the last call."""

    def __init__(self, runtime: Runtime, state: Sequence[int], before: Sequence[int]):
        self.runtime = runtime
        self.test = CandidateTest(runtime, ReachProblem(tuple(state), (0,), tuple(before)))
        self.controls: dict[int, tuple[int, ...]] = {}
        self.newest: list[tuple[int, ...]] = []

    def add(self, controls: NDArray[np.int64]) -> None:
        self.newest = []
        for row, token in zip(controls.tolist(), self.test(controls).first.tolist(), strict=True):
            if token not in self.controls or len(self.controls[token]) > len(row):
                if token not in self.controls:
                    self.newest.append(tuple(row))
                self.controls[token] = tuple(row)


def _interest(outputs: _Outputs, control: tuple[int, ...], push: float, pull: float) -> float:
    logprobs = next_logprobs(outputs.runtime, outputs.test.problem.text(control)).astype(np.float64)
    reached = np.zeros(len(logprobs), bool)
    reached[list(outputs.controls)] = True
    cross = -float(logprobs[reached].mean())
    rest = logprobs[~reached]
    if not len(rest):
        return -push * cross
    rest = rest - np.logaddexp.reduce(rest)
    return -push * cross - pull * float((np.exp(rest) * rest).sum())
