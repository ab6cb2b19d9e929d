"""likely diffusion train: a tiny masked diffusion language model, in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from likely.cli import flags
from likely.cli.printing import print_json, progress

ESTIMATED_AFTER = 20  # steps


def train(
    task: Annotated[str, typer.Argument(help="sudoku, addition or shakespeare.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write; a run that was stopped goes on.")
    ],
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of the optimiser.  [default: by the task]")
    ] = None,
    width: Annotated[int | None, typer.Option("--width", min=2, help="Of the network.")] = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Of the network.")] = None,
    heads: Annotated[int | None, typer.Option("--heads", min=1, help="Of its attention.")] = None,
    block: Annotated[
        int | None, typer.Option("--block", min=0, help="Block-causal: no position sees later blocks of this length.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Texts of a step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate at its height.")] = None,
    form: Annotated[
        Literal["time", "count"] | None, typer.Option("--form", help="Of the loss: a time, or a number of masks.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights, examples and masks.")] = 0,
    threads: flags.ThreadsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Train a tiny model on a task whose answers can be checked; how long it takes is said at the beginning.

    Examples:

      likely diffusion train sudoku -o sudoku

      likely diffusion train addition -o addition --seed 1

      likely diffusion train shakespeare -o bard --block 16 --steps 8000
    """
    from likely.training.diffusion.tiny import settings_of_task, train_tiny, use_threads

    use_threads(threads or 1)  # several are slower: the networks are tiny
    given = {
        "steps": steps, "width": width, "layers": layers, "heads": heads, "block": block, "batch": batch, "lr": lr,
        "form": form, "seed": seed,
    }  # fmt: skip
    made, settings = settings_of_task(task, given)
    with _told(settings.steps) as advance:
        losses = train_tiny(made, out, settings, progress=advance)
    if as_json:
        print_json({"folder": str(out), "task": task, "steps": len(losses), "loss": losses[-1], "seed": seed})
        return
    typer.echo(f"{out}: {task}, {len(losses):,} steps, loss {losses[-1]:.3f} nats per token")
    typer.echo(f"look at it with: likely diffusion analyse -m {out}")


@contextmanager
def _told(steps: int) -> Iterator[Callable[[int, float], None]]:
    """Progress on stderr: how long all will take after the first steps, then a bar."""
    with progress(steps, "training", unit="steps") as tick:
        began, first, shown = 0.0, -1, 0

        def advance(step: int, loss: float) -> None:
            nonlocal began, first, shown
            tick(step + 1 - shown)
            shown = step + 1
            if first < 0:
                began, first = time.perf_counter(), step
            elif step - first == ESTIMATED_AFTER:
                seconds = (time.perf_counter() - began) / ESTIMATED_AFTER * (steps - step - 1)
                typer.echo(f"Training {steps - step - 1:,} more steps takes about {seconds:.0f} s here", err=True)

        yield advance
