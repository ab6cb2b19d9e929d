"""Smooth ECE against its integral, summed kernel by kernel."""

import numpy as np
import pytest

from likely.metrics.bins import ece
from likely.metrics.smooth import smooth_curve, smooth_ece, smooth_ece_at


def kernel(t, c, width):
    """Reflected Gaussian, (points, N): images of c at ±c + 2k."""
    total = np.zeros((len(t), len(c)))
    for k in range(-4, 5):
        for image in (c + 2 * k, -c + 2 * k):
            total += np.exp(-0.5 * ((t[:, None] - image) / width) ** 2)
    return total / (np.sqrt(2 * np.pi) * width)


def obvious(c, y, width, points=4000):
    t = (np.arange(points) + 0.5) / points
    return np.abs(kernel(t, c, width) @ (y - c)).mean() / len(c)


def some(n=300, seed=0, power=2.0):
    rng = np.random.default_rng(seed)
    c = rng.random(n)
    return c, (rng.random(n) < c**power).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.01, 0.03, 0.1, 0.5, 1.0])
def test_as_the_integral(width):
    c, y = some()
    c[:6], y[:6] = [0, 1, 0, 1, 0.0001, 0.9999], [0, 1, 1, 0, 1, 0]  # what is reflected counts
    assert smooth_ece_at(c, y, width) == pytest.approx(obvious(c, y, width), abs=1e-5)


def test_it_falls_with_the_width_and_is_its_own_width():
    c, y = some(seed=1)
    widths = [0.002, 0.005, 0.01, 0.05, 0.2, 1.0]
    values = [smooth_ece_at(c, y, w) for w in widths]
    assert (np.diff(values) < 1e-12).all() and values[0] > values[-1] + 0.01
    own = smooth_ece(c, y)
    assert smooth_ece_at(c, y, own) == pytest.approx(own, abs=1e-6)
    assert obvious(c, y, own) == pytest.approx(own, abs=1e-5)


def test_known_answers():
    assert smooth_ece([1.0] * 10, [1, 0] * 5) == pytest.approx(0.5, abs=1e-6)  # one point: any width leaves 0.5
    assert smooth_ece([0.8] * 100, [1] * 80 + [0] * 20) == pytest.approx(0, abs=1e-6)
    assert smooth_ece([0.0, 1.0], [0, 1]) == pytest.approx(0, abs=1e-6)
    assert smooth_ece([0.0, 1.0], [1, 0]) < 1  # smoothed into each other a little


def test_a_constant_gap_is_found():
    rng = np.random.default_rng(2)
    c = rng.uniform(0.3, 0.9, 20000)
    y = rng.random(20000) < c - 0.2
    assert smooth_ece(c, y) == pytest.approx(0.2, abs=0.02)


def test_it_does_not_jump_where_a_confidence_crosses_an_edge():
    y = [1] * 30 + [0] * 30
    at, above = [0.4] * 30 + [0.6] * 30, [0.4 + 1e-9] * 30 + [0.6 + 1e-9] * 30
    assert smooth_ece(at, y) == pytest.approx(smooth_ece(above, y), abs=1e-6)
    joined, split = [0.4] * 30 + [0.4] * 30, [0.4] * 30 + [0.4 + 1e-9] * 30
    assert abs(ece(joined, y, bins=10) - ece(split, y, bins=10)) > 0.3
    assert smooth_ece(joined, y) == pytest.approx(smooth_ece(split, y), abs=1e-6)


def test_order_of_rows_does_not_matter():
    c, y = some(seed=3)
    order = np.random.default_rng(0).permutation(len(c))
    assert smooth_ece(c, y) == smooth_ece(c[order], y[order])


def test_curve_is_kernel_regression():
    c, y = some(seed=4)
    curve = smooth_curve(c, y, resamples=50)
    k = kernel(curve.confidence, c, curve.width)
    assert curve.accuracy == pytest.approx((k @ y) / k.sum(axis=1), abs=1e-4)
    assert curve.density == pytest.approx(k.mean(axis=1), abs=1e-4)
    assert ((curve.low <= curve.accuracy + 0.05) & (curve.accuracy <= curve.high + 0.05)).all()
    assert (curve.high - curve.low).mean() > 0.02


def test_no_curve_where_there_are_no_rows():
    curve = smooth_curve([0.1] * 50 + [0.9] * 50, [0] * 45 + [1] * 50 + [0] * 5, resamples=20)
    assert not ((curve.confidence > 0.3) & (curve.confidence < 0.7)).any()
    assert len(curve.confidence) > 0


def test_wrong_rows_and_settings_are_named():
    with pytest.raises(ValueError, match="row 1 is not a number"):
        smooth_ece([0.1, float("nan")], [0, 1])
    with pytest.raises(ValueError, match="width must be > 0, got 0"):
        smooth_ece_at([0.1], [0], 0)
