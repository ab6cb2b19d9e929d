"""likely align frontier: what trained policies gained in reward, and what that cost in KL."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags
from likely.cli.printing import print_json, print_table, progress
from likely.io.whole_file import check_target, write_for_user
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.alignment.frontier.policies import FrontierPoint, Mean


def frontier(
    prompts: Annotated[str, typer.Argument(help='JSONL of {"prompt"}: a text, or messages.')],
    policy: Annotated[
        list[str],
        typer.Option("--policy", "-p", metavar="NAME=MODEL", help="An adapter's folder or any model (repeatable)."),
    ],
    reward: Annotated[
        list[str],
        typer.Option(
            "--reward", help="length, sentiment, regex:PATTERN, or the folder of a reward model (repeatable)."
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="The reference.")] = DEFAULT_MODEL,
    runtime: flags.RuntimeOption = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Completions of a prompt from each policy.")] = 4,
    reference_n: Annotated[
        int, typer.Option("--reference-n", min=2, help="Completions from the reference; the envelope rests on them.")
    ] = 16,
    beta: Annotated[
        list[float] | None,
        typer.Option("--beta", help="Of the envelope, in units of the reward (repeatable).  [default: by the rewards]"),
    ] = None,
    max_tokens: flags.MaxTokens = 64,
    limit: flags.LimitOption = None,
    threads: flags.ThreadsOption = None,
    seed: flags.SeedOption = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the record here (JSON).")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the first reward: .png, .svg or .pdf.")] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Compare trained policies by reward and KL to the model they came from, on prompts of your own.

    Every policy's completions are drawn at temperature 1.  The envelope is the most reward that any policy can have at
    a KL; one that lies above it has a bug, or a reward that reads more than the completion.

    Examples:

      likely align frontier prompts.jsonl --policy dpo=adapter/ --reward sentiment

      likely align frontier prompts.jsonl -p dpo=dpo/ -p ipo=ipo/ --reward sentiment --reward length --plot frontier.png

      likely align frontier prompts.jsonl -p dpo=adapter/ --reward reward/ -m smollm2 -n 8 -o frontier.json
    """
    from likely.alignment.frontier.bound import default_betas, envelope, lies_above
    from likely.alignment.frontier.comparison import draw_frontier
    from likely.alignment.frontier.measure import frontier_record, sample_policy
    from likely.alignment.frontier.policies import compare_policies
    from likely.alignment.rewards import check_tokens
    from likely.alignment.runs.reward import open_reward
    from likely.alignment.runs.rows import RowEncoder, read_prompts
    from likely.show.plot import FORMATS, render

    named = [_named(text) for text in policy]
    if len({name for name, _ in named} | {"reference"}) <= len(named):
        raise typer.BadParameter('names must differ from each other and from "reference"', param_hint="--policy")
    for target, suffixes in ((output, (".json",)), (plot, FORMATS)):
        if target is not None:
            check_target(target, suffixes)
    rewards = {name: open_reward(name) for name in reward}
    drawing: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed}
    with ExitStack() as stack:
        reference = stack.enter_context(flags.ModelFlags(model, runtime, threads=threads).open_local("scoring"))
        for judge in rewards.values():
            check_tokens(judge, reference.tokenizer.fingerprint)
        encoder = RowEncoder(reference, reference.runtime.context_length - max_tokens)
        rows = read_prompts(prompts, encoder, limit=limit)
        tick = stack.enter_context(progress(len(rows) * (reference_n + n * len(named)), "frontier", unit="completions"))
        base = sample_policy("reference", reference, reference, rows, rewards, n=reference_n, progress=tick, **drawing)
        found = [base]
        for name, source in named:
            with flags.ModelFlags(source, runtime, threads=threads).open_local("scoring") as lm:
                found.append(sample_policy(name, lm, reference, rows, rewards, n=n, progress=tick, **drawing))
    points = compare_policies(found, base)
    grids = {name: base.rewards[name].reshape(len(rows), reference_n) for name in rewards}
    bounds = {name: envelope(grid, beta or default_betas(grid)) for name, grid in grids.items()}
    record = {"model": model, "prompts": len(rows), "seed": seed, **frontier_record(points, bounds)}
    above = [(p.name, name) for p in points for name, bound in bounds.items() if lies_above(p, bound, name)]
    record["above_envelope"] = [{"policy": one, "reward": name} for one, name in above]
    if output is not None:
        write_for_user(output, (json.dumps(record, indent=1) + "\n").encode())
    if plot is not None:
        write_for_user(plot, render(draw_frontier(points, reward[0], bound=bounds[reward[0]]), plot.suffix))
    for one, name in above:
        typer.echo(f"Warning: {one} has more {name} than any policy can at its KL", err=True)
    if as_json:
        print_json(record)
    else:
        _print(points, reward)


def _named(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not name or not equals or not source:
        raise typer.BadParameter(f'NAME=MODEL such as dpo=adapter/, got "{text}"', param_hint="--policy")
    return name, source


def _print(points: list[FrontierPoint], rewards: list[str]) -> None:
    heads = ("policy", *rewards, "KL (nats)", "wins", "tokens", "distinct 2-grams")
    rows = [
        (
            p.name, *(_shown(p.rewards[name]) for name in rewards),
            _shown(p.best_kl) + ("" if p.kls_agree else " (estimates disagree)"), f"{p.win_rate.value:.0%}",
            f"{p.mean_length:.1f}", f"{p.distinct_2:.0%}",
        )
        for p in points
    ]  # fmt: skip
    print_table(heads, rows)


def _shown(mean: Mean) -> str:
    return f"{mean.value:.3f}" if mean.se != mean.se else f"{mean.value:.3f} ± {mean.se:.3f}"
