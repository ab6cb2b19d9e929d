"""likely align frontier: policies by reward and KL, on a tiny model and one that was changed."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from tiny_gguf import write_tiny_llama  # noqa: E402


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model with the same tokenizer."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "other.gguf", seed=1)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("the cat sat", "this is", "and the")))
    return path


def test_policies_are_compared(cli, tiny, other, prompts, tmp_path):
    pytest.importorskip("matplotlib")
    record, picture = tmp_path / "frontier.json", tmp_path / "frontier.svg"
    done = cli(
        "align", "frontier", prompts, "-m", tiny, "--runtime", "torch", "-p", f"other={other}", "-p", f"same={tiny}",
        "--reward", "length", "--reward", "regex:a", "--max-tokens", 5, "-n", 3, "--reference-n", 6, "--threads", 1,
        "-o", record, "--plot", picture,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["policy", "reference", "other", "same"]
    found = json.loads(record.read_text())
    base, moved, same = found["policies"]
    assert moved["kl"]["exact"]["value"] > 0.1 and same["kl"]["exact"]["value"] == pytest.approx(0, abs=1e-5)
    assert base["completions"] == 18 and moved["completions"] == 9 and list(moved["rewards"]) == ["length", "regex:a"]
    assert found["envelopes"]["length"]["points"][0]["beta"] is None
    assert b"<svg" in picture.read_bytes()[:2000]


def test_what_it_refuses(cli, tiny, prompts, tmp_path):
    base = ("align", "frontier", prompts, "-m", tiny)
    for more, code, message in (
        (("-p", "dpo", "--reward", "length"), 2, "NAME=MODEL"),
        (("-p", f"a={tiny}", "-p", f"a={tiny}", "--reward", "length"), 2, "names must differ"),
        (("-p", f"reference={tiny}", "--reward", "length"), 2, "names must differ"),
        (("-p", f"a={tiny}", "--reward", "lenght"), 1, 'no reward is called "lenght"'),
        (("-p", f"a={tiny}", "--reward", "length", "--plot", tmp_path / "a.txt"), 2, ".png"),
        (("-p", f"a={tiny}"), 2, "Missing option"),
    ):
        done = cli(*base, *more)
        assert done.code == code and message in done.err and done.err.count("\n") == 1, done.err
