"""Probes: screens with negative controls, frozen templates, consistency in closed form."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from reading_models import ReadingModel
from scipy.spatial.distance import jensenshannon

from likely.audit.case import Case, CaseRecord, likelihoods, run_audit
from likely.audit.consistency import (
    check_other_model,
    consistency_of,
    consistency_report,
    jensen_shannon,
    probe_variants,
)
from likely.audit.probes import (
    NAIVE,
    STRUCTURED,
    Probe,
    ProbeTemplate,
    load_template,
    meaning_gains,
    probe_of,
    probe_queue,
    question_cases,
    read_probes,
    save_template,
    screen_probe,
    write_probes,
)
from likely.data import load_records
from likely.errors import DataError

QUESTION = "In which year did Ada Lovelace publish her notes on the engine?"
CASES = [Case(f"q{i}", {"question": f"What is the colour of tree {i}?"}, ("green", "blue", "red"), 0) for i in range(6)]


# --- screens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "failed"),
    [
        ("When were the notes on the engine by Ada Lovelace published?", ()),
        ("Ada Lovelace's notes about the engine came out when?", ()),
        ("", ("empty",)),
        ("?!", ("empty",)),
        (QUESTION, ("copy", "duplicate")),
        ("So: " + QUESTION, ("copy",)),
        ("When did she publish her notes on the engine?", ("names",)),
        ("Lovelace, Ada: engine?", ("length",)),
        ("Is it true that Ada met Lovelace at the sea?", ("words",)),
    ],
)
def test_each_screen_finds_its_fault(probe, failed):
    assert screen_probe(QUESTION, probe) == failed


def test_a_second_probe_of_the_same_words_is_a_duplicate():
    probe = "Ada Lovelace's notes about the engine came out when?"
    assert screen_probe(QUESTION, probe.upper(), [probe]) == ("duplicate",)


def test_questions_about_something_else_fail_the_screens():
    """The negative control: of all pairs of different questions at least 95 % are refused."""
    asked = [record["question"] for record in load_records("truthfulqa")][:60]
    refused = [bool(screen_probe(a, b)) for a in asked for b in asked if a != b]
    assert np.mean(refused) >= 0.95


def test_a_likelihood_gain_is_the_difference_of_two_scores():
    class Model:
        def score_pairs(self, pairs):
            return [SimpleNamespace(sequence_logprob=float(len(prompt))) for prompt, _ in pairs]

    [gain] = meaning_gains(Model(), [("abcd", "xyz")])
    assert gain == len(" xyz\nIn other words:") / 4


# --- probes are written -----------------------------------------------------------------------------------------------


class Writer:
    """Writes good probes, and a copy for every third."""

    info = SimpleNamespace(name="writer", sha256="w")

    def __init__(self):
        self.options = []

    def generate(self, prompts, **options):
        self.options.append(options)
        questions = [prompt.rpartition("Question: ")[2].partition("\n")[0] for prompt in prompts]
        return [
            SimpleNamespace(text=f' "{q}" ' if options["seed"] % 3 == 2 else f" Tell me tree {q[-2]}'s colour, {s}.")
            for q in questions
            for s in [options["seed"]]
        ]


def test_probes_are_sampled_screened_and_say_who_wrote_them():
    writer = Writer()
    probes = write_probes(writer, CASES, n=3, temperature=0.7)
    assert len(probes) == 18 and [p.case for p in probes[:4]] == ["q0", "q0", "q0", "q1"]
    assert [p.passed for p in probes[:3]] == [True, True, False] and "copy" in probes[2].failed
    assert [o["seed"] for o in writer.options] == [0, 1, 2] and writer.options[0]["stop"] == ("\n",)
    assert probes[0].origin == {"writer": "writer", "sha256": "w", "template": STRUCTURED.digest}
    record = json.loads(
        json.dumps({"line": 1, "case": "q0", "number": 0, "text": "x", "failed": ["copy"], "origin": {}})
    )
    assert probe_of(record) == Probe("q0", 0, "x", ("copy",), {})
    with pytest.raises(DataError, match="here: no probe"):
        probe_of({"text": "x"}, "here")


def vote_all(queue, votes):
    for annotator, rating in votes.items():
        for i, item in enumerate(queue.items):
            queue.vote(annotator, item, {"relevance": rating(i), "diversity": rating(i)})


def test_lines_that_are_no_probes_are_named(tmp_path):
    file, probe = tmp_path / "probes.jsonl", {"case": "q0", "number": 0, "text": "x", "failed": [], "origin": {}}
    file.write_text(f"{json.dumps({'kind': 'probes'})}\n{json.dumps(probe)}\n")
    assert [found.case for found in read_probes(file)] == ["q0"]
    file.write_text(f"{json.dumps(probe)}\n{json.dumps({'id': 'q1', 'text': 'y'})}\n")
    with pytest.raises(DataError, match=r"probes.jsonl:2: no probe"):
        read_probes(file)
    file.write_text('{"kind": "probes"}\n')
    with pytest.raises(DataError, match=r"holds no probes"):
        read_probes(file)


def test_a_template_is_frozen_by_people_who_agree(tmp_path):
    probes = write_probes(Writer(), CASES, n=2)
    queue = probe_queue(tmp_path / "queue.jsonl", CASES, probes)
    assert len(queue.items) == 12 and set(queue.items["q0/0"].shown) == {"question", "probe", "other probes"}
    assert "writer" not in str(queue.items["q0/0"].shown)
    with pytest.raises(DataError, match="two annotators"):
        STRUCTURED.freeze(queue)
    vote_all(queue, {"anna": lambda i: 3 - (i == 0), "bert": lambda i: 3 - (i == 0)})
    with pytest.raises(DataError, match="another template"):
        NAIVE.freeze(queue)
    frozen = STRUCTURED.freeze(queue)
    assert queue.frozen and frozen.frozen["pass_rate"] == 1 and frozen.frozen["agreement"]["relevance"] == 1
    with pytest.raises(DataError, match="frozen already"):
        frozen.freeze(queue)
    path = tmp_path / "template.json"
    save_template(frozen, path)
    assert load_template(path) == frozen
    path.write_text(path.read_text().replace("other words", "some words"))
    with pytest.raises(DataError, match="edited"):
        load_template(path)


def test_people_who_disagree_or_refuse_stop_the_freeze(tmp_path):
    probes = write_probes(Writer(), CASES, n=2)
    apart = probe_queue(tmp_path / "apart.jsonl", CASES, probes)
    vote_all(apart, {"anna": lambda i: 2 + i % 2, "bert": lambda i: 3 - i % 2})
    with pytest.raises(DataError, match=r"agree on relevance by -1\.00"):
        STRUCTURED.freeze(apart)
    poor = probe_queue(tmp_path / "poor.jsonl", CASES, probes, sample=3)
    assert len(poor.items) == 6
    vote_all(poor, {"anna": lambda i: 1 + i % 2, "bert": lambda i: 1 + i % 2})
    with pytest.raises(DataError, match="50% of the probes pass"):
        STRUCTURED.freeze(poor)
    assert not poor.frozen
    with pytest.raises(ValueError, match="question"):
        ProbeTemplate("x", "no place")


# --- consistency ------------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_scipy_and_bounded():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(4), 2)
        assert jensen_shannon(np.array([p, q])) == pytest.approx(jensenshannon(p, q) ** 2)
    assert jensen_shannon(np.array([p] * 5)) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(np.eye(5)) == pytest.approx(np.log(5))


def record(values, answer=0):
    names = ["original", *(f"probe {i}" for i in range(1, len(values)))]
    fields = [{"values": v, "asked": n, "prediction": int(np.argmax(v)), "right": {"tokens": ["x"], "logprobs": [-1.0]}}
              for n, v in zip(names, values, strict=True)]  # fmt: skip
    return CaseRecord(
        CASES[0].__class__("c", CASES[0].segments, ("a", "b", "c"), answer), dict(zip(names, fields, strict=True))
    )


def test_flips_worst_and_pooled_in_closed_form():
    logs = np.log([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]])
    found = consistency_of(record(logs.tolist()))
    assert found.flips == 0.5 and found.worst == pytest.approx(0.2)
    assert found.pooled == pytest.approx([1.3 / 3, 1.4 / 3, 0.1])
    other = consistency_of(record(logs[[0, 2, 1]].tolist()))
    assert (other.flips, other.dispersion) == (0.5, pytest.approx(found.dispersion))  # the order is no part of it
    alone = consistency_of(record(logs[:1].tolist()))
    assert alone.flips is None and alone.dispersion == 0


@pytest.mark.parametrize("style", ["answers", "letters"])
def test_copies_of_the_question_change_nothing(style):
    copies = [Probe(case.id, i, str(case.segments["question"])) for case in CASES for i in range(3)]

    class ByText(ReadingModel):
        """The likelihood of an option is that of its text, whatever letter it has."""

        def _scored(self, prompt, answer):
            line = next((row for row in prompt.splitlines() if row.startswith(f"{answer.strip()}. ")), answer)
            return super()._scored(f"Question: {'green' if 'green' in line else ''}", " green")

    model = ByText("Question")
    records = run_audit(CASES, probe_variants(copies, style=style), likelihoods(model), header={})
    report = consistency_report(records, header={}, probes=copies, resamples=50)
    assert report.finding("answers", "flip rate").value == 0
    assert report.finding("answers", "dispersion").value == pytest.approx(0, abs=1e-12)
    assert report.finding("answers", "accuracy, the question alone").value == 1
    assert report.finding("answers", "Brier score, pooled less alone").value == pytest.approx(0)
    assert report.finding("answers", "AUROC of dispersion for wrong answers").value is None
    assert report.verdicts[1].endswith("cannot be said: all answers are right, or all wrong.")
    if style == "letters":
        orders = {tuple(f["order"]) for r in records for f in r.variants.values()}
        assert len(orders) > 2  # the options stand in other orders, and likelihoods come back in the case's


def test_inconsistent_answers_that_are_wrong_are_found():
    sure, torn = np.log([[0.8, 0.1, 0.1]] * 2), np.log([[0.3, 0.6, 0.1], [0.7, 0.2, 0.1]])
    records = [record(sure.tolist()) for _ in range(10)] + [record(torn.tolist()) for _ in range(5)]
    report = consistency_report(records, header={}, resamples=50)
    error = report.finding("answers", "AUROC of dispersion for wrong answers")
    assert error.value == 1 and error.low == 1 and "wrong more often" in report.verdicts[1]
    assert report.finding("answers", "accuracy gained by pooling").value == pytest.approx(1 / 3)
    assert report.finding("answers", "flip rate").value == pytest.approx(1 / 3)
    assert report.cases[0]["flips"] == 1.0 and report.examples[0].title.startswith("c, original")


def test_figures_of_consistency_are_those_of_a_plain_loop():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    laws = rng.dirichlet([1, 1, 1], (40, 4))  # 40 cases: a question and three probes
    records = [record(np.log(law).tolist()) for law in laws]
    found = consistency_report(records, header={}, resamples=50)
    flips, apart, wrong, pooled = [], [], [], []
    for case, law in zip(records, laws, strict=True):
        first = max(range(3), key=lambda k: law[0][k])
        flips.append(sum(max(range(3), key=lambda k: row[k]) != first for row in law[1:]) / 3)
        mean = law.mean(0)
        apart.append(np.mean([sum(p * np.log(p / m) for p, m in zip(row, mean, strict=True)) for row in law]))
        wrong.append(first != case.case.answer)
        pooled.append(int(mean.argmax()) == case.case.answer)
    for quantity, value in (
        ("flip rate", np.mean(flips)), ("dispersion", np.mean(apart)),
        ("accuracy, the question alone", 1 - np.mean(wrong)), ("accuracy, pooled over probes", np.mean(pooled)),
        ("AUROC of dispersion for wrong answers", sklearn.roc_auc_score(wrong, apart)),
    ):  # fmt: skip
        assert found.finding("answers", quantity).value == pytest.approx(value), quantity


def test_only_probes_that_passed_are_asked_and_questions_without_any_are_told():
    probes = [Probe("q0", 0, "good"), Probe("q0", 1, "bad", ("copy",))]
    perturb = probe_variants(probes)
    assert [v.name for v in perturb(CASES[0])] == ["original", "probe 1"]
    records = run_audit(CASES, perturb, likelihoods(ReadingModel()), header={})
    report = consistency_report(records, header={}, probes=probes, resamples=50)
    assert report.finding("probes", "pass the screens").value == 0.5
    assert report.finding("answers", "flip rate").n == 1 and "5 of 6" in report.verdicts[-1]


def test_the_writer_must_be_another_model():
    check_other_model(["a", None], "b")
    check_other_model([None], None)
    with pytest.raises(DataError, match="take another writer"):
        check_other_model(["a", "b"], "b")


def test_questions_from_records():
    good = {"question": "q?", "choices": ["a", "b"], "answer": "b"}
    assert question_cases([good])[0].answer == 1
    with pytest.raises(DataError, match="file:1"):
        question_cases([{"question": "q?"}], "file")
    with pytest.raises(DataError, match="an id of its own"):
        question_cases([{**good, "id": 1}, {**good, "id": "1"}], "file")
    with pytest.raises(DataError, match="needs"):
        probe_variants([])(Case("x", {"question": "q?"}, reference="a"))
