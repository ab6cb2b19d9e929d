"""likely align: what a user types, what is printed, and refusals in one line."""

from __future__ import annotations

import json

import pytest
from tiny_gguf import write_tiny_llama

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "align.gguf", dim=32)


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"the cat {i}", "chosen": " sat on", "rejected": " there"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


def test_training_prints_before_and_after(cli, tiny_model, pairs, tmp_path):
    out = tmp_path / "adapter"
    command = ("align", "train", pairs, "-m", tiny_model, "-o", out, "--epochs", 0, "--steps", 2, "--batch", 2,
               "--rank", 4, "--held-out", 0.25, "--prompts", 2, "--reward", "length", "-s", "beta=0.3")  # fmt: skip
    done = cli(*command)
    assert done.code == 0 and "before" in done.out and "samples: win rate" in done.out
    assert "2 steps on" in done.err and f"likely ask -m {out}" in done.err
    again = cli(*command, "--json").json
    assert again["method"] == "dpo" and "gamma=0.3" in again["settings"]["link"] and again["steps"] == 2
    scored = cli("score", "-m", out, "--prompt", "the cat", "--answer", " sat")
    assert scored.code == 0, scored.err
    told = cli("align", "train", pairs, "-m", tiny_model, "-o", tmp_path / "e", "--estimate", "--json").json
    assert told["estimate"]["seconds"] > 0


def test_refusals_are_one_line(cli, tiny_model, pairs, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "chosen": "", "rejected": "b"}\n')
    for arguments, message in (
        (("train", bad, "-m", tiny_model), 'row 1: "chosen" is empty'),
        (("train", tmp_path / "none.jsonl", "-m", tiny_model), "cannot read"),
        (("train", pairs, "-m", tiny_model, "--method", "dpoo"), 'did you mean "dpo"?'),
        (("train", pairs, "-m", tiny_model, "-s", "tau=1"), "dpo has no setting tau"),
        (("train", pairs, "-m", tiny_model, "--adapter", tmp_path, "--rank", 4), "has its own: leave it out"),
        (("reward", pairs, "-m", tiny_model, "--full", "--alpha", 4), "--full trains all weights: leave it out"),
        (("sft", pairs, "-m", tiny_model), 'field "completion" is missing'),
        (("sft", tmp_path / "none.jsonl", "-m", tiny_model), "cannot read"),
        (("reward", tmp_path / "none.jsonl", "-m", tiny_model), "cannot read"),
        (("pairs", tmp_path / "none.jsonl", "-m", tiny_model, "--reward", "length"), "cannot read"),
        (("label", "train", tmp_path / "none.conll", "-m", tiny_model), "cannot read"),
        (("protein", "train", tmp_path / "none.jsonl", "-m", tiny_model), "cannot read"),
        (("pairs", pairs, "-m", tiny_model, "--reward", "nice"), 'no reward is called "nice"'),
    ):
        done = cli("align", *arguments, "-o", tmp_path / f"out-{arguments[0]}")
        lines = [line for line in done.err.splitlines() if line.startswith("Error")]
        assert done.code in (1, 2) and len(lines) == 1 and message in lines[0], done.err
        assert not (tmp_path / f"out-{arguments[0]}").exists()
