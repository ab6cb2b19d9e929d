"""likely eval-code: consent, numbers, files."""

from __future__ import annotations

import json

from tiny_gguf import write_tiny_llama


def test_nothing_is_run_without_consent(cli, tiny):
    done = cli("eval-code", "humaneval", "-m", tiny)
    assert done.code == 2 and "--run-untrusted-code" in done.err and "nobody has read" in done.err


def test_samples_need_a_temperature(cli, tiny):
    done = cli("eval-code", "humaneval", "-m", tiny, "--run-untrusted-code", "-n", 3)
    assert done.code == 2 and "--temperature" in done.err


def test_a_model_that_knows_nothing_solves_nothing(cli, tmp_path, data_dir):
    model = write_tiny_llama(tmp_path / "model.gguf", context=2048)
    out = tmp_path / "programs.jsonl"
    done = cli(
        "eval-code", "humaneval", "-m", model, "--run-untrusted-code", "--limit", 2, "-n", 2, "--temperature", 1,
        "--max-tokens", 4, "--contrast", "uscd", "-o", out, "--data-dir", data_dir, "--json",
    )  # fmt: skip
    record = done.json
    assert record["pass@1"] == record["pass@2"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (record["problems"], record["samples"], record["contrasted"]) == (2, 2, 2)
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(line["task_id"], line["sample"]) for line in lines] == [
        (f"HumanEval/{i}", k) for i in range(2) for k in range(2)
    ]
    assert all(not line["passed"] and line["why"] for line in lines)
