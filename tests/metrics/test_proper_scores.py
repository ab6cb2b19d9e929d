"""Brier score, its decomposition, and the NLL."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from likely.metrics.proper import (
    brier,
    brier_binary,
    murphy,
    nll,
    nll_clipped,
    polarisation,
    sharpness,
)


def test_known_answers():
    assert brier([[0.0, 1.0]] * 10, [1, 0] * 5) == 1.0
    assert brier([[0.0, 1.0]], [0]) == 2.0 and brier([[0.0, 1.0]], [1]) == 0.0
    assert brier_binary([1.0] * 10, [1, 0] * 5) == 0.5
    assert nll([[0.25, 0.75]], [0]) == pytest.approx(np.log(4))
    assert nll([0.25, 0.25], [1, 0]) == pytest.approx((np.log(4) - np.log(0.75)) / 2)


def test_multiclass_brier_of_two_classes_is_twice_the_binary_one():
    rng = np.random.default_rng(0)
    p, y = rng.random(50), rng.integers(0, 2, 50)
    assert brier(np.stack([1 - p, p], axis=1), y) == pytest.approx(2 * brier_binary(p, y))


def test_as_scikit_learn():
    rng = np.random.default_rng(1)
    probs, labels = rng.dirichlet(np.ones(5), 300), rng.integers(0, 5, 300)
    p, y = rng.random(300), rng.integers(0, 2, 300)
    assert nll(probs, labels) == pytest.approx(log_loss(labels, probs, labels=range(5)), abs=1e-12)
    assert nll(p, y) == pytest.approx(log_loss(y, p), abs=1e-12)
    assert brier_binary(p, y) == pytest.approx(brier_score_loss(y, p), abs=1e-12)
    one_hot = np.eye(5)[labels]
    assert brier(probs, labels) == pytest.approx(((probs - one_hot) ** 2).sum(axis=1).mean(), abs=1e-12)
    assert brier(probs, labels) == pytest.approx(brier_score_loss(labels, probs, labels=range(5)), abs=1e-12)


def test_an_impossible_label_is_clipped_and_counted():
    probs, labels = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], [1, 0, 1]
    assert nll(probs, labels) == pytest.approx((-np.log(1e-12) + np.log(2)) / 3)
    assert nll_clipped(probs, labels) == 1
    assert nll([1.0, 0.0, 0.5], [0, 1, 1]) == pytest.approx((-2 * np.log(1e-12) + np.log(2)) / 3)
    assert nll_clipped([1.0, 0.0, 0.5], [0, 1, 1]) == 2
    assert nll_clipped([1.0, 0.0], [1, 0]) == 0


def test_proper_scores_are_least_at_the_truth():
    rng = np.random.default_rng(2)
    truth = rng.dirichlet(np.ones(3))
    for _ in range(200):
        other = rng.dirichlet(np.ones(3))
        for score in (brier, nll):
            expected = [sum(t * score([q], [k]) for k, t in enumerate(truth)) for q in (truth, other)]
            assert expected[0] <= expected[1] + 1e-12


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([None, 1, 3, 15]),
    st.sampled_from(["width", "mass"]),
)
def test_murphy_parts_sum_to_the_brier_score(rows, bins, binning):
    c, y = np.array([r[0] for r in rows]), np.array([int(r[1]) for r in rows])
    parts = murphy(c, y, bins=bins, binning=binning)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within
    assert total == pytest.approx(brier_binary(c, y), abs=1e-9)
    if bins is None:
        assert parts.within == pytest.approx(0, abs=1e-12)
    if bins == 1:
        assert parts.resolution == pytest.approx(0, abs=1e-12)
    assert 0 <= parts.resolution <= parts.uncertainty + 1e-12


def test_murphy_known_answer():
    # 0.2: 1 of 4 right; 0.8: 3 of 4 right
    c, y = [0.2] * 4 + [0.8] * 4, [1, 0, 0, 0, 1, 1, 1, 0]
    parts = murphy(c, y)
    assert parts.reliability == pytest.approx(0.05**2)
    assert parts.resolution == pytest.approx(0.25**2)
    assert parts.uncertainty == 0.25


def test_sharpness_and_polarisation():
    assert sharpness([0.0, 1.0]) == 0.25 and sharpness([0.7] * 5) == pytest.approx(0)
    found = polarisation([0.05, 0.1, 0.5, 0.9, 0.99])  # 0.1 and 0.9 lie inside [0.1, 0.9]
    assert found.extreme == 0.4
    assert found.deviation == pytest.approx(np.std([0.05, 0.1, 0.5, 0.9, 0.99]))
    assert found.to_certainty == pytest.approx((0.05 + 0.1 + 0.5 + 0.1 + 0.01) / 5)


def test_wrong_rows_are_named():
    for metric in (brier, nll, nll_clipped):
        with pytest.raises(ValueError, match="row 1 is not a number"):
            metric([[0.5, 0.5], [0.5, float("nan")]], [0, 1])
        with pytest.raises(ValueError, match=r"row 0 sums to 0.6"):
            metric([[0.3, 0.3], [0.5, 0.5]], [0, 1])
        with pytest.raises(ValueError, match=r"labels: row 1 is 2: whole numbers in 0..1"):
            metric([[0.5, 0.5], [0.5, 0.5]], [0, 2])
        with pytest.raises(ValueError, match="at least 2 classes"):
            metric([[1.0]], [0])
    for metric in (brier_binary, nll, nll_clipped, murphy):
        with pytest.raises(ValueError, match=r"row 0 is -0.5, outside"):
            metric([-0.5], [1])
    with pytest.raises(ValueError, match="row 1 is not a number"):
        sharpness([0.1, float("nan")])


def test_half_precision_rows_are_summed_in_double():
    rng = np.random.default_rng(3)
    probs = rng.dirichlet(np.ones(10), 2000).astype(np.float16)
    labels = rng.integers(0, 10, 2000)
    exact = probs.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    assert brier(probs, labels) == pytest.approx(brier(exact, labels), abs=1e-14)
    assert nll(probs, labels) == pytest.approx(nll(exact, labels), abs=1e-14)
