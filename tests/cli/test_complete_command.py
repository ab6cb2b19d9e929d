"""likely complete: code to standard output, places and options that are wrong in one line."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("jedi")
CODE = """class Box:
    the = cat = call = 1
def f(x: Box):
    x.
    return 1
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cart.py"
    path.write_text(CODE)
    return path


def test_only_members_are_written(cli, tiny, file):
    common = ("complete", file, "--line", 4, "-m", tiny, "--time-limit", 60, "--max-tokens", 4)
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
    record = cli("complete", file, "--line", 4, "-m", tiny, "--time-limit", 60, "--choose", "exact", "--json").json
    assert record["triggers"][0]["chosen"] in ("the", "cat", "call")


@pytest.mark.parametrize(
    "options, code, word",
    [
        (["--line", "9"], 2, "1..6"), (["--line", "4", "--column", "7"], 2, "0..6"),
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
    (tmp_path / "empty.py").touch()
    done = cli("complete", tmp_path / "empty.py", "-m", tiny)
    assert done.code == 1 and "is empty: write the beginning of the code first" in done.err
