"""likely align sft: fine-tune a model on examples."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from likely.cli import flags
from likely.cli.verbs.alignment.running import RunFlags, bars, print_report, say


@flags.grouped
def sft(
    run: RunFlags,
    examples: Annotated[
        str, typer.Argument(help='JSONL of {"prompt", "completion"} or {"messages"}; prompts are texts or messages.')
    ],
    loss_on: Annotated[
        Literal["completion", "assistant", "all"],
        typer.Option("--loss-on", help="Tokens that are learned: the last answer, every turn of the assistant, all."),
    ] = "completion",
    loss: Annotated[
        Literal["cross-entropy", "eisl"],
        typer.Option("--loss", help="eisl: n-grams of noisy completions wherever they stand; go on from an --adapter."),
    ] = "cross-entropy",
    cross_entropy: Annotated[
        float | None,
        typer.Option("--cross-entropy", min=0.0, help="With --loss eisl: weight of cross-entropy beside it, or 0."),
    ] = None,
) -> None:
    """Fine-tune a model on examples; the report is the perplexity of held-out rows before and after.

    The folder holds an adapter for peft and `likely`, metrics.jsonl (a line per step) and report.json.

    Examples:

      likely align sft examples.jsonl -o adapter

      likely align sft chats.jsonl -m smollm2 --loss-on assistant --epochs 3 --lr 2e-4 -o adapter --merged

      likely align sft examples.jsonl -o adapter --estimate

      likely align sft noisy.jsonl --adapter adapter --loss eisl --lr 3e-5 -o robust
    """
    from likely.alignment.edit_invariant.own_outputs import EditInvariantSettings
    from likely.alignment.runs.examples import train_on_examples

    with bars() as progress:
        report = train_on_examples(
            examples, run.settings(), loss_on=loss_on, loss=loss,
            eisl=None if cross_entropy is None else EditInvariantSettings(cross_entropy=cross_entropy),
            test=run.test, only_estimate=run.estimate, say=say, progress=progress,
        )  # fmt: skip
    print_report(report, run)
