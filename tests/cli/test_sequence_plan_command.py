"""likely sequence plan, as a stranger would use it."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def lengths(tmp_path):
    file = tmp_path / "lengths.txt"
    values = np.random.default_rng(0).lognormal(6, 1.2, 120).astype(int) + 1
    file.write_text("\n".join(map(str, [*values, 60_000, 10**9])))
    return file


def test_a_plan_as_table_and_json(cli, lengths):
    shown = cli("sequence", "plan", "--lengths", str(lengths), "--devices", "16", "--batch", "121")
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[0].split() == ["micro-batch", "groups", "sequences", "tokens", "longest", "ms"]
    assert "no plan takes less than" in shown.out and "Note: 1 of 122 sequences are left out" in shown.err
    record = cli(
        "sequence", "plan", "--lengths", str(lengths), "--devices", "16", "--batch", "121", "--json"
    ).json  # the sequence of 10**9 tokens is left out
    placed = sorted(i for groups in record["microbatches"] for group in groups for i in group["sequences"])
    assert placed == list(range(121)) and record["predicted_ms"] >= record["bound_ms"] and record["model"] == "gpt-7b"


def test_compare_says_what_planning_gains(cli, lengths):
    how = ("--devices", "16", "--batch", "40", "--batches", "2", "--solver", "greedy", "--compare")
    rows = cli("sequence", "plan", "--lengths", str(lengths), *how, "--json").json["rows"]
    assert rows[0]["groups"] == "planned" and rows[0]["batches"] == 2
    assert all(row["times_planned"] >= 1 for row in rows[:-1])
    assert "of planned" in cli("sequence", "plan", "--lengths", str(lengths), *how).out


def test_what_cannot_be_planned_is_one_line(cli, tmp_path, lengths):
    (tmp_path / "broken.txt").write_text("12\nsix\n")
    for file, more, words in (
        ("broken.txt", (), "broken.txt:2"), ("none.txt", (), "is no file"),
        (lengths.name, ("--devices", "1"), "no token fits"),
        (lengths.name, ("--memory-gb", "0"), "memory_gb must be > 0"),
        (lengths.name, ("--longest", "1"), "no length is at most 1"),
    ):  # fmt: skip
        done = cli("sequence", "plan", "--lengths", str(tmp_path / file), *more)
        assert done.code in (1, 2) and words in done.err and done.err.count("\n") == 1, done
