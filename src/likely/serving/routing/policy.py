"""When the small model's answer is given: what pays, what keeps an error rate, or what keeps a budget.

Each policy turns labelled confidences into a threshold and one line of what is known of it; at or above it the small
model's answer is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from likely.calibration.calibrator import Calibrator
from likely.calibration.selective import cheapest_threshold
from likely.calibration.threshold import DELTA, AbstentionRule, abstention_rule


class RoutingPolicy(Protocol):
    """Makes the rule from a calibrator, whose held-out confidences and labels it rests on."""

    def rule(self, calibrator: Calibrator) -> AbstentionRule: ...
    def text(self) -> str: ...


@dataclass(frozen=True)
class CostOptimal:
    """The threshold of the least expected cost on the labelled items.

    value           of a solved task;  large_cost: of asking the large model, in the same unit
    large_accuracy  how often the large model is right

    Falling back pays where P(large right) − P(small right) > large_cost / value, so that calibrated confidences have
    the threshold large_accuracy − large_cost / value.  Here every threshold of the labelled items is tried, which
    needs no calibration.
    """

    value: float
    large_cost: float
    large_accuracy: float = 1.0

    def rule(self, calibrator: Calibrator) -> AbstentionRule:
        threshold, cost = cheapest_threshold(
            calibrator.confidence, calibrator.correct, wrong=self.value, ask=self.large_cost,
            bigger_error=1 - self.large_accuracy,
        )  # fmt: skip
        where = "none is answered" if math.isinf(threshold) else f"answers of confidence {threshold:.3f} or more"
        return AbstentionRule(
            threshold,
            f"{where}: lost value and fallbacks cost {cost:.4g} per task on {len(calibrator.confidence)} labelled "
            f"items (an estimate, no guarantee)",
        )

    def text(self) -> str:
        return f"cost:{self.value:g},{self.large_cost:g},{self.large_accuracy:g}"


@dataclass(frozen=True)
class RiskControlled:
    """The lowest threshold above which at most `risk` of the answers is wrong, for all but `delta` of labelled sets.

    Clopper-Pearson bounds and fixed sequence testing (Learn-then-Test, `calibration.selective.certified_threshold`).
    The rule's threshold is inf, and says so, where no threshold satisfies that.
    """

    risk: float
    delta: float = DELTA

    def rule(self, calibrator: Calibrator) -> AbstentionRule:
        return abstention_rule(calibrator, risk=self.risk, delta=self.delta)

    def text(self) -> str:
        return f"risk:{self.risk:g}" + ("" if self.delta == DELTA else f",{self.delta:g}")


@dataclass(frozen=True)
class Budget:
    """At most this share of tasks falls back, on tasks like the labelled ones."""

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share must lie in 0..1, got {self.share}")

    def rule(self, calibrator: Calibrator) -> AbstentionRule:
        rising = np.sort(calibrator.confidence)
        fewer = math.floor(self.share * len(rising) + 1e-9)  # so many may lie below the threshold
        threshold = float(rising[fewer]) if fewer < len(rising) else math.inf
        below = int((calibrator.confidence < threshold).sum())
        return AbstentionRule(
            threshold, f"{below} of {len(rising)} labelled items fall back (at most {self.share:.1%})"
        )

    def text(self) -> str:
        return f"budget:{self.share:g}"


_POLICIES: dict[str, tuple[Callable[..., RoutingPolicy], int, int]] = {
    "cost": (CostOptimal, 2, 3), "risk": (RiskControlled, 1, 2), "budget": (Budget, 1, 1),
}  # fmt: skip
POLICY_HELP = "risk:0.05 (share of wrong answers), budget:0.2 (share of fallbacks) or cost:VALUE,LARGE_COST[,ACCURACY]"


def parse_policy(text: str) -> RoutingPolicy:
    """A policy in one word, as `text()` gives it back: risk:0.05[,DELTA], budget:0.2, cost:VALUE,LARGE[,ACCURACY]."""
    kind, colon, rest = text.partition(":")
    made, fewest, most = _POLICIES.get(kind, (Budget, 0, -1))
    try:
        numbers = [float(part) for part in rest.split(",")] if colon else []
    except ValueError:
        numbers = []
    if not fewest <= len(numbers) <= most or not all(map(math.isfinite, numbers)):
        raise ValueError(f'a policy is {POLICY_HELP}, got "{text[:80]}"')
    return made(*numbers)
