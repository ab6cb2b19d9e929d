"""likely align train: preference pairs, prompts and a reward, or examples become a model, with a report."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.help import names
from likely.cli.options import parse_settings
from likely.cli.verbs.alignment.running import RunFlags, bars, print_report, say

SEQUENCE_MATCH = "sequence_match"


def known_method(method: str) -> str | None:
    """One of either table; anything else is refused before a model is loaded."""
    return flags.one_of("preference_methods", *names("online_methods"), SEQUENCE_MATCH)(method)


@flags.grouped
def train(
    run: RunFlags,
    pairs: Annotated[
        str,
        typer.Argument(
            help='JSONL of {"prompt", "chosen", "rejected"} and optionally "p"; texts or messages.  Of online methods: '
            'of {"prompt"}; of sequence_match: of {"prompt", "completion"}.'
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            callback=known_method,
            help="{preference_methods}; on the model's own samples: {online_methods}; on examples, with a token that "
            "deletes: sequence_match.",
        ),
    ] = "dpo",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="A number of the method, e.g. -s beta=0.3; of sequence_match also -s backspace=TOKEN, a token that no "
            "text needs.",
        ),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            help="For the report, and the judge of online methods: length, sentiment, regex:PATTERN, or a reward "
            "model's folder.",
        ),
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

      likely align train prompts.jsonl --method online_ipo --reward sentiment -s tau=0.5 -s scale=0.5 -o adapter

      likely align train examples.jsonl --method sequence_match -s "backspace=<file_sep>" -o deletes
    """
    from likely.alignment.methods import make_method
    from likely.alignment.runs.preferences import train_on_preferences
    from likely.alignment.runs.reward import open_reward

    given = parse_settings(settings)
    if method == SEQUENCE_MATCH:
        from likely.alignment.runs.backspace import sequence_match_settings, train_with_backspace

        if reward is not None:
            raise typer.BadParameter(f"{method} learns from examples alone", param_hint="--reward")
        own = {name: given.pop(name) for name in ("backspace", "max_tokens") if name in given}
        told = run.settings()
        with bars() as progress:
            report = train_with_backspace(
                pairs, sequence_match_settings(given, told.training), told, **{"backspace": None, **own},
                test=run.test, sampled_prompts=prompts, only_estimate=run.estimate, say=say, progress=progress,
            )  # fmt: skip
        print_report(report, run)
        return
    if method in names("online_methods"):
        from likely.alignment.runs.online import online_settings, train_on_own_samples

        if reward is None:
            raise typer.BadParameter(f"{method} needs somebody who compares its samples", param_hint="--reward")
        scale = given.pop("scale", 1.0)
        online = online_settings(method, given)
        with bars() as progress:
            report = train_on_own_samples(
                pairs, online, run.settings(), reward=open_reward(reward), scale=scale, test=run.test,
                sampled_prompts=prompts, only_estimate=run.estimate, say=say, progress=progress,
            )  # fmt: skip
        print_report(report, run)
        return
    chosen = make_method(method, given)
    judge = None if reward is None else open_reward(reward)
    with bars() as progress:
        report = train_on_preferences(
            pairs, chosen, run.settings(), test=run.test, reward=judge, sampled_prompts=prompts,
            only_estimate=run.estimate, say=say, progress=progress,
        )  # fmt: skip
    print_report(report, run)
