"""The published scores of SST-2 under OPT-2.7B: what the official code chose, and known answers for every method."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from likely.data import find_path, load_arrays
from likely.prompting.selection.answer_bias import CBM
from likely.prompting.selection.answers import accuracy, f1_of_prompts, macro_f1, scaled_f1
from likely.prompting.selection.choosing import calibrated_probs, select
from likely.prompting.selection.scores import PromptScores

SET = "prompt-selection-sst2-opt2.7b"
SCENARIOS = {"X": (None, None), "A": (None, "cbm"), "P": ("cbm", None), "PA": ("cbm", "cbm")}


@pytest.fixture(scope="module")
def scores(data_dir):
    d = load_arrays(SET, data_dir=data_dir)
    logprobs = d["log_prob"].astype(np.float64)
    free = np.stack([d[f"log_prob_{name}"] for name in ("empty", "na", "mask")]).astype(np.float64)
    return PromptScores(
        names=tuple(f"prompt_{t:02}" for t in range(100)),
        logprobs=logprobs, tokens=np.ones(logprobs.shape, np.int64),
        content_free=free, content_free_tokens=np.ones(free.shape, np.int64), without=("", "N/A", "[MASK]"),
        input_logprobs=np.log(d["p_input"].astype(np.float64)), labels=d["targets"].astype(np.int64),
    )  # fmt: skip


@pytest.fixture(scope="module")
def official(data_dir):
    text = find_path(SET, "expected.json", data_dir=data_dir).read_text()
    by = {("MI_GL" if "select_for_each_x=True" in key else "MI"): value for key, value in json.loads(text).items()}
    assert by.keys() == {"MI", "MI_GL"}
    return by


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("method", ["MI", "MI_GL"])
def test_the_official_outputs(scores, official, method, scenario):
    expected = official[method][scenario]
    choice, answers = SCENARIOS[scenario]
    found = select(scores, method, calibrate_choice=choice, calibrate_answers=answers)
    assert accuracy(found.answers, scores.labels) == pytest.approx(expected["accuracy"], abs=1e-12)
    assert macro_f1(found.answers, scores.labels, 2) == pytest.approx(expected["macro_f1"], abs=1e-12)
    assert found.name == expected["prompt"]
    if found.per_input:
        assert [found.names[t] for t in found.choice[:20]] == expected["prompt_per_instance_first20"]


@pytest.mark.parametrize(
    ("method", "prompt", "f1"),
    [
        ("MI", 2, 0.5001), ("MI_G", 5, 0.8661), ("GE", 31, 0.7695), ("GE_M", 70, 0.7430), ("LE", 96, None),
        ("MDL_M", 33, 0.3292), ("ZLP", 83, 0.6984), ("ZPM", 83, 0.6984), ("ZMV", 83, 0.6984),
    ],
)  # fmt: skip
def test_what_each_method_chooses(scores, method, prompt, f1):
    found = select(scores, method)
    assert found.choice == prompt and found.ranking[0] == prompt
    if f1 is not None:
        assert macro_f1(found.answers, scores.labels, 2) == pytest.approx(f1, abs=5e-5)


def test_mi_g_finds_the_best_of_the_hundred(scores):
    each = f1_of_prompts(scores.probs(), scores.labels)
    assert scaled_f1(macro_f1(select(scores, "MI_G").answers, scores.labels, 2), each) == 1
    found = select(scores, "MI", calibrate_answers="cbm")
    best = f1_of_prompts(found.all_probs, scores.labels)
    assert scaled_f1(macro_f1(found.answers, scores.labels, 2), best) == 1


@pytest.mark.parametrize(
    ("calibration", "better", "mean", "best"),
    [(None, 0, 0.585, 0.866), ("cbm", 96, 0.723, 0.918), ("cc", 58, 0.636, None), ("pmi", 48, 0.577, None)],
)
def test_how_many_prompts_answer_better(scores, calibration, better, mean, best):
    plain = f1_of_prompts(scores.probs(), scores.labels)
    each = f1_of_prompts(calibrated_probs(scores, calibration), scores.labels)
    assert (each > plain).sum() == better and each.mean() == pytest.approx(mean, abs=5e-4)
    if best:
        assert each.max() == pytest.approx(best, abs=5e-4)


def test_perplexity_has_the_right_sign(scores):
    """The lowest wins (prompt 99); the official code for whole tasks takes the highest (prompt 8)."""
    ppl = scores.perplexity.mean(axis=1)
    assert select(scores, "PPL").choice == 99 == ppl.argmin() and ppl.argmax() == 8


def test_nothing_depends_on_the_order_of_inputs_or_the_names_of_classes(scores):
    rng = np.random.default_rng(0)
    order = rng.permutation(872)
    for calibration in (None, "cbm", "cc", "pmi"):
        plain = calibrated_probs(scores, calibration)
        moved = replace(
            scores, logprobs=scores.logprobs[:, order, ::-1], tokens=scores.tokens[:, order, ::-1],
            content_free=scores.content_free[..., ::-1], labels=1 - scores.labels[order],
            input_logprobs=scores.input_logprobs[:, order],
        )  # fmt: skip
        np.testing.assert_allclose(calibrated_probs(moved, calibration), plain[:, order, ::-1], atol=1e-12)
        assert select(moved, "MI_G", calibrate_choice=calibration).choice == select(
            scores, "MI_G", calibrate_choice=calibration
        ).choice  # fmt: skip


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for k in (2, 3, 6):
        labels, answers = rng.integers(0, k, 40), rng.integers(0, k, 40)
        answers[answers == 0] = 1  # a class that is never answered
        assert macro_f1(answers, labels, k) == pytest.approx(f1_score(labels, answers, average="macro"), abs=1e-12)
    assert macro_f1([0, 0], [0, 0], 3) == 1
    with pytest.raises(ValueError, match="row 1 is 3"):
        macro_f1([0, 3], [0, 1], 3)
    with pytest.raises(ValueError, match="not defined"):
        scaled_f1(0.0, np.zeros(3))


def test_half_of_the_inputs_are_enough_for_the_recalibrator(scores):
    """A label-free map fitted on 200 inputs answers 672 others better, under most prompts."""
    P, labels = scores.probs(), scores.labels
    better = 0
    for p in P:
        fitted = CBM().fit(p[:200])
        better += macro_f1(fitted.predict_proba(p[200:]).argmax(1), labels[200:], 2) > macro_f1(
            p[200:].argmax(1), labels[200:], 2
        )
    assert better >= 90
