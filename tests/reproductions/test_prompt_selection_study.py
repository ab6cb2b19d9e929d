"""The study of prompt selection: known numbers of the published scores, its bounds, and what they must notice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.evidence import Source
from likely.metrics.checks import log_softmax
from likely.prompting.selection.answers import f1_of_prompts, macro_f1
from likely.prompting.selection.choosing import calibrated_probs, select
from likely.prompting.selection.scores import PromptScores

TINY = [Source(name="tiny", sha256="0" * 64)]


@pytest.fixture(scope="module")
def study():
    return script("prompt_selection")


@pytest.fixture(scope="module")
def published(study, data_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELY_DATA", str(data_dir))
        yield study.published()


def made(bias, *, seed=0, prompts=8, inputs=60, signal=2.0):
    """A set whose prompts see the label equally well and prefer answers by `bias` times a draw of their own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(inputs) % 2
    z = rng.normal(0, 1, (prompts, inputs, 2)) + signal * np.eye(2)[labels]
    logprobs = log_softmax(z + bias * rng.normal(0, 1, (prompts, 1, 2)))
    free = rng.normal(0, 1, (3, prompts, 2))
    return PromptScores(
        names=tuple(map(str, range(prompts))), logprobs=logprobs, tokens=np.ones(logprobs.shape, np.int64),
        content_free=free, content_free_tokens=np.ones(free.shape, np.int64), without=("", "N/A", "[MASK]"),
        labels=labels,
    )  # fmt: skip


def test_the_official_outputs_and_the_known_counts(study, published, monkeypatch, data_dir):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    assert study.official_difference(published) < 1e-12
    assert [study.improved(published, repair) for repair in study.REPAIRS] == [(96, 100), (58, 100), (48, 100)]
    assert study.official_difference(replace(published, labels=1 - published.labels)) > 0.01


def test_the_study_runs_on_scores_of_a_tiny_model(study, tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=512)
    some = {
        name: (pool, [{**r, "text": r["text"][:12]} for r in records])
        for name, (pool, records) in study.tasks(3, 6, 12).items()
    }
    lines: list[str] = []

    def scored(opened):
        return study.score_sets({"tiny": opened}, some, {"tiny": "0"}, tmp_path, lines.append)

    sets = scored(lambda: likely.load(str(path), runtime="llamacpp", threads=1))
    assert list(sets) == ["tiny: sentiment", "tiny: questions"] and len(lines) == 2
    found = study.study(sets, full=False, sources=TINY, resamples=5)
    assert found.id == "prompt_selection" and len(found.checks) == 10
    assert len({check.statement for check in found.checks}) == 10
    assert all(f.low <= f.value <= f.high for f in found.figures)

    class NoModel:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    again = scored(NoModel)  # all scores are kept: the model is not asked
    assert all(np.array_equal(again[name].logprobs, sets[name].logprobs) for name in sets)


def test_numbers_are_those_of_the_parts(study):
    scores = made(2.0)
    found = study.measured(scores)
    best = f1_of_prompts(calibrated_probs(scores, "cbm"), scores.labels).max()
    chosen = select(scores, "MI_G", calibrate_choice="cbm", calibrate_answers="cbm")
    f1 = macro_f1(chosen.answers, scores.labels, 2)
    assert found["MI_G", "F1, PA"] == f1 and found["MI_G", "scaled F1, PA"] == f1 / best
    plain = f1_of_prompts(scores.probs(), scores.labels)
    assert found["all prompts, plain", "mean F1"] == pytest.approx(plain.mean())


def checks(study, scores):
    return {c.statement: c.holds for c in study.compared({"made": scores}, 5)[1]}


def test_cbm_is_confirmed_where_prompts_are_biased_and_not_where_they_are_not(study):
    biased, fair = checks(study, made(3.0, seed=1)), checks(study, made(0.0, seed=1))
    helps = "CBM raises the F1 of the answers for more than three quarters of the prompts"
    assert biased[helps] and biased["and for more of them than contextual calibration or PMI do"]
    assert not fair[helps]


def test_the_sets_are_what_they_are_said_to_be(study, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    found = study.tasks(12, 80, 120)
    pool, reviews = found["sentiment"]
    assert len(pool) == 12 and len(reviews) == 80 and sum(r["label"] for r in reviews) == 40
    pool, asked = found["questions"]
    assert len(pool) == 12 and len(asked) == 120 and all(sum(r["label"] == k for r in asked) == 20 for k in range(6))
    assert len({t.source for t in pool}) == 12
    assert len(study.question_pool()) == 24 and len({t.source for t in study.question_pool()}) == 24


def test_natural_shares_are_those_of_the_data_set(study, data_dir, monkeypatch):
    """Of twenty questions of each kind, the most frequent kind keeps all and the rarest one."""
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    scores = made(1.0, inputs=120)
    scores = replace(scores, labels=np.arange(120) % 6)
    kept = study.natural(scores)
    counts = np.bincount(kept.labels, minlength=6)
    assert counts.max() == 20 and counts[0] == 1 and (np.diff(counts[[0, 4, 5, 1, 3, 2]]) >= 0).all()
    assert kept.logprobs.shape == (8, counts.sum(), 2)
    assert np.array_equal(kept.logprobs[:, kept.labels == 2], scores.logprobs[:, scores.labels == 2])
