"""The Python of the page on decoding diffusion models runs, one block after the other."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "diffusion-decoding.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_runs(capsys):
    known = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(compile(block, "docs/diffusion-decoding.md", "exec"), known)
    assert capsys.readouterr().out.splitlines()[0].endswith(" 16")
    assert 0 < known["fitted"].share_of_steps < 0.9  # thresholds that stop something
