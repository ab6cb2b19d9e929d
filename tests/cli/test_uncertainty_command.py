"""likely uncertainty, in-process on a tiny model."""

from __future__ import annotations

import json
import math

import pytest

from likely.uncertainty.table import ESTIMATORS

QUESTIONS = [
    {"question": "the cat", "answer": "mat"},
    {"question": "the dog", "answer": "bog", "id": "d"},
    {"question": "my sun", "answer": "mat", "system": "be kind"},
]
SETTINGS = ("--max-tokens", 6, "--samples", 3, "--threads", 1)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    return path


def test_a_question(cli, tiny):
    done = cli("uncertainty", "the cat", "-m", tiny, *SETTINGS)
    assert done.code == 0 and not done.err
    names = [line.split()[0] for line in done.out.splitlines()[-4:]]
    assert names == ["g_nll", "mean_nll", "max_nll", "token_entropy"] and "(higher: less certain)" in done.out


def test_the_numbers_are_those_of_ask(cli, tiny):
    found = cli("uncertainty", "the cat", "-m", tiny, *SETTINGS, "--json").json
    asked = cli("ask", "the cat", "-m", tiny, "--max-tokens", 6, "--threads", 1, "--json").json
    assert found["text"] == asked["text"]
    assert found["uncertainty"]["g_nll"] == pytest.approx(-asked["sequence_logprob"], abs=2e-3)
    assert found["uncertainty"]["mean_nll"] == pytest.approx(-asked["mean_logprob"], abs=2e-3)
    assert found["uncertainty"]["max_nll"] == pytest.approx(-min(asked["token_logprobs"]), abs=2e-3)
    assert found["template"] == cli("uncertainty", "my dog", "-m", tiny, *SETTINGS, "--json").json["template"]


def test_every_estimator_of_a_file(cli, tiny, questions):
    done = cli("uncertainty", questions, "-m", tiny, *SETTINGS, "--method", "all")
    header, *records = done.lines
    assert header["kind"] == "uncertainty" and header["higher_is"]["p_true"] == "more_certain" and len(records) == 3
    assert header["settings"]["methods"] == list(ESTIMATORS) and header["sha256"]
    assert records[1]["id"] == "d" and records[0]["reference"] == "mat" and records[2]["system"] == "be kind"
    for record in records:
        assert set(record["uncertainty"]) == set(ESTIMATORS) and len(record["samples"]) == 3
        assert record["uncertainty"]["g_nll"] == pytest.approx(-record["sequence_logprob"])
        assert sum(record["token_logprobs"]) == pytest.approx(record["sequence_logprob"])
        assert math.exp(-record["uncertainty"]["g_nll"]) == pytest.approx(record["uncertainty"]["greedy_probability"])
        assert "correct" not in record and ("g_nll" in record["cut"]) == (record["finish_reason"] != "stop")


def test_a_run_goes_on_where_it_ended(cli, tiny, questions, tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    for out in (whole, broken):
        assert cli("uncertainty", questions, "-m", tiny, *SETTINGS, "-o", out).code == 0
    broken.write_text("".join(broken.read_text().splitlines(keepends=True)[:2]) + '{"line": 2, "inp')
    assert cli("uncertainty", questions, "-m", tiny, *SETTINGS, "-o", broken).code == 0
    assert broken.read_text() == whole.read_text()
    other = cli("uncertainty", questions, "-m", tiny, *SETTINGS, "-o", whole, "--seed", 5)
    assert other.code == 1 and "another settings" in other.err


def test_grading_says_how_well_each_tells_right_from_wrong(cli, tiny, questions, tmp_path):
    out = tmp_path / "scored.jsonl"
    args = ("uncertainty", questions, "-m", tiny, *SETTINGS, "--by", "regex", "--pattern", "cat|hat|sat")
    first = cli(*args, "--json").json
    second = cli(*args, "-o", out, "--json").json
    again = cli(*args, "-o", out, "--json").json
    assert first == second == again and first["n"] == 3
    records = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert sum(r["correct"] for r in records) == first["correct"]
    g_nll = first["estimators"]["g_nll"]
    assert g_nll["n"] == 3 and g_nll["missing"] == 0
    if 0 < first["correct"] < 3:
        low, high = g_nll["auroc_interval"]
        assert low <= g_nll["auroc"] <= high
    else:
        assert g_nll["auroc"] is None and "AUROC undefined" in g_nll["why_not"]
    assert "g_nll" in cli(*args).out


def test_the_table_of_graded_answers(cli, tiny, questions):
    one, other = (
        cli("uncertainty", questions, "-m", tiny, *SETTINGS, "--by", "regex", "--pattern", p).out for p in ("^", "$x")
    )
    assert "3 of 3 correct" in one and "AUROC undefined: all 3 rows are right" in one
    assert "0 of 3 correct" in other and "all 3 rows are wrong" in other


def test_report_lines_hold_intervals(capsys):
    from likely.cli.verbs.confidence.uncertainty import _report

    records = [{"correct": int(i > 2), "uncertainty": {"g_nll": 10.0 - i, "csa": None if i else 0.3}} for i in range(8)]
    header = {"settings": {"methods": ["g_nll", "csa"]}, "higher_is": {"g_nll": "less_certain", "csa": "more_certain"}}
    _report(records, header, "f.jsonl", False)
    out = capsys.readouterr().out
    assert "AUROC 1.000 [1.000, 1.000]  PRR 1.000" in out and "csa" in out and "AUROC undefined" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "--method", "gnll"), 'unknown estimator "gnll"'),
        (("x", "--by", "exact"), "--by"),
        (("x", "-o", "out.jsonl"), "--output"),
        (("QUESTIONS", "--pattern", "x"), "--pattern belongs to --by regex"),
        (("QUESTIONS", "--by", "number"), "questions.jsonl:1: the reference holds no number"),
        (("QUESTIONS", "-o", "QUESTIONS"), "the output would replace the input"),
        (("none.jsonl",), "cannot read none.jsonl"),
    ],
)
def test_wrong_usage(cli, tiny, questions, arguments, message):
    given = [questions if a == "QUESTIONS" else a for a in arguments]
    done = cli("uncertainty", *given, "-m", tiny, *SETTINGS)
    assert done.code in (1, 2) and message in done.err and len(done.err.splitlines()) == 1


def test_a_question_that_is_too_long_is_named(cli, tiny, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"question": "the cat"}\n' + json.dumps({"question": "the cat " * 900}) + "\n")
    done = cli("uncertainty", path, "-m", tiny, *SETTINGS)
    assert done.code == 1 and "long.jsonl:2: the prompt has" in done.err
