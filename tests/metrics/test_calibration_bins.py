"""Calibration error from bins: known answers, edge rules, ties, and the definition written out row by row."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.metrics.bins import (
    bin_table,
    classwise_ece,
    debiased_ce,
    ece,
    ks_error,
    mce,
    positive_ece,
    rmsce,
    sweep_ece,
    top_label_ece,
)

HOW = [(binning, edge) for binning in ("width", "mass") for edge in ("right", "left")]


def obvious_bins(confidence, correct, bins, binning, edge):
    """The rows of every bin, one row at a time; edges as fractions, so that 0.3 lies exactly on 3/10."""
    rows = sorted(zip(confidence, correct, strict=True))
    parts = [[] for _ in range(bins)]
    if binning == "width":
        for c, y in rows:
            inside = [b for b in range(bins) if b / bins <= c <= (b + 1) / bins]
            parts[inside[0] if edge == "right" else inside[-1]].append((c, y))
        return [part for part in parts if part]
    home = {}
    for b, part in enumerate(np.array_split(np.arange(len(rows)), bins)):
        for i in part:
            c = rows[i][0]
            home[c] = home.get(c, b) if edge == "right" else b
    for c, y in rows:
        parts[home[c]].append((c, y))
    return [part for part in parts if part]


def obvious_error(parts, norm):
    n = sum(map(len, parts))
    gaps = [abs(np.mean([y for _, y in part]) - np.mean([c for c, _ in part])) for part in parts]
    if norm == math.inf:
        return max(gaps)
    return sum(len(part) / n * gap**norm for part, gap in zip(parts, gaps, strict=True)) ** (1 / norm)


def stated(rng, n, steps=10):
    """Confidences on a coarse grid, as people and models state them: many ties, many on bin edges."""
    c = rng.integers(0, steps + 1, n) / steps
    return c, (rng.random(n) < c**2).astype(int)


def test_known_answers():
    assert ece([0.8] * 100, [1] * 80 + [0] * 20) == pytest.approx(0, abs=1e-15)
    assert ece([1.0] * 10, [1, 0] * 5) == 0.5
    assert debiased_ce([0.8] * 100, [1] * 80 + [0] * 20) == 0
    assert ks_error([1.0] * 10, [1, 0] * 5) == 0.5
    assert top_label_ece([[0.0, 1.0]] * 10, [1, 0] * 5) == 0.5
    # two bins, 3 rows and 1 row, gaps 0.2 and 0.4
    c, y = [0.2, 0.2, 0.2, 0.6], [0, 0, 0, 1]
    assert ece(c, y, bins=2) == pytest.approx(0.75 * 0.2 + 0.25 * 0.4)
    assert mce(c, y, bins=2) == pytest.approx(0.4)
    assert rmsce(c, y, bins=2) == pytest.approx(math.sqrt(0.75 * 0.04 + 0.25 * 0.16))


@pytest.mark.parametrize(("binning", "edge"), HOW)
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_as_the_definition_row_by_row(binning, edge, norm):
    rng = np.random.default_rng(0)
    for n, bins in ((1, 15), (3, 15), (37, 10), (200, 10), (200, 7)):
        for c, y in (stated(rng, n), (rng.random(n), rng.integers(0, 2, n))):
            expected = obvious_error(obvious_bins(c, y, bins, binning, edge), norm)
            assert ece(c, y, bins=bins, binning=binning, edge=edge, norm=norm) == pytest.approx(expected, abs=1e-12)


def test_edge_rule_decides_where_stated_confidences_go():
    c, y = [0.3, 0.35, 0.25], [1, 0, 1]
    assert bin_table(c, y, bins=10, edge="right").n.tolist() == [2, 1]  # 0.3 with 0.25, in (0.2, 0.3]
    assert bin_table(c, y, bins=10, edge="left").n.tolist() == [1, 2]  # 0.3 with 0.35, in [0.3, 0.4)
    assert ece(c, y, bins=10, edge="right") != pytest.approx(ece(c, y, bins=10, edge="left"))
    for tenth in range(11):  # floor(c * 10) puts 0.7 (6.999…) wrong, linspace's edge 0.30000000000000004 the 0.3
        for edge, home in (("right", max(tenth - 1, 0)), ("left", min(tenth, 9))):
            table = bin_table([tenth / 10], [1], bins=10, edge=edge)
            assert (table.low[0], table.high[0]) == (home / 10, (home + 1) / 10)


@pytest.mark.parametrize("edge", ["right", "left"])
def test_ends_belong_to_the_outer_bins(edge):
    table = bin_table([0.0, 1.0], [0, 1], bins=5, edge=edge)
    assert table.low.tolist() == [0, 0.8] and table.n.tolist() == [1, 1]


def test_equal_mass_bins_are_equal_without_ties():
    rng = np.random.default_rng(1)
    table = bin_table(rng.random(100), rng.integers(0, 2, 100), bins=15, binning="mass")
    assert table.n.tolist() == [len(part) for part in np.array_split(np.arange(100), 15)]


def test_tied_rows_share_a_bin_so_their_order_does_not_matter():
    c = [0.5] * 10 + [0.9] * 5
    low, high = [0] * 5 + [1] * 5, [1] * 5 + [0] * 5
    assert ece(c, low + [1] * 5, bins=3, binning="mass") == ece(c, high + [1] * 5, bins=3, binning="mass")
    assert bin_table(c, low + [1] * 5, bins=3, binning="mass").n.tolist() == [10, 5]


def test_top_label_and_positive_ece_are_different_numbers():
    rng = np.random.default_rng(2)
    p1 = rng.random(500)
    y = (rng.random(500) < p1**2).astype(int)
    both = np.stack([1 - p1, p1], axis=1)
    assert positive_ece(p1, y) == pytest.approx(ece(p1, y))
    assert abs(top_label_ece(both, y) - positive_ece(p1, y)) > 0.01
    assert classwise_ece(both, y, edge="right") == pytest.approx(
        (ece(p1, y, edge="right") + ece(1 - p1, 1 - y, edge="right")) / 2
    )


def test_classwise_sum_is_classes_times_mean():
    rng = np.random.default_rng(3)
    probs, labels = rng.dirichlet(np.ones(4), 50), rng.integers(0, 4, 50)
    assert classwise_ece(probs, labels, average="sum") == pytest.approx(4 * classwise_ece(probs, labels))
    with pytest.raises(ValueError, match="""average must be "mean" or "sum", got 'median'"""):
        classwise_ece(probs, labels, average="median")


def test_debiased_as_written_and_nearer_to_the_truth():
    rng = np.random.default_rng(4)
    truth, plain, debiased = 0.1, [], []
    for _ in range(200):
        c = rng.uniform(0.2, 0.8, 300)
        y = rng.random(300) < c - truth  # every gap is 0.1
        plain.append(rmsce(c, y, binning="mass") ** 2)
        debiased.append(debiased_ce(c, y) ** 2)
    assert np.mean(plain) > truth**2 + 0.005
    assert np.mean(debiased) == pytest.approx(truth**2, abs=0.002)
    c, y = stated(rng, 60)
    parts = obvious_bins(c, y, 4, "mass", "right")
    squares = [
        len(part)
        * (
            (np.mean([y for _, y in part]) - np.mean([c for c, _ in part])) ** 2
            - np.var([y for _, y in part], ddof=1) / len(part)
        )
        for part in parts
    ]  # acc(1 − acc)/(n − 1) is the unbiased variance divided by n
    assert debiased_ce(c, y, bins=4) == pytest.approx(math.sqrt(max(0, sum(squares) / 60)))


def test_bins_of_one_row_count_nothing_in_the_debiased_error():
    assert debiased_ce([0.1, 0.9], [1, 0], bins=2) == 0


def test_the_signed_debiased_error_tells_maps_apart_that_look_calibrated():
    """Gaps below what noise makes are a tie of zeros without the sign."""
    c, y = np.full(100, 0.8), [1] * 80 + [0] * 20
    exact, near = (debiased_ce(np.full(100, said), y, signed=True) for said in (0.8, 0.82))
    assert exact == pytest.approx(-math.sqrt(0.16 / 99)) and exact < near < 0
    assert debiased_ce(np.full(100, 0.82), y) == debiased_ce(c, y) == 0
    assert debiased_ce(np.full(100, 0.5), y, signed=True) == debiased_ce(np.full(100, 0.5), y) > 0


@pytest.mark.parametrize("edge", ["right", "left"])
def test_sweep_as_the_definition(edge):
    rng = np.random.default_rng(5)
    for n in (1, 2, 3, 20, 60):
        for c, y in (stated(rng, n), (rng.random(n), rng.integers(0, 2, n))):
            best = obvious_bins(c, y, 1, "mass", edge)
            for bins in range(2, n + 1):
                parts = obvious_bins(c, y, bins, "mass", edge)
                means = [np.mean([y for _, y in part]) for part in parts]
                if any(b < a for a, b in itertools.pairwise(means)):
                    break
                best = parts
            assert sweep_ece(c, y, edge=edge) == pytest.approx(obvious_error(best, 1), abs=1e-12)


def test_sweep_ends_where_more_bins_change_nothing_and_at_a_hundred():
    rows, rng = 100_000, np.random.default_rng(0)
    c = rng.choice([0.2, 0.5, 0.9], rows)
    y = (rng.random(rows) < c).astype(int)
    began = time.process_time()
    assert sweep_ece(c, y) == pytest.approx(sum(abs((c - y)[c == v].sum()) for v in (0.2, 0.5, 0.9)) / rows)
    assert sweep_ece(rng.random(rows), np.ones(rows)) == pytest.approx(0.5, abs=0.01)
    assert time.process_time() - began < 5  # one bin more at a time up to all rows takes minutes


def test_ks_as_the_definition():
    rng = np.random.default_rng(6)
    c, y = stated(rng, 100)
    expected = max(abs(sum(c[c <= t] - y[c <= t])) for t in c) / 100
    assert ks_error(c, y) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40), st.randoms(use_true_random=False)
)
def test_order_of_rows_does_not_matter_and_ece_is_at_most_mce(rows, random):
    shuffled = random.sample(rows, len(rows))
    (c, y), (c2, y2) = ((np.array([r[0] / 20 for r in rs]), [int(r[1]) for r in rs]) for rs in (rows, shuffled))
    for metric in (ece, mce, rmsce, debiased_ce, sweep_ece, ks_error):
        assert metric(c, y) == metric(c2, y2)
    for binning, edge in HOW:
        how = {"binning": binning, "edge": edge}
        assert ece(c, y, **how) <= rmsce(c, y, **how) + 1e-12 <= mce(c, y, **how) + 2e-12
        assert ece(c, y, bins=1, **how) <= ece(c, y, **how) + 1e-12  # merging bins hides gaps


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.sampled_from(HOW))
def test_recalibrated_on_the_same_bins_the_error_is_nil(rows, how):
    binning, edge = how
    parts = obvious_bins([r[0] for r in rows], [int(r[1]) for r in rows], 5, binning, edge)
    c = np.concatenate([[np.mean([y for _, y in part])] * len(part) for part in parts])
    y = np.concatenate([[y for _, y in part] for part in parts])
    # bins may come to share an accuracy, or an edge; one bin for each distinct value cannot split what they share
    assert ece(c, y, bins=1000, binning=binning, edge=edge) == pytest.approx(0, abs=1e-9)


def test_expected_ece_of_calibrated_data_falls_like_one_over_root_n():
    rng = np.random.default_rng(7)
    means = []
    for n in (250, 1000, 4000, 16000):
        draws = []
        for _ in range(60):
            c = rng.random(n)
            draws.append(ece(c, rng.random(n) < c))
        means.append(np.mean(draws))
    for coarse, fine in itertools.pairwise(means):
        assert coarse / fine == pytest.approx(2, rel=0.15)
    assert means[0] > 0.05  # not nil, although every confidence is exact


def test_half_precision_is_computed_in_double():
    rng = np.random.default_rng(8)
    c, y = stated(rng, 3000)
    half = c.astype(np.float16)
    assert ece(half, y) == ece(half.astype(np.float64), y)
    many = np.full(5000, 0.1, np.float16)  # summed in half precision these stop growing at 256
    assert ece(many, [0] * 5000) == pytest.approx(float(np.float16(0.1)), abs=1e-12)


def test_wrong_rows_and_settings_are_named():
    for metric in (ece, mce, rmsce, debiased_ce, sweep_ece, ks_error, bin_table):
        with pytest.raises(ValueError, match="confidence: row 1 is not a number"):
            metric([0.5, float("nan")], [1, 0])
        with pytest.raises(ValueError, match=r"confidence: row 2 is 1.2, outside 0..1"):
            metric([0.5, 0.1, 1.2], [1, 0, 1])
        with pytest.raises(ValueError, match="correct: row 1 is 2"):
            metric([0.5, 0.1], [1, 2])
        with pytest.raises(ValueError, match="correct has 1 rows, the predictions have 2"):
            metric([0.5, 0.1], [1])
        with pytest.raises(ValueError, match="empty"):
            metric([], [])
    with pytest.raises(ValueError, match=r"p1: row 0 is -0.1"):
        positive_ece([-0.1], [1])
    with pytest.raises(ValueError, match=r"row 1 sums to 0.9"):
        top_label_ece([[0.5, 0.5], [0.5, 0.4]], [0, 1])
    with pytest.raises(ValueError, match="at least 2 classes"):
        top_label_ece([[1.0], [1.0]], [0, 0])
    for bad in (0, 2.5, True):
        with pytest.raises(ValueError, match="bins must be a whole number of at least 1"):
            ece([0.5], [1], bins=bad)
    with pytest.raises(ValueError, match='binning must be "width" or "mass"'):
        ece([0.5], [1], binning="quantile")
    with pytest.raises(ValueError, match='edge must be "right" or "left"'):
        ece([0.5], [1], edge="both")
    with pytest.raises(ValueError, match="norm must be at least 1"):
        ece([0.5], [1], norm=0.5)


def test_three_rows_are_enough():
    assert 0 <= ece([0.2, 0.5, 0.9], [0, 1, 1]) <= 1
    assert sweep_ece([0.2, 0.5, 0.9], [0, 1, 1]) == pytest.approx((0.2 + 0.5 + 0.1) / 3)
