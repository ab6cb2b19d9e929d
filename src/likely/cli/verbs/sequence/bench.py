"""likely sequence bench: layers and tasks in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.options import parse_settings
from likely.cli.printing import print_json, print_table
from likely.errors import nearest


def bench(
    layers: Annotated[
        list[str] | None,
        typer.Argument(help='{sequence_layers}, or several in turn: "mamba2+attention".  [default: all]'),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="{sequence_tasks} (repeatable).  [default: all]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.KEY=VALUE", help="A size of a task, or a setting of a layer (repeatable)."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of training.")] = 400,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences per step.")] = 32,
    width: Annotated[int, typer.Option("--width", min=1, help="Width of the models.")] = 64,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Blocks of the models.")] = 2,
    mlp: Annotated[int, typer.Option("--mlp", min=0, help="Width of the blocks' feed-forward parts; 0: none.")] = 0,
    rate: Annotated[float, typer.Option("--learning-rate", min=1e-9, help="AdamW's.")] = 3e-3,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds 0, 1, ...")] = 3,
    kept: Annotated[
        Path | None, typer.Option("--cells", metavar="FILE", help="Keep finished cells here; a later run goes on.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget-seconds", min=0, help="Begin no cell after so many seconds.")
    ] = None,
    timing: Annotated[
        bool, typer.Option("--timing", help="Also measure tokens/s, prefill and step ms, and memory.")
    ] = False,
    length: Annotated[
        list[int] | None, typer.Option("--length", min=2, help="(--timing) Tokens.  [default: 1024, 4096, 16384]")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="(--timing) Rounds.")] = 5,
    busy: Annotated[bool, typer.Option("--even-if-busy", help="(--timing) Although other programs run.")] = False,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table here.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with curves here.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write learning curves here (.png, .svg, .pdf).")
    ] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Train small models of each layer on each task and print one table: mean and standard deviation over seeds.

    Backbone, optimiser, steps and seeds are the same for all layers; the first row is what a guess scores.  State bytes
    are measured.  Times are measured with --timing only, on a machine that does nothing else.

    Examples:

      likely sequence bench s4d mamba2 attention --task selective_copy --task mqar --cells cells.jsonl

      likely sequence bench "mamba2+attention" --task mqar --set mqar.pairs=4 --steps 200 --seeds 1

      likely sequence bench --cells cells.jsonl --budget-seconds 3600 --html layers.html --plot layers.png
    """
    from likely.bench.sequence import TASKS, SequenceTraining, apply_settings, compare_layers
    from likely.io.whole_file import check_target, write_for_user
    from likely.sequence.table import MIXERS
    from likely.show.plot import FORMATS, render

    for path, endings in ((markdown, ()), (html, ()), (picture, FORMATS)):
        if path is not None:
            check_target(path, endings)
    if not timing and (length or busy):
        raise typer.BadParameter("--length, --rounds and --even-if-busy belong to --timing")
    names = [name.replace("-", "_") for name in task or TASKS]
    for name in names:
        if name not in TASKS:
            raise typer.BadParameter(f'unknown task "{name}"{nearest(name, TASKS)} (allowed: {", ".join(TASKS)})')
    rows = list(dict.fromkeys(layers or MIXERS))
    chosen = {name: TASKS[name] for name in dict.fromkeys(names)}
    chosen, mixers = apply_settings(parse_settings(settings), chosen)
    if timing and not busy:
        from likely.bench.timing import refuse_busy

        refuse_busy()
    training = SequenceTraining(
        width=width, depth=depth, mlp_size=mlp, steps=steps, batch=batch, learning_rate=rate, every=max(1, steps // 10)
    )  # fmt: skip
    found = compare_layers(
        rows, chosen, training=training, seeds=range(seeds), mixers=mixers, kept=kept, budget_s=budget,
        say=_say,
    )  # fmt: skip
    if timing:
        from likely.bench.sequence.speed import measure_speed

        found = measure_speed(found, lengths=length or (1024, 4096, 16384), rounds=rounds, mixers=mixers, say=_say)
    if markdown is not None:
        write_for_user(markdown, found.markdown().encode())
    if html is not None or picture is not None:
        from likely.show.sequence import draw_layers, layers_page

        if html is not None:
            write_for_user(html, layers_page(found).encode())
        if picture is not None:
            write_for_user(picture, render(draw_layers(found), picture.suffix))
    if as_json:
        print_json(found.to_dict())
        return
    heads, texts = found.table()
    print_table(heads, texts, left=2)
    typer.echo(f"\n{found.caption()}")
    if found.missing:
        again = "the same command goes on" if kept else "--cells FILE would keep them for a run that goes on"
        typer.echo(f"{len(found.missing)} cells were not computed within the budget: {again}", err=True)


def _say(line: str) -> None:
    typer.echo(line, err=True)
