"""The study of self-ensembles: it runs on a tiny model, its numbers are those of its parts, its bounds can fail."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.evidence import Source
from likely.metrics.bins import ece
from likely.metrics.checks import softmax
from likely.prompting.ensembles.combining import combine_members
from likely.prompting.ensembles.demonstrations import FewShotTask, record_fingerprint
from likely.prompting.templates import PromptPool, Template

pytest.importorskip("peft")
STAYS = "while their ECE stays 0.05 or more above what exact confidences would show"
POOL = PromptPool((Template("a", "{{ text }} is", ("sun", "mat")), Template("b", "the {{ text }}:", ("cat", "dog"))))


@pytest.fixture(scope="module")
def study():
    return script("self_ensembling")


def made(study, texts, shown):
    records = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    return study.Problem(
        FewShotTask(POOL, tuple(records[:shown])), records[shown:], np.array([r["label"] for r in records[shown:]])
    )


def test_the_study_runs_and_goes_on_where_it_was(study, tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=256)
    plan = study.Plan(examples=4, size=2, shots=2, sft=(2, 2), sicl=(1, 2), resamples=3)
    some = {"words": made(study, ["the", "cat", "mat", "on", "and", "sat", "dog", "tea"], 4)}
    source = [Source(name="tiny", sha256="0" * 64)]
    lines: list[str] = []
    with likely.load(str(path), runtime="torch") as lm:
        before = lm.score_pairs([("the cat", " sat")])[0].sequence_logprob
        found = study.study(lm, some, plan, tmp_path, full=False, sources=source, report=lines.append)
        assert lm.score_pairs([("the cat", " sat")])[0].sequence_logprob == before  # adapters are gone
        again = study.study(lm, some, plan, tmp_path, full=False, sources=source, report=lines.append)
    assert len(lines) == 2 * (1 + 3 + 1 + 3) and found.id == "self_ensembling" and len(found.checks) == 5
    assert [f.value for f in found.figures] == [f.value for f in again.figures]
    assert all(f.low <= f.value <= f.high for f in found.figures if f.quantity != "ECE if exact")
    assert {p.name for p in tmp_path.glob("words-*")} >= {"words-SFT", "words-SICL", "words-ICL.npz"}


def test_numbers_are_those_of_the_parts(study):
    rng = np.random.default_rng(0)
    members, labels = softmax(rng.normal(0, 1, (3, 40, 2))), rng.integers(0, 2, 40)
    found = study.measured(members, labels)
    assert found["single", "accuracy"] == pytest.approx(np.mean([(p.argmax(1) == labels).mean() for p in members]))
    each = [ece(p.max(1), (p.argmax(1) == labels).astype(int), bins=10) for p in members]
    assert found["single", "ECE"] == pytest.approx(np.mean(each))
    vote = combine_members(members, "vote")
    assert found["vote", "accuracy"] == (vote.answers == labels).mean()
    assert found["vote", "ECE"] == pytest.approx(ece(vote.confidence, vote.answers == labels, bins=10))


def opinions(members, n, noise, seed, *, own=2.0, sure=6.0):
    """(E, N, 2) and labels: members share the noise on the label, and are sure in spite of more noise of their own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    z = np.eye(2)[labels] + noise * rng.normal(0, 1, (n, 2)) + own * rng.normal(0, 1, (members, n, 2))
    return softmax(sure * z), labels


def cells(study, seed=0):
    fine, labels = opinions(3, 400, 2.0, seed)
    worse, _ = opinions(3, 400, 4.0, seed + 1)
    return {"made": ({"ZSL Var-Prompt": worse, "SFT Var-Prompt": fine}, labels)}


def test_overconfident_members_confirm_the_claim_and_copies_do_not(study):
    holds = {c.statement: c.holds for c in study.compared(cells(study), 3)[1]}
    assert holds["combined by max, the mean ECE is at most four fifths of that of single prompts"]
    assert holds["and the mean accuracy at most one point lower"]
    raised = "fine-tuning (SFT) raises the accuracy of single prompts over that without examples (ZSL)"
    assert holds[raised] and holds[STAYS]
    found = cells(study)["made"]
    copies = {name: np.repeat(members[:1], 3, axis=0) for name, members in found[0].items()}
    turned = {"ZSL Var-Prompt": copies["SFT Var-Prompt"], "SFT Var-Prompt": copies["ZSL Var-Prompt"]}
    holds = {c.statement: c.holds for c in study.compared({"made": (turned, found[1])}, 3)[1]}
    assert not holds["combined by max, the mean ECE is at most four fifths of that of single prompts"]
    assert not holds[raised]


def test_noise_on_few_items_is_no_miscalibration(study):
    """Exact confidences show an ECE of more than 0.1 on 60 items; beside what they must show that is nothing."""
    rng = np.random.default_rng(0)
    found = {}
    for task in ("one", "two", "three"):
        p = rng.dirichlet(np.full(6, 0.7), 60)
        labels = np.array([rng.choice(6, p=row) for row in p])
        members = np.repeat(p[None], 2, axis=0)
        found[task] = {"ZSL Var-Prompt": members, "SFT Var-Prompt": members}, labels
    figures, checks, _ = study.compared(found, 50)
    value = {(f.subject, f.quantity): f.value for f in figures}
    exact = value["mean of all SFT: single", "ECE if exact"]
    assert value["mean of all: single", "ECE"] > 0.1 and exact > 0.08
    check = next(c for c in checks if c.statement == STAYS)
    assert not check.holds and check.value == pytest.approx(exact - value["mean of all: single", "ECE"])


def test_no_test_item_is_an_example(study, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    for one in study.problems(study.Plan(), 80).values():
        shown = {record_fingerprint(r, one.task.pool) for r in one.task.examples}
        assert len(one.task.examples) == 32 and len(one.inputs) == 80
        assert not shown & {record_fingerprint(r, one.task.pool) for r in one.inputs}
        counts = np.bincount(one.task.labels)
        assert counts.max() - counts.min() <= 1 and set(one.labels) == set(range(len(counts)))
