"""The study of h-calibration on made-up logits: its measures, ranks and checks, and that a loss is not support."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scripts import script

from likely.calibration.labelled import Labelled
from likely.evidence import Source
from likely.metrics import bins
from likely.metrics.checks import softmax, top_label
from likely.metrics.proper import nll

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def study():
    return script("h_calibration")


def labelled(n=240, k=3, seed=0):
    """Twice too sure."""
    rng = np.random.default_rng(seed)
    z = 4 * rng.standard_normal((n, k))
    odds = np.exp(z / 2)
    return Labelled(
        "logits", z, (rng.random((n, 1)) * odds.sum(axis=1, keepdims=True) > odds.cumsum(axis=1)).sum(axis=1)
    )


def test_the_study_runs(study):
    found = study.study(
        {"made up": labelled, "again": lambda: labelled(seed=1)}, fit_rows=120, steps=2, resamples=5, splits=2,
        full=False, models=[Source(name="none", sha256="0" * 64)], data=[], started=time.perf_counter(),
        report=lambda line: None,
    )  # fmt: skip
    assert found.id == "h_calibration" and found.mode == "quick" and len(found.checks) == 3
    by = {(f.subject, f.quantity): f.value for f in found.figures}
    assert len(by) == len(found.figures) == 2 * 8 * 7 + 8
    assert by["made up: temperature", "NLL"] < by["made up: uncalibrated", "NLL"] - 0.03
    assert by["made up: h-calibration", "accuracy"] == by["made up: uncalibrated", "accuracy"]
    assert found.checks[2].value == 0 and found.checks[2].holds


def test_measures_are_those_of_the_package_on_any_rows(study):
    data = labelled()
    probs = softmax(data.x)
    one = study.Predicted.of(probs, data.labels)
    rows = np.sort(np.random.default_rng(1).integers(0, len(data), len(data)))
    p, y = probs[rows], data.labels[rows]
    confidence, correct = top_label(p, y)
    expected = [
        bins.ece(confidence, correct), bins.ece(confidence, correct, binning="mass"),
        bins.debiased_ce(confidence, correct), bins.classwise_ece(p, y), bins.ks_error(confidence, correct), nll(p, y),
    ]  # fmt: skip
    assert one.measures(rows) == pytest.approx(expected, abs=1e-12)


def test_each_family_of_measures_is_that_of_the_map_chosen_for_it(study):
    data = labelled()
    rows = np.arange(len(data))
    by = {s: study.Predicted.of(softmax(data.x / t), data.labels) for s, t in (("dece", 1), ("cwece", 2), ("nll", 3))}
    found = study.Chosen(by).measures(rows)
    for name, value, select in zip(study.MEASURES, found, study.SELECTED_BY.values(), strict=True):
        assert value == by[select].measures(rows)[study.MEASURES.index(name)]
    assert [study.SELECTED_BY[name] for name in ("ECE", "class-wise ECE", "NLL")] == ["dece", "cwece", "nll"]


def made(study, h, temperature, noise=0.01):
    """A task on which all measures of h-calibration and temperature are these, of all others 0.5."""
    names = list(study.METHODS)
    measured = np.full((len(names), len(study.MEASURES)), 0.5)
    measured[names.index(study.H)], measured[names.index(study.TEMPERATURE)] = h, temperature
    drawn = measured + noise * np.random.default_rng(0).standard_normal((200, *measured.shape))
    return study.Task("X", 100, 50, 3, measured, drawn, np.full(len(names), 0.7), 0, ["piecewise"])


def test_a_win_holds_and_a_loss_and_a_tie_do_not(study):
    checks, said = study.judged([made(study, 0.1, 0.3)])
    assert [c.holds for c in checks] == [True, True, True] and "it is best in 6 of 6" in said
    checks, said = study.judged([made(study, 0.6, 0.3)])
    assert [c.holds for c in checks] == [False, False, True] and "worse in ECE, ECE, equal mass" in said
    checks, _ = study.judged([made(study, 0.3, 0.3, noise=0.001)])
    assert not checks[1].holds


def test_mean_ranks_share_ties(study):
    one = made(study, 0.1, 0.3)
    ranks = study.mean_ranks([one], lambda t: t.measured)
    names = list(study.METHODS)
    assert ranks[names.index(study.H)] == 1 and ranks[names.index(study.TEMPERATURE)] == 2
    assert ranks[names.index("vector")] == np.mean(range(3, 9))
    assert study.mean_ranks([one], lambda t: t.drawn).shape == (200, 8)


def test_option_scores_are_kept(study, tmp_path):
    kept = tmp_path / f"arc-easy.{'a' * 16}.2.jsonl"
    kept.write_text('{"logits": [-1.0, -2.0, -3.0, -4.0], "label": 1}\n')
    found = study.option_scores("no-such-model", "a" * 64, 2, tmp_path)
    assert found.kind == "logits" and found.x.tolist() == [[-1, -2, -3, -4]] and found.labels.tolist() == [1]
