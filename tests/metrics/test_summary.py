"""The report of all metrics: each number is the metric's own, each interval the bootstrap's."""

import json
import time

import numpy as np
import pytest

from likely.metrics import bins, proper, ranking
from likely.metrics.bootstrap import interval
from likely.metrics.intervals import wilson
from likely.metrics.proper import sharpness
from likely.metrics.smooth import smooth_ece
from likely.metrics.summary import PUSHED_UP, report

BOTH = {  # metrics of confidence and correctness
    "ece": bins.ece,
    "ece_mass": lambda c, y: bins.ece(c, y, binning="mass"),
    "mce": bins.mce,
    "rmsce": bins.rmsce,
    "debiased_ce": bins.debiased_ce,
    "sweep_ece": bins.sweep_ece,
    "ks_error": bins.ks_error,
    "smooth_ece": smooth_ece,
    "auroc": ranking.auroc,
    "aurc": ranking.aurc,
    "e_aurc": ranking.e_aurc,
    "prr": ranking.prr,
    "sharpness": lambda c, y: sharpness(c),
    "mean_confidence": lambda c, y: float(c.mean()),
    "extreme": lambda c, y: float(((c < 0.1) | (c > 0.9)).mean()),
    "reliability": lambda c, y: proper.murphy(c, y, bins=15).reliability,
    "resolution": lambda c, y: proper.murphy(c, y, bins=15).resolution,
    "uncertainty": lambda c, y: proper.murphy(c, y, bins=15).uncertainty,
}
CONFIDENCE = BOTH | {"brier": proper.brier_binary, "nll": proper.nll}
PROBS = {
    "brier": proper.brier,
    "nll": proper.nll,
    "classwise_ece": bins.classwise_ece,
    "ece": bins.top_label_ece,
    "auroc": lambda p, y: ranking.auroc(p.max(axis=1), p.argmax(axis=1) == y),
}
ROWS, RESAMPLES = 120, 40


def confidence_rows(steps):
    rng = np.random.default_rng(0)
    c = rng.random(ROWS) if steps is None else rng.integers(0, steps + 1, ROWS) / steps
    return c, (rng.random(ROWS) < c).astype(int)


def probs_rows():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(4), ROWS)
    return probs, np.array([rng.choice(4, p=p) for p in probs])


def same(found, metrics, rows):
    for name, metric in metrics.items():
        assert found[name] == pytest.approx(metric(*rows), abs=1e-9), name
        method = "basic" if name in PUSHED_UP else "percentile"
        low, high = interval(metric, *rows, resamples=RESAMPLES, seed=3, method=method)
        slow = (low, min(1, high)) if name in PUSHED_UP else (low, high)
        assert found[f"{name}_interval"] == pytest.approx(slow, abs=1e-7), name


@pytest.mark.parametrize("steps", [None, 10])
def test_confidence_metrics_and_intervals_as_one_by_one(steps):
    rows = confidence_rows(steps)
    found = report(*rows, resamples=RESAMPLES, seed=3)
    same(found, CONFIDENCE, rows)
    covered = {name for name in found if f"{name}_interval" in found}
    assert covered == {*CONFIDENCE, "accuracy"}
    assert found["kind"] == "confidence" and found["n"] == ROWS


def test_probs_metrics_and_intervals_as_one_by_one():
    rows = probs_rows()
    found = report(*rows, resamples=RESAMPLES, seed=3)
    same(found, PROBS, rows)
    assert found["classes"] == 4
    top = (rows[0].max(axis=1), (rows[0].argmax(axis=1) == rows[1]).astype(int))
    same(found, {name: m for name, m in BOTH.items() if name not in ("nll", "brier")}, top)


@pytest.mark.slow
def test_thousands_of_rows_take_seconds():
    rng = np.random.default_rng(4)
    for c, y in ((rng.random(5000), np.ones(5000)), (rng.choice([0.5, 0.7, 0.9], 5000), rng.integers(0, 2, 5000))):
        began = time.process_time()
        report(c, y, resamples=100)
        assert time.process_time() - began < 5


def test_intervals_of_calibration_errors_hold_the_value_and_stay_within_0_and_1():
    assert {"ece", "ece_mass", "mce", "rmsce", "sweep_ece", "ks_error", "smooth_ece", "classwise_ece"} <= PUSHED_UP
    rng = np.random.default_rng(5)
    probs = rng.dirichlet(np.ones(3), 40)
    for rows in ((probs, rng.integers(0, 3, 40)), confidence_rows(None), ([0.1, 0.9, 0.9], [1, 0, 0])):
        found = report(*rows, resamples=100)
        for name in PUSHED_UP & found.keys():
            low, high = found[f"{name}_interval"]
            assert 0 <= low <= found[name] <= high <= 1, name


def test_keys_and_json():
    found = report(*confidence_rows(None), resamples=20)
    for key in ("n", "accuracy", "ece", "nll", "brier", "auroc"):
        assert isinstance(found[key], int | float)
    for key in ("accuracy", "ece", "nll", "brier", "auroc"):
        low, high = found[f"{key}_interval"]
        assert low <= high
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["notes"] == {} and found["resamples"] == 20 and found["level"] == 0.95


def test_accuracy_has_wilsons_interval():
    found = report([0.9] * 10, [1] * 10, resamples=10)
    assert found["accuracy_interval"] == pytest.approx(wilson(10, 10))


def test_without_intervals_there_are_none_and_the_values_are_the_same():
    rows = confidence_rows(None)
    bare, full = report(*rows, intervals=False), report(*rows, resamples=10)
    assert not any(key.endswith("_interval") for key in bare)
    assert all(full[key] == value for key, value in bare.items())


def test_one_class_gives_none_and_says_why():
    for correct, word in ((1, "right"), (0, "wrong")):
        found = report([0.2, 0.7, 0.9], [correct] * 3, resamples=20)
        assert found["auroc"] is None and found["auroc_interval"] is None
        assert found["prr"] is None and found["prr_interval"] is None
        assert found["notes"]["auroc"] == f"auroc undefined: all 3 rows are {word}"
        assert found["ece"] is not None
        json.dumps(found, allow_nan=False)


def test_clipped_rows_are_counted_and_noted():
    found = report([[1.0, 0.0], [0.4, 0.6]], [1, 1], resamples=10)
    assert found["nll_clipped"] == 1 and found["notes"]["nll"] == "1 of 2 rows were clipped at 1e-12"


def test_floor_and_p_value_tell_exact_confidences_from_wrong_ones():
    rng = np.random.default_rng(2)
    c = rng.random(1000)
    exact = report(c, rng.random(1000) < c, intervals=False)
    wrong = report(c, rng.random(1000) < c**3, intervals=False)
    assert exact["ece_p_value"] > 1e-3 and wrong["ece_p_value"] == pytest.approx(1 / 1001)
    assert exact["ece_floor"] == pytest.approx(wrong["ece_floor"], rel=0.05)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="confidence: row 1 is not a number"):
        report([0.1, float("nan")], [0, 1])
    with pytest.raises(ValueError, match=r"probs: row 0 sums to 0.5"):
        report([[0.25, 0.25]], [0])
    with pytest.raises(ValueError, match="probs has 1 column"):
        report([[1.0], [1.0]], [0, 0])
    with pytest.raises(ValueError, match="correct: row 1 is 3"):
        report([0.1, 0.2], [0, 3])
    with pytest.raises(ValueError, match="labels has 1 rows"):
        report([[0.5, 0.5], [0.5, 0.5]], [0])
    with pytest.raises(ValueError, match="bins must be"):
        report([0.1, 0.2], [0, 1], bins=0)
    with pytest.raises(ValueError, match="level must lie"):
        report([0.1, 0.2], [0, 1], level=2)


def test_one_row_and_three_rows():
    assert report([0.7], [1], resamples=5)["ece"] == pytest.approx(0.3)
    found = report([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5]], [0, 0, 1], resamples=50)
    assert found["n"] == 3 and found["accuracy"] == pytest.approx(1 / 3)


def test_half_precision_is_computed_in_double():
    c, y = confidence_rows(None)
    half = c.astype(np.float16)
    assert report(half, y, resamples=10) == report(half.astype(np.float64), y, resamples=10)
