"""McNemar's exact test and the procedure of Benjamini and Hochberg, against scipy and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from likely.metrics.paired import benjamini_hochberg, mcnemar_exact


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
