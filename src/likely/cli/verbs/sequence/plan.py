"""likely sequence plan: which devices share which sequences, and what that would gain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from likely.cli import flags
from likely.cli.printing import print_json, print_table, progress


def plan(
    lengths: Annotated[
        Path,
        typer.Option("--lengths", help="File with a length in tokens on every line (.gz, too).", show_default=False),
    ],
    devices: Annotated[int, typer.Option("--devices", min=1, help="Devices that train together.")] = 64,
    model: Annotated[
        Literal["gpt-7b", "gpt-13b", "gpt-30b"], typer.Option("--model", help="Whose published costs count.")
    ] = "gpt-7b",
    memory: Annotated[float, typer.Option("--memory-gb", help="Memory of a device that can be used.")] = 36.0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences of a global batch.")] = 512,
    batches: Annotated[int, typer.Option("--batches", min=1, help="Batches that --compare plans.")] = 6,
    longest: Annotated[
        int | None, typer.Option("--longest", min=1, help="Leave out sequences of more tokens.  [default: what fits]")
    ] = None,
    multiple: Annotated[int, typer.Option("--multiple", min=1, help="Pad lengths to a multiple of it.")] = 128,
    solver: Annotated[
        Literal["milp", "greedy"], typer.Option("--solver", help="greedy is faster and mostly as good.")
    ] = "milp",
    compare: Annotated[
        bool, typer.Option("--compare", help="Plan several batches, and with groups of one size.")
    ] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Groups of devices of unequal sizes for sequences of unequal lengths, under a cost model (FlexSP).

    The first batch is planned: its micro-batches, their groups, predicted milliseconds.  --compare says what that gains
    over groups of one size.  Times are predictions from published constants of A100 nodes, not measurements.

    Examples:

      likely sequence plan --lengths lengths.txt --devices 64 --model gpt-7b

      likely sequence plan --lengths lengths.txt --devices 64 --model gpt-7b --compare

      likely sequence plan --lengths lengths.txt --devices 16 --batch 128 --json
    """
    from likely.sequence.parallel import planner
    from likely.sequence.parallel.planner.comparison import plan_rows

    cost = planner.published_cost(model, memory_gb=memory)
    held, most = planner.read_lengths(lengths), longest or planner.longest_that_fits(devices, cost)
    found = planner.length_batches(held, batch, longest=most, multiple=multiple)
    if 0 < (left_out := int((-(-held // multiple) * multiple > most).sum())) < len(held):
        typer.echo(f"Note: {left_out} of {len(held)} sequences are left out, longer than {most} tokens", err=True)
    if not compare:
        made = planner.plan(next(found), devices, cost, solver=solver)
        if as_json:
            print_json(made.record() | {"model": model})
            return
        rows = plan_rows(made, cost)
        cells = [[*list(row.values())[:-1], f"{row['ms']:.0f}"] for row in rows]
        print_table(["micro-batch", "groups", "sequences", "tokens", "longest", "ms"], cells, left=2)
        typer.echo(f"{made.predicted_ms:.0f} ms predicted; no plan takes less than {made.bound_ms:.0f} ms")
        return
    wanted = planner.first_batches(found, batches)
    with progress(len(wanted), "planning", unit="batches") as tick:
        compared = planner.compare_plans(wanted, devices, cost, solver=solver, progress=tick)
    rows = compared.rows()
    if as_json:
        print_json({"model": model, "n_devices": devices, "batch": batch, "rows": rows})
        return
    cells = [[row["groups"], row["batches"], f"{row['mean_ms']:.0f}", f"{row['times_planned']:.2f}x"] for row in rows]
    print_table(["groups", "batches", "ms a batch", "of planned"], cells)
