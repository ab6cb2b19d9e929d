"""The report of a risk score: known answers, scikit-learn's numbers, groups, and what has none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from likely.metrics.intervals import wilson
from likely.prompting.risk.report import METRICS, risk_report, subgroup_report

RNG = np.random.default_rng(0)
RISK = RNG.random(400)
Y = (RNG.random(400) < RISK**2).astype(int)


def test_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    found = risk_report(RISK, Y, threshold=0.7, resamples=50)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(Y, RISK))
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(Y, RISK))
    assert found["nll"] == pytest.approx(metrics.log_loss(Y, RISK))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(Y, RISK >= 0.5))
    assert found["accuracy_at_threshold"] == pytest.approx(metrics.accuracy_score(Y, RISK >= 0.7))
    for name in METRICS:
        low, high = found[f"{name}_interval"]
        assert low <= high and (name.startswith("ece") or low <= found[name] <= high)


def test_known_answers():
    found = risk_report([0.85] * 20, [1] * 15 + [0] * 5, resamples=10)
    assert found["ece_positive"] == found["ece_top"] == pytest.approx(0.1) and found["bias"] == pytest.approx(0.1)
    assert found["polarised"] == 0 and found["std"] == pytest.approx(0) and found["auc"] == 0.5
    low = risk_report([0.15] * 20, [0] * 15 + [1] * 5, resamples=10)  # the same about the other class
    assert low["ece_top"] == pytest.approx(0.1) and low["bias"] == pytest.approx(-0.1)
    two = risk_report([0.02, 0.98, 0.5, 0.5], [0, 1, 0, 1], resamples=10)
    assert two["polarised"] == 0.5
    # of the likelier class only: 0.2 and 0.8 meet in one bin there, and their errors cancel
    apart = risk_report([0.2] * 10 + [0.8] * 10, [0] * 10 + [1] * 6 + [0] * 4, resamples=10)
    assert apart["ece_top"] == pytest.approx(0) and apart["ece_positive"] == pytest.approx(0.2)


def test_texts_without_a_number_count_in_the_parse_rate_only():
    some = np.where(np.arange(400) % 4 == 0, np.nan, RISK)
    found = risk_report(some, Y, intervals=False)
    kept = ~np.isnan(some)
    assert found["parse_rate"] == 0.75 and found["n"] == 300
    assert found["auc"] == pytest.approx(risk_report(RISK[kept], Y[kept], intervals=False)["auc"])
    assert "auc_interval" not in found
    with pytest.raises(ValueError, match="no risk is a number"):
        risk_report([np.nan] * 3, [0, 1, 0])


def test_one_outcome_only():
    found = risk_report([0.2, 0.4], [0, 0], resamples=10)
    assert found["auc"] is None and found["note"] == "every outcome is 0: the AUC is not defined"
    assert found["ece_positive"] == pytest.approx(0.3) and "auc_interval" not in found


@pytest.mark.parametrize(
    ("risk", "y", "message"),
    [([0.2, 1.2], [0, 1], "row 1"), ([0.2, 0.4], [0, 2], "row 1"), ([0.2], [0, 1], "as many|boolean")],
)
def test_bad_rows(risk, y, message):
    with pytest.raises((ValueError, IndexError), match=message):
        risk_report(risk, y)


def test_groups():
    groups = np.where(np.arange(400) < 300, "b", "a").tolist()
    lines = subgroup_report(RISK, Y, groups, threshold=0.6, resamples=20)
    assert [(line["group"], line["n"]) for line in lines] == [("b", 300), ("a", 100)]  # the largest first
    mine = np.arange(400) < 300
    whole = risk_report(RISK[mine], Y[mine], intervals=False)
    for name in ("auc", "ece_positive", "mean", "base_rate"):
        assert lines[0][name] == pytest.approx(whole[name])
    chosen = RISK[mine] >= 0.6
    assert lines[0]["selected"] == pytest.approx(chosen.mean())
    assert lines[0]["true_positive"] == pytest.approx(chosen[Y[mine] == 1].mean())
    assert lines[0]["false_positive"] == pytest.approx(chosen[Y[mine] == 0].mean())
    assert lines[0]["selected_interval"] == pytest.approx(wilson(int(chosen.sum()), 300))


def test_a_group_of_one_outcome_has_no_auc_and_no_rate():
    [line] = subgroup_report([0.2, 0.7], [1, 1], ["x", "x"], resamples=5)
    assert line["auc"] is None and line["false_positive"] is None and line["true_positive"] == 0.5
    assert not any(isinstance(v, float) and math.isnan(v) for v in line.values())
    assert len(subgroup_report([0.2, np.nan], [1, 0], ["x", "y"], resamples=5)) == 1
    with pytest.raises(ValueError, match="as many rows: 2, 2, 1"):
        subgroup_report([0.2, 0.7], [1, 1], ["x"])
