"""likely audit invert: how many hidden prompts come back from the log-probabilities of a model that you run?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags
from likely.cli.file_run import read_file
from likely.cli.printing import progress, reporter
from likely.cli.verbs.audit.common import ReportOption, check_reports, header_of, show_reports
from likely.io.hashes import file_sha256
from likely.io.jsonl import Line, text_field
from likely.io.whole_file import check_target
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.lm.model import Model


def invert(
    prompts: Annotated[
        Path, typer.Option("--prompts", help='JSONL (.gz, too) of {"prompt"} or strings: some hundred or more.')
    ],
    model: Annotated[str, typer.Argument(help="Name (likely models), GGUF file or folder; no server.")] = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option("--steps", min=1, max=64, help="Tokens of each answer that are read.")] = 16,
    test: Annotated[float, typer.Option("--test", min=0.01, max=0.9, help="Share of the prompts to recover.")] = 0.2,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes of the training over the others.")] = 20,
    kept: Annotated[
        Path | None, typer.Option("--kept", help="Folder of log-probabilities: a run that was stopped goes on there.")
    ] = None,
    save_inverter: Annotated[
        Path | None,
        typer.Option("--save-inverter", help="Keep what was trained (.safetensors), with the prompts' words in it."),
    ] = None,
    inverter: Annotated[
        Path | None, typer.Option("--inverter", help="Recover all prompts with a kept inverter; train nothing.")
    ] = None,
    limit: flags.LimitOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split and the training.")] = 0,
    runtime: flags.RuntimeOption = None,
    threads: flags.ThreadsOption = None,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """How many hidden prompts can be recovered from log-probabilities, and how many despite defences?

    An inverter is trained on most of the prompts and recovers the others: from one step, from all, and against
    rounding, noise, top 5 and text alone.  Only a model that you load; no prompt is written anywhere, and no word of
    one but into the file of --save-inverter.

    Examples:

      likely audit invert smollm2 --prompts prompts.jsonl

      likely audit invert smollm2 --prompts prompts.jsonl --steps 8 --kept logprobs --report inversion.html --json

      likely audit invert smollm2 --prompts prompts.jsonl --save-inverter inverter.safetensors

      likely audit invert smollm2 --prompts others.jsonl --inverter inverter.safetensors
    """
    from likely.audit.inversion import InverterConfig, SavedInverter, audit_recovery, recover_with
    from likely.audit.inversion.recovered import RecoveryPlan

    check_reports(report)
    if save_inverter is not None:
        check_target(save_inverter, (".safetensors",))
    if save_inverter is not None and inverter is not None:
        raise typer.BadParameter("with --inverter nothing is trained that could be kept", param_hint="--save-inverter")
    saved = None if inverter is None else SavedInverter.load(inverter)
    run = read_file(str(prompts), prompt_of, flags.FileFlags(limit=limit), expected='lines like {"prompt": "..."}',
                    bare="prompt")  # fmt: skip
    texts = [run.item(line) for line in run.lines]
    plan = RecoveryPlan(steps, (1, steps), test, InverterConfig(epochs=epochs, seed=seed), seed=seed)
    with flags.ModelFlags(model, runtime, None, None, threads).open_local("batch") as lm:
        settings: dict[str, Any] = {"steps": steps, "test": test, "epochs": epochs, "seed": seed}
        if saved is not None:
            settings = {"steps": saved.steps, "inverter": file_sha256(str(inverter))}
        header = header_of(lm, "invert", settings)

        def render(text: str) -> list[int]:
            return prompt_tokens(lm, text)

        with progress(len(texts), "answering", unit="prompts") as tick:
            if saved is not None:
                made = recover_with(saved, lm.runtime, texts, render, header=header, folder=kept, progress=tick)
            else:
                made = audit_recovery(
                    lm.runtime, texts, render, plan, header=header, folder=kept, save_to=save_inverter,
                    progress=tick, report=reporter("invert") or (lambda line: None),
                )  # fmt: skip
    show_reports([made], report, as_json=as_json)


def prompt_tokens(lm: Model, prompt: str) -> list[int]:
    """As the user of a chat, or, of a base model, as the text itself."""
    return list(lm.render([{"role": "user", "content": prompt}]).tokens) if lm.template else lm.encode_prompt(prompt)


def prompt_of(line: Line, where: str) -> str:
    """The prompt of a line."""
    return text_field(line, "prompt", where)
