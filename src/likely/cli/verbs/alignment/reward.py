"""likely align reward: a reward model from preference pairs."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.verbs.alignment.running import RunFlags, bars, print_report, say


@flags.grouped
def reward(
    run: RunFlags,
    pairs: Annotated[
        str, typer.Argument(help='JSONL of {"prompt", "chosen", "rejected"} and optionally "p", "margin".')
    ],
    center: Annotated[
        float, typer.Option("--center", min=0.0, help="Draws the free constant of the rewards to 0.")
    ] = 0.01,
) -> None:
    """Train a Bradley–Terry reward model; the report is its accuracy and calibration on held-out pairs.

    The folder is a reward for `likely align pairs --reward FOLDER` and `likely align train --reward FOLDER`.

    Examples:

      likely align reward pairs.jsonl -o reward

      likely align reward pairs.jsonl --test test.jsonl --epochs 2 -o reward --json
    """
    from likely.alignment.runs.reward import train_reward_model

    with bars() as progress:
        report = train_reward_model(
            pairs, run.settings(), center=center, test=run.test, only_estimate=run.estimate, say=say, progress=progress
        )
    print_report(report, run)
