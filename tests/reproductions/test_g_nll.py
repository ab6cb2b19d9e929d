"""The study of G-NLL: its exact parts against slow readings, and what does not count as support."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.evidence import Source


@pytest.fixture(scope="module")
def study():
    pytest.importorskip("torch")
    return script("g_nll")


@pytest.fixture(scope="module")
def book(study):
    return importlib.import_module("closed_book")


@pytest.fixture(scope="module")
def language(study):
    laws = study.languages(6, 0)
    return laws, study.train(laws, steps=30)


def test_languages_are_laws(study):
    laws = study.languages(40, 0)
    assert len(laws) == 40 and laws == study.languages(40, 0)
    assert all(sum(law.values()) == pytest.approx(1) for law in laws.values())
    assert {len(law) for law in laws.values()} == set(range(1, 7))
    assert all(0 < len(text) < study.LONGEST for law in laws.values() for text in law)


def test_the_most_likely_text_is_that_of_scoring_every_text(study, language):
    """Every text of two letters or fewer with its end, and the cut ones, scored one by one; the rest is less likely."""
    laws, lm = language
    name = next(iter(laws))
    best = study.most_likely(lm, name)
    texts = ["".join(t) for n in range(1, 5) for t in itertools.product(study.LETTERS[:3], repeat=n)]
    eos = lm.tokenizer.eos_id
    from likely.scoring.likelihood import Item, score_items

    given = tuple(lm.encode_prompt(name))
    items = [Item((*given, *lm.tokenizer.encode(text), eos), len(given)) for text in texts]
    assert best >= np.exp(max(sum(s.logprobs) for s in score_items(lm.runtime, items))) - 1e-6
    gathered = study.gather(lm, [name], needs=["m_nll"], max_tokens=study.LONGEST, beams=64)
    wide = study.estimate(gathered, ["m_nll"])["m_nll"].values[0]
    assert -np.log(best) == pytest.approx(wide, abs=1e-4)


def answered(study, certainty, correct, tokens=(10, 100)):
    return study.Answered(
        {name: np.asarray(certainty[name], float) for name in study.METHODS}, np.asarray(correct), tokens
    )


def test_a_better_single_answer_is_support_and_a_worse_one_is_not(study, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 50)
    correct = [1, 1, 1, 0, 0, 0] * 4
    good, bad = np.array(correct) + np.linspace(0, 0.1, 24), np.linspace(0, 1, 24)
    better = {name: good if name == "g_nll" else bad for name in study.METHODS}
    figures, checks, said = study.compared({"m: t": answered(study, better, correct)})
    assert [c.holds for c in checks] == [True, True, True] and "1.000" in said
    assert all(f.low is None or f.low <= f.value <= f.high for f in figures)
    worse = {name: bad if name == "g_nll" else good for name in study.METHODS}
    assert [c.holds for c in study.compared({"m: t": answered(study, worse, correct)})[1]] == [False, False, True]
    tied = dict.fromkeys(study.METHODS, good)
    dear = study.compared({"m: t": answered(study, tied, correct, (50, 100))})[1]
    assert [c.holds for c in dear] == [True, False, False]


def test_sets_that_tell_nothing_apart_are_left_out(study, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 50)
    flat = {name: np.arange(4.0) for name in study.METHODS}
    right, mixed = answered(study, flat, [1] * 4), answered(study, flat, [0, 1, 0, 1])
    figures, _, said = study.compared({"a": right, "b": mixed})
    assert "1 sets" in said and not any(f.subject.startswith("a: g_nll") for f in figures)
    with pytest.raises(ValueError, match="nothing to tell apart"):
        study.compared({"a": right})


def test_few_right_answers_and_uncertain_signs_are_told(study):
    def figure(subject, quantity, value, low, high):
        return study.Figure(
            subject=subject, quantity=quantity, value=value, unit="u", n=100, of="q", low=low, high=high
        )

    few = figure("a", "accuracy", 0.02, 0.0, 0.1)
    enough = [figure("b", "accuracy", p, 0, 1) for p in (0.0, 0.5, 1.0)]
    sure, unsure = (figure("mean: G-NLL less x", "AUROC", 0.1, low, 0.2) for low in (0.01, -0.01))
    assert study.caveats([*enough, sure]) == []
    assert [line.split(":")[0] for line in study.caveats([few, unsure])] == ["a", "mean"]


def test_facts_are_well_formed(book):
    capitals = book.questions("capitals", None)
    assert len(capitals) == len({q.question for q in capitals}) and all(all(q.answers) for q in capitals)
    assert [q.question for q in book.questions("sums", 5)] == [q.question for q in book.questions("sums", 300)[:5]]
    for task in book.TASKS:
        shown = {q for q, _ in book.EXAMPLES[task]}
        assert not shown & {q.question for q in book.questions(task, None)}, task
        prompt = book.questions(task, 1)[0].prompt(task)
        assert prompt.count("Question:") == 4 and prompt.endswith("Answer:")
    for question in book.questions("sums", None):
        a, b = (int(n) for n in question.question.removeprefix("What is ").removesuffix("?").split(" + "))
        assert question.answers == (str(a + b),)
    with pytest.raises(ValueError, match='unknown task "sum"'):
        book.questions("sum", 1)


def test_what_is_right(study, book):
    capital = book.Question("?", ("Brasilia", "Brasília"))
    assert study.is_right("capitals", " brasília.", capital) and not study.is_right("capitals", "Rio", capital)
    total = book.Question("?", ("42",))
    assert study.is_right("sums", " 42", total) and not study.is_right("sums", "420", total)


def test_the_study_runs(study, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 20)
    monkeypatch.setattr(study, "is_right", lambda task, text, question: len(question.question) % 2 == 0)
    path = write_tiny_llama(tmp_path_factory.mktemp("g_nll") / "tiny.gguf", context=1024)
    found = study.study(
        {"tiny": lambda: likely.load(str(path), runtime="llamacpp", threads=1)}, count=6, full=False,
        sources=[Source(name="tiny", sha256="0" * 64)], inputs=8, steps=20, report=lambda line: None,
    )  # fmt: skip
    assert found.id == "g_nll" and len(found.checks) == 6 and found.verdict != "reproduced"
    assert any(f.subject.endswith("G-NLL less ln_predictive_entropy") for f in found.figures)
