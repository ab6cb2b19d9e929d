"""The page on confidence works as typed (with fewer sums)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typed_commands import typed_commands

PAGE = (Path(__file__).parents[2] / "docs" / "confidence.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("pages")]


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.slow
def test_everything_on_the_page_works_in_order(tmp_path, smollm2_path):
    (tmp_path / "bigger.gguf").symlink_to(smollm2_path)
    home = typed_commands(tmp_path)

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done

    commands = [block for block in blocks("sh") if "likely serve" not in block]
    assert len(commands) == 6
    made, fitted, used, _, decided, own = (
        run("bash", "-e", "-c", block.replace("range(120)", "range(24)").replace("--limit 24", "--limit 2"))
        for block in commands
    )
    assert "24 answers" in made.stderr + made.stdout or (tmp_path / "graded.jsonl").exists()
    assert "fitted to 24 lines" in fitted.stdout
    shown = json.loads(used.stdout[used.stdout.index("{") :])
    assert 0 < shown["confidence"] < 1 and f"confidence {shown['confidence']:.2f}" in used.stderr
    assert decided.stderr.count("labelled items") >= 3
    assert (tmp_path / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    assert '"ece_floor"' in own.stdout
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    lines = run(sys.executable, script).stdout.splitlines()
    assert "accuracy at least" in lines[1] and 0 < float(lines[2]) < 1  # the calibrator that was kept above
    size, coverage = map(float, lines[-1].split())
    assert 1 <= size < 4 and 0.86 < coverage < 0.94


def test_the_methods_of_the_page_are_those_that_there_are():
    from likely.calibration.recalibrators.table import RECALIBRATORS

    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| [a-z ,]+ \| .* \|$", PAGE, flags=re.M)
    named = [name for row in rows for name in re.findall(r"\w+", row)]
    assert sorted(named) == sorted(RECALIBRATORS)
