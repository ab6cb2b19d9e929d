"""likely prompts learn-hints and hint: a policy over hints from a file of questions, and its use."""

from __future__ import annotations

import json

import pytest
from tiny_gguf import write_tiny_llama

from likely.metrics.summary import report


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("hints") / "tiny.gguf", seed=3)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def exam(tmp_path):
    return write(
        tmp_path / "exam.jsonl",
        [{"question": f"What is {i}?", "choices": ["the cat", "a hat"], "answer": "AB"[i % 2]} for i in range(12)],
    )


@pytest.fixture
def hints(tmp_path):
    path = tmp_path / "hints.txt"
    path.write_text("Be careful.\n\nBe bold.\nBe careful.\n")
    return path


@pytest.mark.slow
def test_learn_and_use(cli, tiny, exam, hints, tmp_path):
    policy, kept = tmp_path / "policy.json", tmp_path / "kept.jsonl"
    model = ("-m", tiny, "--threads", 1, "--kept", kept)
    told = cli("prompts", "learn-hints", exam, "--hints", hints, "-o", policy, "--steps", 5, *model, "--json").json
    assert [one["hint"] for one in told["hints"]] == ["", "Be careful.", "Be bold."] and told["questions"] == 12
    assert len(kept.read_text().splitlines()) == 36
    out = tmp_path / "answered.jsonl"
    done = cli("prompts", "hint", exam, "--policy", policy, "-o", out, *model)
    assert done.code == 0 and "without hints: accuracy" in done.err
    assert len(kept.read_text().splitlines()) == 36  # nothing was asked twice
    header, *lines = map(json.loads, out.read_text().splitlines())
    assert header["kind"] == "hint" and len(lines) == 12
    for line in lines:
        assert line["hint"] in ("", "Be careful.", "Be bold.") and line["prompt"].endswith("\nAnswer:")
        assert (f"Hint: {line['hint']}\n" in line["prompt"]) == bool(line["hint"])
    measured = report([line["confidence"] for line in lines], [line["correct"] for line in lines])
    plain = write(tmp_path / "plain.jsonl", [{k: line[k] for k in ("confidence", "correct")} for line in lines])
    assert cli("calibrate", "eval", plain, "--json").json["brier"] == pytest.approx(measured["brier"])
    # the same policy, read again, chooses the same
    again = cli("prompts", "hint", exam, "--policy", policy, *model)
    assert [json.loads(row)["hint"] for row in again.out.splitlines()[1:]] == [line["hint"] for line in lines]
    assert "exists" in cli("prompts", "learn-hints", exam, "--hints", hints, "-o", policy, *model).err


def test_questions_whose_answers_nobody_knows(cli, tiny, exam, hints, tmp_path):
    policy = tmp_path / "policy.json"
    model = ("-m", tiny, "--threads", 1)
    cli("prompts", "learn-hints", exam, "--hints", hints, "-o", policy, "--steps", 2, *model)
    open_ones = write(tmp_path / "open.jsonl", [{"question": "Why?", "choices": ["a", "b", "c"]}])
    done = cli("prompts", "hint", open_ones, "--policy", policy, *model)
    assert done.code == 0 and "correct" not in json.loads(done.out.splitlines()[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(likely_hint_policy=9), "not a policy over hints"),
        (lambda r: r["policy"].pop("hints"), "hints, settings and learned"),
        (lambda r: r["policy"]["hints"].append("more"), "there are 4 hints"),
        (lambda r: r["policy"]["learned"].pop("bias_"), "learned.bias_: is missing"),
        (lambda r: r["policy"]["settings"].update(speed=1), "settings: must hold only"),
    ],
)
def test_damaged_policies(cli, tiny, exam, hints, tmp_path, change, said):
    policy = tmp_path / "policy.json"
    model = ("-m", tiny, "--threads", 1, "--kept", tmp_path / "kept.jsonl")
    cli("prompts", "learn-hints", exam, "--hints", hints, "-o", policy, "--steps", 1, *model)
    record = json.loads(policy.read_text())
    change(record)
    policy.write_text(json.dumps(record))
    done = cli("prompts", "hint", exam, "--policy", policy, *model)
    assert done.code == 1 and said in done.err and len(done.err.strip().splitlines()) == 1


def test_bad_input(cli, tiny, exam, hints, tmp_path):
    empty, out = tmp_path / "empty.txt", tmp_path / "p.json"
    empty.write_text("\n\n")
    assert "holds no hints" in cli("prompts", "learn-hints", exam, "--hints", empty, "-o", out, "-m", tiny).err
    own = cli("prompts", "learn-hints", exam, "--hints", hints, "-o", out, "-m", tiny, "--kept", exam)
    assert own.code == 2 and "is the file of questions" in own.err
    missing = write(tmp_path / "missing.jsonl", [{"question": "Why?", "choices": ["a", "b"]}])
    done = cli("prompts", "learn-hints", missing, "--hints", hints, "-o", out, "-m", tiny)
    assert done.code == 1 and 'missing.jsonl:1: field "answer" is missing' in done.err and not out.exists()
    assert "cannot read" in cli("prompts", "hint", exam, "--policy", tmp_path / "none.json", "-m", tiny).err
    assert "is not a policy" in cli("prompts", "hint", exam, "--policy", hints, "-m", tiny).err
