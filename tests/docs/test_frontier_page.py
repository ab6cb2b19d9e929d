"""docs/frontier.md: its Python runs in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "frontier.md"


def test_its_python_runs(capsys):
    pytest.importorskip("torch")
    space: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)
    out = capsys.readouterr().out
    assert "too few samples for (0.1,)" in out and "beta inf: reward" in out
