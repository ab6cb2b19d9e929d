"""kill -9 and Ctrl-C at seeded random moments: nothing is lost, nothing repeated, no half file, no traceback."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from moments import Moments
from tiny_gguf import write_tiny_llama

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.xdist_group("kills"),
]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moments]:
    server = Moments(cache=tmp_path_factory.mktemp("cache"))  # nobody else's entries are read beside it
    yield server
    server.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")
    os.utime(path, (1e9, 1e9))  # the hash of a file that has just been written is not remembered
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 lines: five pieces of work, each written at once."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    records = [{"id": i, "prompt": f"ab {i % 3}", "answers": ["c", f"d{i}"]} for i in range(600)]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.mark.slow
def test_the_same_moment_is_the_same_step(moments: Moments, tiny: Path, questions: Path) -> None:
    """The instrument itself: step counts repeat, and a kill really is one."""
    call = ("score", questions, "--limit", 3, "-m", tiny, "--runtime", "llamacpp", "--threads", 1)
    _, *done = [moments.run(*call) for _ in range(3)]
    assert done[0] == done[1] and done[0].code == 0 and done[0].steps > 10_000
    assert moments.run("score", questions, "-m", tiny, at=500).code == -signal.SIGKILL
    assert moments.run("score", questions, "-m", tiny, at=500, kind=signal.SIGINT).code == 130


@pytest.fixture(scope="module")
def things_to_ask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 lines: five batches, each line written as soon as all before it are there."""
    path = tmp_path_factory.mktemp("ask") / "ask.jsonl"
    path.write_text("".join(json.dumps({"id": i, "question": f"Is {i} odd?"}) + "\n" for i in range(80)))
    return path


@pytest.mark.parametrize(
    ("verb", "kind", "count"),
    [
        pytest.param("ask", signal.SIGINT, 5, marks=pytest.mark.slow),
        pytest.param("score", signal.SIGKILL, 50, marks=pytest.mark.slow),
        pytest.param("ask", signal.SIGKILL, 30, marks=pytest.mark.slow),
    ],
)
def test_a_results_file_survives_stops(
    moments: Moments,
    tiny: Path,
    questions: Path,
    things_to_ask: Path,
    tmp_path: Path,
    verb: str,
    kind: signal.Signals,
    count: int,
) -> None:
    command = ("score", questions) if verb == "score" else ("ask", things_to_ask, "--max-tokens", 3)

    def score(target: Path, at: int | None = None):
        return moments.run(*command, "-m", tiny, "--threads", 1, "-o", target, at=at, kind=kind)

    whole = score(tmp_path / "whole.jsonl")
    expected = (tmp_path / "whole.jsonl").read_bytes()
    assert whole.code == 0 and expected.count(b"\n") == 1 + sum(1 for _ in command[1].open())

    rng, target, kept, stops, finished, sizes = random.Random(7), tmp_path / "out.jsonl", 0, 0, 0, set()
    while stops < count:
        ended = score(target, at=rng.randrange(1, whole.steps))
        found = target.read_bytes() if target.exists() else b""
        assert expected.startswith(found), "a result is lost, repeated or out of place"
        assert len(found) >= kept, "what an earlier run had written is gone"
        assert "Traceback" not in ended.err and "Error" not in ended.err, ended.err
        kept = len(found)
        if ended.code == 0:  # its moment lay behind the end of a resumed run: begin anew
            assert found == expected
            finished, kept = finished + 1, 0
            target.unlink()
            continue
        assert ended.code == (130 if kind == signal.SIGINT else -signal.SIGKILL)
        sizes.add(kept)
        stops += 1
    # fifty stops fall before, between and after the pieces, and behind the end of a resumed run
    assert len(sizes) >= (2 if count >= 20 else 1) and (count < 50 or (finished and len(sizes) >= 4))
    score(target)
    assert target.read_bytes() == expected


def bytes_of(path: Path) -> dict[str, bytes] | bytes | None:
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    return path.read_bytes() if path.exists() else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "kind", "stops"),
    [
        ("f16", signal.SIGKILL, 50),
        ("f16", signal.SIGINT, 14),
        ("safetensors", signal.SIGKILL, 20),
        ("safetensors", signal.SIGINT, 10),
    ],
)
def test_a_converted_model_is_whole_or_not_there(
    moments: Moments, tiny: Path, tmp_path: Path, to: str, stops: int, kind: signal.Signals
) -> None:
    def convert(target: Path, at: int | None = None, *options: str):
        return moments.run("convert", tiny, target, "--to", to, "--no-verify", *options, at=at, kind=kind)

    def fresh(name: str) -> Path:  # looking for what others have left takes steps for each file that is there
        folder = tmp_path / name
        folder.mkdir()
        return folder / "model"

    whole = convert(first := fresh("whole"))
    expected, rng, late = bytes_of(first), random.Random(11), 0
    assert whole.code == 0 and expected
    for number in range(stops):
        target = fresh(str(number))
        # the end of the run, where the name is given, gets half of the stops, at distances of every magnitude; in the
        # last few steps the process has nothing left to do but to leave
        at = rng.randrange(1, whole.steps - 16) if number % 2 else whole.steps - 16 - int(1000 ** rng.random())
        ended = convert(target, at)
        found = bytes_of(target)
        assert ended.code == (130 if kind == signal.SIGINT else -signal.SIGKILL)
        assert "Traceback" not in ended.err and "Error" not in ended.err, ended.err
        assert found is None or found == expected
        late += found is not None
        if kind == signal.SIGINT:
            assert {p.name for p in target.parent.iterdir()} <= {"model"}, "a temporary file stays"
    assert 0 < late < stops
    assert convert(target, None, "--overwrite").code == 0
    assert bytes_of(target) == expected


def test_a_model_that_is_being_checked_is_not_there_yet(moments: Moments, tiny: Path, tmp_path: Path) -> None:
    target, rng = tmp_path / "out.gguf", random.Random(5)
    steps = moments.run("convert", tiny, tmp_path / "whole.gguf", "--to", "f16", "--no-verify").steps
    for _ in range(3):
        # an unchecked run would have ended here; the check takes as many steps again
        moments.run("convert", tiny, target, "--to", "f16", at=steps + rng.randrange(1000, 50_000))
        assert not target.exists()


@pytest.mark.slow
def test_a_model_that_is_replaced_is_the_old_one_or_the_new_one(moments: Moments, tiny: Path, tmp_path: Path) -> None:
    new, target, rng, seen = tmp_path / "new.gguf", tmp_path / "target.gguf", random.Random(3), set()
    steps = moments.run("convert", tiny, new, "--to", "q8_0", "--no-verify").steps
    for _ in range(12):
        target.write_bytes(tiny.read_bytes())
        at = steps - rng.randrange(1, 1000)
        moments.run("convert", tiny, target, "--to", "q8_0", "--no-verify", "--overwrite", at=at)
        seen.add(target.read_bytes())
    assert seen == {tiny.read_bytes(), new.read_bytes()}
