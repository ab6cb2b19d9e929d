"""Bad lines in a file of questions: named by file and line before the model loads, or left out and counted."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

from likely.cli.app import run
from likely.cli.flags import ModelFlags
from likely.io.jsonl import MAX_LINE_BYTES

GOOD = b'{"prompt": "a", "answers": ["b", "c"]}'
BAD = {
    "NaN": (b'{"prompt": "a", "answers": ["b"], "id": NaN}', "NaN is not a JSON number"),
    "infinite": (b'{"prompt": "a", "answers": ["b"], "id": -Infinity}', "-Infinity is not a JSON number"),
    "overflow": (b'{"prompt": "a", "answers": ["b"], "id": 1e999}', "1e999 is too large"),
    "long number": (b'{"prompt": "a", "answers": ["b"], "id": ' + b"9" * 5000 + b"}", "not JSON"),
    "bad UTF-8": (b'{"prompt": "\xff\xfe", "answers": ["b"]}', "not UTF-8 (byte 12)"),
    "cut character": ('{"prompt": "é'.encode()[:-1] + b'", "answers": ["b"]}', "not UTF-8"),
    "UTF-16": ('{"prompt": "a", "answer": "b"}'.encode("utf-16"), "not UTF-8"),
    "lone surrogate": (b'{"prompt": "\\ud800", "answers": ["b"]}', "half a character"),
    "surrogate in a name": (b'{"prompt": "a", "answers": ["b"], "\\udc00": 1}', "half a character"),
    "surrogate in the id": (b'{"prompt": "a", "answers": ["b"], "id": "\\udfff"}', "half a character"),
    "null bytes": (b"\0" * 50, "not JSON"),
    "not an object": (b'["a", "b"]', "found list"),
    "text": (b"prompt,answer", "not JSON"),
    "half a line": (GOOD[:20], "not JSON"),
    "two records": (GOOD + GOOD, "not JSON"),
    "deep": (b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "no prompt": (b'{"answers": ["b"]}', 'field "prompt" is missing (found: "answers")'),
    "no answers": (b'{"prompt": "a"}', 'field "answers" (or "answer") is missing'),
    "empty answers": (b'{"prompt": "a", "answers": []}', "one or more strings"),
    "answers of numbers": (b'{"prompt": "a", "answers": [1]}', "one or more strings"),
    "prompt is null": (b'{"prompt": null, "answers": ["b"]}', "must be a string, found NoneType"),
    "too long": (b'{"prompt": "' + b"a" * MAX_LINE_BYTES + b'", "answers": ["b"]}', "at most 16,777,216 are read"),
}


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object, stdin: bytes = b"") -> Done:
        streams = [io.TextIOWrapper(io.BytesIO(data), "utf-8", write_through=True) for data in (stdin, b"", b"")]
        with monkeypatch.context() as patch:
            for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
                patch.setattr(sys, name, stream)
            code = run(["score", *map(str, arguments), "--threads", "1"])
        out, err = (stream.buffer.getvalue().decode() for stream in streams[1:])
        return Done(code, out, err)

    return call


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_before_the_model_loads(score, tmp_path: Path, monkeypatch, name: str) -> None:
    def no_loading(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(ModelFlags, "open", no_loading)
    line, reason = BAD[name]
    path, output = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    for done, where in (
        (score(path, "-o", output), str(path)),
        (score("-", "-o", output, stdin=path.read_bytes()), "stdin"),
    ):
        assert done.code == 1 and done.out == "" and not output.exists()
        assert done.err.startswith(f"Error: {where}:3: ") and done.err.count("\n") == 1 and len(done.err) < 400
        assert reason in done.err
    path.write_bytes(line)
    done = score(path, "--on-error", "skip")
    assert done.code == 1 and done.err.endswith(f"Error: none of the 1 lines of {path} can be used\n")


def test_bad_lines_are_left_out_and_counted(score, tiny: Path, tmp_path: Path) -> None:
    lines = [b'{"id": "first", ' + GOOD[1:]]
    for bad, _ in BAD.values():
        lines += [bad, GOOD]
    path, good, output = tmp_path / "q.jsonl", tmp_path / "good.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b"\n".join(lines))
    good.write_bytes(b"\n".join(lines[0::2]))
    done = score(path, "-m", tiny, "-o", output, "--on-error", "skip")
    assert done.code == 0 and done.out == ""
    *named, total = done.err.splitlines()
    assert total == f"skipped {len(BAD)} of {len(lines)} lines"
    for number, (message, (_, reason)) in enumerate(zip(named, BAD.values(), strict=True), 1):
        assert message.startswith(f"skipped: {path}:{2 * number}: ") and reason in message
    found = [json.loads(raw) for raw in output.read_bytes().splitlines()][1:]
    alone = [json.loads(raw) for raw in score(good, "-m", tiny).out.splitlines()][1:]
    assert [r["line"] for r in found] == list(range(1, len(lines) + 1, 2))
    assert [r["answers"] for r in found] == [r["answers"] for r in alone]
    before = output.read_bytes()
    again = score(path, "-m", tiny, "-o", output, "--on-error", "skip")
    assert (again.code, again.err) == (0, done.err) and output.read_bytes() == before


def test_a_line_that_the_model_cannot_take_is_named_too(score, tiny: Path, tmp_path: Path) -> None:
    long = json.dumps({"prompt": "ab " * 2000, "answers": ["c"]}).encode()
    path, output = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b"\n".join([GOOD, long, GOOD, long]))
    done = score(path, "-m", tiny, "-o", output)
    assert done.code == 1 and done.err.startswith(f"Error: {path}:2: ") and "context" in done.err
    done = score(path, "-m", tiny, "-o", output, "--on-error", "skip")
    assert done.code == 0 and done.err.splitlines()[-1] == "skipped 2 of 4 lines"
    assert f"skipped: {path}:4: " in done.err
    assert [json.loads(raw).get("line") for raw in output.read_bytes().splitlines()] == [None, 1, 3]


def test_ten_megabytes_are_a_line(score, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"prompt": "a", "answers": ["b"], "note": "' + b"x" * 10_000_000 + b'"}\n' + GOOD)
    done = score(path, "-m", tiny)
    assert done.code == 0 and len(done.out.splitlines()) == 3 and len(done.out) < 10_000


def test_an_endless_line_takes_bounded_memory(score, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    with path.open("wb") as file:
        file.truncate(MAX_LINE_BYTES * 20)  # zero bytes, no end of line
    tracemalloc.start()
    done = score(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.code == 1 and f":1: the line has {MAX_LINE_BYTES * 20:,} bytes" in done.err
    assert peak < 5 * MAX_LINE_BYTES


def test_the_limit_counts_bad_lines(score, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"x", b"y", GOOD, b"z"]))
    done = score(path, "-m", tiny, "--on-error", "skip", "--limit", "2")
    assert done.err.splitlines()[-1] == "skipped 1 of 2 lines" and len(done.out.splitlines()) == 2
    assert score(path, "-m", tiny, "--limit", "1").code == 0
    assert score(path, "-m", tiny, "--limit", "2").err.startswith(f"Error: {path}:2: ")


def test_the_input_is_never_the_output(score, tiny: Path, tmp_path: Path) -> None:
    path, link = tmp_path / "q.jsonl", tmp_path / "link.jsonl"
    path.write_bytes(GOOD)
    link.symlink_to(path)
    for output in (path, link):
        done = score(path, "-m", tiny, "-o", output, "--overwrite")
        assert done.code == 2 and "replace the input" in done.err and path.read_bytes() == GOOD
    assert score("--prompt", "a", "--answer", "b", "--on-error", "skip", "-m", tiny).code == 2
