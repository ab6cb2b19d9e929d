"""What every audit holds: run twice it writes the same bytes, and one that was cut anywhere ends with these bytes."""

from __future__ import annotations

import json

import pytest


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def choices(i, **more):
    return {"id": f"c{i}", "choices": ["the cat", "a hat"], "answer": i % 2, **more}


@pytest.fixture
def audits(tiny, tmp_path):
    """name -> the command without its output."""
    base = ("-m", tiny, "--threads", 1)
    cases = lines(tmp_path / "cases.jsonl", [
        choices(i, segments={"context": f"the cat {i}", "question": "who?"}) for i in range(18)
    ])  # fmt: skip
    questions = lines(tmp_path / "questions.jsonl", [choices(i, question=f"the cat {i}") for i in range(4)])
    probes = lines(tmp_path / "probes.jsonl", [
        {"line": i, "case": f"c{i}", "number": 0, "text": f"say cat {i}", "failed": [], "origin": {}} for i in range(4)
    ])  # fmt: skip
    diagram = "sequenceDiagram\nA->>B: x\n"
    flows = lines(tmp_path / "flows.jsonl", [
        {"id": f"f{i}", "input_prompt": f"Participants: A, B{i}.", "expected_output": diagram} for i in range(2)
    ])  # fmt: skip
    states = lines(tmp_path / "states.jsonl", [{"state": f"the cat {i}", "target": "a"} for i in range(3)])
    prompts = lines(tmp_path / "prompts.jsonl", [
        f"Tell {who} of {what}." for who in ("anna", "bob", "carl") for what in ("cats", "dogs", "owls", "bees")
    ])  # fmt: skip
    return {
        "ablate": ("ablate", cases, *base, "--segments", "context", "--control", "shuffle:context"),
        "probes run": ("probes", "run", questions, probes, *base),
        "mermaid": ("mermaid", flows, *base, "--max-tokens", 8),
        "reach": ("reach", tiny, "--threads", 1, "--cases", states, "--method", "greedy", "--lengths", "1"),
        "exposure": ("exposure", tiny, "--threads", 1),
        "invert": ("invert", tiny, "--threads", 1, "--prompts", prompts, "--steps", 2, "--epochs", 1),
        "spectral": ("spectral", tiny, "--threads", 1, "--runtime", "native", "--data", prompts.parent / "text.txt",
                     "--texts", 2, "--tokens", 16, "--report", tmp_path / "s.html"),
        "all": ("all", *base, "--cases", cases, "--segments", "context", "--questions", questions, "--flows", flows,
                "--only", "ablate,probes,mermaid,exposure", "--limit", 2, "--max-tokens", 8),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["probes run", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ablate", "mermaid", "reach"))]
)
def test_a_file_that_was_cut_anywhere_ends_with_the_same_bytes(cli, audits, tmp_path, name):
    out, page = tmp_path / "out.jsonl", tmp_path / "r.html"
    command = ("audit", *audits[name], "-o", out, "--report", page)
    assert cli(*command).code == 0
    whole, shown = out.read_bytes(), page.read_bytes()
    for share in (0.5, 0.97):
        out.write_bytes(whole[: int(share * len(whole))])
        assert cli(*command).code == 0 and out.read_bytes() == whole and page.read_bytes() == shown
    assert cli("audit", *audits[name], "--report", page).code == 0 and page.read_bytes() == shown  # with nothing kept


@pytest.mark.parametrize(
    "name",
    ["exposure", pytest.param("invert", marks=pytest.mark.slow), pytest.param("spectral", marks=pytest.mark.slow)],
)
def test_a_second_run_says_the_same(cli, audits, tmp_path, name):
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 20)
    if name in ("invert", "spectral"):
        pytest.importorskip("torch")
    first = cli("audit", *audits[name], "--json")
    assert first.code == 0, first.err
    assert cli("audit", *audits[name], "--json").out == first.out


def test_all_goes_on_from_what_is_kept(cli, audits, tmp_path):
    kept, page = tmp_path / "kept", tmp_path / "all.md"
    command = ("audit", *audits["all"], "--kept", kept, "--report", page)
    assert cli(*command).code == 0
    files = {path.name: path.read_bytes() for path in kept.iterdir()}
    shown = page.read_bytes()
    assert set(files) == {"ablate.jsonl", "probes.jsonl", "mermaid.jsonl", "exposure.json"}
    (kept / "exposure.json").unlink()
    for name in ("ablate.jsonl", "mermaid.jsonl"):
        (kept / name).write_bytes(files[name][: len(files[name]) // 2])
    assert cli(*command).code == 0 and page.read_bytes() == shown
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == files
    (kept / "exposure.json").write_bytes(files["exposure.json"].replace(b'"seed": 0', b'"seed": 1'))
    other = cli(*command)
    assert other.code == 1 and "choose another folder" in other.err
    (kept / "exposure.json").write_bytes(files["exposure.json"][:40])
    assert "no kept report" in cli(*command).err
