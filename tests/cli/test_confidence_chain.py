"""Scores, confidence, map, decision: the same numbers whether the steps are chained or taken one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from likely.calibration.calibrator import Calibrator, fit_calibrator
from likely.calibration.conformal.classification import ConformalSets
from likely.calibration.labelled import read_labelled
from likely.calibration.recalibrators.table import make
from likely.calibration.selective import certified_threshold
from likely.calibration.threshold import abstention_rule
from likely.metrics.checks import softmax, top_label
from likely.metrics.proper import nll
from likely.metrics.summary import report
from likely.prompting.selection.answer_bias import CBM, pmi
from likely.uncertainty.types import OptionScores


@pytest.fixture
def options(tmp_path):
    """400 questions with four options, whose scores are twice as sure as they should be."""
    rng = np.random.default_rng(5)
    logits = 2 * rng.normal(0, 2, (400, 4))
    labels = [int(rng.choice(4, p=p)) for p in softmax(logits / 2)]
    path = tmp_path / "options.jsonl"
    lines = [{"logits": row, "label": k} for row, k in zip(logits.tolist(), labels, strict=True)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path, logits, np.array(labels)


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_one_file_of_scores_feeds_map_sets_and_threshold(cli, options, tmp_path, method):
    path, logits, labels = options
    target = tmp_path / "cal.json"
    told = cli("calibrate", "fit", path, "--method", method, "-o", target, "--json").json
    chained = cli("calibrate", "eval", path, "--calibrator", target, "--json").json

    order = np.random.default_rng(0).permutation(400)
    test, train = order[:200], order[200:]
    singly = make(method).fit(logits[train], labels[train])
    probs = singly.predict_proba(logits)
    held_out = json.loads(json.dumps(report(probs[test], labels[test])))
    assert json.loads(json.dumps(told["after"])) == held_out
    for name, value in report(probs, labels).items():
        if isinstance(value, float):
            assert chained[name] == pytest.approx(value, abs=1e-12), name
    assert chained["ece"] < cli("calibrate", "eval", path, "--json").json["ece"]

    calibrator = Calibrator.load(target)
    assert np.array_equal(calibrator.predict(read_labelled(path)), probs)
    decided = certified_threshold(*top_label(probs[test], labels[test]), risk=0.2)
    assert decided is not None and abstention_rule(calibrator, risk=0.2).threshold == decided.threshold
    sets = ConformalSets(alpha=0.2).fit(probs[test], labels[test])
    again = ConformalSets(alpha=0.2).fit(calibrator.predict(read_labelled(path))[test], labels[test])
    assert np.array_equal(sets.predict(probs[train]), again.predict(probs[train]))


def test_options_by_pmi_are_prompt_selections_pmi():
    rng = np.random.default_rng(1)
    logprobs, free = -rng.gamma(2, 4, (30, 3)), -rng.gamma(2, 4, 3)
    ones = np.ones((30, 3), np.int64)
    scores = OptionScores(logprobs, ones, ones, ones.astype(bool), np.tile(free, (30, 1)))
    assert scores.probs("pmi") == pytest.approx(pmi(logprobs, free), abs=1e-12)


def test_marginalisation_mends_a_liking_for_letters_as_both_orders_do_at_half_the_cost():
    """Balanced labels; the letter A is liked by 3 nats.  Averaging both orders asks the model twice."""
    rng = np.random.default_rng(2)
    labels = rng.integers(2, size=1000)
    signal = np.stack([labels == 0, labels == 1], axis=1) + rng.normal(0, 0.8, (1000, 2))
    liked = np.array([3.0, 0.0])
    first, second = softmax(signal + liked), softmax(signal + liked[::-1])
    as_it_is, both = nll(first, labels), nll((first + second) / 2, labels)
    mended = nll(CBM().fit(first).predict_proba(first), labels)
    assert both < as_it_is - 0.5
    assert mended < as_it_is - 0.8 * (as_it_is - both)


def test_auto_is_no_worse_than_nothing_on_scores_that_hold(tmp_path):
    """Negative control: calibrated scores stay what they are."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (600, 3))
    labels = [int(rng.choice(3, p=p)) for p in softmax(logits)]
    path = tmp_path / "fine.jsonl"
    rows = zip(logits.tolist(), labels, strict=True)
    path.write_text("".join(json.dumps({"logits": row, "label": k}) + "\n" for row, k in rows))
    calibrator = fit_calibrator(read_labelled(path))
    assert calibrator.after["nll"] < calibrator.before["nll"] + 0.02
    assert calibrator.after["accuracy"] == pytest.approx(calibrator.before["accuracy"], abs=0.03)
