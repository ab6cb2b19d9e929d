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
) -> None:
    """Fine-tune a model on examples; the report is the perplexity of held-out rows before and after.

    The folder holds an adapter for peft and `likely`, metrics.jsonl (a line per step) and report.json.

    Examples:

      likely align sft examples.jsonl -o adapter

      likely align sft chats.jsonl -m smollm2 --loss-on assistant --epochs 3 --lr 2e-4 -o adapter --merged

      likely align sft examples.jsonl -o adapter --estimate
    """
    from likely.alignment.runs.examples import train_on_examples

    with bars() as progress:
        report = train_on_examples(
            examples, run.settings(), loss_on=loss_on, test=run.test, only_estimate=run.estimate, say=say,
            progress=progress,
        )  # fmt: skip
    print_report(report, run)
