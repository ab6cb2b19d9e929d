"""likely models: what this machine can load, and what is missing."""

from __future__ import annotations

from typing import Any

import typer

from likely.cli import flags
from likely.cli.printing import print_grid, print_json


def models(as_json: flags.JsonOption = False) -> None:
    """List the models that can be loaded by name, and the engines that are installed.

    Examples:

      likely models

      likely models --json
    """
    rows, engines = listing()
    if as_json:
        print_json({"models": rows, "runtimes": engines})
        return
    shown = [
        (
            row["name"], "ready" if row["installed"] and row["runtimes"] else "missing",
            f"{row['size_bytes'] / 1e6:.0f} MB", row["title"],
            f"can {', '.join(row['capabilities'])}; {row['licence']}; runtimes: {', '.join(row['runtimes']) or 'none'}",
        )
        for row in rows
    ]  # fmt: skip
    print_grid(("name", "state", "size", "model", "more"), shown, whole=("name", "state", "size"))
    for row in rows:
        if not row["installed"]:
            typer.echo(f"Model {row['name']} is missing. Run: {row['missing']}")
    for name, state in engines.items():
        if not state["installed"]:
            typer.echo(f"Runtime {name} is missing. Run: {state['pip']}")
    typer.echo("Also: any GGUF file, transformers folder or hub id (torch), or the URL of a server.")


def listing() -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """(a row per known model, the state of each runtime)"""
    from likely.models.catalog import KNOWN
    from likely.models.load import available_runtimes
    from likely.runtimes.kinds import KINDS

    have = available_runtimes()
    engines = {name: {"installed": ready, "pip": KINDS[name].pip} for name, ready in have.items()}
    rows = []
    for known in KNOWN:
        missing = [] if known.present() else [known.pip]
        if not any(have.values()):
            missing.append(KINDS["llamacpp"].pip)
        rows.append(
            {
                "name": known.name,
                "aliases": list(known.aliases),
                "title": known.title,
                "size_bytes": known.size_bytes,
                "licence": known.licence,
                "installed": known.present(),
                "runtimes": [name for name, ready in have.items() if ready and "gguf" in KINDS[name].reads],
                "capabilities": ["score", "generate", *(["ask", "chat"] if known.chat else [])],
                "missing": "; ".join(dict.fromkeys(missing)),
            }
        )
    return rows, engines
