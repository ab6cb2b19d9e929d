"""The study of SuffixDecoding on made-up texts: what it concludes, and what it must notice."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script as load_script

from likely.decoding.drafting.replay import RecordedAnswer
from likely.decoding.drafting.suffix.drafter import SuffixMemory
from likely.evidence import Source

MODEL = Source(name="none", sha256="0" * 64)


@pytest.fixture(scope="module")
def script():
    return load_script("suffix_decoding")


def texts(seed: int):
    """Answers from a few phrases, answers that vary their prompt, and noise."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(0, 500, 12).tolist() for _ in range(20)]
    answers = [[t for k in rng.integers(0, 20, 4) for t in phrases[k]] for _ in range(24)]
    sql = [RecordedAnswer([600, 601 + i], answer, ended=True) for i, answer in enumerate(answers)]
    varied = []
    for _ in range(6):
        old = rng.integers(0, 500, 60).tolist()
        varied.append(RecordedAnswer([*old, 700], [*old[:30], 701, *old[30:]], ended=True))
    noise = [RecordedAnswer([1, 2], rng.integers(0, 500, 50).tolist()) for _ in range(6)]
    return sql, {"varied": varied}, {"noise": noise}


def test_the_study_finds_what_was_put_in(script):
    sql, sets, controls = texts(0)
    found = script.study(sql, sets, controls, orders=2, full=False, models=[MODEL], report=lambda line: None)
    assert found.mode == "quick" and len(found.checks) == 8
    held = {check.statement.split(":")[0]: check.holds for check in found.checks}
    assert held["text-to-sql"] and held["noise"]
    growth = {f.subject: f.value for f in found.figures if f.quantity == "τ, growth"}
    assert growth[f"SQL: {script.ALL}"] > 0.5 and abs(growth[f"SQL: {script.OWN}"]) < 0.5


def test_answers_that_share_nothing_are_not_called_a_gain(script):
    _, sets, controls = texts(1)
    found = script.study(
        controls["noise"], sets, controls, orders=2, full=False, models=[MODEL], report=lambda line: None
    )
    assert not found.checks[0].holds and found.verdict != "reproduced"


def test_halves_follow_the_order(script):
    sql, _, _ = texts(2)
    orders = [np.arange(24), np.arange(24)[::-1]]
    found = script.in_orders(sql, orders)[script.ALL]
    assert found.late[0].tolist() == [False] * 12 + [True] * 12 and found.late[1].tolist() == [True] * 12 + [False] * 12
    first = script.run(SuffixMemory(), sql, script.MOST).rounds
    tokens, calls = found.tau(True)
    assert tokens.sum() == sum(len(t.answer) for t in sql)  # each question is late once
    assert calls[12:].tolist() == [len(r.accepted) for r in first[12:]]


def test_a_lead_is_that_of_the_sums(script):
    """Texts of 10 tokens each: in 5 calls against 10, and in 4 against 5."""
    from likely.decoding.drafting.replay import Replayed, Rounds

    def replayed(calls):
        return Replayed("x", 4, [Rounds([3] * n, [10 // n - 1] * n, 10, 0.0) for n in calls])

    value, (low, high) = script.tau_lead(replayed([5, 5]), replayed([10, 5]))
    assert value == 20 / 10 - 20 / 15 and low == 0.0 and high == 1.0


@pytest.mark.real
def test_the_texts_are_there(script, data_dir, monkeypatch):
    import likely

    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    with likely.load("smollm2") as lm:
        sql, corrections, redundant = script.sql_traces(lm), script.correction_traces(lm), script.redundant_traces(lm)
        human = script.translation_traces(lm)
        end = lm.tokenizer.eos_id
    assert (len(sql), len(corrections), len(redundant)) == (241, 78, 112) and len(human) == 30
    assert all(trace.answer[-1] == end and trace.ended for trace in (*sql, *corrections, *redundant))
