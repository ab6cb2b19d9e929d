"""likely complete: code at a place in a file, held to what a static analysis calls legal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags, options
from likely.cli.help import LIST
from likely.cli.printing import for_terminal, print_json


@flags.grouped
def complete(
    model: flags.ModelFlags,
    file: Annotated[Path, typer.Argument(help="A Python file.")],
    line: Annotated[
        int | None, typer.Option("--line", min=1, help="Line of the cursor, from 1; else the last.")
    ] = None,
    column: Annotated[
        int | None, typer.Option("--column", min=0, help="Characters before the cursor in its line; else all of it.")
    ] = None,
    project: Annotated[Path | None, typer.Option("--project", help="Folder that imports are resolved from.")] = None,
    monitors: Annotated[
        str, typer.Option("--monitors", metavar=LIST, help="{monitors}, none; several with commas between.")
    ] = "dereference",
    stop: Annotated[str, typer.Option("--stop", help="Where to end: line, method, none.")] = "line",
    choose: Annotated[
        str, typer.Option("--choose", help="greedy, or exact: the likeliest legal name as a whole.")
    ] = "greedy",
    limit: Annotated[float, typer.Option("--time-limit", help="Seconds that one analysis may take.")] = 2.0,
    max_tokens: flags.MaxTokens = 128,
    temperature: flags.TemperatureOption = 0.0,
    seed: flags.SeedOption = 0,
    settings: flags.SettingsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Write code at a place in a file; members that do not exist are not written.

    Only the new code is printed; the file stays as it is.  Analyses that took too long are told on stderr: there the
    model wrote freely.

    Examples:

      likely complete shop/cart.py --line 40 --column 13 --project .

      likely complete shop/cart.py --line 40 --stop method --monitors dereference,arity --json
    """
    from likely.code.buffer import CodeBuffer

    buffer = CodeBuffer.from_file(file, line, column, project_root=project or "")
    names = () if monitors == "none" else tuple(name.strip() for name in monitors.split(","))
    given = {"stop": stop, "choose": choose, **options.parse_settings(settings)}
    with model.open_local() as lm:
        found = lm.complete_code(
            buffer, monitors=names, max_tokens=max_tokens, limit_s=limit,
            temperature=temperature, seed=seed, **given,
        )  # fmt: skip
        if as_json:
            print_json({**options.origin(lm), "file": str(file), "cursor": buffer.cursor, **found.to_dict()})
        else:
            typer.echo(for_terminal(found.text))
    lost = {status: n for status, n in found.analyses.items() if status in ("timed out", "failed")}
    if lost and not as_json:
        typer.echo("Analyses: " + ", ".join(f"{n} {status}" for status, n in lost.items()), err=True)
