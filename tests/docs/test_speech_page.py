"""The page on speech works as typed (without training)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typed_commands import typed_commands

PAGE = (Path(__file__).parents[2] / "docs" / "speech.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("pages")]


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.slow
def test_everything_on_the_page_works_in_order(tmp_path, smollm2_path):
    home = typed_commands(tmp_path)

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    made, fitted = blocks("sh")
    shown, decided, kept, taught = blocks("python")
    run("bash", "-e", "-c", made.replace("range(120)", "range(54)"))
    fewer = {"40:42": "10:12", "40": "10", "n=5": "n=2", '("smollm2")': '("smollm2", threads=1)'}
    small = [re.sub("|".join(map(re.escape, fewer)), lambda m: fewer[m[0]], b) for b in (shown, decided, kept)]
    compile(taught, "page", "exec")  # the study of the paper and its test train
    pieces = [*small, *re.findall(r"^from .*$", taught, flags=re.M)]
    script = tmp_path / "page.py"
    script.write_text("\n".join(pieces), encoding="utf-8")
    out = run(sys.executable, script)
    assert re.search(r"^1\. .* \(\d\.\d\d\)\n2\. .* \(\d\.\d\d\)", out, flags=re.M)
    rows = [row for line in out.splitlines() for row in re.findall(r"\[(\d\.\d+), (\d\.\d+), (\d\.\d+)\]", line)]
    assert len(rows) == 2
    assert all(abs(sum(map(float, row)) - 1) < 0.01 for row in rows)
    parted = fitted.replace("head -n 50", "head -n 30").replace("tail -n 30", "tail -n 14")  # 44 lines, not 80
    assert "fitted to 30 lines" in run("bash", "-e", "-c", parted)
    spoken, known, others = (
        (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("spoken", "spoken-known", "spoken-others")
    )
    assert known + others == spoken and len(known) == 30
