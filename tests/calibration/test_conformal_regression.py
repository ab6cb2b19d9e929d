"""Conformal intervals: coverage, known answers, CQR's narrowing, groups, bad input."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from likely.calibration.conformal.quantiles import rank_of
from likely.calibration.conformal.regression import ConformalIntervals, cqr_scores
from likely.errors import DataError

FALSE_ALARM = 1e-7


def test_known_answers():
    y, low, high = np.array([0.0, 5.0, 2.0]), np.array([1.0] * 3), np.array([3.0] * 3)
    assert cqr_scores(y, low, high).tolist() == [1.0, 2.0, -1.0]
    assert cqr_scores(y, low, low).tolist() == np.abs(y - low).tolist() == [1.0, 4.0, 1.0]  # a point has no width
    fitted = ConformalIntervals(alpha=0.1).fit(np.zeros(9), np.arange(1, 10.0))
    assert fitted.quantiles_.tolist() == [9.0]
    assert [e.tolist() for e in fitted.predict([10.0])] == [[1.0], [19.0]]


@pytest.mark.parametrize("pair", [False, True])
def test_coverage_follows_the_beta_binomial_law(pair):
    rng, n, m, alpha, splits = np.random.default_rng(0), 29, 20, 0.2, 2000
    k = rank_of(n, alpha)
    covered = []
    for _ in range(splits):
        x = rng.random(n + m)
        y = x + (0.2 + x) * rng.standard_normal(n + m)
        predicted = np.stack([x - 0.3, x + 0.1 + x], axis=1) if pair else x
        low, high = ConformalIntervals(alpha=alpha).fit(predicted[:n], y[:n]).predict(predicted[n:])
        covered.append(((low <= y[n:]) & (y[n:] <= high)).sum())
    counts = np.bincount(covered, minlength=m + 1)
    expected = splits * stats.betabinom(m, k, n + 1 - k).pmf(np.arange(m + 1))
    few = expected < 8
    p = stats.chisquare(
        np.append(counts[~few], counts[few].sum()), np.append(expected[~few], expected[few].sum())
    ).pvalue
    assert p > FALSE_ALARM


def test_too_wide_a_pair_is_narrowed_and_never_crosses():
    rng = np.random.default_rng(0)
    y = rng.standard_normal(1000)
    wide = np.tile([-10.0, 10.0], (1000, 1))
    fitted = ConformalIntervals(alpha=0.1).fit(wide, y)
    assert fitted.quantiles_[0] < -7
    low, high = fitted.predict([[-10.0, 10.0], [-1.0, 1.0]])
    assert high[0] < 3 and low[1] == high[1] == 0.0


def test_groups_have_their_own_width():
    rng = np.random.default_rng(0)
    groups = np.array(["calm", "wild"] * 2000)
    y = np.where(groups == "calm", 1.0, 5.0) * rng.standard_normal(4000)
    fitted = ConformalIntervals(alpha=0.1, by="group").fit(np.zeros(4000), y, groups)
    _, high = fitted.predict([0.0, 0.0], ["calm", "wild"])
    assert high == pytest.approx([1.645, 8.22], rel=0.1)
    again = ConformalIntervals.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    assert again.predict([1.0], ["wild"])[1] == fitted.predict([1.0], ["wild"])[1]


def test_too_few_rows_give_the_whole_line_and_say_so():
    with pytest.warns(UserWarning, match="needs at least 19 rows: the quantile is infinite"):
        fitted = ConformalIntervals(alpha=0.05).fit([0.0], [1.0])
    assert [e.tolist() for e in fitted.predict([3.0])] == [[-math.inf], [math.inf]]
    record = json.loads(json.dumps(fitted.to_dict(), allow_nan=False))
    assert ConformalIntervals.from_dict(record).quantiles_.tolist() == [math.inf]


def test_a_saved_quantile_that_is_no_number_is_refused():
    record = ConformalIntervals(alpha=0.1).fit(np.zeros(9), np.arange(1, 10.0)).to_dict()
    record["learned"]["quantiles_"] = [math.nan]
    with pytest.raises(DataError, match=r"quantiles_\[0\] is NaN"):
        ConformalIntervals.from_dict(record)


def test_agrees_with_crepes():
    crepes = pytest.importorskip("crepes")
    rng = np.random.default_rng(0)
    residuals = rng.standard_normal(120)
    theirs = crepes.ConformalRegressor().fit(residuals).predict_int(np.array([0.0, 2.0]), confidence=0.9)
    low, high = ConformalIntervals(alpha=0.1).fit(np.zeros(120), residuals).predict([0.0, 2.0])
    assert np.stack([low, high], axis=1) == pytest.approx(theirs, abs=1e-12)


def test_agrees_with_mapie():
    regression = pytest.importorskip("mapie.regression")
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.random((300, 1))
    y = x[:, 0] + rng.standard_normal(300)
    model = linear.LinearRegression().fit(x[:100], y[:100])
    theirs = regression.SplitConformalRegressor(model, confidence_level=0.9, prefit=True).conformalize(
        x[100:200], y[100:200]
    )
    _, ends = theirs.predict_interval(x[200:])
    low, high = ConformalIntervals(alpha=0.1).fit(model.predict(x[100:200]), y[100:200]).predict(model.predict(x[200:]))
    assert np.stack([low, high], axis=1) == pytest.approx(ends[:, :, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ConformalIntervals().fit([[2.0, 1.0]], [1.0]), "row 0 has low 2 above high 1"),
        (lambda: ConformalIntervals().fit([[1.0, 2.0, 3.0]], [1.0]), r"must be \(N,\) or \(N, 2\)"),
        (lambda: ConformalIntervals().fit([1.0, 2.0], [1.0]), "y has 1 rows, the predictions have 2"),
        (lambda: ConformalIntervals().fit([np.inf], [1.0]), "row 0 is inf"),
        (lambda: ConformalIntervals(by="class").fit([1.0], [1.0]), 'by must be None or "group"'),
        (lambda: ConformalIntervals().predict([1.0]), "not fitted"),
    ],
)  # fmt: skip
def test_bad_input_says_what_and_where(call, said):
    with pytest.raises(ValueError, match=said):
        call()
