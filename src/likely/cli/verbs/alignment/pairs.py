"""likely align pairs: preference pairs from a model's own samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from likely.cli import flags
from likely.cli.printing import print_json
from likely.cli.verbs.alignment.running import bars
from likely.io.whole_file import check_target
from likely.models.catalog import DEFAULT_MODEL


def pairs(
    prompts: Annotated[str, typer.Argument(help='JSONL of {"prompt"}: a text, or messages.')],
    reward: Annotated[
        str, typer.Option("--reward", help="length, sentiment, regex:PATTERN, or the folder of a reward model.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file to write.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A known model, GGUF file, folder or hub id.")
    ] = DEFAULT_MODEL,
    n: Annotated[int, typer.Option("-n", min=2, help="Samples of a prompt.")] = 4,
    pairing: Annotated[
        Literal["best_worst", "first_round", "tournament", "all_pairs"],
        typer.Option("--pairing", help="Which samples of a prompt are compared."),
    ] = "best_worst",
    labels: Annotated[
        Literal["soft", "hard", "sample"],
        typer.Option("--labels", help="p = sigmoid of the rewards' difference; 0 or 1; or drawn from p."),
    ] = "soft",
    scale: Annotated[float, typer.Option("--scale", help="What the rewards' difference is divided by.")] = 1.0,
    temperature: flags.TemperatureOption = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Sample from the k likeliest tokens; 0: all.")] = 0,
    max_tokens: flags.MaxTokens = 64,
    limit: flags.LimitOption = None,
    threads: flags.ThreadsOption = None,
    seed: flags.SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Draw samples, compare them by a reward, and write preference pairs for `likely align train`.

    Rows hold the samples' token ids, which training takes as they are.  Stopped in the middle, the same command goes
    on from OUT.part.

    Examples:

      likely align pairs prompts.jsonl --reward sentiment -o pairs.jsonl

      likely align pairs prompts.jsonl --reward reward/ -n 8 --pairing first_round -o pairs.jsonl
    """
    from likely.alignment.runs.reward import open_reward
    from likely.alignment.runs.sampling import write_pairs

    check_target(out)
    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists: choose another file or --overwrite", param_hint="--out")
    hard: bool | Literal["sample"] = "sample" if labels == "sample" else labels == "hard"
    try:
        with bars() as progress:
            found = write_pairs(
                prompts, out, open_reward(reward), model=model, n=n, pairing=pairing, hard=hard, scale=scale,
                temperature=temperature, top_k=top_k, max_tokens=max_tokens, limit=limit, threads=threads, seed=seed,
                overwrite=overwrite, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"stopped: what was drawn is in {out}.part; the same command goes on", err=True)
        raise
    if as_json:
        print_json({**found, "out": str(out)})
        return
    typer.echo(
        f"{out}: {found['pairs']} pairs from {found['samples']} samples of {found['prompts']} prompts "
        f"(reward {found['reward']:.3f} ± {found['reward_deviation']:.3f}, {found['dropped']} prompts too long)"
    )
