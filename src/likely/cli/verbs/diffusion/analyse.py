"""likely diffusion analyse: what decoders cost and change on a model's own task, and how early answers are settled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likely.cli import flags, options
from likely.cli.printing import print_json, print_table, progress, with_interval

if TYPE_CHECKING:
    from likely.bench.diffusion import DecoderComparison


def analyse(
    model: Annotated[str, typer.Option("--model", "-m", help="A folder that likely diffusion train made.")],
    texts: Annotated[int, typer.Option("--texts", "-n", min=1, help="Held-out examples to decode.")] = 100,
    fit: Annotated[
        int, typer.Option("--fit", min=0, help="Other examples, to which thresholds of Prophet are fitted; 0: none.")
    ] = 0,
    epsilon: Annotated[
        float, typer.Option("--epsilon", min=0.0, max=1.0, help="Share of answers that fitted thresholds may change.")
    ] = 0.02,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw how early answers are right (.png, .svg).")
    ] = None,
    seed: flags.SeedOption = 0,
    threads: flags.ThreadsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Decode held-out examples with and without FreeDave, thresholds and Prophet, and count calls of the model.

    Examples:

      likely diffusion analyse -m sudoku

      likely diffusion analyse -m addition --texts 200 --fit 400 --epsilon 0.02

      likely diffusion analyse -m sudoku --plot early.png
    """
    from likely.bench.diffusion import compare_decoders, decoders_of, draw_comparison
    from likely.training.diffusion.tiny import task_of

    if plot is not None:
        options.refuse_existing(plot, overwrite=True)
    task = task_of(model)
    with flags.ModelFlags(model, threads=threads).open_diffusion() as lm:
        count = len(decoders_of(task, lm.predictor.block)) + 2 * bool(fit)
        with progress(count, "decoding", unit="decoders") as tick:
            found = compare_decoders(
                lm.predictor, task, texts=texts, fit=fit, epsilon=epsilon, seed=seed, progress=tick
            )
        if as_json:
            print_json({**options.origin(lm), **found.to_dict(), "seed": seed})
    if plot is not None:
        draw_comparison(found, plot)
    if as_json:
        return
    print_comparison(found)


def print_comparison(found: DecoderComparison) -> None:
    """The table of decoders, and what stands below it."""
    rows = [
        (row.name, with_interval(row.right, row.interval, 2), f"{row.same:.0%}", f"{row.calls:.1f}",
         f"{row.canvases:.1f}", f"{row.stopped:.0%}")
        for row in found.rows
    ]  # fmt: skip
    print_table(("decoder", "right [95 %]", "same", "calls", "canvases", "stopped"), rows)
    typer.echo(f"\n{found.task}, {found.rows[0].texts} held-out texts; calls and canvases of the model per text")
    for rule, shares in found.right.items():
        half = shares[found.fractions.index(0.5)]
        typer.echo(f"right if stopped at half of the steps, positions by {rule}: {half:.0%}")
    if found.fitted is not None:
        phases = ",".join(f"{end:.2g}:{value:.3g}" for end, value in found.fitted.thresholds)
        typer.echo(f"fitted thresholds: --prophet {phases} (at most {found.fitted.bound:.1%} of answers change)")
