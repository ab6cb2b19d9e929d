"""AUROC, risk and coverage, PRR: closed forms for ties against the mean over all orders, and known answers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from likely.metrics.ranking import aurc, auroc, coverage_at_risk, e_aurc, prr, risk_at_coverage, risk_curve

SMALL = [
    ([0.5, 0.5, 0.5, 0.5], [1, 0, 1, 0]),
    ([0.9, 0.9, 0.3, 0.3, 0.3], [1, 0, 0, 1, 0]),
    ([0.1, 0.9, 0.9, 0.9, 0.2, 0.2], [0, 1, 0, 1, 1, 0]),
    ([3.0, -2.0, -2.0, 7.5, 7.5], [1, 0, 1, 1, 0]),
]


def curve_of(errors):
    return np.cumsum(errors) / np.arange(1, len(errors) + 1)


def mean_curve(score, correct):
    """Risk at each coverage, averaged over every order that does not contradict the score."""
    curves = []
    for order in itertools.permutations(range(len(score))):
        if all(score[a] >= score[b] for a, b in itertools.pairwise(order)):
            curves.append(curve_of([1 - correct[i] for i in order]))
    return np.mean(curves, axis=0)


def test_known_answers():
    c, y = [0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0]
    assert auroc(c, y) == 1
    assert aurc(c, y) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert aurc(c, y) == pytest.approx(0.208333, abs=1e-6)
    assert e_aurc(c, y) == pytest.approx(0, abs=1e-15)
    assert prr(c, y) == pytest.approx(1)
    assert auroc(c, [0, 0, 1, 1]) == 0
    assert auroc([1, 1, 1], [1, 0, 1]) == 0.5
    assert prr([1, 1, 1, 1], [1, 0, 1, 0]) == pytest.approx(0)


@pytest.mark.parametrize(("score", "correct"), SMALL)
def test_ties_are_the_mean_over_all_orders(score, correct):
    curve = mean_curve(score, correct)
    perfect = curve_of(sorted(1 - y for y in correct))
    risk = 1 - np.mean(correct)
    assert risk_curve(score, correct) == pytest.approx(curve)
    assert aurc(score, correct) == pytest.approx(curve.mean())
    assert e_aurc(score, correct) == pytest.approx(curve.mean() - perfect.mean())
    for rejected in (1.0, 0.5):
        last = int(rejected * len(score))
        expected = (risk - curve[-last:].mean()) / (risk - perfect[-last:].mean())
        assert prr(score, correct, max_rejection=rejected) == pytest.approx(expected)


@pytest.mark.parametrize(("score", "correct"), SMALL)
def test_auroc_counts_pairs(score, correct):
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, right in zip(score, correct, strict=True)
        for b, also in zip(score, correct, strict=True)
        if right and not also
    ]
    assert auroc(score, correct) == pytest.approx(np.mean(pairs))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=50))
def test_closed_form_is_the_mean_of_the_curve(rows):
    score, correct = [r[0] for r in rows], [int(r[1]) for r in rows]
    assert aurc(score, correct) == pytest.approx(risk_curve(score, correct).mean(), abs=1e-12)
    assert e_aurc(score, correct) >= -1e-12
    backwards = rows[::-1]
    assert aurc(score, correct) == aurc([r[0] for r in backwards], [int(r[1]) for r in backwards])
    if 0 < sum(correct) < len(correct):
        assert auroc(score, correct) == pytest.approx(roc_auc_score(correct, score), abs=1e-12)
        assert auroc(score, correct) == pytest.approx(1 - auroc([-s for s in score], correct), abs=1e-12)
        assert auroc(score, correct) == auroc([s**3 + 7 for s in score], correct)  # only the order counts
        assert prr(score, correct) <= 1 + 1e-12


def test_perfect_area_near_its_approximation():
    rng = np.random.default_rng(0)
    correct = (rng.random(20000) < 0.7).astype(int)
    r = 1 - correct.mean()
    perfect = aurc(correct, correct)
    assert perfect == pytest.approx(r + (1 - r) * np.log(1 - r), abs=1e-4)
    assert e_aurc(correct, correct) == pytest.approx(0, abs=1e-12)
    assert e_aurc(np.zeros(20000), correct) == pytest.approx(r - perfect)  # one tied group: risk r everywhere


def test_risk_at_coverage_and_coverage_at_risk():
    score, correct = [0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 1, 0]
    assert risk_at_coverage(score, correct, 0.4) == 0
    assert risk_at_coverage(score, correct, 0.41) == pytest.approx(1 / 3)  # two rows would be too few
    assert risk_at_coverage(score, correct, 1) == pytest.approx(0.4)
    assert coverage_at_risk(score, correct, 0.25) == pytest.approx(0.8)  # 1/3 at 0.6 lies between
    assert coverage_at_risk(score, correct, 0) == pytest.approx(0.4)
    assert coverage_at_risk(score, [0, 1, 1, 1, 1], 0.1) == 0
    hundred = np.arange(100)
    assert risk_at_coverage(hundred, hundred != 92, 0.07) == 0  # 0.07 · 100 > 7 in floating point; row 92 is the 8th
    assert risk_at_coverage(hundred, hundred != 92, 0.08) == pytest.approx(1 / 8)


def test_rejection_is_limited_as_it_was_asked():
    score, correct = np.arange(10), np.array([0, 1, 0, 1, 1, 1, 1, 0, 1, 1])
    curve, perfect = risk_curve(score, correct), curve_of([0] * 7 + [1] * 3)
    assert prr(score, correct, max_rejection=0.5) == pytest.approx(
        (0.3 - curve[5:].mean()) / (0.3 - perfect[5:].mean())
    )
    assert prr(score, correct, max_rejection=0.5) != pytest.approx(prr(score, correct))
    # 0.29 · 100 is 28.999999999999996
    many = np.arange(100)
    right = many % 3 > 0
    curve, perfect = risk_curve(many, right), curve_of(sorted(1 - right))
    risk = 1 - right.mean()
    assert prr(many, right, max_rejection=0.29) == pytest.approx(
        (risk - curve[-29:].mean()) / (risk - perfect[-29:].mean())
    )


def test_what_is_undefined_is_an_error():
    for metric, name in ((auroc, "AUROC"), (prr, "PRR")):
        with pytest.raises(ValueError, match=f"{name} undefined: all 3 rows are right"):
            metric([0.1, 0.2, 0.3], [1, 1, 1])
        with pytest.raises(ValueError, match=f"{name} undefined: all 2 rows are wrong"):
            metric([0.1, 0.2], [0, 0])
    with pytest.raises(ValueError, match=r"PRR undefined: with max_rejection 0.1 of 4 rows"):
        prr([1, 2, 3, 4], [1, 0, 1, 0], max_rejection=0.1)
    assert aurc([0.1, 0.2], [1, 1]) == 0 and aurc([0.1, 0.2], [0, 0]) == 1
    assert e_aurc([0.1, 0.2], [0, 0]) == 0


def test_wrong_rows_and_settings_are_named():
    for metric in (auroc, aurc, e_aurc, prr, risk_curve):
        with pytest.raises(ValueError, match="score: row 1 is not a number"):
            metric([0.5, float("nan")], [1, 0])
        with pytest.raises(ValueError, match="score: row 0 is inf"):
            metric([float("inf"), 1], [1, 0])
        with pytest.raises(ValueError, match=r"correct: row 0 is 0.5"):
            metric([0.5, 1], [0.5, 0])
    for bad in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="coverage must be above 0 and at most 1"):
            risk_at_coverage([1, 2], [0, 1], bad)
        with pytest.raises(ValueError, match="max_rejection must be above 0 and at most 1"):
            prr([1, 2], [0, 1], max_rejection=bad)
    with pytest.raises(ValueError, match=r"risk must lie in 0..1"):
        coverage_at_risk([1, 2], [0, 1], -0.1)


def test_half_precision_scores_keep_their_ties():
    score = np.array([0.1, 0.1, 0.30004883, 0.3], np.float16)  # the last two are one number in half precision
    assert len(set(score.tolist())) == 2
    assert auroc(score, [1, 0, 1, 0]) == 0.5 and auroc(score, [0, 0, 1, 0]) == pytest.approx(5 / 6)
