"""Answer or pass on: thresholds on a confidence, with a guarantee (Learn-then-Test) or for a cost.

Shapes: N labelled items, each with a confidence (any number, higher = more confident) and whether its answer was right.
An item is answered if its confidence is >= the threshold.  The guarantees hold for new items of the distribution of the
labelled ones, and for any relation of confidence and error, also where the most confident answers are the worst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from likely.metrics.checks import Floats, Ints, as_floats, check_confidence, check_correct, check_score, check_share
from likely.metrics.intervals import upper_bound

MOST_ERRORS = 2000  # that a plan counts with
PILOT = 0.2  # share of the items that chooses which thresholds are tested


@dataclass(frozen=True)
class Threshold:
    """Among new items with confidence >= threshold the error rate exceeds `risk` with probability <= `delta`.

    The probability is over the labelled items: of many sets like them, at most a share delta gives a threshold that
    breaks its promise.
    n, errors  tested items at or above the threshold, and how many of them were wrong
    tested     all tested items;  coverage: n / tested
    bound      upper confidence bound (Clopper-Pearson, level 1 − delta) on the error rate; <= risk
    """

    threshold: float
    risk: float
    delta: float
    n: int
    errors: int
    tested: int
    bound: float

    @property
    def coverage(self) -> float:
        return self.n / self.tested


@dataclass(frozen=True)
class PrecisionBound:
    """Accuracy among items with confidence >= at_least, and its lower bound at level 1 − delta.

    n, correct  items at or above, and how many of them were right;  total: all items.  n = 0: accuracy None, bound 0.
    """

    at_least: float
    delta: float
    n: int
    correct: int
    total: int
    bound: float

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.n if self.n else None

    @property
    def coverage(self) -> float:
        return self.n / self.total


@dataclass(frozen=True)
class RiskCoverage:
    """Points (thresholds (P,) falling, coverage (P,), risk (P,)), one per distinct confidence: ties stay together."""

    thresholds: Floats
    coverage: Floats
    risk: Floats


def fewest_items(risk: float, delta: float = 0.1, *, error_rate: float = 0.0) -> int | None:
    """How many answered items it takes to certify `risk` if this share of them is wrong; None: more than can be had.

    Without errors it is the least n with (1−risk)^n <= delta; else n_k of the least k >= error_rate·n_k, where n_k is
    the least n with P(Binomial(n, risk) <= k) <= delta.
    """
    check_share(risk=risk, delta=delta)
    n, rate = _certifying(risk, delta)
    at = int(np.searchsorted(rate, error_rate))
    return int(n[at]) if at < len(n) else None


def labels_needed(confidence: Any, *, risk: float, delta: float = 0.1) -> int | None:
    """About how many labelled items it takes to certify `risk` at the best threshold; None: no number would.

    confidence  (N,) calibrated probabilities of being right, of items like those to be labelled
    At each threshold `fewest_items` for the error rate that the confidences above it say, divided by the share of items
    above it and by the share that is tested.  It is a plan: with so many, about every second set certifies a threshold.
    """
    check_share(risk=risk, delta=delta)
    falling = np.sort(check_confidence(confidence))[::-1]
    above = np.arange(1, len(falling) + 1)
    n, rate = _certifying(risk, delta)
    least = np.append(n, np.inf)[np.searchsorted(rate, np.cumsum(1 - falling) / above)]
    found = (least / (above / len(falling)) / (1 - PILOT)).min()
    return math.ceil(found) if np.isfinite(found) else None


def _certifying(risk: float, delta: float) -> tuple[Floats, Floats]:
    """(n_k, the share k/n_k of errors) for k = 0, 1, ... errors: the least n whose k errors certify `risk`."""
    from scipy import stats  # here: a model is opened without

    k = np.arange(MOST_ERRORS)
    # the trials until error k + 1 exceed n with probability <= delta
    n = k + 1 + stats.nbinom.ppf(1 - delta - 1e-12, k + 1, risk)
    return n, np.maximum.accumulate(k / n)


def risk_p_value(errors: Any, n: Any, risk: float) -> Floats:
    """P(Binomial(n, risk) <= errors): small if so few errors speak against an error rate of `risk` or more."""
    return np.asarray(scipy.special.bdtr(np.asarray(errors, np.float64), np.asarray(n, np.int64), risk), np.float64)


def lower_bound(successes: int, n: int, delta: float) -> float:
    """Clopper-Pearson lower bound on a success rate at level 1 − delta; 0 if there was none."""
    from scipy import stats

    return 0.0 if not successes else float(stats.beta.ppf(delta, successes, n - successes + 1))


def certified_threshold(
    confidence: Any,
    correct: Any,
    *,
    risk: float,
    delta: float = 0.1,
    grid: Any = None,
    monotone: bool = False,
    seed: int = 0,
) -> Threshold | None:
    """The lowest threshold found whose error rate among answered is at most `risk`, wrong with probability <= delta.

    confidence  (N,) any numbers;  correct (N,) 0 or 1
    grid  (G,) thresholds in the order in which they are tested, falling, fixed WITHOUT these items (see
          `plan_thresholds`, to be called on others).  Without it a fifth of the items, chosen with `seed`, plans the
          grid and only the rest is tested.
    monotone  promise that the error rate among answered never falls as the threshold falls.  Then all items are tested
          at their own distinct confidences, from the highest that enough items reach: more is certified, but the
          guarantee is void where the promise is.
    Returns None if the first threshold already fails: nothing can be certified from these items (`fewest_items` says
    how many answered ones it takes at the least).

    Learn-then-Test (Angelopoulos et al. 2021, arXiv:2110.01052, section 3): H_t: "the error rate among confidence >= t
    exceeds risk" has the exact p-value P(Binomial(n_t, risk) <= errors_t), since errors_t given n_t is binomial for
    every fixed t.  Testing a fixed sequence at level delta until the first that is not rejected keeps the probability
    of any false rejection <= delta.  The sequence must not come from the tested items, not even from their confidences
    alone: given how many items lie above one threshold, the errors above the next are no binomial sample of its error
    rate.  (With `monotone` they are then at least as many, and the test stays valid.)
    """
    check_share(risk=risk, delta=delta)
    score = check_score(confidence, "confidence")
    right = check_correct(correct, len(score))
    if monotone:
        if grid is not None:
            raise ValueError("give grid or monotone, not both")
        thresholds = np.unique(score)[::-1]
        thresholds = thresholds[_above(score, right, thresholds)[0] >= _certifying(risk, delta)[0][0]]
        if not len(thresholds):
            return None
    elif grid is None:
        order = np.random.default_rng(seed).permutation(len(score))
        pilot, rest = np.split(order, [math.ceil(PILOT * len(score))])
        if not len(rest):
            return None
        thresholds = plan_thresholds(score[pilot], right[pilot], tested=len(rest), risk=risk, delta=delta)
        score, right = score[rest], right[rest]
    else:
        thresholds = as_floats(grid, "grid", 1)
        if (np.diff(thresholds) > 0).any():
            raise ValueError("grid must fall: thresholds are tested from the highest down")
    counts, errors = _above(score, right, thresholds)
    refused = risk_p_value(errors, counts, risk) > delta
    passed = int(refused.argmax()) if refused.any() else len(thresholds)
    if not passed:
        return None
    n, wrong = int(counts[passed - 1]), int(errors[passed - 1])
    return Threshold(float(thresholds[passed - 1]), risk, delta, n, wrong, len(score), upper_bound(wrong, n, delta))


def plan_thresholds(confidence: Any, correct: Any, *, tested: int, risk: float, delta: float = 0.1) -> Floats:
    """(G,) falling: the thresholds that `certified_threshold` should test on `tested` OTHER items of the same kind.

    The distinct confidences of these items from the one most likely to pass downwards.  That likelihood is
    P(Binomial(n, r) <= k): n items expected above the threshold, r = (errors + 1/2) / (items + 1) here, k the most
    errors that n items allow.  It only decides how much is certified, never whether the certificate holds.
    """
    from scipy import stats

    check_share(risk=risk, delta=delta)
    score = check_score(confidence, "confidence")
    curve = risk_coverage(score, check_correct(correct, len(score)))
    counts = np.round(curve.coverage * len(score))
    rates = (curve.risk * counts + 0.5) / (counts + 1)
    n = np.floor(curve.coverage * tested).astype(np.int64)
    allowed = stats.binom.ppf(delta, n, risk)
    allowed -= risk_p_value(allowed, n, risk) > delta
    power = np.where(allowed < 0, 0.0, scipy.special.bdtr(np.maximum(allowed, 0), n, rates))
    # of equally good starts the lowest: it answers most
    start = len(power) - 1 - int(np.argmax(power[::-1]))
    return curve.thresholds[start:]


def precision_bound(confidence: Any, correct: Any, *, at_least: float, delta: float = 0.1) -> PrecisionBound:
    """How accurate answers with confidence >= at_least are: exact lower bound (Clopper & Pearson 1934).

    The bound fails with probability <= delta, for an `at_least` chosen without looking at these labels.
    """
    check_share(delta=delta)
    score = check_score(confidence, "confidence")
    right = check_correct(correct, len(score))
    above = score >= at_least
    n, k = int(above.sum()), int(right[above].sum())
    return PrecisionBound(at_least, delta, n, k, len(score), lower_bound(k, n, delta))


def _above(score: Floats, right: Ints, thresholds: Floats) -> tuple[Ints, Ints]:
    """(items, errors) with score >= each threshold."""
    order = np.argsort(score)
    wrong = np.append(np.cumsum((1 - right[order])[::-1])[::-1], 0)
    first = np.searchsorted(score[order], thresholds, side="left")
    return len(score) - first, wrong[first]


def risk_coverage(confidence: Any, correct: Any) -> RiskCoverage:
    """Coverage and error rate among answered at every distinct confidence, from the highest down."""
    score = check_score(confidence, "confidence")
    right = check_correct(correct, len(score))
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # last item of each tied group
    answered = last + 1
    wrong = np.cumsum(1 - right[order])[last]
    return RiskCoverage(falling[last], answered / len(score), wrong / answered)


def cost_threshold(*, wrong: float, ask: float, bigger_error: float = 0.0) -> float:
    """The confidence from which answering is cheaper than asking the bigger model, if confidence is calibrated.

    wrong, ask    costs of a wrong answer and of one question to the bigger model, in one unit
    bigger_error  how often the bigger model is wrong
    Answering costs (1 − c)·wrong, asking ask + bigger_error·wrong (Chow 1970), so t = 1 − ask/wrong − bigger_error,
    kept in [0, 1].  Any confidence scale: `cheapest_threshold`.
    """
    _check_costs(wrong, ask, bigger_error)
    return min(1.0, max(0.0, 1 - ask / wrong - bigger_error))


def cheapest_threshold(
    confidence: Any, correct: Any, *, wrong: float, ask: float, bigger_error: float = 0.0
) -> tuple[float, float]:
    """(threshold, mean cost per item) with the least mean cost on these items; threshold inf: always ask.

    Costs as in `cost_threshold`; nothing is assumed about the scale and nothing is guaranteed for new items.  Of equal
    costs the lowest threshold.
    """
    _check_costs(wrong, ask, bigger_error)
    curve = risk_coverage(confidence, correct)
    asked = ask + bigger_error * wrong
    costs = np.append(asked, curve.coverage * curve.risk * wrong + (1 - curve.coverage) * asked)
    thresholds = np.append(np.inf, curve.thresholds)
    best = len(costs) - 1 - int(np.argmin(costs[::-1]))
    return float(thresholds[best]), float(costs[best])


def _check_costs(wrong: float, ask: float, bigger_error: float) -> None:
    if not wrong > 0:
        raise ValueError(f"wrong must be > 0, got {wrong}")
    if not ask >= 0:
        raise ValueError(f"ask must be >= 0, got {ask}")
    if not 0 <= bigger_error <= 1:
        raise ValueError(f"bigger_error must lie in 0..1, got {bigger_error}")
