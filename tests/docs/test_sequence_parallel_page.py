"""docs/sequence-parallel.md: its Python runs in order, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "sequence-parallel.md"


def test_its_python_runs(capsys):
    space: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)
    assert "no plan takes less than" in capsys.readouterr().out
    assert max(space["made"].degrees[0]) >= 16 and abs(space["cost"].fixed_ms - 629.36) < 1e-3
    assert all(p.grad is not None for p in space["layers"].parameters())
