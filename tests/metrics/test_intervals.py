from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from likely.metrics.intervals import Accuracy, wilson


@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@example(1, 0.0, 0.95)
@example(1, 1.0, 0.95)
def test_wilson_is_that_of_scipy(n, share, level):
    k = round(share * n)
    expected = binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson(k, n, level=level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_right_and_wrong_are_mirror_images():
    low, high = wilson(3, 20)
    assert wilson(17, 20) == pytest.approx((1 - high, 1 - low), abs=1e-14)


def test_nothing_counted_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    assert Accuracy(0, 0).value is None and "nothing" in Accuracy(0, 0).line()
    assert Accuracy(3, 4).to_dict() == {
        "accuracy": 0.75, "correct": 3, "n": 4, "interval": list(wilson(3, 4)), "level": 0.95
    }  # fmt: skip


@pytest.mark.parametrize(("k", "n", "level"), [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 0.0), (1, 3, 1.0)])
def test_impossible_counts_and_levels_are_refused(k, n, level):
    with pytest.raises(ValueError, match="must lie"):
        wilson(k, n, level=level)
