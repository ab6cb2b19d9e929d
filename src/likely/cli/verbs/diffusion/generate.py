"""likely diffusion generate: fill the answers of prompts, plainly or with FreeDave and Prophet."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.printing import print_json, print_stream


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Folder, GGUF file or hub id of a diffusion model.")],
    max_tokens: flags.MaxTokens = 128,
    temperature: flags.TemperatureOption = 0.0,
    seed: flags.SeedOption = 0,
    freedave: Annotated[
        str | None,
        typer.Option("--freedave", metavar="K", help="Drafts per call, or auto: the same text, fewer calls."),
    ] = None,
    prophet: Annotated[
        str | None,
        typer.Option(
            "--prophet", metavar="PHASES", help='Stop early: "published", or thresholds such as 0.5:9,1:4 (nats).'
        ),
    ] = None,
    region: Annotated[
        str | None, typer.Option("--region", metavar="START:END", help="Tokens of the answer that Prophet looks at.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0.0, max=1.0, help="Commit all tokens of this probability.")
    ] = None,
    block_length: Annotated[int | None, typer.Option("--block-length", min=1, help="Tokens of a block.")] = None,
    tokens_per_step: Annotated[int, typer.Option("--tokens-per-step", min=1, help="Committed after each call.")] = 1,
    cache: Annotated[
        Literal["none", "prefix", "dual", "block_causal"],
        typer.Option("--cache", help="Keys and values kept within a block: only none and block_causal are exact."),
    ] = "none",
    guidance: Annotated[float, typer.Option("--guidance", min=0.0, help="Weight of classifier-free guidance.")] = 0.0,
    pin: Annotated[
        list[str] | None,
        typer.Option("--pin", metavar="PLACE=TEXT", help="Text that stands at this token of the answer (repeatable)."),
    ] = None,
    stats: flags.StatsOption = False,
    dtype: flags.DtypeOption = None,
    threads: flags.ThreadsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Fill a masked answer of up to --max-tokens, block by block; a block is shown when it is complete.

    Examples:

      likely diffusion generate -m sudoku "1..43.1.2....32." --stats

      likely diffusion generate -m sudoku "1..43.1.2....32." --freedave 4 --stats

      likely diffusion generate -m addition "345+678=" --prophet published --region 41:45 --json
    """
    from likely.lm.diffusion.settings import accelerator_of, stop_rule_of, threshold_of
    from likely.training.diffusion.tiny import check_prompt

    settings: dict[str, Any] = {
        "accelerator": accelerator_of(freedave), "stop": stop_rule_of(prophet, region), "guidance": guidance,
        "block_length": block_length, "tokens_per_step": tokens_per_step, "cache": cache, "pinned": _pinned(pin),
        **({} if threshold is None else {"schedule": threshold_of(threshold)}),
    }  # fmt: skip
    check_prompt(model, prompt)
    with flags.ModelFlags(model, dtype=dtype, threads=threads).open_diffusion() as lm:
        lm.with_decoding(**settings)
        asked: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        if as_json:
            found = lm.generate(prompt, **asked)
            print_json({**options.origin(lm), "prompt": prompt, **found.to_dict()})
        else:
            found = print_stream(lm.stream(prompt, **asked))
    if stats:
        tokens = len(found.token_ids or [])
        typer.echo(
            f"{tokens} tokens from {found.target_calls} calls of the model, {1e3 * found.seconds:.0f} ms", err=True
        )


def _pinned(given: list[str] | None) -> dict[int, str]:
    found = {}
    for pair in given or []:
        place, equals, text = pair.partition("=")
        if not equals or not place.isdecimal() or not text:
            raise typer.BadParameter(f"expected PLACE=TEXT, got {pair!r}", param_hint="--pin")
        found[int(place)] = text
    return found
