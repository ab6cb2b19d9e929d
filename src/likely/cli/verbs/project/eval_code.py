"""likely eval-code: how many programming problems a model solves, by running what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.printing import print_json, progress
from likely.io.whole_file import check_target, write_for_user

WARNING = (
    "This runs programs that nobody has read. They get no network, no files and little time (see "
    "docs/steering.md), but no sandbox is perfect: give --run-untrusted-code if that is what you want."
)


@flags.grouped
def eval_code(
    model: flags.ModelFlags,
    benchmark: Annotated[Literal["humaneval", "mbpp"], typer.Argument(help="humaneval or mbpp.")],
    trusted: Annotated[
        bool, typer.Option("--run-untrusted-code", help="Yes, run what the model writes (in a sandbox).")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first problems.")] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Programs per problem.")] = 1,
    temperature: flags.TemperatureOption = 0.0,
    seed: flags.SeedOption = 0,
    max_tokens: flags.MaxTokens = 384,
    contrast: Annotated[
        Literal["uscd", "cad", "cfg"] | None,
        typer.Option("--contrast", help="Contrast with the prompt without its examples."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask for the function, instead of continuing it.")] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Most time per program.")] = 10.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write one line of JSON per program here.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Folder of the data sets.")] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Solve HumanEval or MBPP problems and run the tests: pass@1, and pass@n for n samples.

    Examples:

      likely eval-code humaneval --limit 20 --run-untrusted-code

      likely eval-code mbpp -m model.gguf -n 10 --temperature 0.8 --contrast uscd --run-untrusted-code
    """
    from likely.audit.code.benchmarks import evaluate, problems
    from likely.audit.code.sandbox import SandboxLimits
    from likely.guided.contrast import Contrast

    if not trusted:
        raise typer.BadParameter(WARNING, param_hint="--run-untrusted-code")
    if output is not None:
        check_target(output)
    if samples > 1 and temperature == 0:
        raise typer.BadParameter("several greedy programs are the same one: give --temperature", param_hint="--samples")
    found = problems(benchmark, limit=limit, data_dir=None if data_dir is None else str(data_dir))
    bounds = SandboxLimits(wall_s=seconds, cpu_s=max(1, round(seconds)))
    with model.open_local() as lm:
        with progress(len(found), benchmark, unit="problems") as advance:
            report = evaluate(
                lm, found, benchmark=benchmark, chat=chat, limits=bounds, progress=advance, n=samples,
                contrast=None if contrast is None else lambda lame: Contrast(lame, contrast),
                temperature=temperature, seed=seed, max_tokens=max_tokens,
            )  # fmt: skip
        origin = options.origin(lm)
    if output is not None:
        _write(output, report)
    ks = sorted({1, samples})
    record: dict[str, Any] = {
        **origin, "benchmark": benchmark, "problems": len(found), "samples": samples, "temperature": temperature,
        "seed": seed, "chat": chat, "contrast": contrast, "contrasted": report.contrasted,
        "isolation": report.isolation,
    }  # fmt: skip
    for k in ks:
        value, low, high = report.pass_at(k)
        record[f"pass@{k}"] = {"value": value, "low": low, "high": high}
    if as_json:
        print_json(record)
        return
    for k in ks:
        value, low, high = report.pass_at(k)
        typer.echo(f"{benchmark}, {len(found)} problems: pass@{k} {value:.1%} [{low:.1%}, {high:.1%}]")
    if contrast:
        typer.echo(f"contrast {contrast} in {report.contrasted} problems (the others have no examples)")
    if report.isolation != "full":
        typer.echo(
            f"Warning: the sandbox is weaker here (isolation: {report.isolation}), see docs/steering.md", err=True
        )


def _write(output: Path, report: Any) -> None:
    """What the texts are and whether they passed; not how long they ran, which differs from run to run."""
    lines = [
        json.dumps(
            {
                "task_id": solved.id, "sample": i, "text": text, "passed": verdict.passed, "why": verdict.why,
                "isolation": verdict.execution.isolation,
            },
            ensure_ascii=False,
        )
        for solved in report.solved
        for i, (text, verdict) in enumerate(zip(solved.texts, solved.verdicts, strict=True))
    ]  # fmt: skip
    write_for_user(output, "".join(line + "\n" for line in lines).encode())
