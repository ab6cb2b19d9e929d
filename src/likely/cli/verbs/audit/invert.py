"""likely audit invert: how many hidden prompts come back from the log-probabilities of a model that you run?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likely.cli import flags
from likely.cli.file_run import read_file
from likely.cli.printing import progress, reporter
from likely.cli.verbs.audit.common import ReportOption, check_reports, header_of, show_reports
from likely.io.jsonl import Line, text_field
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
    limit: flags.LimitOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split and the training.")] = 0,
    runtime: flags.RuntimeOption = None,
    threads: flags.ThreadsOption = None,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """How many hidden prompts can be recovered from log-probabilities, and how many despite defences?

    An inverter is trained on most of the prompts and recovers the others: from one step, from all, and against
    rounding, noise, top 5 and text alone.  Only a model that you load; no prompt is written anywhere.

    Examples:

      likely audit invert smollm2 --prompts prompts.jsonl

      likely audit invert smollm2 --prompts prompts.jsonl --steps 8 --kept logprobs --report inversion.html --json
    """
    from likely.audit.inversion import InverterConfig, audit_recovery
    from likely.audit.inversion.recovered import RecoveryPlan

    check_reports(report)
    run = read_file(str(prompts), _prompt, flags.FileFlags(limit=limit), expected='lines like {"prompt": "..."}',
                    bare="prompt")  # fmt: skip
    texts = [run.item(line) for line in run.lines]
    plan = RecoveryPlan(steps, (1, steps), test, InverterConfig(epochs=epochs, seed=seed), seed=seed)
    with flags.ModelFlags(model, runtime, None, None, threads).open_local("batch") as lm:
        settings = {"steps": steps, "test": test, "epochs": epochs, "seed": seed}
        header = header_of(lm, "invert", settings)
        with progress(len(texts), "answering", unit="prompts") as tick:
            made = audit_recovery(
                lm.runtime, texts, lambda text: _tokens(lm, text), plan, header=header, folder=kept, progress=tick,
                report=reporter("invert") or (lambda line: None),
            )  # fmt: skip
    show_reports([made], report, as_json=as_json)


def _tokens(lm: Model, prompt: str) -> list[int]:
    """As the user of a chat, or, of a base model, as the text itself."""
    return list(lm.render([{"role": "user", "content": prompt}]).tokens) if lm.template else lm.encode_prompt(prompt)


def _prompt(line: Line, where: str) -> str:
    return text_field(line, "prompt", where)
