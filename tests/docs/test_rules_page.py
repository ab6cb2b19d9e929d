"""The page on rules works as typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from private_cache import private_cache

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]


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
    program = texts_and_rules / "bin" / "likely"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from likely.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    home = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "LIKELY_CACHE": private_cache(texts_and_rules / "c"),
    }
    (command,) = [block for block in blocks("sh") if block.startswith("likely")]
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=texts_and_rules, env=home, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    _, *lines = map(json.loads, (texts_and_rules / "risks.jsonl").read_text().splitlines())
    assert len(lines) == 8 and sum(line["asked"] for line in lines) <= 2
