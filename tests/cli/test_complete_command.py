"""likely complete: code to standard output, places and options that are wrong in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
SERVER = f"{sys.executable} {Path(__file__).parent.parent / 'helpers' / 'fake_lsp_server.py'}"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cart.py"
    path.write_text("# x: the, cat\ndef f(x):\n    x.\n    return 1\n")
    return path


def test_only_members_are_written(cli, tiny, file):
    common = ("complete", file, "--line", 3, "-m", tiny, "--server", SERVER, "--time-limit", 60, "--max-tokens", 4)
    done = cli(*common, "--json")
    record = done.json
    event = record["triggers"][0]
    dot = file.read_text().index("x.\n") + 2
    assert (event["n_legal"], event["status"]) == (3, "answered")  # the, cat, call
    assert event["position"] == dot + len(record["text"]) - len(record["text"].lstrip())
    assert record["text"].lstrip().startswith(("t", "c")) and record["log_weight"] < 0
    assert cli(*common).out == record["text"] + "\n"
    assert file.read_text().endswith("x.\n    return 1\n")  # the file stays
    free = cli(*common[:-2], "--max-tokens", 4, "--monitors", "none", "--json").json
    assert free["triggers"] == [] and free["log_weight"] == 0


def test_exact_choice_writes_a_whole_member(cli, tiny, file):
    record = cli(
        "complete", file, "--line", 3, "-m", tiny, "--server", SERVER, "--time-limit", 60, "--choose", "exact", "--json"
    ).json
    assert record["triggers"][0]["chosen"] in ("the", "cat")


def test_a_server_that_cannot_be_started_is_told(cli, tiny, file):
    done = cli("complete", file, "--line", 3, "-m", tiny, "--server", "no-such-server", "--max-tokens", 2)
    assert done.code == 2 and "no such program: 'no-such-server'" in done.err and not done.out


@pytest.mark.parametrize(
    "options, code, word",
    [
        (["--line", "9"], 2, "1..5"), (["--line", "3", "--column", "7"], 2, "0..6"),
        (["--stop", "page"], 2, "line, method"),
        (["--monitors", "derefrence"], 2, "dereference"), (["--project", "nowhere"], 1, "not a folder"),
        (["--time-limit", "0"], 2, "limit_s"),
        (["-m", "http://localhost:1"], 1, "on this machine"),
    ],
)  # fmt: skip
def test_wrong_places_and_options(cli, tiny, file, options, code, word):
    model = [] if "-m" in options else ["-m", tiny]
    done = cli("complete", file, *model, *options)
    assert done.code == code and word in done.err and done.err.count("\n") == 1 and not done.out


def test_a_missing_file(cli, tiny, tmp_path):
    done = cli("complete", tmp_path / "none.py", "-m", tiny)
    assert done.code == 1 and "cannot read" in done.err
