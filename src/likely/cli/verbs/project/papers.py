"""likely papers: what likely builds on, and what was measured again; likely reproduce: measure it again."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags
from likely.cli.printing import print_grid, print_json
from likely.errors import nearest
from likely.evidence.papers import Paper, find, index, rooms

if TYPE_CHECKING:
    from likely.evidence.results import Evidence


def papers(
    name: Annotated[str | None, typer.Argument(help="One paper: its claim, our figure, every check.")] = None,
    room: Annotated[str | None, typer.Option("--room", help="Only this room, e.g. decoding.")] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """List the papers and studies: whether the headline was reproduced, and how many other checks hold.

    Examples:

      likely papers

      likely papers copyspec

      likely papers --room decoding

      likely papers --json
    """
    from likely.evidence.results import read_results, results_dir

    if room is not None and room not in rooms():
        raise typer.BadParameter(
            f'no room is called "{room}"{nearest(room, rooms())} (rooms: {", ".join(rooms())})', param_hint="--room"
        )
    results = read_results(results_dir())
    if name is not None:
        _print_one(find(name), results.get(find(name).id), as_json=as_json)
        return
    entries = [entry for entry in index() if room in (None, entry.room)]
    rows = [_row(entry, results.get(entry.id)) for entry in entries]
    if as_json:
        print_json({"papers": rows})
        return
    shown = [(row["id"], row["title"], row["state"], row["other_checks"] or "") for row in rows]
    print_grid(("name", "title", "headline", "other checks"), shown, whole=["name", "headline", "other checks"])
    count = sum(row["kind"] == "paper" for row in rows)
    measured = sum(bool(row["ours"]) and row["kind"] == "paper" for row in rows)
    held = sum(row["state"] == "reproduced" and row["kind"] == "paper" for row in rows)
    typer.echo(
        f"papers: {count}, of which {measured} are measured here, {held} headlines reproduced; studies of our own: "
        f"{len(rows) - count}"
    )


def _print_one(entry: Paper, result: Evidence | None, *, as_json: bool) -> None:
    row = _row(entry, result)
    if as_json:
        print_json(row)
        return
    typer.echo(f"{entry.title}\n\npaper: {entry.claim}\nhere:  {row['ours'] or 'nothing was measured yet'}")
    for title, checks in (("headline", result.headline), ("other checks", result.secondary)) if result else ():
        typer.echo(f"\n{title}: {row['state'] if title == 'headline' else row['other_checks'] or 'none'}")
        for check in checks:
            why = "" if check.holds else f" ({entry.why_missed(check.statement)})"
            found = f"{check.value:.4g} <= {check.bound:.4g} {check.unit}"
            typer.echo(f"  {'holds' if check.holds else 'FAILS'}  {check.statement}: {found}{why}")


def _row(entry: Paper, result: Evidence | None) -> dict[str, Any]:
    return {
        **asdict(entry),
        "state": result.verdict if result else entry.state,
        "ours": result.ours if result else None,
        "other_checks": result.secondary_held if result else None,
        "mode": result.mode if result else None,
        "date": result.date if result else None,
    }
