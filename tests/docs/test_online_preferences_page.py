"""The page on online preferences: its game comes out as typed, and its table is that of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "online-preferences.md").read_text(encoding="utf-8")


def test_the_game_prints_what_the_page_says(capsys):
    [code] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    exec(code, {})
    said = re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.M)
    assert capsys.readouterr().out.splitlines() == said


def test_every_method_and_default_stands_in_the_table():
    pytest.importorskip("torch")
    from likely.alignment.online.training import BETA, ONLINE_METHODS, TAU

    rows = {row.split("|")[1].strip(" `"): row for row in PAGE.splitlines() if row.startswith("| `")}
    assert tuple(rows) == ONLINE_METHODS
    assert all(f"default {TAU[name]:g}" in row for name, row in rows.items() if name != "ipo_md")
    assert TAU["ipo_md"] == TAU["online_ipo"] and f"β = {BETA['ipo_md']}" in rows["ipo_md"]
