"""What the verbs that train have in common: their flags, progress on stderr, and the report as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import flags
from likely.cli.printing import print_json, print_table, progress
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.alignment.runs.folder import RunSettings


@dataclass(frozen=True)
class RunFlags:
    """How a model is trained, and where the result goes."""

    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write; a stopped run goes on.")
    ] = Path("adapter")
    model: Annotated[str, typer.Option("--model", "-m", help="A known model, GGUF file, folder or hub id.")] = (
        DEFAULT_MODEL
    )
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="Adapter to go on from; it is the reference, too.")
    ] = None
    epochs: Annotated[
        float | None, typer.Option("--epochs", min=0.0, help="Passes over the rows.  [default: 1, or as --steps says]")
    ] = None
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of the optimiser, in place of --epochs.")
    ] = None
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of a step.")] = 8
    piece: Annotated[
        int, typer.Option("--piece", min=1, help="Rows in memory at one time; it does not change the numbers.")
    ] = 2
    lr: Annotated[float, typer.Option("--lr", help="Learning rate at its height.")] = 1e-4
    decay: Annotated[Literal["linear", "cosine", "constant"], typer.Option("--decay", help="Of the rate.")] = "linear"
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Of a fresh adapter.  [default: 16]")] = None
    alpha: Annotated[
        int | None, typer.Option("--alpha", min=1, help="Its product is scaled by alpha / rank.  [default: 32]")
    ] = None
    full: Annotated[bool, typer.Option("--full", help="Train all weights, no adapter; the folder holds merged/.")] = (
        False
    )
    merged: Annotated[
        bool, typer.Option("--merged", help="Also write merged/, a whole model for transformers and likely.")
    ] = False
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Most tokens of a row.")] = 256
    too_long: Annotated[
        Literal["error", "drop", "cut"],
        typer.Option("--too-long", help="Of longer rows; cut: the answer's end, which is then not scored as an end."),
    ] = "error"
    held_out: Annotated[
        float, typer.Option("--held-out", min=0.0, max=0.9, help="Share of the rows for the report, without --test.")
    ] = 0.1
    test: Annotated[Path | None, typer.Option("--test", help="Rows for the report.")] = None
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option("--precision", help="Of products; weights stay as they are.")
    ] = "float32"
    checkpoint_every: Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")] = 10
    tracker: Annotated[
        list[str] | None, typer.Option("--tracker", help="tensorboard, wandb ... (accelerate's names; repeatable).")
    ] = None
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun: each process holds its share of the weights (FSDP2).")
    ] = False
    limit: flags.LimitOption = None
    threads: flags.ThreadsOption = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of adapters, order of rows and samples.")] = 0
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what it would take in time and memory, and stop.")
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin the folder's run anew.")] = False
    as_json: flags.JsonOption = False

    def settings(self) -> RunSettings:
        """The same for Python."""
        from likely.alignment.runs.folder import RunSettings
        from likely.training.fit import TrainingSettings
        from likely.training.policy import LoraSettings

        if self.steps is not None and self.epochs:
            raise typer.BadParameter("give --steps or --epochs, not both", param_hint="--steps")
        lora = {name: value for name in ("rank", "alpha") if (value := getattr(self, name)) is not None}
        if lora and (self.adapter is not None or self.full):
            why = "--full trains all weights" if self.full else f"{self.adapter} has its own"
            raise typer.BadParameter(
                f"is of a fresh adapter, and {why}: leave it out", param_hint=f"--{next(iter(lora))}"
            )
        epochs = 1.0 if self.steps is None and self.epochs is None else self.epochs or 0.0
        training = TrainingSettings(
            self.steps or 100, self.batch, self.piece, self.lr, decay=self.decay, precision=self.precision,
            checkpoint_every=self.checkpoint_every, seed=self.seed,
        )  # fmt: skip
        return RunSettings(
            self.model, self.out, training, None if self.full else LoraSettings(**lora), self.adapter,
            epochs, self.max_length, self.too_long, self.held_out, self.limit, self.merged, self.overwrite,
            self.threads, tuple(self.tracker or ()), self.shard,
        )  # fmt: skip


def say(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, done, of how many) that shows a bar on stderr for each thing that is done."""
    with ExitStack() as stack:
        name, shown = "", 0
        advance: Callable[[int], None] = lambda n: None  # noqa: E731

        def show(what: str, done: int, total: int) -> None:
            nonlocal name, shown, advance
            if what != name:
                stack.close()
                advance = stack.enter_context(progress(total, "training", unit=what))
                name, shown = what, 0
            advance(done - shown)
            shown = done

        yield show


def print_report(report: dict[str, Any], run: RunFlags) -> None:
    """Before and after, as a table or as JSON."""
    from likely.alignment.runs.report import report_rows

    if run.as_json:
        print_json(report)
        return
    if run.estimate:
        return  # said already
    print_table(["", "before", "after"], report_rows(report["before"], report["after"]))
    left_out = ", ".join(f"{report[name]} rows {name}" for name in ("dropped", "cut") if report[name])
    typer.echo(f"{run.out}: {report['method']}, {report['steps']} steps{', ' + left_out if left_out else ''}")
    place = run.out / "merged" if (run.out / "merged").is_dir() else run.out
    if (backspace := report["settings"].get("backspace_id")) is not None:
        typer.echo(f'Try it: likely generate -m {place} "..." -s backspace_id={backspace}', err=True)
    elif report["method"] != "reward":
        typer.echo(f'Try it: likely ask -m {place} "..."', err=True)
