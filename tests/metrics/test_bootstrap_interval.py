"""Bootstrap intervals: their draws, their coverage, and the ECE of exact confidences."""

import numpy as np
import pytest
from scipy.stats import binom

from likely.metrics.bins import ece, ece_floor
from likely.metrics.bootstrap import basic, interval, resampled_weights
from likely.metrics.ranking import auroc


def test_interval_of_a_mean_as_the_normal_law():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    low, high = interval(np.mean, x, resamples=4000)
    error = x.std() / 20
    assert low == pytest.approx(x.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(x.mean() + 1.96 * error, abs=0.1 * error)
    narrow = interval(np.mean, x, resamples=4000, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_seed_makes_it_repeatable():
    x = np.random.default_rng(1).random(50)
    assert interval(np.mean, x, seed=1, resamples=50) == interval(np.mean, x, seed=1, resamples=50)
    assert interval(np.mean, x, seed=1, resamples=50) != interval(np.mean, x, seed=2, resamples=50)


def test_rows_of_all_arrays_are_drawn_together():
    x = np.random.default_rng(2).random(30)
    assert interval(lambda a, b: float(np.abs(a - b).max()), x, x.copy(), resamples=50) == (0, 0)


def test_weights_count_the_same_draws():
    x = np.random.default_rng(3).random(700)
    weights = np.concatenate(list(resampled_weights(700, resamples=400, seed=5)))
    assert weights.shape == (400, 700) and (weights.sum(axis=1) == 700).all()
    means = weights @ x / 700
    assert interval(np.mean, x, resamples=400, seed=5) == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_undefined_resamples_are_left_out():
    score, correct = [0.1, 0.2, 0.9], [0, 1, 1]
    low, high = interval(auroc, score, correct, resamples=200)
    assert 0 <= low <= high <= 1
    with pytest.raises(ValueError, match="AUROC undefined"):  # of the rows themselves: said, not skipped
        interval(auroc, score, [1, 1, 1])

    def only_whole(x):
        if len(set(x.tolist())) < 6:
            raise ValueError
        return 1.0

    with pytest.raises(ValueError, match="undefined on all 5 resamples of 6 rows"):
        interval(only_whole, np.arange(6), resamples=5)


def test_the_basic_interval_mirrors_the_percentiles_and_holds_the_value():
    drawn = np.linspace(0.3, 0.5, 101)
    assert basic(0.4, drawn, 0.9) == pytest.approx((0.31, 0.49))
    assert basic(0.35, drawn, 0.9) == pytest.approx((0.21, 0.44))  # above: half the width of the percentiles
    assert basic(0.2, drawn, 0.9) == pytest.approx((0, 0.29))  # all resamples lie above: noise
    assert basic(0.9, drawn, 0.9) == pytest.approx((0.9, 1.49))
    assert basic(0.4, np.full(3, np.nan), 0.9) is None


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 500])
@pytest.mark.parametrize("binning", ["width", "mass"])
def test_percentiles_of_the_ece_lie_too_high_and_basic_intervals_do_not(n, binning):
    # confidence c + 0.1, right with probability c: the ECE is 0.1 whatever the bins
    held = {"percentile": 0, "basic": 0}
    for trial in range(50):
        rng = np.random.default_rng(trial)
        c = rng.random(n) * 0.9
        rows = c + 0.1, (rng.random(n) < c).astype(int)
        for method in held:
            low, high = interval(lambda c, y: ece(c, y, binning=binning), *rows, resamples=100, method=method)
            held[method] += low <= 0.1 <= high
    assert held["basic"] >= 0.88 * 50 and (n > 200 or held["percentile"] < 30), held


def test_settings_are_checked():
    for settings, why in (({"resamples": 0}, "resamples must be"), ({"level": 1.0}, "level must lie")):
        with pytest.raises(ValueError, match=why):
            interval(np.mean, [1, 2], **settings)
    with pytest.raises(ValueError, match='method must be "percentile" or "basic"'):
        interval(np.mean, [1, 2], method="bca")
    with pytest.raises(ValueError, match=r"as many rows as each other, got \[2, 3\]"):
        interval(ece, [0.1, 0.2], [1, 0, 1])
    with pytest.raises(ValueError, match="row 1 is not a number"):
        interval(ece, [0.1, float("nan")], [1, 0])


def test_floor_is_the_expected_error_of_exact_confidences():
    # 10 rows of confidence 0.5: the ECE is |k/10 − 0.5| with k binomial
    k = np.arange(11)
    exact = (binom.pmf(k, 10, 0.5) * np.abs(k / 10 - 0.5)).sum()
    found = ece_floor([0.5] * 10, [1] * 9 + [0], resamples=20000)
    assert found.ece == pytest.approx(0.4)
    assert found.floor == pytest.approx(exact, abs=0.004)  # 5.6 standard errors
    assert found.p_value == pytest.approx(22 / 1024, abs=0.006)  # 0, 1, 9 or 10 right


def test_floor_falls_like_one_over_root_n_and_p_values_tell_exact_from_not():
    rng = np.random.default_rng(4)
    floors = {}
    for n in (500, 2000):
        c = rng.random(n)
        floors[n] = ece_floor(c, rng.random(n) < c, resamples=300).floor
        assert ece_floor(c, rng.random(n) < c**2, resamples=300).p_value == 1 / 301
    assert floors[500] / floors[2000] == pytest.approx(2, rel=0.15)


def test_p_values_of_exact_confidences_are_even():
    rng = np.random.default_rng(5)
    values = []
    for trial in range(300):
        c = rng.random(80)
        values.append(ece_floor(c, rng.random(80) < c, resamples=99, seed=trial).p_value)
    below = sum(v <= 0.2 for v in values)  # binomial(300, 0.2): mean 60
    assert binom.ppf(1e-7, 300, 0.2) <= below <= binom.ppf(1 - 1e-7, 300, 0.2)
