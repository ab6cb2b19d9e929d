"""Identities of split points: closed forms, exact sample algebra, and what breaks them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from likely.uncertainty.split_point.residuals import (
    check_sides,
    class_gap,
    class_mar,
    corrected_probs,
    corrections,
    entropy,
    harmonic_mar,
    interval_factors,
    self_consistency_gap,
)

E = math.e


class Sides(NamedTuple):
    """Mean absolute residual, mean of the positive residuals, mean of the negated negative ones."""

    mar: float
    upper: float
    lower: float
    at_split: float  # share of rows that lie on the prediction itself


def observed_sides(y, predicted) -> Sides:
    residual = np.asarray(y, np.float64) - predicted
    up, down = check_sides(residual)
    return Sides(np.abs(residual).mean(), residual[up].mean(), -residual[down].mean(), 1 - (up | down).mean())


def sides_of(law, v: float) -> tuple[float, float, float]:
    """(MAR, U, D) of a scipy law split at v, by numerical integration."""
    low, high = law.support()
    above = integrate.quad(lambda y: (y - v) * law.pdf(y), v, min(high, v + 60), epsabs=1e-12)[0]
    below = integrate.quad(lambda y: (v - y) * law.pdf(y), max(low, v - 60), v, epsabs=1e-12)[0]
    return above + below, above / law.sf(v), below / law.cdf(v)


def test_a_normal_law_has_three_equal_means():
    for sigma in (0.5, 1.0, 3.0):
        expected = sigma * math.sqrt(2 / math.pi)
        assert sides_of(stats.norm(scale=sigma), 0.0) == pytest.approx((expected,) * 3, abs=1e-9)
        assert harmonic_mar(expected, expected) == pytest.approx(expected)


def test_an_exponential_law_in_closed_form():
    mar, upper, lower = sides_of(stats.expon(), 1.0)
    assert (mar, upper) == pytest.approx((2 / E, 1.0), abs=1e-9)
    assert lower == pytest.approx((1 / E) / (1 - 1 / E), abs=1e-9) and abs(lower - 0.581977) < 1e-6
    assert harmonic_mar(1.0, lower) == pytest.approx(2 / E, abs=1e-9) and abs(2 / E - 0.735759) < 1e-6
    assert self_consistency_gap(mar, upper, lower) == pytest.approx(0, abs=1e-8)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("law, mean", [(stats.norm(), 0.0), (stats.expon(), 1.0), (stats.gamma(3), 3.0)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_gap_grows_with_the_distance_from_the_mean(law, mean, sign):
    for gap in ("product", "root", "relative"):
        found = [float(self_consistency_gap(*sides_of(law, mean + sign * d), gap=gap)) for d in (0, 0.05, 0.1, 0.2)]
        assert found[0] < 1e-4 and all(np.diff(found) > 0) and found[1] > 1e-3


@pytest.mark.parametrize("law", [stats.norm(1.0, 2.0), stats.expon(), stats.gamma(3)])
def test_the_gap_is_the_error_of_the_mean_times_the_difference_of_the_sides(law):
    for v in law.mean() + np.array([-0.7, -0.1, 0, 0.4, 1.3]):
        mar, upper, lower = sides_of(law, v)
        expected = abs(upper - lower) * abs(law.mean() - v)
        assert self_consistency_gap(mar, upper, lower) == pytest.approx(expected, abs=1e-7)


def test_the_gap_is_blind_where_the_sides_are_alike():
    """An exponential law has U = 1 above any v, and D = 1 at one v far from its mean: nothing shows there."""
    v = optimize.brentq(lambda v: sides_of(stats.expon(), v)[2] - 1, 1.1, 3)
    assert v - 1 > 0.5 and self_consistency_gap(*sides_of(stats.expon(), v)) < 1e-7


@pytest.mark.slow
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=30), st.integers(0, 5))
@settings(deadline=None, max_examples=200)
def test_at_the_mean_of_any_sample_the_identity_is_exact(values, on_the_mean):
    y = np.array(values)
    if np.ptp(y) < 1e-3:
        return
    y = np.concatenate([y, np.full(on_the_mean, y.mean())])
    v = y.mean()
    y[len(values) :] = v  # rows that lie on the prediction itself: the identity with q
    found = observed_sides(y, v)
    assert found.mar == pytest.approx(float(harmonic_mar(found.upper, found.lower, found.at_split)), rel=1e-9)


def test_the_identity_to_rounding_and_its_negative_control():
    y = np.random.default_rng(0).gamma(2, size=1001)
    found = observed_sides(y, y.mean())
    assert abs(found.mar - harmonic_mar(found.upper, found.lower)) < 1e-12 and found.at_split == 0
    shifted = observed_sides(y, y.mean() + 0.3)
    assert abs(shifted.mar - harmonic_mar(shifted.upper, shifted.lower)) > 0.01


def test_mass_on_the_prediction_counts():
    """Y is −2, 0, 0, 1, 1: mean 0, two fifths on it."""
    found = observed_sides([-2, 0, 0, 1, 1], 0)
    assert found == pytest.approx((4 / 5, 1.0, 2.0, 2 / 5))
    assert harmonic_mar(found.upper, found.lower, found.at_split) == pytest.approx(4 / 5)
    assert harmonic_mar(found.upper, found.lower) == pytest.approx(4 / 3)
    assert harmonic_mar(0.0, 0.0) == 0


def test_the_forms_of_the_gap():
    m, u, d = 1.0, 2.0, 0.5
    assert self_consistency_gap(m, u, d) == pytest.approx(abs(2 * u * d - m * (u + d))) == 0.5
    assert self_consistency_gap(m, u, d, gap="root") == pytest.approx(math.sqrt(0.5))
    assert self_consistency_gap(m, u, d, gap="relative") == pytest.approx(abs(1 - 0.8))
    scaled = [float(self_consistency_gap(10 * m, 10 * u, 10 * d, gap=g)) for g in ("product", "root", "relative")]
    assert scaled == pytest.approx([50, 10 * math.sqrt(0.5), 0.2])
    with pytest.raises(ValueError, match=r'unknown gap "square".*product, root, relative'):
        self_consistency_gap(m, u, d, gap="square")


def test_consistent_sides_need_no_factor():
    rng = np.random.default_rng(1)
    u, d = rng.uniform(0.1, 5, (2, 100))
    found = interval_factors(harmonic_mar(u, d), u, d)
    assert np.allclose(found.up, 1) and np.allclose(found.down, 1) and not found.flagged.any()


def test_a_factor_restores_consistency():
    u, d, m = np.array([0.5]), np.array([1.0]), np.array([0.9])
    found = interval_factors(m, u, d)
    assert float(harmonic_mar(u * found.up, d)[0]) == pytest.approx(0.9)  # U is too small: U* = 0.9 / 1.1
    assert found.up[0] == pytest.approx(0.9 / 1.1 / 0.5) and not found.flagged[0]
    d_star = 0.9 * 0.5 / (1.0 - 0.9)
    assert found.down[0] == pytest.approx(d_star) and float(harmonic_mar(u, [d_star])[0]) == pytest.approx(0.9)


def test_impossible_heads_are_capped_and_flagged():
    """MAR = 2 with D = 1 leaves no U; MAR = 0 asks for nothing."""
    found = interval_factors([2.0, 2.5, 0.0], [3.0, 3.0, 1.0], [1.0, 1.0, 1.0], largest=4)
    assert found.up.tolist() == [4, 4, 1] and found.flagged.tolist() == [True, True, False]
    assert (found.down >= 1).all() and (found.down <= 4).all()
    with pytest.raises(ValueError, match="largest must be >= 1"):
        interval_factors(1, 1, 1, largest=0.5)


def test_samples_without_sides_are_refused():
    with pytest.raises(ValueError, match="none of 3 rows lies above"):
        observed_sides([2.0, 2, 2], 2.0)


def test_negative_means_are_refused():
    with pytest.raises(ValueError, match="upper: row 1 is -1"):
        harmonic_mar([1.0, -1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="at_split"):
        harmonic_mar(1.0, 1.0, 1.5)


# --- classes ----------------------------------------------------------------------------------------------------------


def laws(n: int, k: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(k), n)


def moments(p: np.ndarray, pi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(MAR, A, B) by enumerating the K outcomes of a label drawn from pi."""
    k = p.shape[1]
    mar, above, below = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for outcome in range(k):
        hit = np.zeros(k)
        hit[outcome] = 1
        weight = pi[:, [outcome]]
        mar += weight * np.abs(hit - p)
        above += weight * (1 - p) * hit
        below += weight * p * (1 - hit)
    return mar, above, below


def test_where_probabilities_are_true_the_residual_is_twice_the_variance():
    p = laws(50, 5, 0)
    mar, _, _ = moments(p, p)
    assert np.abs(mar - class_mar(p)).max() < 1e-12 and np.abs(class_gap(mar, p)).max() < 1e-12


def test_the_three_corrections_are_exact_for_any_truth():
    p, pi = laws(50, 5, 0), laws(50, 5, 1)
    mar, above, below = moments(p, pi)
    assert np.abs(corrections(mar, above, below) - (pi - p)).max() < 1e-12
    assert np.abs(above + below - mar).max() < 1e-12
    assert np.abs(corrected_probs(p, mar, above, below) - pi).max() < 1e-12
    assert np.abs(mar - class_mar(p) - (pi - p) * (1 - 2 * p)).max() < 1e-12


def test_contradicting_heads_correct_nothing():
    p, pi = laws(20, 4, 0), laws(20, 4, 1)
    mar, above, below = moments(p, pi)
    assert np.abs(corrected_probs(p, mar + 0.051, above, below) - p).max() < 1e-12
    assert np.abs(corrected_probs(p, mar + 0.049, above, below) - p).max() > 0.01


def test_corrected_rows_are_probabilities():
    rng = np.random.default_rng(2)
    p = laws(200, 6, 3)
    for scale in (0.01, 0.5, 5):
        heads = rng.normal(0, scale, (3, *p.shape))
        found = corrected_probs(p, heads[0], heads[1], heads[2], tolerance=math.inf)
        assert (found >= 0).all() and np.abs(found.sum(axis=1) - 1).max() < 1e-12
    nothing = corrected_probs(p, np.full(p.shape, -5.0), np.zeros(p.shape), np.zeros(p.shape), tolerance=math.inf)
    assert np.array_equal(nothing, p / p.sum(axis=1, keepdims=True))


def test_a_gap_is_not_negative_and_knows_no_order_of_classes():
    rng = np.random.default_rng(4)
    p, mar = laws(30, 5, 5), rng.uniform(-0.2, 1, (30, 5))
    order = rng.permutation(5)
    assert (class_gap(mar, p) >= 0).all()
    assert np.allclose(class_gap(mar[:, order], p[:, order]), class_gap(mar, p), atol=1e-14)
    heads = rng.uniform(0, 0.4, (3, 30, 5))
    plain = corrected_probs(p, *heads, tolerance=1)
    assert np.allclose(corrected_probs(p[:, order], *heads[:, :, order], tolerance=1), plain[:, order], atol=1e-14)


def test_entropy_and_bad_tables():
    assert entropy([[0.25] * 4, [1, 0, 0, 0]]) == pytest.approx([math.log(4), 0])
    with pytest.raises(ValueError, match=r"mar has shape \(1, 2\), expected \(1, 3\)"):
        class_gap([[0.1, 0.2]], [[0.2, 0.3, 0.5]])
    with pytest.raises(ValueError, match="row 0 sums to"):
        class_mar([[0.2, 0.3]])
