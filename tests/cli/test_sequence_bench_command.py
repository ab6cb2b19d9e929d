"""likely sequence bench, with models of a few steps."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
FEW = ["--steps", "2", "--batch", "2", "--width", "16", "--depth", "1", "--seeds", "1", "--task", "mqar",
       "--set", "mqar.length=16", "--set", "mqar.pairs=2", "--set", "mqar.vocabulary=16"]  # fmt: skip


def test_help_begins_with_examples_and_names_tasks_and_layers(cli):
    done = cli("sequence", "bench", "--help")
    assert done.code == 0 and done.out.index("Examples:") < done.out.index("Options:")
    for word in ("selective_copy", "mamba2", "--budget-seconds", "--timing"):
        assert word in done.out


def test_table_files_and_json_hold_the_same_and_cells_are_kept(cli, tmp_path):
    pytest.importorskip("matplotlib")
    kept, page, text, curves = (tmp_path / name for name in ("cells.jsonl", "t.html", "t.md", "t.svg"))
    given = ["sequence", "bench", "s4d", "mamba2+attention", *FEW, "--set", "mamba2.head_dim=8", "--cells", kept]
    first = cli(*map(str, [*given, "--html", page, "--markdown", text, "--plot", curves]))
    assert first.code == 0, first
    assert "chance" in first.out and "12.5 %" in first.out and "seed 0, mqar, s4d" in first.err
    assert "mamba2+attention" in page.read_text() and "mamba2+attention" in text.read_text() and curves.stat().st_size
    again = cli(*map(str, [*given, "--json"]))
    assert again.err == "" and len(kept.read_text().splitlines()) == 2
    found = json.loads(again.out)
    assert [row["layer"] for row in found["rows"]] == ["s4d", "mamba2+attention"]
    assert found["columns"][0]["chance"] == 1 / 8 and found["rows"][0]["state_bytes"] > 0 and not found["missing"]


def test_a_spent_budget_says_what_is_missing(cli):
    done = cli("sequence", "bench", "s4d", *FEW, "--budget-seconds", "0")
    assert done.code == 0 and "1 cells were not computed" in done.err and "--cells" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [(["mamba3"], 'did you mean "mamba'), (["s4d", "--task", "mqr"], 'did you mean "mqar"'),
     (["s4d", "--set", "mqar.pair=2"], 'did you mean "pairs"'), (["s4d", "--length", "64"], "--timing"),
     (["s4d", "--plot", "x.gif"], ".png"), (["s4d", "--set", "s4d.colour=2"], "colour")],
)  # fmt: skip
def test_what_cannot_be_is_one_line(cli, words, said):
    done = cli("sequence", "bench", *words, *FEW)
    assert done.code in (1, 2) and said in done.err and done.err.count("\n") == 1 and done.out == ""
