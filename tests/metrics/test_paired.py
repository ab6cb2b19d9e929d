"""Tests, differences and agreement of two or more systems or raters, against scipy, scikit-learn and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from likely.metrics.paired import (
    benjamini_hochberg,
    cohen_kappa,
    krippendorff_alpha,
    mcnemar_exact,
    paired_difference,
)


def outcomes(both, lost, gained, neither):
    first = [True] * (both + lost) + [False] * (gained + neither)
    second = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return first, second


@pytest.mark.parametrize(("lost", "gained"), [(0, 1), (3, 3), (10, 2), (2, 10), (0, 12), (57, 81), (300, 240)])
def test_p_is_that_of_the_binomial_test(lost, gained):
    found = mcnemar_exact(*outcomes(5, lost, gained, 7))
    assert (found.lost, found.gained, found.n) == (lost, gained, lost + gained + 12)
    assert found.p == pytest.approx(stats.binomtest(lost, lost + gained).pvalue, rel=1e-9)
    assert found.odds_ratio == (gained / lost if lost else math.inf)


def test_systems_that_agree_everywhere_differ_in_nothing():
    found = mcnemar_exact(*outcomes(4, 0, 0, 3))
    assert found.p == 1 and math.isnan(found.odds_ratio)


def test_false_alarms_are_as_rare_as_promised():
    """All splits of nine discordant items, weighted as they occur."""
    chance = [math.comb(9, k) / 2**9 for k in range(10)]
    p = [mcnemar_exact(*outcomes(0, k, 9 - k, 0)).p for k in range(10)]
    for level in (0.01, 0.05, 0.2):
        assert sum(c for c, value in zip(chance, p, strict=True) if value <= level) <= level


def test_adjusted_values_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        p = rng.random(n) ** 3
        p[: n // 3] = p[0]  # ties
        np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), rtol=1e-12)
    assert benjamini_hochberg([]).shape == (0,)


def test_order_does_not_matter():
    p = (0.01, 0.04, 0.03, 0.9)
    for order in itertools.permutations(range(4)):
        found = benjamini_hochberg([p[i] for i in order])
        np.testing.assert_allclose(found, benjamini_hochberg(p)[list(order)])


def test_what_is_refused():
    with pytest.raises(ValueError, match="same items, got 1 and 2"):
        mcnemar_exact([True], [True, False])
    for wrong in ([0.1, 1.2], [float("nan")], [-0.1]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            benjamini_hochberg(wrong)


# --- differences and raters -------------------------------------------------------------------------------------------


def test_difference_is_that_of_the_means_and_its_interval_holds_it():
    rng = np.random.default_rng(1)
    first = rng.normal(size=80)
    second = first + 0.5 + 0.1 * rng.normal(size=80)
    found = paired_difference(first, second)
    assert found.mean == pytest.approx((second - first).mean()) and found.low < 0.5 < found.high
    assert found.sign == 1 and paired_difference(second, first).sign == -1 and found.n == 80
    assert found.high - found.low < 0.06 < np.std(first)  # pairing takes the spread of the items away
    swapped = paired_difference(second, first)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_equal_systems_differ_by_exactly_nothing():
    found = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (found.mean, found.low, found.high, found.sign) == (0, 0, 0, 0)


@pytest.mark.parametrize("pair", [([1.0], [1.0, 2.0]), ([], []), ([1.0], [float("nan")]), ([float("-inf")], [0.0])])
def test_difference_of_other_items_is_refused(pair):
    with pytest.raises(ValueError):
        paired_difference(*pair)


def test_kappa_is_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(1, 4, (2, 30)).tolist()
        assert cohen_kappa(a, b) == pytest.approx(sklearn.cohen_kappa_score(a, b))
    assert cohen_kappa("abcab", "abcab") == 1


def test_alpha_of_the_published_example():
    """Four observers, twelve units, missing ratings (Krippendorff 2011): .743 nominal, .815 ordinal, .849 interval."""
    rows = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    for distance, value in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        assert krippendorff_alpha(rows, distance=distance) == pytest.approx(value, abs=5e-4)
    assert krippendorff_alpha(rows[::-1]) == pytest.approx(krippendorff_alpha(rows))


def test_raters_who_guess_agree_by_chance_alone():
    a, b, c = np.random.default_rng(3).integers(1, 4, (3, 4000)).tolist()
    assert abs(cohen_kappa(a, b)) < 0.05 and abs(krippendorff_alpha([a, b, c])) < 0.05


def test_one_category_is_not_defined_and_says_so():
    with pytest.warns(UserWarning, match="kappa is not defined"):
        assert math.isnan(cohen_kappa([2, 2], [2, 2]))
    with pytest.warns(UserWarning, match="alpha is not defined"):
        assert math.isnan(krippendorff_alpha([[2, 2, None], [2, 2, 1]]))
    with pytest.raises(ValueError):
        cohen_kappa([1], [1, 2])
    with pytest.raises(ValueError):
        krippendorff_alpha([[1, 2], [1]])
