"""likely align label: train, predict and evaluate on files, as a user types it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("peft")

from tiny_gguf import write_tiny_llama

from likely.cli.app import run

TRAIN = "the O\ncat B-on\n\nthe O\nmat B-on\n\nthey O\nsat O\n\non O\nsun B-on\n"
ROWS = [{"text": "the cat sat"}, {"tokens": ["they", "sat"]}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    write_tiny_llama(folder / "tiny.gguf", dim=64, context=1024)
    (folder / "train.conll").write_text(TRAIN)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    arguments = ["train", str(folder / "train.conll"), "-o", str(folder / "out"), "-m", str(folder / "tiny.gguf")]
    assert run(["align", "label", *arguments, "--steps", "3", "--k", "1", "--lr", "1e-2", "--threads", "1"]) == 0
    return folder


def call(capsys, place, *arguments):
    capsys.readouterr()
    code = run(["align", "label", *map(str, arguments), "-m", str(place / "tiny.gguf"), "--threads", "1"])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_help_begins_with_commands(capsys):
    assert run(["align", "label", "--help"]) == 0
    assert "likely align label train train.conll -o labeller" in capsys.readouterr().out
    for verb in ("train", "predict", "evaluate"):
        assert run(["align", "label", verb, "--help"]) == 0
        assert f"likely align label {verb}" in capsys.readouterr().out


def test_predictions_are_lines_that_go_on(capsys, place, tmp_path):
    out = tmp_path / "labelled.jsonl"
    adapter = ("--adapter", place / "out")
    code, _, error = call(capsys, place, "predict", place / "rows.jsonl", *adapter, "-o", out, "--limit", 1)
    assert (code, error) == (0, "") or code == 0, error
    assert call(capsys, place, "predict", place / "rows.jsonl", *adapter, "-o", out)[0] == 0
    header, one, two = map(json.loads, out.read_text().splitlines())
    assert header["kind"] == "label" and header["settings"]["labels"] == ["on"] and header["settings"]["k"] == 1
    assert one["tokens"] == ["the", "cat", "sat"] and len(one["tags"]) == 3 and one["problems"] == []
    for span in one["spans"]:
        assert ROWS[0]["text"][span["start_char"] : span["end_char"]] == span["text"] and span["logprob"] <= 0
    assert two["line"] == 2 and two["complete"] is True
    code, _, error = call(capsys, place, "predict", place / "rows.jsonl", *adapter, "-o", out, "--free")
    assert code == 1 and "another settings" in error


def test_evaluation_prints_a_table_or_json(capsys, place):
    code, out, _ = call(capsys, place, "evaluate", place / "train.conll", "--adapter", place / "out")
    assert code == 0 and "4 sentences, strict span F1" in out and "precision" in out
    code, out, _ = call(
        capsys, place, "evaluate", place / "train.conll", "--demonstrations", place / "train.conll", "--k", 2, "--json",
        "--nearest", "--runtime", "torch",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0 and found["support"] == 3 and found["unread"] == found["cut"] == 0 and found["k"] == 2
    assert 0 <= found["f1_interval"][0] <= found["f1"] <= found["f1_interval"][1] <= 1


def test_a_finished_folder_is_read_again_and_others_are_left_alone(capsys, place, tmp_path):
    again = ("train", place / "train.conll", "-o", place / "out", "--steps", 3, "--k", 1, "--lr", "1e-2", "--json")
    code, out, _ = call(capsys, place, *again)
    assert code == 0 and json.loads(out)["steps"] == 3
    code, _, error = call(capsys, place, *again, "--seed", 1)
    assert code == 1 and "another recipe" in error
    (tmp_path / "mine.txt").write_text("x")
    code, _, error = call(capsys, place, "train", place / "train.conll", "-o", tmp_path, "--overwrite")
    assert code == 1 and "left alone" in error and (tmp_path / "mine.txt").exists()


def test_errors_are_one_line(capsys, place, tmp_path):
    bad = tmp_path / "bad.conll"
    bad.write_text("a O\nb I-x\n")
    for arguments, said, wanted in (
        (("train", bad, "-o", tmp_path / "x"), f"{bad}:2: word 2: I-x continues no span", 1),
        (("evaluate", place / "rows.jsonl", "--adapter", place / "out"), "rows.jsonl:1: no tags", 1),
        (("evaluate", place / "train.conll"), "give --adapter FOLDER", 2),
        (("evaluate", place / "train.conll", "--adapter", tmp_path), "no labeller was finished", 1),
        (("train", place / "train.conll", "-o", tmp_path / "x", "--k", 9), "lower k", 2),
        (("train", place / "train.conll", "-o", tmp_path / "x", "--strategy", "mean"), "unknown strategy", 2),
        (("train", place / "train.conll", "-o", tmp_path / "x", "--runtime", "llamacpp"), "gradients", 1),
    ):
        code, _, error = call(capsys, place, *arguments)
        assert (code, error.count("\n")) == (wanted, 1) and said in error, error
