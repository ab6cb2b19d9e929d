"""Thresholds that keep their promise: the exact law of the certificate, on continuous and tied confidences."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from scipy import stats

from likely.calibration.selective import (
    certified_threshold,
    cheapest_threshold,
    cost_threshold,
    fewest_items,
    lower_bound,
    plan_thresholds,
    precision_bound,
    risk_coverage,
    risk_p_value,
)
from likely.metrics.intervals import upper_bound

SETS = 2000
FALSE_ALARM = 1e-7


def falling(c):
    """Errors as a calibrated model makes them."""
    return 1 - c


def surest_are_wrong(c):
    """Among the surest tenth every fourth answer is wrong."""
    return np.where(c > 0.9, 0.25, 0.03)


def wavy(c):
    return 0.1 + 0.1 * np.sin(40 * c)


def continuous(rng, n):
    return rng.random(n)


def tied(rng, n):
    """Stated confidences: seven values."""
    return rng.choice([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0], n)


def true_risk(law, error, threshold):
    c, risks = true_curve(law, error)
    return risks[np.searchsorted(c, threshold)]


@functools.cache
def true_curve(law, error):
    """(confidences, risk at or above each), as sums over the law."""
    c = np.linspace(0, 1, 200_001) if law is continuous else np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
    return c, (np.cumsum(error(c)[::-1]) / np.arange(1, len(c) + 1))[::-1]


def broken(law, error, choose, *, n, risk, delta, sets=SETS):
    """(sets whose threshold breaks the promise, sets with a threshold)."""
    rng = np.random.default_rng(7)
    broke = given = 0
    for _ in range(sets):
        c = law(rng, n)
        right = (rng.random(n) >= error(c)).astype(int)
        t = choose(c, right, risk, delta)
        if t is not None:
            given += 1
            broke += true_risk(law, error, t) > risk
    return broke, given


def certified(c, right, risk, delta):
    found = certified_threshold(c, right, risk=risk, delta=delta, seed=len(c))
    return None if found is None else found.threshold


def empirical(c, right, risk, delta):
    """What must not be done: the lowest threshold whose error rate on these very items is small enough."""
    curve = risk_coverage(c, right)
    good = np.flatnonzero(curve.risk <= risk)
    return curve.thresholds[good[-1]] if len(good) else None


@pytest.mark.sampled(3)
@pytest.mark.parametrize("law", [continuous, tied])
@pytest.mark.parametrize("error", [falling, surest_are_wrong, wavy])
def test_the_true_risk_exceeds_the_promise_in_at_most_delta_of_the_sets(law, error):
    delta = 0.2
    broke, given = broken(law, error, certified, n=250, risk=0.12, delta=delta)
    assert stats.binom.sf(broke - 1, SETS, delta) > FALSE_ALARM, f"{broke} of {SETS} broke it"
    assert given > 0


def test_the_certificate_is_not_vacuous():
    broke, given = broken(continuous, falling, certified, n=500, risk=0.3, delta=0.2, sets=300)
    assert given > 270 and broke > 0  # with thresholds near the edge some sets must break it


@pytest.mark.parametrize("law", [continuous, tied])
def test_choosing_by_the_empirical_risk_breaks_the_bound(law):
    delta = 0.2
    broke, _ = broken(law, falling, empirical, n=250, risk=0.12, delta=delta, sets=500)
    assert stats.binom.sf(broke - 1, 500, delta) < FALSE_ALARM


def test_a_grid_of_other_items_uses_all_items_and_keeps_the_promise():
    delta = 0.2
    other = np.random.default_rng(3)
    planned = other.random(60)
    plan = plan_thresholds(planned, other.random(60) >= falling(planned), tested=200, risk=0.3, delta=delta)

    def choose(c, right, risk, delta):
        found = certified_threshold(c, right, risk=risk, delta=delta, grid=plan)
        assert found is None or found.tested == 200
        return None if found is None else found.threshold

    broke, given = broken(continuous, falling, choose, n=200, risk=0.3, delta=delta)
    assert given > SETS / 2 and stats.binom.sf(broke - 1, SETS, delta) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("law", [continuous, tied])
def test_a_monotone_risk_lets_all_items_be_tested_and_more_be_certified(law):
    delta = 0.2

    def choose(c, right, risk, delta):
        found = certified_threshold(c, right, risk=risk, delta=delta, monotone=True)
        return None if found is None else found.threshold

    broke, given = broken(law, falling, choose, n=150, risk=0.12, delta=delta)
    assert stats.binom.sf(broke - 1, SETS, delta) > FALSE_ALARM
    assert given > 1.3 * broken(law, falling, certified, n=150, risk=0.12, delta=delta)[1]


def test_the_fast_walk_is_the_slow_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        c, right = rng.integers(0, 12, 60) / 12, rng.integers(0, 5, 60) > 0
        grid = np.unique(rng.integers(0, 13, 8) / 12)[::-1]
        slow = None
        for t in grid:
            n = sum(x >= t for x in c)
            errors = sum(x >= t and not r for x, r in zip(c, right, strict=True))
            if stats.binom.cdf(errors, n, 0.3) > 0.3:
                break
            slow = (t, n, errors)
        found = certified_threshold(c, right, risk=0.3, delta=0.3, grid=grid)
        assert (found and (found.threshold, found.n, found.errors)) == slow


def test_the_sequence_stops_at_the_first_threshold_that_fails():
    c = np.array([0.9] * 10 + [0.5] * 1000)
    right = np.array([0] * 10 + [1] * 1000)
    assert certified_threshold(c, right, risk=0.1, grid=[0.9, 0.5]) is None
    found = certified_threshold(c, right, risk=0.1, grid=[0.5])
    assert found is not None and (found.n, found.errors) == (1010, 10)


def test_fewest_items_is_the_edge():
    assert fewest_items(0.05, 0.1) == 45 and fewest_items(0.5, 0.5) == 1 and fewest_items(0.5, 0.25) == 2
    for rate in (0.02, 0.05, 0.09):
        n = fewest_items(0.1, 0.1, error_rate=rate)
        wrong = math.floor(rate * n)
        assert risk_p_value(wrong, n, 0.1) <= 0.1
        assert all(risk_p_value(math.ceil(rate * m), m, 0.1) > 0.1 for m in range(2, n // 2))
    assert fewest_items(0.1, 0.1, error_rate=0.1) is None
    for risk, delta in [(0.05, 0.1), (0.1, 0.05), (0.3, 0.01), (0.01, 0.1)]:
        n = fewest_items(risk, delta)
        assert certified_threshold([1.0] * n, [1] * n, risk=risk, delta=delta, grid=[0.5]) is not None
        assert certified_threshold([1.0] * (n - 1), [1] * (n - 1), risk=risk, delta=delta, grid=[0.5]) is None


def test_nothing_certifiable_is_none():
    assert certified_threshold([0.9] * 300, [0] * 300, risk=0.1) is None
    assert certified_threshold([0.9, 0.8, 0.7], [1, 1, 1], risk=0.1) is None
    assert certified_threshold([0.9], [1], risk=0.1) is None


def test_all_right_is_certified_at_the_lowest_confidence():
    c = np.linspace(0.1, 1, 500)
    found = certified_threshold(c, np.ones(500), risk=0.02)
    assert found is not None and found.errors == 0 and found.coverage > 0.95 and found.bound <= 0.02


def test_scores_of_any_scale_do_and_only_their_order_counts():
    rng = np.random.default_rng(1)
    c = rng.random(600)
    right = rng.random(600) >= falling(c)
    plain = certified_threshold(c, right, risk=0.2)
    nats = certified_threshold(3 * np.log(c), right, risk=0.2)
    assert plain is not None and nats is not None
    assert (plain.n, plain.errors) == (nats.n, nats.errors)
    assert nats.threshold == pytest.approx(3 * np.log(plain.threshold))


def test_the_bound_is_at_most_the_risk_and_the_record_comes_back():
    found = certified_threshold([0.9] * 200, [1] * 195 + [0] * 5, risk=0.1, seed=2)
    assert found is not None and found.errors / found.n < found.bound <= 0.1


def test_clopper_pearson_against_scipy():
    for k, n in [(0, 10), (3, 10), (10, 10), (57, 100)]:
        reference = stats.binomtest(k, n).proportion_ci(0.8, "exact")  # both tails of 0.1
        assert lower_bound(k, n, 0.1) == pytest.approx(reference.low, abs=1e-12)
        assert upper_bound(k, n, 0.1) == pytest.approx(reference.high, abs=1e-12)


def test_rejecting_is_the_same_as_a_bound_below_the_risk():
    for n in range(1, 40):
        for errors in range(n + 1):
            assert (risk_p_value(errors, n, 0.2) <= 0.1) == (upper_bound(errors, n, 0.1) <= 0.2 + 1e-12)


def test_precision_bound_counts_and_covers():
    found = precision_bound([0.9, 0.9, 0.8, 0.2], [1, 0, 1, 1], at_least=0.8)
    assert (found.n, found.correct, found.total, found.coverage) == (3, 2, 4, 0.75)
    assert found.accuracy == pytest.approx(2 / 3) and found.bound == pytest.approx(lower_bound(2, 3, 0.1))
    nobody = precision_bound([0.1], [1], at_least=0.8)
    assert nobody.accuracy is None and nobody.bound == 0.0
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(SETS):
        c = rng.random(60)
        missed += precision_bound(c, rng.random(60) < 0.9, at_least=0.5, delta=0.1).bound > 0.9
    assert stats.binom.sf(missed - 1, SETS, 0.1) > FALSE_ALARM


def test_ties_are_one_point_of_the_curve():
    curve = risk_coverage([0.9, 0.9, 0.5, 0.7], [1, 0, 0, 1])
    assert curve.thresholds.tolist() == [0.9, 0.7, 0.5]
    assert curve.coverage.tolist() == [0.5, 0.75, 1.0] and curve.risk == pytest.approx([0.5, 1 / 3, 0.5])


def test_cost_threshold_is_where_costs_meet():
    t = cost_threshold(wrong=10, ask=1, bigger_error=0.05)
    assert t == pytest.approx(0.85) and (1 - t) * 10 == pytest.approx(1 + 0.05 * 10)
    assert cost_threshold(wrong=1, ask=5) == 0 and cost_threshold(wrong=1, ask=0) == 1


def test_cheapest_threshold_is_the_cheapest_by_trying_all():
    rng = np.random.default_rng(2)
    for _ in range(30):
        c, right = rng.integers(0, 8, 40) / 8, rng.integers(0, 2, 40)
        costs = {
            t: np.mean([4 * (1 - r) if x >= t else 1.2 for x, r in zip(c, right, strict=True)])
            for t in [np.inf, *np.unique(c)]
        }
        t, cost = cheapest_threshold(c, right, wrong=4, ask=1, bigger_error=0.05)
        assert cost == pytest.approx(min(costs.values())) and costs[t] == pytest.approx(cost)
    assert cheapest_threshold([0.5, 0.9], [0, 0], wrong=1, ask=0.1)[0] == np.inf


def test_on_calibrated_confidence_the_two_cost_rules_agree():
    rng = np.random.default_rng(0)
    c = rng.random(40_000)
    t, _ = cheapest_threshold(c, rng.random(40_000) < c, wrong=10, ask=3)
    assert t == pytest.approx(cost_threshold(wrong=10, ask=3), abs=0.03)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: certified_threshold([0.5], [1], risk=0.0), "risk must lie between 0 and 1, got 0.0"),
        (lambda: certified_threshold([0.5], [1], risk=0.1, delta=1), "delta must lie between 0 and 1, got 1"),
        (lambda: certified_threshold([0.5, np.nan], [1, 1], risk=0.1), "confidence: row 1 is not a number"),
        (lambda: certified_threshold([0.5, 0.6], [1, 2], risk=0.1), "correct: row 1 is 2"),
        (lambda: certified_threshold([0.5, 0.6], [1], risk=0.1), "correct has 1 rows, the predictions have 2"),
        (lambda: certified_threshold([], [], risk=0.1), "confidence is empty"),
        (lambda: certified_threshold([0.5], [1], risk=0.1, grid=[0.1, 0.5]), "grid must fall"),
        (
            lambda: certified_threshold([0.5], [1], risk=0.1, grid=[0.5], monotone=True),
            "give grid or monotone, not both",
        ),
        (lambda: precision_bound([0.5], [1], at_least=0.5, delta=0), "delta must lie between 0 and 1"),
        (lambda: cost_threshold(wrong=0, ask=1), "wrong must be > 0, got 0"),
        (lambda: cost_threshold(wrong=1, ask=-1), "ask must be >= 0, got -1"),
        (lambda: cost_threshold(wrong=1, ask=1, bigger_error=2), "bigger_error must lie in 0..1, got 2"),
    ],
)
def test_bad_input_says_what_and_where(call, said):
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        call()
