"""likely reproduce: measure a claim again, by its script in reproductions/."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.errors import LikelyError
from likely.evidence.papers import find
from likely.io.checkout import need_checkout


def reproduce(
    name: Annotated[str, typer.Argument(help="A paper or study with a script (likely papers lists them).")],
    full: Annotated[bool, typer.Option("--full", help="The whole study instead of the quick form.")] = False,
) -> None:
    """Measure a claim again and write results/NAME.json; needs a checkout of the project.

    Examples:

      likely reproduce runtime_parity

      likely reproduce runtime_parity --full
    """
    import subprocess
    import sys

    entry = find(name)
    root = need_checkout("likely reproduce")
    script = root / "reproductions" / f"{entry.id}.py"
    if not script.is_file():
        scripts = sorted(path.stem for path in script.parent.glob("[!_]*.py"))
        ready = ", ".join(scripts) or "none"
        raise LikelyError(f'"{entry.id}" is {entry.state}: it has no script in reproductions/ yet (ready: {ready})')
    process = subprocess.Popen([sys.executable, "-u", str(script), *(["--full"] if full else [])], cwd=root)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(timeout=10)  # the terminal's Ctrl-C reached the script, too: it clears up and ends
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise
    if code:
        raise typer.Exit(1 if code != 2 else 2)
