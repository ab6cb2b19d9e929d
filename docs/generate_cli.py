"""Write docs/cli.md from the real --help of every verb; --check only says whether it is up to date."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

from likely.io.whole_file import write_whole_file

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# Command line

Made from `--help` by `docs/generate_cli.py`. Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 Ctrl-C,
143 SIGTERM.
"""


def help_of(*verb: str) -> str:
    from likely.cli.app import run

    out = io.StringIO()
    with redirect_stdout(out):
        code = run([*verb, "--help"])
    if code != 0:
        raise SystemExit(f"likely {' '.join(verb)} --help ends with {code}")
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def _below(command: object, *path: str) -> Iterator[tuple[str, ...]]:
    """Every verb under a command, a group before what it holds."""
    for name, verb in sorted(getattr(command, "commands", {}).items()):
        yield (*path, name)
        yield from _below(verb, *path, name)


def page() -> str:
    from likely.cli.app import command

    os.environ |= {"COLUMNS": "100", "LIKELY_CONFIG": os.devnull}  # nobody's own settings
    parts = [HEAD, f"```text\n{help_of()}\n```\n"]
    parts += [f"## likely {' '.join(verb)}\n\n```text\n{help_of(*verb)}\n```\n" for verb in _below(command())]
    return "\n".join(parts)


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text("utf-8") != text:
            sys.exit("docs/cli.md is not what --help says: run python docs/generate_cli.py")
    else:
        write_whole_file(PAGE, text.encode())
