"""Platt, beta, isotonic, histogram, scaling-binning, Venn-Abers: closed forms, references, slow obvious versions."""

import itertools
import warnings

import numpy as np
import pytest
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, log_expit

from likely.calibration.recalibrators.binning import Histogram, ScalingBinning, mass_edges
from likely.calibration.recalibrators.isotonic import Isotonic, VennAbers
from likely.calibration.recalibrators.sigmoid import Beta, Platt
from likely.calibration.recalibrators.table import from_dict
from likely.errors import LikelyError


def drawn(n, seed=0, power=1.0):
    """Confidences, and outcomes that are right with probability c ** power."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(0.01, 0.99, n)
    return c, (rng.random(n) < c**power).astype(int)


def record(method, learned, given="score"):
    return from_dict({"method": method, "params": {"input": given}, "learned": learned})


def test_maps_are_what_their_formulas_say():
    assert record("platt", {"a_": 2, "b_": -1}).predict_proba([0.5, 2.0]) == pytest.approx([0.5, expit(3)])
    of_confidence = record("platt", {"a_": 1, "b_": 0}, "confidence")
    assert of_confidence.predict_proba([0.3, 0.9]) == pytest.approx([0.3, 0.9])
    identity = record("beta", {"a_": 1, "b_": 1, "m_": 0}, "confidence")
    assert identity.predict_proba([0.3, 0.9]) == pytest.approx([0.3, 0.9])
    squared = record("beta", {"a_": 2, "b_": 0, "m_": 0}, "confidence")
    assert squared.predict_proba([0.5]) == pytest.approx([0.25 / 1.25])  # σ(ln c²) = c² / (1 + c²)
    corners = record("isotonic", {"x_": [0, 1, 3], "y_": [0.2, 0.4, 0.9]})
    assert corners.predict_proba([-5, 0.5, 2, 9]) == pytest.approx([0.2, 0.3, 0.65, 0.9])
    steps = record("histogram", {"edges_": [0, 2], "values_": [0.1, 0.5, 0.8]})
    assert steps.predict_proba([-1, 0, 0.1, 2, 2.1]).tolist() == [0.1, 0.1, 0.5, 0.5, 0.8]
    binned = record("scaling_binning", {"a_": 1, "b_": 0, "edges_": [0.5], "values_": [0.2, 0.7]})
    assert binned.predict_proba([-1, 0, 1]).tolist() == [0.2, 0.2, 0.7]


# --- Platt ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["score", "confidence"])
def test_platt_is_the_regression_on_smoothed_targets(given):
    c, y = drawn(300, power=2.0)
    x = c if given == "confidence" else 50 * c - 900  # far from 0, as sequence log-probabilities are
    s = np.log(c / (1 - c)) if given == "confidence" else c
    ones, zeros = y.sum(), len(y) - y.sum()
    t = np.where(y == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    loss = lambda ab: -(t * log_expit(ab[0] * s + ab[1]) + (1 - t) * log_expit(-ab[0] * s - ab[1])).sum()  # noqa: E731
    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000})
    fitted = Platt(input=given).fit(x, y)
    assert fitted.predict_proba(x) == pytest.approx(expit(best.x[0] * s + best.x[1]), abs=1e-6)


def test_platt_is_finite_on_separable_rows_and_solved_by_the_targets():
    fitted = Platt(input="score").fit([0.0] * 8 + [1.0] * 18, [0] * 8 + [1] * 18)
    assert fitted.predict_proba([0.0, 1.0]) == pytest.approx([1 / 10, 19 / 20], abs=1e-7)
    assert Platt(input="score").fit([3.0] * 8, [1] * 8).predict_proba([0.0, 3.0]) == pytest.approx(9 / 10)


@pytest.mark.parametrize(("scale", "shift"), [(1e-30, 0), (1e-6, 0), (1e6, 0), (-1, 0), (1, 1e4)])
def test_platt_does_not_depend_on_the_unit_of_scores(scale, shift):
    """Probabilities of whole answers are scores like 1e-30."""
    c, y = drawn(300, power=2.0, seed=1)
    expected = Platt(input="score").fit(c, y).predict_proba(c)
    moved = scale * c + shift
    assert Platt(input="score").fit(moved, y).predict_proba(moved) == pytest.approx(expected, abs=1e-6)


# --- beta -------------------------------------------------------------------------------------------------------------


def test_beta_of_calibrated_confidences_is_the_identity():
    fitted = Beta().fit(*drawn(50_000, seed=2))
    assert (fitted.a_, fitted.b_) == (pytest.approx(1, abs=0.1), pytest.approx(1, abs=0.1))
    assert fitted.m_ == pytest.approx(0, abs=0.15)
    c = np.linspace(0.02, 0.98, 50)
    assert fitted.predict_proba(c) == pytest.approx(c, abs=0.02)


def test_beta_finds_the_map_that_labels_were_drawn_with():
    rng = np.random.default_rng(3)
    c = rng.uniform(0.01, 0.99, 50_000)
    y = rng.random(50_000) < expit(0.5 * np.log(c) - 2 * np.log1p(-c) - 1)
    fitted = Beta().fit(c, y)
    assert (fitted.a_, fitted.b_, fitted.m_) == pytest.approx((0.5, 2, -1), abs=0.2)


def test_beta_as_scikit_learns_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    c, y = drawn(2000, power=2.0, seed=4)
    features = np.column_stack([np.log(c), -np.log1p(-c)])
    theirs = linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(features, y)
    fitted = Beta().fit(c, y)
    assert (theirs.coef_ > 0).all()
    assert [fitted.a_, fitted.b_] == pytest.approx(theirs.coef_[0], abs=1e-3)
    assert fitted.m_ == pytest.approx(theirs.intercept_[0], abs=1e-3)


@pytest.mark.parametrize("turned", [False, True])
def test_beta_without_its_negative_coefficient(turned):
    """Right most often in the middle: one coefficient is negative, and the rest is fitted again without it."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(5)
    c = rng.uniform(0.01, 0.99, 3000)
    y = rng.random(3000) < expit(1.5 * np.log(c) + 0.4 * np.log1p(-c) + 1)
    c, y = (1 - c, ~y) if turned else (c, y)
    feature, kept, gone = (-np.log1p(-c), "b_", "a_") if turned else (np.log(c), "a_", "b_")
    theirs = linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(feature[:, None], y)
    fitted = Beta().fit(c, y)
    assert getattr(fitted, gone) == 0
    assert getattr(fitted, kept) == pytest.approx(theirs.coef_[0, 0], abs=1e-3)
    assert fitted.m_ == pytest.approx(theirs.intercept_[0], abs=1e-3)


def test_beta_never_falls_even_where_surer_is_worse():
    c, y = drawn(500, seed=6)
    fitted = Beta().fit(c, 1 - y)
    assert fitted.a_ == fitted.b_ == 0
    assert fitted.predict_proba([0.1, 0.9]) == pytest.approx(1 - y.mean(), abs=1e-3)


def test_beta_is_finite_on_separable_rows():
    fitted = Beta().fit([0.2] * 50 + [0.8] * 50, [0] * 50 + [1] * 50)
    low, high = fitted.predict_proba([0.2, 0.8])
    assert 0 < low < 0.01 and 0.99 < high < 1


# --- isotonic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [None, 1])
def test_isotonic_as_scikit_learn(decimals):
    isotonic = pytest.importorskip("sklearn.isotonic")
    c, y = drawn(1500, power=2.0, seed=7)
    c = c if decimals is None else c.round(decimals)
    theirs = isotonic.IsotonicRegression(out_of_bounds="clip").fit(c, y)
    everywhere = np.linspace(0, 1, 1001)
    assert Isotonic().fit(c, y).predict_proba(everywhere) == pytest.approx(theirs.predict(everywhere), abs=1e-12)


def test_isotonic_known_answer():
    x = np.repeat([1.0, 2.0, 3.0, 4.0], 25)
    y = np.concatenate([[1] * k + [0] * (25 - k) for k in (5, 15, 10, 20)])  # 0.2, 0.6, 0.4, 0.8
    with pytest.warns(UserWarning, match="isotonic was fitted on 100 rows: below 1000 it follows noise"):
        fitted = Isotonic(input="score").fit(x, y)
    assert fitted.predict_proba([0, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5]) == pytest.approx(
        [0.2, 0.2, 0.35, 0.5, 0.5, 0.5, 0.65, 0.8, 0.8]
    )


def test_isotonic_wants_rows():
    with pytest.raises(ValueError, match="isotonic needs at least 50 rows, got 49: use platt or beta"):
        Isotonic().fit(*drawn(49))
    with pytest.warns(UserWarning, match="isotonic was fitted on 50 rows"):
        Isotonic().fit(*drawn(50))
    with pytest.warns(UserWarning, match="isotonic was fitted on 999 rows"):
        Isotonic().fit(*drawn(999))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Isotonic().fit(*drawn(1000))


# --- histogram --------------------------------------------------------------------------------------------------------


def test_histogram_gives_the_share_that_was_right_in_each_bin():
    c, y = drawn(300, seed=8)
    c, y = c[np.argsort(c)], y[np.argsort(c)]
    fitted = Histogram(bins=15).fit(c, y)
    assert fitted.values_ == pytest.approx(y.reshape(15, 20).mean(axis=1))
    assert fitted.predict_proba(c) == pytest.approx(np.repeat(y.reshape(15, 20).mean(axis=1), 20))
    assert fitted.edges_ == pytest.approx((c[19:-1:20] + c[20::20]) / 2)


def test_histogram_keeps_ties_in_one_bin():
    c, y = drawn(400, seed=9)
    c = np.where(np.arange(400) < 300, 0.5, c)
    fitted = Histogram(bins=10).fit(c, y)
    inside = (c > fitted.edges_[fitted.edges_ < 0.5].max()) & (c <= fitted.edges_[fitted.edges_ >= 0.5].min())
    assert (c[inside] == 0.5).sum() == 300
    assert fitted.predict_proba([0.5]) == pytest.approx(y[inside].mean()) and len(fitted.values_) < 10


def test_an_empty_bin_of_equal_width_gives_its_centre_and_few_rows_are_warned_about():
    c = np.array([0.05] * 100 + [0.15] * 99 + [0.95] * 1 + [0.2, 1.0])
    y = np.array([0] * 90 + [1] * 10 + [1] * 33 + [0] * 66 + [1] + [0, 1])
    with pytest.warns(UserWarning, match="1 of 10 bins hold fewer than 20 rows: use binning=mass"):
        fitted = Histogram(bins=10, binning="width").fit(c, y)
    assert fitted.predict_proba([0.0, 0.1, 0.15, 0.2]) == pytest.approx([0.1, 0.1, 0.33, 0.33])  # (lo, hi]
    assert fitted.predict_proba([0.25, 0.55, 0.85]) == pytest.approx([0.25, 0.55, 0.85])
    assert fitted.predict_proba([0.91, 1.0]) == pytest.approx([1, 1])


def test_histogram_needs_twenty_rows_a_bin_and_takes_numbers_of_bins():
    with pytest.raises(ValueError, match="histogram needs 20 rows a bin, 300 for 15 bins, got 299: fewer bins, or"):
        Histogram().fit(*drawn(299))
    assert len(Histogram().fit(*drawn(300)).values_) == 15
    assert len(Histogram(bins=np.int64(3)).fit(*drawn(60)).values_) == 3
    for bad in (0, 2.0, True, "4"):
        with pytest.raises(ValueError, match="bins must be a whole number >= 1, got"):
            Histogram(bins=bad).fit(*drawn(300))
    with pytest.raises(ValueError, match='unknown binning "mas"; did you mean "mass"'):
        Histogram(binning="mas").fit(*drawn(300))
    with pytest.raises(ValueError, match=r"bins of equal width divide \[0, 1\]"):
        Histogram(binning="width", input="score").fit(*drawn(300))


def test_neighbouring_floats_are_divided_where_they_can_be():
    """No float lies between them: the edge is the lower one, and no bin between two edges is without rows."""
    for start in (1.0, np.nextafter(1, 2)):  # one of the two midpoints is rounded up
        rising = [start, np.nextafter(start, 2), 1.5]
        assert mass_edges(np.repeat(rising, 20), 3).tolist() == [rising[0], pytest.approx(1.25)]
        fitted = Histogram(bins=3, input="score").fit(np.repeat(rising, 20), [0] * 20 + [1] * 10 + [0] * 10 + [1] * 20)
        assert fitted.predict_proba(rising).tolist() == [0, 0.5, 1]


# --- scaling-binning --------------------------------------------------------------------------------------------------


def test_scaling_binning_as_an_obvious_version():
    c, y = drawn(600, power=2.0, seed=10)
    order = np.random.default_rng(4).permutation(600)
    g = Platt().fit(c[order[:300]], y[order[:300]])
    scaled = np.sort(g.predict_proba(c[order[300:]]))
    parts = np.array_split(scaled, 6)

    def obvious(x):
        value = g.predict_proba([x])[0]
        at = sum(value > (before[-1] + after[0]) / 2 for before, after in itertools.pairwise(parts))
        return parts[at].mean()

    fitted = ScalingBinning(bins=6, seed=4).fit(c, y)
    new = np.linspace(0, 1, 400)
    assert fitted.predict_proba(new) == pytest.approx([obvious(x) for x in new], abs=1e-12)
    assert len(set(fitted.predict_proba(new))) == 6


def test_scaling_binning_varies_less_than_a_histogram():
    """What it is for: values are means of a smooth g, not of labels."""
    new = np.linspace(0.1, 0.9, 30)
    spread = []
    for make in (lambda: ScalingBinning(bins=10), lambda: Histogram(bins=10)):
        maps = [make().fit(*drawn(600, seed=seed)).predict_proba(new) for seed in range(20)]
        spread.append(np.mean([(p - new) ** 2 for p in maps]))
    assert spread[0] < 0.7 * spread[1]


def test_scaling_binning_needs_rows_for_its_bins():
    with pytest.raises(ValueError, match="the half of scaling_binning that is binned needs 20 rows a bin, 200 for 10"):
        ScalingBinning().fit(*drawn(398))
    assert len(ScalingBinning().fit(*drawn(399)).values_) == 10


def test_scaling_binning_of_a_saturated_sigmoid_has_no_empty_bin():
    x = np.concatenate([np.full(200, -1e3), np.linspace(30, 40, 400), np.full(200, 1e3)])
    fitted = ScalingBinning(bins=10, input="score").fit(x, (x > 0).astype(int))
    assert np.isfinite(fitted.values_).all() and np.isfinite(fitted.predict_proba(x)).all()


# --- Venn-Abers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [None, 1])
def test_venn_abers_as_two_isotonic_fits_of_all_rows_and_one_more(decimals):
    c, y = drawn(80, power=2.0, seed=11)
    c = c if decimals is None else c.round(decimals)

    def obvious(x, label):
        rows = sorted([*zip(c, y, strict=True), (x, label)])
        values = sorted({row[0] for row in rows})
        groups = [[row[1] for row in rows if row[0] == value] for value in values]
        fit = isotonic_regression([np.mean(g) for g in groups], weights=[len(g) for g in groups]).x
        return fit[values.index(x)]

    new = np.concatenate([np.linspace(0, 1, 21), c[:10]])
    low, high = VennAbers().fit(c, y).interval(new)
    assert low == pytest.approx([obvious(x, 0) for x in new], abs=1e-12)
    assert high == pytest.approx([obvious(x, 1) for x in new], abs=1e-12)
    assert VennAbers().fit(c, y).predict_proba(new) == pytest.approx(high / (1 - low + high))
    assert (low < high).all()


def test_venn_abers_as_scikit_learns_isotonic_regression():
    isotonic = pytest.importorskip("sklearn.isotonic")
    c, y = drawn(200, power=2.0, seed=12)
    new = np.linspace(0.02, 0.97, 9)
    found = np.stack(VennAbers().fit(c, y).interval(new), axis=1)
    for x, pair in zip(new, found, strict=True):
        for label in (0, 1):
            fit = isotonic.IsotonicRegression().fit([*c, x], [*y, label])
            assert pair[label] == pytest.approx(fit.predict([x])[0], abs=1e-12)


def test_venn_abers_known_answer_of_one_tied_value():
    low, high = VennAbers().fit([0.5] * 9, [1] * 6 + [0] * 3).interval([0.5])
    assert (low[0], high[0]) == (pytest.approx(6 / 10), pytest.approx(7 / 10))
    # below all rows: 0 is no violation; 1 is pooled with what follows
    low, high = VennAbers().fit([0.5] * 9, [1] * 6 + [0] * 3).interval([0.1])
    assert (low[0], high[0]) == (0, pytest.approx(7 / 10))


def test_venn_abers_holds_the_truth_on_average():
    """One of p0 and p1 is calibrated: where labels are drawn from c, the mean of y lies between their means."""
    rng = np.random.default_rng(13)
    lows, highs, right = [], [], []
    for trial in range(300):
        fitted = VennAbers().fit(*drawn(60, seed=1000 + trial, power=1.5))
        x = rng.uniform(0.01, 0.99)
        low, high = fitted.interval([x])
        lows.append(low[0]), highs.append(high[0]), right.append(x**1.5)
    error = 5.4 * np.std(np.subtract(highs, right)) / np.sqrt(300)
    assert np.mean(lows) - error <= np.mean(right) <= np.mean(highs) + error
    assert np.mean(np.subtract(highs, lows)) < 0.25


def test_errors_are_value_errors_not_of_data():
    """Arrays are the caller's: the family of files' errors is for records."""
    with pytest.raises(ValueError) as caught:
        Isotonic().fit([0.5], [1])
    assert not isinstance(caught.value, LikelyError)
