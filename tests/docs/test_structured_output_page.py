"""The page on structured output works as typed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typed_commands import typed_commands

PAGE = (Path(__file__).parents[2] / "docs" / "structured-output.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("pages")]


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.slow
def test_every_command_of_the_page_works_in_order(tmp_path, smollm2_path):
    home = typed_commands(tmp_path)
    (schema,) = blocks("json")
    (tmp_path / "person.json").write_text(schema)
    commands = [block for block in blocks("sh") if not block.startswith("pip install")]
    assert len(commands) == 3
    for block in commands:
        done = subprocess.run(["bash", "-e", "-c", block], cwd=tmp_path, env=home, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
    _, *records = map(json.loads, (tmp_path / "values.jsonl").read_text().splitlines())
    assert [record["value"]["name"] for record in records] == ["Maria", "Carlo"]


@pytest.mark.slow
def test_the_python_of_the_page_works_in_order(tmp_path, smollm2_path):
    ours = [block for block in blocks("python") if "for_llama_cpp" not in block and "OpenAI" not in block]
    assert len(ours) == 5
    script = tmp_path / "page.py"
    script.write_text("\n".join(ours), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[:2]:  # what the page's comments say
        assert f"# {line}" in PAGE
