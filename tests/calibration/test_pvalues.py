"""Conformal p-values: their exact law, by hand, beside crepes, under monotone maps; thresholds, spread, windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from likely.calibration.conformal import OnlineConformal, conformal_pvalue, pvalue_threshold, rate_spread
from likely.errors import DataError

DRAWS = 2000


def exchangeable(seed: int, n: int, *, ties: bool = False):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 4, (DRAWS, n + 1)).astype(float) if ties else rng.standard_cauchy((DRAWS, n + 1))
    return rows[:, 0], rows[:, 1:], rng


def test_by_hand():
    assert conformal_pvalue(2, [1, 2, 3], ties="conservative") == 3 / 4
    assert conformal_pvalue(2, [1, 2, 3], side="less", ties="conservative") == 3 / 4
    assert conformal_pvalue([0, 1, 3.5], [1, 2, 3], ties="conservative").tolist() == [1, 1, 1 / 4]
    rng = np.random.default_rng(0)
    drawn = [conformal_pvalue(2, [1, 2, 3], rng=rng) for _ in range(500)]
    assert min(drawn) > 1 / 4 and max(drawn) <= 3 / 4  # (1 + 2u) / 4
    assert conformal_pvalue(-math.inf, [1.0], ties="conservative") == 1


@pytest.mark.parametrize("side", ["greater", "less"])
@pytest.mark.parametrize("ties", [False, True])
def test_with_random_ties_pvalues_are_uniform_and_conservative_ones_are_greater(side, ties):
    scores, calibration, rng = exchangeable(1, 19, ties=ties)
    rows = list(zip(scores, calibration, strict=True))
    random = np.array([conformal_pvalue(s, c, side=side, rng=rng) for s, c in rows])
    safe = np.array([conformal_pvalue(s, c, side=side, ties="conservative") for s, c in rows])
    assert stats.kstest(random, "uniform").pvalue > 1e-3
    assert (safe >= random).all()
    for t in (0.1, 0.35, 0.8):
        assert (safe <= t).mean() <= t + 3 * math.sqrt(t * (1 - t) / DRAWS)


def test_the_rank_without_its_correction_is_not_valid():
    """Negative control: #{s_i > s} / n, as it is sometimes coded, is too small too often."""
    scores, calibration, _ = exchangeable(2, 9)
    naive = np.array([(c > s).mean() for s, c in zip(scores, calibration, strict=True)])
    assert (naive <= 0.05).mean() > 0.05 + 3 * math.sqrt(0.05 * 0.95 / DRAWS)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_the_share_above_alpha_is_the_budget(rate):
    scores, calibration, rng = exchangeable(3, 16)
    p = [conformal_pvalue(s, c, rng=rng) for s, c in zip(scores, calibration, strict=True)]
    assert abs(np.mean(np.array(p) > 1 - rate) - rate) <= 3 * math.sqrt(rate * (1 - rate) / DRAWS)


def test_only_the_order_counts():
    rng = np.random.default_rng(4)
    logprobs, known = -rng.exponential(size=50), -rng.exponential(size=30)

    def p(scores, calibration, side):
        return conformal_pvalue(scores, calibration, side=side, rng=np.random.default_rng(0))

    np.testing.assert_array_equal(p(logprobs, known, "greater"), p(np.exp(3 * logprobs), np.exp(3 * known), "greater"))
    np.testing.assert_array_equal(p(logprobs, known, "greater"), p(np.exp(-logprobs), np.exp(-known), "less"))
    np.testing.assert_array_equal(p(logprobs, known, "greater"), p(logprobs, known[::-1], "greater"))


def test_a_slow_count_agrees():
    rng = np.random.default_rng(5)
    known, asked = rng.integers(0, 6, 40), rng.integers(-1, 7, 30)
    by_hand = [(1 + sum(k >= s for k in known)) / 41 for s in asked]
    np.testing.assert_allclose(conformal_pvalue(asked, known, ties="conservative"), by_hand)


def test_crepes_agrees():
    crepes = pytest.importorskip("crepes")
    rng = np.random.default_rng(6)
    known, asked = rng.normal(size=30), rng.normal(size=20)
    classifier = crepes.ConformalClassifier()
    classifier.fit(known)
    theirs = classifier.predict_p(np.stack([asked, asked], axis=1), smoothing=False)[:, 0]
    np.testing.assert_allclose(conformal_pvalue(asked, known, ties="conservative"), theirs)


@pytest.mark.parametrize("side", ["greater", "less"])
def test_the_threshold_divides_as_the_pvalue_does(side):
    rng = np.random.default_rng(7)
    for n in (1, 4, 19, 30):
        known = np.round(rng.normal(size=n), 1)
        asked = np.concatenate([known, rng.normal(size=30), [-9.0, 9.0]])
        p = conformal_pvalue(asked, known, side=side, ties="conservative")
        for alpha in (0.05, 0.2, 0.5, 0.9):
            t = pvalue_threshold(known, alpha, side=side)
            np.testing.assert_array_equal(p <= alpha + 1e-12, asked > t if side == "greater" else asked < t)


def test_one_calibration_set_is_off_as_far_as_the_beta_says():
    rng, n, alpha = np.random.default_rng(8), 19, 0.6
    thresholds = [pvalue_threshold(rng.random(n), alpha) for _ in range(DRAWS)]
    accepted = 1 - np.array(thresholds)  # of a uniform score, given the calibration scores
    low, high = rate_spread(n, alpha, level=0.9)
    assert abs(np.mean((accepted < low) | (accepted > high)) - 0.1) < 3 * math.sqrt(0.09 / DRAWS)
    assert stats.kstest(accepted, stats.beta(12, 8).cdf).pvalue > 1e-3
    narrow = rate_spread(1000, alpha)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * math.sqrt(0.24 / 1000), rel=0.02)


def test_online_scores_by_group_and_window():
    online = OnlineConformal(ties="conservative", window=3)
    online.add([9, 1, 2, 3], 1)  # the 9 has left
    online.add(5.0, "other")
    assert online.scores(1).tolist() == [1, 2, 3] and online.groups == [1, "other"]
    assert online.pvalue(2, 1) == 3 / 4 and online.pvalue(2, "other") == 1
    online.add([-1], 1)
    assert online.scores(1).tolist() == [2, 3, -1] and online.threshold(0.5, 1) == 2
    with pytest.raises(ValueError, match=r"group 'none' has no calibration scores \(groups that have some: 1, other\)"):
        online.pvalue(2, "none")


@pytest.mark.parametrize("side", ["greater", "less"])
def test_online_is_the_same_as_at_once(side):
    rng = np.random.default_rng(9)
    online = OnlineConformal(side=side, window=20)
    values = rng.integers(0, 9, 200)
    for value in values:
        online.add(value)
    for s in (-1, 0, 4, 8, 9):
        again = conformal_pvalue(s, values[-20:], side=side, rng=np.random.default_rng(1))
        assert online.pvalue(s, rng=np.random.default_rng(1)) == pytest.approx(again)
    copy = OnlineConformal.from_dict(online.to_dict())
    assert copy.to_dict() == online.to_dict() and copy.pvalue(4, rng=np.random.default_rng(1)) == online.pvalue(
        4, rng=np.random.default_rng(1)
    )


def test_growing_scores_stay_uniform():
    """Each new score against all before it: independent p-values (the online game)."""
    rng, online, found = np.random.default_rng(10), OnlineConformal(), []
    online.add(rng.normal())
    for score in rng.normal(size=DRAWS):
        found.append(online.pvalue(score, rng=rng))
        online.add(score)
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 4 / math.sqrt(DRAWS)


def test_bad_input_is_one_line():
    for call, said in (
        (lambda: conformal_pvalue(1, [], ties="conservative"), "calibration is empty"),
        (lambda: conformal_pvalue([1, math.nan], [1], ties="conservative"), "row 1 is not a number"),
        (lambda: conformal_pvalue(1, [1]), "needs rng="),
        (lambda: conformal_pvalue(1, [1], side="both"), "side"),
        (lambda: pvalue_threshold([1], 1.0), "alpha must lie between 0 and 1, got 1.0"),
        (lambda: rate_spread(0, 0.5), "at least 1"),
        (lambda: OnlineConformal(window=0), "window must be at least 1"),
        (lambda: OnlineConformal().add(math.nan), "NaN"),
        (lambda: OnlineConformal().pvalue(1.0), "groups that have some: none"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(DataError, match="no saved calibration scores"):
        OnlineConformal.from_dict({"side": "greater"})
