"""Cheap verifiers first: each outcome moves the odds that an answer is right, until they are clear enough.

Naive Bayes: posterior log odds = prior log odds + Σ λ_i,  λ_i = log P(outcome_i | right) / P(outcome_i | wrong).
Exact where verifiers are independent given whether the answer is right; else recalibrate the posterior.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy.special import expit, logit

Verify = Callable[[Any], str]
Decision = Literal["accept", "reject", "undecided"]


@dataclass(frozen=True)
class Verifier:
    """One stage.

    run     (task) -> its outcome, a word;  cost: of one run
    ratios  λ of each outcome, in nats; an outcome that was never seen says nothing
    bits    that an outcome tells on average of whether an answer is right (mutual information)
    """

    name: str
    run: Verify
    cost: float
    ratios: Mapping[str, float]
    bits: float

    @property
    def cost_per_bit(self) -> float:
        return self.cost / self.bits if self.bits > 0 else math.inf


def fit_verifier(
    name: str, run: Verify, outcomes: Sequence[str], correct: Sequence[bool], *, cost: float, smoothing: float = 1.0
) -> Verifier:
    """A verifier from its outcomes on labelled answers.

    smoothing  > 0, Laplace's: added to the count of each outcome among right and among wrong answers
    """
    if len(outcomes) != len(correct) or not outcomes:
        raise ValueError(
            f"{len(outcomes)} outcomes, {len(correct)} labels: as many of both are needed, and one at least"
        )
    if not smoothing > 0 or not cost >= 0:
        raise ValueError(f"smoothing must be > 0 and cost >= 0, got {smoothing} and {cost}")
    kinds = sorted(set(outcomes))
    counts = {
        side: Counter(o for o, c in zip(outcomes, correct, strict=True) if bool(c) is side) for side in (True, False)
    }
    given = {
        side: {k: (counts[side][k] + smoothing) / (counts[side].total() + smoothing * len(kinds)) for k in kinds}
        for side in counts
    }
    prior = (sum(map(bool, correct)) + 1) / (len(correct) + 2)
    bits = 0.0
    for kind in kinds:
        both = prior * given[True][kind] + (1 - prior) * given[False][kind]
        for side, share in ((True, prior), (False, 1 - prior)):
            bits += share * given[side][kind] * math.log2(given[side][kind] / both)
    ratios = {kind: math.log(given[True][kind] / given[False][kind]) for kind in kinds}
    return Verifier(name, run, cost, ratios, max(0.0, bits))


@dataclass(frozen=True)
class Verified:
    """What the stages found: P(right), the decision, (verifier, outcome) of each that ran, what they cost."""

    p_correct: float
    decision: Decision
    outcomes: tuple[tuple[str, str], ...]
    cost: float


@dataclass(frozen=True)
class Cascade:
    """Runs verifiers in the order of their cost per bit until P(right) leaves (low, high).

    prior  P(right) before any of them
    """

    prior: float
    verifiers: Sequence[Verifier]
    low: float = 0.05
    high: float = 0.95
    order: tuple[Verifier, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if not 0 < self.prior < 1 or not 0 <= self.low < self.high <= 1:
            raise ValueError(
                f"prior must lie in (0, 1) and 0 <= low < high <= 1, got {self.prior}, {self.low}, {self.high}"
            )
        object.__setattr__(self, "order", tuple(sorted(self.verifiers, key=lambda v: v.cost_per_bit)))

    def posterior(self, outcomes: Mapping[str, str]) -> float:
        """P(right | the outcomes of some verifiers, by name)."""
        log_odds = float(logit(self.prior))
        for verifier in self.order:
            if verifier.name in outcomes:
                log_odds += verifier.ratios.get(outcomes[verifier.name], 0.0)
        return float(expit(log_odds))

    def verify(self, task: Any) -> Verified:
        """Run stages on a task until its answer can be accepted or rejected, or none is left."""
        seen: dict[str, str] = {}
        cost = 0.0
        for verifier in self.order:
            if self._decision(self.posterior(seen)) != "undecided":
                break
            seen[verifier.name] = verifier.run(task)
            cost += verifier.cost
        p_correct = self.posterior(seen)
        return Verified(p_correct, self._decision(p_correct), tuple(seen.items()), cost)

    def _decision(self, p_correct: float) -> Decision:
        return "accept" if p_correct >= self.high else "reject" if p_correct <= self.low else "undecided"
