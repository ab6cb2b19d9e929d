"""likely models: what this machine can load, and what is missing."""

from __future__ import annotations

from typing import Any

from likely.cli import options


def models(as_json: options.JsonOption = False) -> None:
    """List the models that can be loaded by name, and the engines that are installed.

    Examples:

      likely models

      likely models --json
    """
    from likely.cli.printing import print_json

    rows, engines = listing()
    if as_json:
        print_json({"models": rows, "runtimes": engines})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "model", "size", "licence", "runtimes", "can", "state"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = (
            row["name"],
            row["title"],
            f"{row['size_bytes'] / 1e6:.0f} MB",
            row["licence"],
            ", ".join(row["runtimes"]) or "none",
            ", ".join(row["capabilities"]),
            "ready" if row["installed"] and row["runtimes"] else "missing",
        )
        table.add_row(*cells)
    console = Console()
    console.print(table)
    for row in rows:
        if not row["installed"]:
            console.print(f"Model {row['name']} is missing. Run: {row['missing']}", highlight=False, markup=False)
    for name, state in engines.items():
        if not state["installed"]:
            console.print(f"Runtime {name} is missing. Run: {state['pip']}", highlight=False, markup=False)
    console.print("Also: any GGUF file, transformers folder or hub id (torch), or the URL of a server.", markup=False)


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
                "runtimes": [name for name, ready in have.items() if ready],
                "capabilities": ["score", "generate", "ask", *(["chat"] if known.chat else [])],
                "missing": "; ".join(dict.fromkeys(missing)),
            }
        )
    return rows, engines
