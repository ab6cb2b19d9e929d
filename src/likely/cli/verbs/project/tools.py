"""likely tools: how well a model calls functions, and logged calls as examples to train on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.help import LIST, VerbCommand
from likely.cli.printing import print_json, progress
from likely.errors import missing_extra
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line, Results, read_lines
from likely.io.whole_file import check_target

EXAMPLES = """How well a model calls functions, and logged calls as training data.

Examples:

  likely tools eval bfcl --categories simple_python,multiple --limit 20

  likely tools eval bfcl -m model.gguf --mode repaired --style native -o calls.jsonl --json

  likely tools export conversations.jsonl -o examples.jsonl
"""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)
SHOWN = (
    ("success", "AST accuracy"), ("valid_first", "valid at first"), ("valid", "valid"),
    ("executable_calls", "executable calls"), ("tool_selection", "right tool"), ("repairs_per_task", "repairs"),
)  # fmt: skip


@verbs.callback()
def group() -> None:
    """A group of verbs."""


@verbs.command("eval", cls=VerbCommand)
@flags.grouped
def evaluate(
    model: flags.ModelFlags,
    benchmark: Annotated[Literal["bfcl"], typer.Argument(help="bfcl: the Berkeley cases.")],
    file: flags.FileFlags,
    categories: Annotated[
        str, typer.Option("--categories", metavar=LIST, help="Categories, with commas between; --limit of each.")
    ] = "simple_python,live_simple,multiple",
    mode: Annotated[
        Literal["unconstrained", "constrained", "repaired"],
        typer.Option("--mode", help="Written freely, held to the schema, or freely and then repaired."),
    ] = "constrained",
    style: Annotated[
        Literal["prompted", "native"], typer.Option("--style", help="Asked for JSON, or tools in the chat template.")
    ] = "prompted",
    choice: Annotated[
        Literal["auto", "required"], typer.Option("--tool-choice", help="With native tools: whether it must call.")
    ] = "auto",
    max_tokens: flags.MaxTokens = 192,
    max_repairs: Annotated[int, typer.Option("--max-repairs", min=0, max=8, help="Repairs of one answer.")] = 2,
    watts: Annotated[
        float, typer.Option("--watts", min=0.1, help="Of a busy core, where the machine does not say its energy.")
    ] = 10.0,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Folder of the data sets.")] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Call functions for questions and compare the calls with the answer keys (BFCL's AST check).

    Examples:

      likely tools eval bfcl --categories simple_python,multiple --limit 20

      likely tools eval bfcl -m model.gguf --mode repaired --style native -o calls.jsonl --json

      likely tools eval bfcl --categories irrelevance --style native --limit 20
    """
    from likely.models.load import installed

    if not installed("jsonschema"):
        raise missing_extra("jsonschema", "guided")
    from likely.audit.function_calling import function_cases
    from likely.serving.tools.evaluation import CaseResult, EvaluationSettings, evaluate_cases, evaluation_report

    settings = EvaluationSettings(mode, style, choice, max_tokens, max_repairs, watts=watts)
    names = list(dict.fromkeys(name.strip() for name in categories.split(",") if name.strip()))
    if not names:
        raise typer.BadParameter("give at least one category", param_hint="--categories")
    settings.check_categories(names)
    folder = None if data_dir is None else str(data_dir)
    cases = [case for name in names for case in function_cases(name, limit=file.limit, data_dir=folder)]
    if file.output is not None and not file.output.exists():
        check_target(file.output)
    with model.open() as lm:
        header = {
            "kind": "tools-eval", **options.origin(lm), "benchmark": benchmark, "categories": names,
            "limit": file.limit, **settings.to_dict(),
        }  # fmt: skip
        lines = [Line(i, {}, fingerprint(case.id)) for i, case in enumerate(cases, 1)]
        found: list[CaseResult] = []
        kept = None if file.output is None else Results(file.output, header, overwrite=file.overwrite)
        with nullcontext() if kept is None else kept:
            todo = [i for i, line in enumerate(lines) if kept is None or not kept.is_done(line, benchmark)]
            with progress(len(todo), benchmark, unit="cases") as advance:
                for i, result in zip(todo, evaluate_cases(lm, [cases[i] for i in todo], settings), strict=True):
                    found.append(result)
                    if kept is not None:
                        kept.write([{"line": i + 1, "input": lines[i].digest, **result.to_dict()}])
                    advance(1)
    if file.output is not None:
        found = [CaseResult.of_dict(line.record) for line in read_lines(file.output) if "line" in line.record]
    report = evaluation_report(found)
    if as_json:
        print_json({**header, **report})
        return
    _print(report)


@verbs.command("export", cls=VerbCommand)
def export(
    logged: Annotated[
        Path, typer.Argument(metavar="FILE", help='JSONL of {"messages", "tools"}, with the results of calls.')
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSONL for likely align sft.")],
    min_verified: Annotated[
        int, typer.Option("--min-verified", min=1, help="Calls that were carried out in a conversation, at least.")
    ] = 1,
    as_json: flags.JsonOption = False,
) -> None:
    """Write logged conversations with tools as examples to train on: of their calls those that were carried out.

    Examples:

      likely tools export conversations.jsonl -o examples.jsonl

      likely align sft examples.jsonl --loss-on assistant -o adapter
    """
    from likely.serving.tools.examples import export_training_data

    check_target(output)
    lines = [line.record for line in read_lines(logged)]
    written = export_training_data(lines, output, min_verified=min_verified)
    if as_json:
        print_json({"conversations": len(lines), "examples": written})
        return
    typer.echo(f"{written} of {len(lines)} conversations written to {output}")


def _print(report: dict[str, Any]) -> None:
    for name, part in {**report["categories"], "all": report["all"]}.items():
        shown = [f"{label} {_share(part[key])}" for key, label in SHOWN if part[key]["value"] is not None]
        typer.echo(f"{name}, {part['tasks']} cases: {', '.join(shown)}")
    energy = report["all"].get("energy_j")
    if energy is not None:
        how = " (estimate: processor seconds x watts)" if energy["estimate"] else ""
        typer.echo(f"energy per case {energy['value']:.2g} J{how}")


def _share(rate: dict[str, Any]) -> str:
    if rate["low"] is None:
        return f"{rate['value']:.2f}"
    return f"{rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
