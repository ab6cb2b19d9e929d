"""Every command of the README's tour and of the guides runs as typed, in a folder that holds `examples/`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from private_cache import private_cache

ROOT = Path(__file__).parents[2]
# pages with a test of their own (test_NAME_page.py) check more than that the commands run
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("index", "quickstart", "seeing", "queries", "speculation", "compression", "scaling", "forecasting")
    ),
]
LATER = (  # what installs, runs for ever, needs a person, a data set, another model or a quiet machine
    "pip install", "venv", "likely serve", "likely chat", "likely eval-code", "likely bench", "likely profile",
    "curl ", "MODEL",
    "bigger.gguf", "gemma3.jsonl", "likely scale gsm8k", "http://localhost", "reproductions/", "benchmarks/",
    "likely reproduce", "pytest", "capital.lmql",
)  # fmt: skip
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.xdist_group("real")]


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.S | re.M)
    found = []
    for block in blocks:
        for command in re.split(r"(?<!\\)\n(?! )", re.sub(r"\\\n\s*", " ", block)) if "<<" not in block else [block]:
            if command.strip() and not command.startswith("#") and not any(word in command for word in LATER):
                found.append(command)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_works_in_order(page, tmp_path, smollm2_path):
    program = tmp_path / "bin" / "likely"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from likely.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "README.md", tmp_path)
    home = {
        **os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}",
        "LIKELY_CACHE": private_cache(tmp_path / "cache"), "LIKELY_CALIBRATORS": str(tmp_path / "calibrators"),
    }  # fmt: skip
    for command in commands(page):
        command = re.sub(r"likely query (?!.*--yes)", "likely query --yes ", command)
        done = subprocess.run(
            ["bash", "-e", "-c", command], cwd=tmp_path, env=home, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
