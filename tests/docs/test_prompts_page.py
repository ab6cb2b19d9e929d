"""The page on prompts works as typed, and its tables are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typed_commands import typed_commands

from likely.prompting.ensembles.combining import COMBINATIONS
from likely.prompting.selection.criteria import METHODS, PER_INPUT
from likely.prompting.selection.scores import PromptScores

PAGE = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")


def test_every_method_and_combination_stands_in_its_table():
    rows = re.findall(r"^\| (`[A-Z].*?) \|.*\| (one .*?) \|$", PAGE, flags=re.M)
    listed = {name: kind for names, kind in rows for name in re.findall(r"`([A-Z_]+)`", names)}
    assert listed.keys() == set(METHODS)
    assert {n for n, kind in listed.items() if "each input" in kind} == {*PER_INPUT, "PPL_L"}
    assert set(re.findall(r'^\| `"(\w+)"|, `"(geometric)"`', PAGE, flags=re.M)) == {
        ("max", ""), ("mean", ""), ("vote", ""), ("", "geometric")
    }  # fmt: skip
    assert set(COMBINATIONS) == {"max", "mean", "vote", "geometric"}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.xdist_group("pages")
def test_every_command_and_its_python_work_in_order(tmp_path, smollm2_path):
    pytest.importorskip("peft")
    home = typed_commands(tmp_path)

    def run(command):
        done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    shell = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    assert len(shell) == 6
    single = [
        block.replace("-o scores.npz", "-o scores.npz --threads 1").replace("--kept", "--threads 1 --kept")
        for block in shell
    ]
    printed = [run(["bash", "-e", "-c", block]) for block in single]
    assert "chosen: " in printed[2] and printed[4].count("cbm (") == 2
    assert "(none)" in printed[5] and len((tmp_path / "hinted.jsonl").read_text().splitlines()) == 5
    assert PromptScores.load(tmp_path / "scores.npz").probs().shape == (5, 10, 2)
    repair, ensemble, tuning = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert len(run([sys.executable, "-c", repair]).splitlines()) == 2
    shorter = tuning.replace("steps=6, batch=4", "steps=1, batch=1")  # it goes on where the block before it ended
    printed_by_both = run([sys.executable, "-c", ensemble + shorter])
    assert printed_by_both.count("(disagreement ") == 3 and printed_by_both.count("[") == 4
    assert (tmp_path / "adapter" / "recipe.json").exists()
