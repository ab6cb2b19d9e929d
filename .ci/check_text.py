"""Checks on text: links inside the documentation lead somewhere, and the README's examples are what --help says."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from likely.cli.app import run

ROOT = Path(__file__).parents[1]
GROUPS = "align label|align protein|align|audit probes|audit|batch|calibrate|deploy|diffusion|draft|prompts"
GROUPS += "|sequence|study|tools"


def files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listed.stdout.splitlines()]


def broken_links() -> list[str]:
    problems = []
    for file in files():
        text = re.sub(r"```.*?```", "", file.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http://", "https://", "mailto:", "#")):
                continue
            if not (file.parent / target.split("#")[0]).exists():
                problems.append(f"{file.relative_to(ROOT)}: broken link {target}")
    return problems


def unknown_options() -> list[str]:
    """Options of `likely VERB` in code blocks that the verb does not have."""
    problems = []
    help_of: dict[str, str] = {}
    for file in files():
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", file.read_text(), flags=re.S):
            for verb, rest in re.findall(
                rf"(?<![\w/-])likely ((?:(?:{GROUPS}) )?\w[\w-]*)([^|;\n]*)",
                block,
            ):
                if verb not in help_of:
                    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
                        run([*verb.split(), "--help"])
                    help_of[verb] = out.getvalue()
                for option in re.findall(r"(?<!\S)--[\w-]+", rest):
                    if option not in help_of[verb]:
                        problems.append(f"{file.relative_to(ROOT)}: likely {verb} has no {option}")
    return problems


if __name__ == "__main__":
    found = broken_links() + unknown_options()
    print("\n".join(found) or "documentation: links and options hold")
    sys.exit(bool(found))
