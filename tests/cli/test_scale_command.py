"""likely scale, in-process on tiny models: files that go on, calibrations that are kept, one question, refusals."""

from __future__ import annotations

import inspect
import json
from typing import get_args

import pytest
from fake_server import toy_server

from likely.cli.verbs.generation.scale import scale
from likely.serving.scaling import ANSWER_FORMS, ATTS

QUESTIONS = [
    {"question": "the cat", "answer": "mat", "id": "a"},
    {"question": "the dog", "answer": "bog"},
    {"question": "my sun"},
]
SETTINGS = (
    "-n", 3, "--rounds", 2, "--draft-tokens", 4, "--target-tokens", 3, "--answers", "line", "--threads", 1,
    "--calibration-questions", 2,
)  # fmt: skip


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    return path


@pytest.fixture
def pair(tiny):
    return ("--draft", tiny, "--target", tiny)


def test_defaults_are_those_of_python():
    ours, theirs = inspect.signature(scale).parameters, inspect.signature(ATTS).parameters
    assert set(get_args(get_args(ours["answers"].annotation)[0])) == set(ANSWER_FORMS)
    shared = ours.keys() & theirs.keys() - {"draft", "target", "coverage"}
    assert len(shared) >= 12
    assert {n: ours[n].default for n in shared} == {n: theirs[n].default for n in shared}


def test_a_file_is_a_line_per_question_and_a_summary(cli, pair, questions):
    done = cli("scale", questions, *pair, *SETTINGS)
    assert done.code == 0
    assert [line.split(":")[0] for line in done.out.splitlines()] == ["1", "2", "3"]
    assert "drafts taken over" in done.out and ("wrong" in done.out or "right" in done.out)
    assert "of 2 with a reference" in done.err and "for a nominal 0.4; 6 calibration scores" in done.err


def test_a_run_goes_on_where_it_ended_with_its_calibration(cli, pair, questions, tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    printed = cli("scale", questions, *pair, *SETTINGS, "--json").lines
    assert cli("scale", questions, *pair, *SETTINGS, "-o", whole).code == 0
    header, *records = [json.loads(line) for line in whole.read_text().splitlines()]
    assert printed == [header, *records]
    assert header["kind"] == "scale" and header["draft"]["sha256"] and header["settings"]["reject_rate"] == 0.4
    assert (
        [r.get("correct") for r in records][2] is None and records[0]["id"] == "a" and records[0]["reference"] == "mat"
    )
    for record in records:
        assert len(record["chains"]) == 3 and record["drafts"] == sum(len(c["turns"]) for c in record["chains"])
        taken = [t for c in record["chains"] for t in c["turns"] if t["writer"] == "target"]
        assert record["rejected"] == len(taken) and all(t["pvalue"] > 0.6 for t in taken)
    calibration = whole.with_suffix(".calibration.json")
    broken.with_suffix(".calibration.json").write_bytes(calibration.read_bytes())
    broken.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:2]))
    done = cli("scale", questions, *pair, *SETTINGS, "-o", broken, "--json")
    assert done.json["questions"] == 3 and done.json["rates"][0]["drafts"] == 9
    assert broken.read_bytes() == whole.read_bytes()
    other = cli("scale", questions, *pair, *SETTINGS, "-o", broken, "--reject-rate", 0.5)
    assert other.code == 1 and "was calibrated with another reject_rate (0.4, now 0.5)" in other.err


def test_one_question_calibrates_itself(cli, pair):
    done = cli("scale", "the cat", *pair, *SETTINGS)
    assert done.code == 0 and len(done.out.splitlines()) == 1 and "3 calibration scores hold it to" in done.err
    found = cli("scale", "the cat", *pair, *SETTINGS, "--json").json
    assert found["settings"]["coverage"] == "conditional" and "calibration" not in found


def test_a_server_is_a_draft_or_a_target(cli, tiny):
    with toy_server() as server:
        prompt = ("--draft-prompt", "{question} ", "--target-prompt", "{question} ")
        done = cli("scale", "the cat", "--draft", server.url, "--target", server.url, *SETTINGS, *prompt, "--json")
        assert done.code == 0, done.err
        assert len(done.json["chains"]) == 3 and done.json["draft"]["runtime"] == "server"


def test_what_cannot_be_is_one_line(cli, pair, questions, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for arguments, code, said in (
        ((questions, *pair, "--reject-rate", 1.5), 2, "reject_rate must lie between 0 and 1, got 1.5"),
        ((empty, *pair), 1, "holds no records"),
        (("a question?", *pair, "-o", tmp_path / "o.jsonl"), 2, "are for a file of questions"),
        (("a question?", *pair, "--coverage", "marginal"), 2, "--calibration-file"),
        (("a question?", *pair, "--coverage", "marginal", "--calibration-file", tmp_path / "c"), 1, "is not there"),
        ((questions, *pair, "--draft-prompt", "Q:"), 1, "no {question} in it"),
        (("no-such-set", *pair), 1, "no data set"),
    ):
        done = cli("scale", *arguments)
        assert done.code == code and said in done.err and done.err.count("\n") == 1, done.err
