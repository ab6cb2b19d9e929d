"""Answer or abstain: a threshold on confidence, and what it guarantees of the answers above it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from likely.calibration.calibrator import Calibrator
from likely.calibration.selective import certified_threshold, fewest_items, labels_needed, precision_bound
from likely.metrics.checks import check_share

DELTA = 0.1  # the guarantee may fail for this share of labelled sets
RISKS = (0.05, 0.1, 0.2, 0.3)  # that a plan speaks of


@dataclass(frozen=True)
class AbstentionRule:
    """Give the answers with a confidence of `threshold` or more, abstain from the others.

    threshold  inf: abstain always
    guarantee  one line: what is known of the answers that are given, and on how many labelled items it rests
    """

    threshold: float
    guarantee: str

    def answers(self, confidence: float | None) -> bool:
        return confidence is not None and confidence >= self.threshold

    def why(self, confidence: float | None) -> str:
        """Why it abstains from an answer."""
        if confidence is None:
            return "the model gave no log-probabilities, so there is no confidence"
        if math.isinf(self.threshold):
            return self.guarantee
        digits = 2
        while digits < 6 and f"{confidence:.{digits}f}" == f"{self.threshold:.{digits}f}":
            digits += 1
        return f"confidence {confidence:.{digits}f} is below {self.threshold:.{digits}f}"

    def to_dict(self) -> dict[str, Any]:
        return {"threshold": None if math.isinf(self.threshold) else self.threshold, "guarantee": self.guarantee}


def abstention_rule(
    calibrator: Calibrator, *, at_least: float | None = None, risk: float | None = None, delta: float = DELTA
) -> AbstentionRule:
    """The rule for a threshold, or for an error rate; give one of the two.

    at_least  answers of this confidence or more; the guarantee is a lower bound on the accuracy of such answers
    risk      the lowest threshold above which at most this share of answers is wrong
    delta     of random labelled sets, at most this share gives a guarantee that does not hold.  It is no share of the
              guarantees that are given: where a model is hardly good enough few sets give one, and those by luck
    """
    if (at_least is None) == (risk is None):
        raise ValueError("give one of at_least and risk")
    check_share(at_least=at_least, risk=risk, delta=delta)
    confidence, correct = calibrator.confidence, calibrator.correct
    certainty = f"{_percent(1 - delta)} certainty"
    if at_least is not None:
        found = precision_bound(confidence, correct, at_least=at_least, delta=delta)
        if not found.n:
            return AbstentionRule(
                at_least, f"none of the {len(confidence)} labelled items reaches {at_least:g}: nothing is known"
            )
        return AbstentionRule(
            at_least,
            f"of {len(confidence)} labelled items {found.n} reach {at_least:g}, {found.correct} of them are right: "
            f"accuracy at least {found.bound:.3f} ({certainty})",
        )
    assert risk is not None
    certified = certified_threshold(confidence, correct, risk=risk, delta=delta)
    if certified is None:
        return AbstentionRule(
            math.inf,
            f"no threshold promises at most {_percent(risk)} wrong with {certainty} from {len(confidence)} labelled "
            f"items: {_missing(calibrator, risk, delta)}",
        )
    return AbstentionRule(
        certified.threshold,
        f"answers of confidence {certified.threshold:.3f} or more ({certified.n} of {certified.tested} labelled items, "
        f"{certified.errors} wrong) are wrong in at most {_percent(risk)} of cases (of all sets of labels like this "
        f"one, at most {_percent(delta)} give a promise that fails)",
    )


def risk_plan(calibrator: Calibrator, delta: float = DELTA) -> list[dict[str, Any]]:
    """What each of a few risks would get from these labels.

    A record per risk: threshold and coverage (share of the tested items above it), or None and about how many labelled
    items like these are needed (None: no number would do).
    """
    plan = []
    for risk in RISKS:
        found = certified_threshold(calibrator.confidence, calibrator.correct, risk=risk, delta=delta)
        needed = labels_needed(calibrator.confidence, risk=risk, delta=delta) if found is None else None
        plan.append({
            "risk": risk,
            "threshold": None if found is None else found.threshold,
            "coverage": None if found is None else found.coverage,
            "labels_needed": None if needed is None else max(needed, len(calibrator.confidence) + 1),
        })  # fmt: skip
    return plan


def _missing(calibrator: Calibrator, risk: float, delta: float) -> str:
    """What it would take instead."""
    confidence = calibrator.confidence
    needed = labels_needed(confidence, risk=risk, delta=delta)
    if needed is None:
        return f"the surest has a confidence of {confidence.max():.3f} only"
    return f"about {max(needed, len(confidence) + 1)} like these are needed"


def what_it_takes(risk: float, delta: float = DELTA) -> str:
    """How many answers a risk takes, by how many of them are wrong; one line, to be said before any is labelled."""
    parts = []
    for share in (0.0, risk / 3, 2 * risk / 3):
        least = fewest_items(risk, delta, error_rate=share)
        parts.append(f"{least} if {_percent(round(1000 * share) / 1000) if share else 'none'} of them are wrong")
    return f"at most {_percent(risk)} wrong takes labelled answers above the threshold: {', '.join(parts)}"


def _percent(share: float) -> str:
    """Without rounding up to certainty, or down to never."""
    return f"{100 * share:.6g} %"
