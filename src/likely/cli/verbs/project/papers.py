"""likely papers: what likely builds on, and what was measured again; likely reproduce: measure it again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from likely.cli import flags
from likely.cli.printing import print_grid, print_json
from likely.errors import nearest
from likely.evidence.papers import index, rooms


def papers(
    room: Annotated[str | None, typer.Option("--room", help="Only this room, e.g. decoding.")] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """List the papers and studies: their headline figure, ours, and the state of each.

    Examples:

      likely papers

      likely papers --room decoding

      likely papers --json
    """
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
    shown = [
        (
            row["id"], row["title"], row["room"], row["state"],
            row["claim"] if row["kind"] == "paper" else "(our own study)", row["ours"] or "",
        )
        for row in rows
    ]  # fmt: skip
    print_grid(("id", "title", "room", "state", "paper's figure", "our figure"), shown, whole=["room", "state"])
    count = sum(row["kind"] == "paper" for row in rows)
    measured = sum(bool(row["ours"]) for row in rows)
    typer.echo(f"papers: {count}, studies of our own: {len(rows) - count}, measured here: {measured}")


def _row(entry: Any, result: Any) -> dict[str, Any]:
    return {
        **asdict(entry),
        "state": result.verdict if result else entry.state,
        "ours": result.ours if result else None,
        "mode": result.mode if result else None,
        "date": result.date if result else None,
    }
