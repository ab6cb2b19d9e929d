"""likely papers: what likely builds on, and what was measured again; likely reproduce: measure it again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from likely.cli import options


def papers(
    room: Annotated[str | None, typer.Option("--room", help="Only this room, e.g. decoding.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """List the papers and studies: their headline figure, ours, and the state of each.

    Examples:

      likely papers

      likely papers --room decoding

      likely papers --json
    """
    from likely.cli.printing import print_json
    from likely.errors import nearest
    from likely.evidence.papers import index, rooms
    from likely.evidence.results import read_results, results_dir

    if room is not None and room not in rooms():
        raise typer.BadParameter(
            f'no room is called "{room}"{nearest(room, rooms())} (rooms: {", ".join(rooms())})', param_hint="--room"
        )
    results = read_results(results_dir())
    entries = [entry for entry in index() if room in (None, entry.room)]
    rows = [_row(entry, results.get(entry.id)) for entry in entries]
    if as_json:
        print_json({"papers": rows})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("id", "title", "room", "state", "paper's figure", "our figure"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("room", "state"))
    for row in rows:
        figure = row["claim"] if row["kind"] == "paper" else "(our own study)"
        table.add_row(row["id"], row["title"], row["room"], row["state"], figure, row["ours"] or "")
    console = Console(markup=False, highlight=False)
    console.print(table)
    count = sum(row["kind"] == "paper" for row in rows)
    measured = sum(bool(row["ours"]) for row in rows)
    console.print(f"papers: {count}, studies of our own: {len(rows) - count}, measured here: {measured}")


def _row(entry: Any, result: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(entry),
        "state": result.verdict if result else entry.state,
        "ours": result.ours if result else None,
        "mode": result.mode if result else None,
        "date": result.date if result else None,
    }
