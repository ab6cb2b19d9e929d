"""The study of self-supervision on a tiny model: it runs, keeps its scores, and its parts see what they should."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.evidence import Source
from likely.weak_supervision.harmonizer import Harmonizer
from likely.weak_supervision.labelling_rules import LabelingFunction
from likely.weak_supervision.reasking import Example, LabelTask

pytest.importorskip("torch")
WORDS = {"ham": ["home", "lunch", "thanks", "later"], "spam": ["free", "prize", "cash", "winner"]}


@pytest.fixture(scope="module")
def study():
    return script("pareto_self_supervision")


def made_case(study):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=120)
    texts = [" ".join(rng.choice(WORDS["spam" if y else "ham"], size=3)) for y in labels]
    rules = [LabelingFunction(w, w, k) for k, name in enumerate(WORDS) for w in WORDS[name][:3]]
    task = LabelTask("Spam?", ("ham", "spam"), "Message", (Example("free cash", 1), Example("home later", 0)))
    return study.Case("sms-spam", task, rules, texts[:70], 20, texts[70:80], texts[80:], labels[80:])


def test_the_study_runs(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 20)
    monkeypatch.setattr(study, "Harmonizer", functools.partial(Harmonizer, learning_rate=0.02, epochs=15))
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=1024)
    with likely.load(str(path), runtime="llamacpp", threads=1) as lm:
        found = study.study(
            [("tiny", lm, study.Kept(tmp_path / "kept.jsonl", "0"))], [made_case(study)], full=False,
            sources=[Source(name="tiny", sha256="0" * 64)], report=lambda line: None,
        )  # fmt: skip
    assert len(found.checks) == 6 and all(f.low <= f.value <= f.high for f in found.figures)
    by = {(f.subject, f.quantity): f.value for f in found.figures}
    assert by["SMS, tiny: harmonizer", "accuracy"] > 0.9 and by["SMS, tiny: riskiest fifth, override", "before"] < 0.5
    assert by["SMS, tiny: POLAR", "AUROC"] > 0.9 and ("SMS, tiny: POLAR, training file only", "AUROC") in by


def test_kept_scores_are_not_computed_again(study, tmp_path):
    class Model:
        def score_pairs(self, pairs, *, progress=None):
            return [SimpleNamespace(sequence_logprob=-float(len(p + a)), token_logprobs=[0.0]) for p, a in pairs]

    path = tmp_path / "kept.jsonl"
    prompts, labels = ["one", "three", "one"], ("a", "bc")
    first = study.Kept(path, "model").scores(Model(), prompts, labels)
    assert first.tolist() == [[-5, -6], [-7, -8], [-5, -6]]
    path.write_text(path.read_text() + '{"key": "cut')
    again = study.Kept(path, "model")
    assert again.earlier == 2 and again.scores(None, prompts, labels).tolist() == first.tolist()
    with pytest.raises(AttributeError):
        study.Kept(path, "another").scores(None, prompts, labels)


def test_risks_of_the_model_alone(study):
    p = np.array([[0.5, 0.5], [1.0, 0.0], [0.1, 0.9]])
    found = study.own_risks(p, np.array([0, 0, 1]))
    np.testing.assert_allclose(found["option entropy"], [1, 0, 0.469], atol=1e-3)
    np.testing.assert_allclose(found["1 − probability"], [0.5, 0, 0.1])
    assert found["sample disagreement"][1] == 0
    many = study.own_risks(np.tile([0.2, 0.3, 0.5], (4000, 1)), np.full(4000, 2))["sample disagreement"]
    assert many.mean() == pytest.approx(0.5, abs=0.02)  # 40,000 draws: eight standard errors


def test_an_advantage_has_its_sign(study):
    wrong = np.array([0, 0, 1, 1])
    good, bad = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.9, 0.8, 0.2, 0.1])
    assert study.advantage(good, {"x": bad, "y": np.full(4, 0.5)}, wrong) == ("y", 0.5)
    assert study.advantage(bad, {"x": good}, wrong) == ("x", -1.0)


@pytest.mark.parametrize("name", ["sms-spam", "trec"])
def test_no_judged_text_is_seen_before(study, name):
    work = study.case(name, test=100, answered=5, near=50)
    judged = {" ".join(text.lower().split()) for text in work.test}
    assert len(work.test) == len(work.labels) == 100 and 40 < len(work.near) <= 50
    shown = [example.text for example in work.task.examples]
    assert not judged & {" ".join(text.lower().split()) for text in [*shown, *work.near, *work.train]}
    assert {example.label for example in work.task.examples} == set(range(len(study.CLASSES[name])))
