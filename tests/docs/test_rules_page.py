"""The page on rules works as typed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typed_commands import typed_commands

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("pages")]


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture
def texts_and_rules(tmp_path):
    files = [block for block in blocks("sh") if block.startswith("cat")]
    assert len(files) == 1
    subprocess.run(["bash", "-e", "-c", files[0]], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.slow
def test_the_python_of_the_page_says_what_it_says(texts_and_rules):
    (block,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=texts_and_rules, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", block)
    assert (texts_and_rules / "harmonizer" / "harmonizer.safetensors").is_file()


@pytest.mark.slow
def test_the_command_of_the_page_works(texts_and_rules, smollm2_path):
    home = typed_commands(texts_and_rules)
    (command,) = [block for block in blocks("sh") if block.startswith("likely")]
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=texts_and_rules, env=home, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    _, *lines = map(json.loads, (texts_and_rules / "risks.jsonl").read_text().splitlines())
    assert len(lines) == 8 and sum(line["asked"] for line in lines) <= 2
