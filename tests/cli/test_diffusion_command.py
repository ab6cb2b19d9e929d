"""likely diffusion: train, decode, score and compare on a model of a few steps."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from likely.cli.app import run

PROMPT = "1..43.1.2....32."
FEW = ["--steps", "30", "--width", "16", "--layers", "1", "--heads", "2", "--batch", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusion") / "sudoku"
    assert run(["diffusion", "train", "sudoku", "-o", str(path), *FEW]) == 0
    return str(path)


def test_training_says_what_it_made_and_is_not_done_twice(folder, capsys):
    assert run(["diffusion", "train", "sudoku", "-o", folder, *FEW, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["steps"] == 30 and said["task"] == "sudoku" and said["loss"] > 0
    assert run(["diffusion", "train", "sudoku", "-o", folder, *FEW, "--seed", "1"]) == 1
    assert "another seed" in capsys.readouterr().err
    assert run(["diffusion", "train", "sudoko", "-o", folder]) == 2
    assert 'did you mean "sudoku"' in capsys.readouterr().err


def test_texts_are_the_same_with_freedave(folder, capsys):
    texts, calls = [], []
    for more in ([], ["--freedave", "4"]):
        assert run(["diffusion", "generate", "-m", folder, PROMPT, *more, "--json"]) == 0
        made = json.loads(capsys.readouterr().out)
        texts.append(made["text"])
        calls.append(made["target_calls"])
    assert texts[0] == texts[1] and calls[1] <= calls[0] == 16
    assert run(["diffusion", "generate", "-m", folder, PROMPT, "--prophet", "1:0", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() and "from 1 calls" in err
    assert run(["diffusion", "generate", "-m", folder, PROMPT, "--pin", "3=4", "--tokens-per-step", "16"]) == 0
    assert capsys.readouterr().out[3] == "4"


def test_scores_have_an_error(folder, capsys):
    answer = "1234341221434321"
    assert run(["diffusion", "score", "-m", folder, "--prompt", PROMPT, "--answer", answer, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["answers"]
    assert found["kind"] == "lower_bound" and found["standard_error"] > 0 and found["sequence_logprob"] < 0
    for verb in (["diffusion", "score"], ["score"]):
        assert run([*verb, "-m", folder, "--prompt", PROMPT, "--answer", answer]) == 0
        out = capsys.readouterr().out
        assert f"{found['sequence_logprob']:.4f}" in out and ">=" in out


def test_the_table_has_all_decoders(folder, capsys, tmp_path):
    plot = tmp_path / "early.png"
    assert run(["diffusion", "analyse", "-m", folder, "--texts", "6", "--plot", str(plot), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    by_name = {row["name"]: row for row in rows}
    plain = by_name["static, 1 per step"]
    assert plain["same"] == 1 and plain["calls"] == plain["canvases"] == 16
    for drafts in (2, 4, 8):
        row = by_name[f"FreeDave, {drafts} drafts"]
        assert row["same"] == 1 and row["calls"] <= 16 and row["right"] == plain["right"]
    assert by_name["static, 4 per step"]["calls"] == 4
    assert plot.read_bytes()[1:4] == b"PNG"


def test_a_comparison_is_read_back_and_thresholds_that_are_never_reached_are_null(capsys):
    from likely.bench.diffusion import DecoderComparison, DecoderRow
    from likely.cli.verbs.diffusion.analyse import print_comparison
    from likely.decoding.diffusion.fit import FittedThresholds

    rows = [DecoderRow("static, 1 per step", 2, 1.0, (0.34, 1.0), 1.0, 16.0, 16.0, 0.0)]
    fitted = FittedThresholds(((0.5, 3.0), (1.0, float("inf"))), 0.02, 0.1, 100, 1, 0.015, 0.4)
    found = DecoderComparison("sudoku", rows, [0.5, 1.0], {"probability": [0.5, 1.0]}, fitted)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["fitted"]["thresholds"] == [[0.5, 3.0], [1.0, None]]
    again = DecoderComparison.from_dict(record)
    assert again.fitted == fitted and again.to_dict() == {**found.to_dict(), "rows": record["rows"]}
    print_comparison(again)
    out = capsys.readouterr().out
    assert "1.00 [0.34, 1.00]  100%   16.0" in out and "--prophet 0.5:3,1:inf (at most 1.5% of answers" in out


def test_the_commands_of_the_guide_run(folder, capsys):
    page = (Path(__file__).parents[2] / "docs/diffusion.md").read_text("utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, flags=re.S) for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("likely diffusion ")]
    assert len(commands) > 4
    for command in commands:
        if command[1] == "train":
            continue
        command = [folder if word == "sudoku" else word for word in command]
        few = ["--texts", "2", "--fit", "10", "--epsilon", "0.4"] if command[1] == "analyse" else []
        assert run([*command, *few]) == 0, command
    assert "decoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["generate", "PROMPT", "--freedave", "x"], 2, "drafts of FreeDave"),
        (["generate", "PROMPT", "--prophet", "x"], 2, "thresholds are"),
        (["generate", "PROMPT", "--pin", "x"], 2, "PLACE=TEXT"),
        (["generate", "x" + 15 * "."], 1, "no tokens for"),
        (["generate", ""], 1, "has 16 characters, such as"),
        (["score", "--prompt", "1.", "--answer", "1"], 1, "this one has 2"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, capsys, arguments, code, said):
    arguments = [PROMPT if a == "PROMPT" else a for a in arguments]
    assert run(["diffusion", *arguments, "-m", folder]) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_missing_folder_and_a_file_in_its_place(capsys, tmp_path):
    (tmp_path / "file").touch()
    for arguments, said in (
        (["analyse", "-m", str(tmp_path / "none")], "there is no folder"),
        (["generate", "x", "-m", str(tmp_path / "none")], "does not exist"),
        (["train", "sudoku", "-o", str(tmp_path / "file")], "is a file"),
    ):
        assert run(["diffusion", *arguments]) == 1
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_another_model_is_no_diffusion_model(capsys, tmp_path):
    from tiny_gguf import write_tiny_llama

    path = write_tiny_llama(tmp_path / "tiny.gguf", seed=3)
    assert run(["diffusion", "generate", "-m", str(path), "a"]) == 1
    assert "no diffusion model" in capsys.readouterr().err
