"""The page on the label loop works as typed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from typed_commands import typed_commands

PAGE = Path(__file__).parents[2] / "docs" / "label-loop.md"


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.xdist_group("pages")
def test_every_command_of_the_page_works_in_order(tmp_path, smollm2_path):
    home = typed_commands(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 5
    for block in blocks:
        keys = b"ynsuyq" if "--by person" in block else b""
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=tmp_path, env=home, input=keys, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode()
    header, *lines = map(json.loads, (tmp_path / "graded.jsonl").read_text().splitlines())
    assert len(lines) == 4 and header["answers"]["kind"] == "ask"
    assert {"confidence", "raw_confidence", "correct", "graded_by"} <= lines[0].keys()
    assert len((tmp_path / "by-hand.jsonl").read_text().splitlines()) == 4
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3
