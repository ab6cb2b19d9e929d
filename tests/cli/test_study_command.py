"""likely study: from a model and texts to a table, resumed from its file."""

from __future__ import annotations

import pytest
from tiny_gguf import write_tiny_llama

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf", context=2048)


def test_a_study_of_calibration_texts(cli, model, tmp_path):
    text, other = tmp_path / "cats.txt", tmp_path / "others.txt"
    text.write_text("the cat sat on the mat and the other cats sat there too. " * 60)
    other.write_text("then they went on and on with the thing that they had done in the sun. " * 20)
    options = (
        "--calibrations", f"{text},random_tokens", "--evaluations", other,
        "--draws", 1, "--windows", 2, "--length", 16, "--tokens", 32, "-o", tmp_path / "cells.jsonl",
    )  # fmt: skip
    both = ("--methods", "rtn:w4g32,gptq:w4g32")
    found = cli("study", "calibration", model, *both, *options, "--json").json
    rows, [effect] = found["rows"], found["effects"]
    assert [(r["method"], r["calibration"]) for r in rows] == [
        ("rtn:w4g32", None), ("gptq:w4g32", str(text)), ("gptq:w4g32", "random_tokens"),
    ]  # fmt: skip
    assert effect["nonsense"] == pytest.approx(rows[2]["kl"] / rows[1]["kl"]) and effect["control"] == rows[0]["kl"]
    assert found["recommendation"].startswith(f"{model}, judged on {other}: gptq:w4g32: only {text} was tried")
    before = (tmp_path / "cells.jsonl").read_bytes()
    said = cli("study", "calibration", model, *both, *options, "--ranges")
    assert said.code == 0 and f"{rows[1]['kl']:.4f}" in said.out and (tmp_path / "cells.jsonl").read_bytes() == before
    assert said.out.endswith(found["recommendation"] + "\n") and "saturates at most" in said.out
    alone = cli("study", "calibration", model, *options, "--methods", "rtn:w4g32")
    assert len(alone.out.strip().splitlines()) == 2 and "texts differ by" not in alone.out  # it reads no text


@pytest.mark.usefixtures("data_dir")
def test_a_study_of_code(cli, model, tmp_path):
    options = (
        "--methods", "gptq:w4g32,additive:1x4", "--calibrations", "random_tokens", "--tasks", 2, "--windows", 2,
        "--length", 16, "--text", "random_punctuation", "--tokens", 32, "-o", tmp_path / "cells.jsonl",
    )  # fmt: skip
    rows = cli("study", "code", model, *options, "--json").json["rows"]
    assert [(r["method"], r["evaluation"]) for r in rows[::2]] == [("gptq:w4g32", "code"), ("additive:1x4", "code")]
    assert all(r["kl"] > 0 and r["p"] <= r["adjusted_p"] <= 1 for r in rows[::2])
    said = cli("study", "code", model, *options)
    assert said.code == 0 and f"{rows[0]['kl']:.4f}" in said.out and f"{rows[1]['kl']:.4f}" in said.out


def test_errors_come_before_the_work(cli, model):
    for arguments, message in (
        (("--methods", "gptk:w4"), 'did you mean "gptq"'),
        (("--methods", "gptq:w4k"), "is not understood"),
        (("--methods", ","), "at least one method"),
        (("--calibrations", "nosuch.txt"), "does not exist"),
        (("--calibrations", "c4_sample+wikitext2:test"), "judge on text that was held out"),
    ):
        done = cli("study", "calibration", model, *arguments)
        assert done.code in (1, 2) and message in done.err and len(done.err.splitlines()) == 1, done.err
