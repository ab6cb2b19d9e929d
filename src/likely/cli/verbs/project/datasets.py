"""likely datasets: the data sets on this machine, or one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from likely.cli import flags
from likely.cli.printing import print_grid, print_json
from likely.errors import DataError

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of the data sets.  [default: LIKELY_DATA, else ../shared/data]"),
]


def datasets(
    name: Annotated[str | None, typer.Argument(help="One set: its files, checked against their sha256.")] = None,
    data_dir: DataDir = None,
    as_json: flags.JsonOption = False,
) -> None:
    """List the data sets that are here, or show one and check its files.

    Examples:

      likely datasets

      likely datasets mbpp

      likely datasets --data-dir ~/data --json
    """
    from likely.data.datasets import data_root, find_set, list_sets

    if name is not None:
        _show(name, data_dir, as_json)
        return
    folder = data_root(data_dir)
    cards = [find_set(one, data_dir=folder) for one in list_sets(folder)]
    if as_json:
        print_json({"folder": str(folder), "datasets": [card.to_dict() for card in cards]})
        return
    rows = [
        (card.name, str(len(files)), _size(sum(f["size_bytes"] or 0 for f in files)), card.licence)
        for card in cards
        for files in [card.to_dict()["files"]]
    ]
    print_grid(("name", "files", "size", "licence"), rows, whole=["name"])
    typer.echo(f"{len(cards)} data sets in {folder}")


def _show(name: str, data_dir: Path | None, as_json: bool) -> None:
    from likely.data.datasets import find_set

    card = find_set(name, data_dir=data_dir)
    states: dict[str, Any] = {}
    failure: DataError | None = None
    for file in card.files:
        try:
            card.verify(file)
            states[file.name] = card.described
        except DataError as error:
            failure = failure or error
            states[file.name] = False
    record = card.to_dict()
    for entry in record["files"]:
        entry["verified"] = states[entry["name"]]
    if as_json:
        print_json(record)
    else:
        typer.echo(f"{card.name}{': ' if card.title else ''}{card.title}")
        typer.echo(f"source   {card.source}\nlicence  {card.licence}\nfolder   {card.folder}")
        width = max((len(f["name"]) for f in record["files"]), default=0)
        for entry in record["files"]:
            state = "sha256 as stated" if entry["verified"] else "NOT AS STATED"
            if not card.described:
                state = "in no manifest: unverified"
            typer.echo(f"  {entry['name']:<{width}}  {_size(entry['size_bytes']):>9}  {entry['sha256'][:12]}  {state}")
    if failure is not None:
        raise failure


def _size(count: int | None) -> str:
    if count is None:
        return "?"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
