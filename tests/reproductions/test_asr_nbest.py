"""The study of n-best prompts on a tiny model and made-up lists: it runs, resumes, and tells a gain from none."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script

pytest.importorskip("peft")

from tiny_gguf import write_tiny_llama

import likely
from likely.errors import DataError
from likely.evidence import Source
from likely.prompting.speech.nbest import NBest

WORDS = {"alarm": "wake me", "timer": "set timer", "message": "see you later"}


@pytest.fixture(scope="module")
def modules():
    return script("asr_nbest"), script("spoken_lists")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("asr") / "tiny.gguf", dim=64, context=1024)
    with likely.load(str(path), runtime="torch", threads=1) as model:
        yield model


def spoken(lists, split, count):
    found = []
    for i in range(count):
        label = list(WORDS)[i % 3]
        heard = NBest([f"{WORDS[label][1:]} {i}", f"{WORDS[label]} {i}", "so"], [-5.0, -9.0, -30.0])
        utterance = lists.Utterance(f"{WORDS[label].title()}, {i}!", "slt", (20.0, 30.0)[i % 2], "made up", heard)
        found.append(lists.Spoken(f"{split}-{i}", label, split, utterance))
    return found


def test_the_study_runs_and_a_second_run_computes_nothing(modules, lm, tmp_path, monkeypatch):
    study, lists = modules
    train, test = spoken(lists, "train", 12), spoken(lists, "test", 9)
    plan = study.Plan(steps=2, seeds=2, batch=4, precision="float32")

    def run():
        return study.study(
            lm, train, test, plan, keep=tmp_path, full=False, models=[Source(name="tiny", sha256="0" * 64)],
            report=lambda line: None,
        )  # fmt: skip

    found = run()
    assert found.id == "asr_nbest" and len(found.checks) == 2
    names = {f.subject for f in found.figures}
    assert {study.ONE, study.FIVE, study.SAID, study.MARGINAL, study.ROVER} <= names
    by = {(f.subject, f.quantity): f.value for f in found.figures}
    assert by["recogniser, all", "WER, best of 5"] == 0 < by["recogniser, all", "WER, 1-best"]
    monkeypatch.setattr(study, "train_lora", None)
    again = run()
    assert again.figures == found.figures and again.seconds == found.seconds > 0
    with pytest.raises(TypeError):  # other pairs are another model
        study.study(lm, train[1:], test, plan, keep=tmp_path, full=False, models=found.models, report=print)


def judged(study, wrong, nats=1.0):
    wrong = np.array(wrong, float)
    return study.Judged(wrong, wrong, np.full(len(wrong), nats))


def test_a_gain_is_support_and_a_tie_is_not(modules):
    study, lists = modules
    test = spoken(lists, "test", 60)
    base = judged(study, [1, 0] * 30)
    for five, holds in (([1, 0, 0, 0] * 15, True), ([1, 0] * 30, False), ([1, 1] * 30, False)):
        figures, checks, said = study.numbers({study.ONE: base, study.FIVE: judged(study, five)}, test)
        assert [check.holds for check in checks] == [holds, holds]
        by = {(f.subject, f.quantity): f.value for f in figures}
        assert by[f"{study.FIVE} − {study.ONE}", "change, wrong"] == pytest.approx(100 * np.mean(five) - 50)
        assert by[f"{study.FIVE} − {study.ONE}", "errors fewer by"] == pytest.approx(1 - np.mean(five) / 0.5)
        assert f"{study.FIVE}: {np.mean(five):.1%} wrong" in said


def test_what_is_judged_is_the_mean_over_seeds(modules):
    study, _ = modules
    none, k = len(study.TASK.answers) - 1, len(study.TASK.answers)
    sure = np.full((3, k), 0.1 / (k - 1))
    sure[[0, 1, 2], [0, none, none]] = 0.9
    unsure = np.full((3, k), 1 / k)
    found = study.Judged.of([sure, unsure], np.array([0, none, 1]))
    assert found.wrong.tolist() == [0, 0.5, 1]  # of equal ones the first is taken
    assert found.misdirected.tolist() == [0, 0.5, 0.5]
    assert found.nats[0] == pytest.approx((-np.log(0.9) + np.log(k)) / 2)


def test_the_scale_comes_from_the_other_half(modules, monkeypatch):
    study, lists = modules
    test, seen = spoken(lists, "test", 8), []

    class Fake:
        def score_pairs(self, pairs, **options):
            return [study.SimpleNamespace(sequence_logprob=-float(len(a)), token_logprobs=[-1.0]) for _, a in pairs]

    def fit(self, utterances, labels):
        seen.append([n.hyps[1] for n in utterances])
        return self

    monkeypatch.setattr(study.SpokenIntentClassifier, "fit_kappa", fit)
    study.judge(Fake(), study.WAYS[0], test)
    texts = [one.utterance.nbest.hyps[1] for one in test]
    assert seen == [texts[1::2], texts[0::2]]


def test_lists_grow_and_go_on_where_they_were_cut(modules, tmp_path):
    _, lists = modules
    path = tmp_path / "deep" / "lists.jsonl"
    wanted = [lists.Text(f"id-{i}", "alarm", "train", f"wake me {i}") for i in range(3)]
    heard = []

    def hear(one):
        heard.append(one.id)
        return lists.Utterance(one.text, "slt", None, "made up", NBest(["wake"], [0.0]))

    assert lists.make_lists(path, wanted[:2], hear) == 2
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # killed while the second line was written
    assert lists.make_lists(path, wanted, hear) == 2 and heard == ["id-0", "id-1", "id-1", "id-2"]
    assert path.read_bytes().startswith(whole) and lists.make_lists(path, wanted, hear) == 0
    assert [one.utterance.text for one in lists.chosen(lists.read_lists(path), wanted)] == [w.text for w in wanted]
    with pytest.raises(DataError, match=r"lack id-1 .*spoken_lists\.py"):
        list(lists.chosen(lists.read_lists(path), [lists.Text("id-1", "alarm", "train", "other")]))
    path.write_text('{"id": 1}\n')
    with pytest.raises(DataError, match=r"lists\.jsonl:1: id, label"):
        lists.read_lists(path)


def test_texts_hold_all_labels_early_and_are_split_once(modules):
    _, lists = modules
    try:
        few, everything = lists.texts(full=False), lists.texts(full=True)
    except DataError as error:
        pytest.skip(str(error))
    assert (len(few), len(everything)) == (1049, 1289) and set(few) <= set(everything)
    assert len({one.id for one in everything}) == 1289
    for part in (few, few[:120]):
        assert {one.label for one in part} == {*lists.INTENTS, lists.MESSAGE}
        assert abs(np.mean([one.split == "train" for one in part]) - 400 / 1049) < 0.05
    spoken = {split: {one.text for one in everything if one.split == split} for split in ("train", "test")}
    assert not spoken["train"] & spoken["test"]
