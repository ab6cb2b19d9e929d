"""The page on uncertainty works as typed, and its table of estimators is that of the code."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from typed_commands import typed_commands

from likely.uncertainty.table import ESTIMATORS

PAGE = (Path(__file__).parents[2] / "docs" / "uncertainty.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \| ((?:low|high)(?:, (?:low|high))*) \|", re.M)


def test_every_estimator_stands_in_the_table_with_its_direction_and_its_needs():
    listed = {}
    for names, needs, sure in ROW.findall(PAGE):
        found = re.findall(r"\w+", names)
        directions = sure.split(", ")
        listed |= dict(zip(found, directions * (len(found) if len(directions) == 1 else 1), strict=True))
        for name in found:
            wanted = ESTIMATORS[name].needs
            assert ("samples" in needs) == ("samples" in wanted or name == "p_true"), name
            assert ("beam" in needs) == ("beams" in wanted), name
    certain = {"more_certain": "high", "less_certain": "low"}
    assert listed == {name: certain[estimator.higher_is] for name, estimator in ESTIMATORS.items()}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.xdist_group("pages")
def test_every_command_of_the_page_works_in_order(tmp_path, smollm2_path):
    home = typed_commands(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    assert len(blocks) == 5
    few = "for a in 2 12; do for b in 1 4 7 9"  # of the 48 sums 8, and fewer samples
    for block in blocks:
        text = re.sub(r"for a in .*; do for b in [0-9 ]+", few, block).replace("--clusters", "--samples 3 --clusters")
        if "calibrate" in text:  # it asks for 20 lines at least, and each sum shall be in both halves
            assert "fit odd.jsonl" in text and "eval even.jsonl" in text
            text = text.replace("awk 'NR % 2 == 1'", "sed -i 'p;p;p;p;p' labelled.jsonl\nawk 'NR % 2 == 1'")
        done = subprocess.run(["bash", "-e", "-c", text], cwd=tmp_path, env=home, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
    header, *lines = map(json.loads, (tmp_path / "scored.jsonl").read_text().splitlines())
    assert len(lines) == 8 and header["higher_is"]["greedy_agreement"] == "more_certain" and "correct" in lines[0]
    labelled = (tmp_path / "labelled.jsonl").read_text().splitlines()
    halves = [(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("odd", "even")]
    assert halves == [labelled[::2], labelled[1::2]] and len(halves[0]) == 24 and (tmp_path / "entropy.json").exists()


@pytest.mark.real
@pytest.mark.xdist_group("pages")
def test_its_python_runs(capsys, smollm2_path):
    pytest.importorskip("sklearn")
    seen: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(compile(block, "uncertainty.md", "exec"), seen)
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:3]] == ["g_nll", "semantic_entropy", "greedy_agreement"]
    assert "clusters: lexical" in out[1] and len(out) == 5
    near, far = seen["far"]
    assert 2 * near < far
