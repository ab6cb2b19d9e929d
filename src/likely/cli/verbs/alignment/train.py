"""likely align train: preference pairs become an adapter, with a report of before and after."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.options import parse_settings
from likely.cli.verbs.alignment.running import RunFlags, bars, print_report, say


@flags.grouped
def train(
    run: RunFlags,
    pairs: Annotated[
        str, typer.Argument(help='JSONL of {"prompt", "chosen", "rejected"} and optionally "p"; texts or messages.')
    ],
    method: Annotated[
        str, typer.Option("--method", callback=flags.one_of("preference_methods"), help="{preference_methods}.")
    ] = "dpo",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="A number of the method, e.g. -s beta=0.3."),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option("--reward", help="For the report: length, sentiment, regex:PATTERN, or a reward model's folder."),
    ] = None,
    prompts: Annotated[
        int, typer.Option("--prompts", min=0, help="Held-out prompts that the report draws samples for.")
    ] = 32,
) -> None:
    """Train a model on preference pairs and report, on held-out pairs, what that did to its likelihoods.

    Before and after: accuracy, margin and calibration of the preferences, perplexity, KL to the reference, and with
    --reward the samples' reward and win rate.  The folder holds an adapter for peft and `likely`, metrics.jsonl (a line
    per step) and report.json.

    Examples:

      likely align train pairs.jsonl -o adapter

      likely align train pairs.jsonl --method ipo -s tau=0.1 --epochs 2 -o adapter --merged

      likely align train pairs.jsonl --adapter sft/ --reward sentiment -o adapter --json
    """
    from likely.alignment.methods import make_method
    from likely.alignment.runs.preferences import train_on_preferences
    from likely.alignment.runs.reward import open_reward

    chosen = make_method(method, parse_settings(settings))
    judge = None if reward is None else open_reward(reward)
    with bars() as progress:
        report = train_on_preferences(
            pairs, chosen, run.settings(), test=run.test, reward=judge, sampled_prompts=prompts,
            only_estimate=run.estimate, say=say, progress=progress,
        )  # fmt: skip
    print_report(report, run)
