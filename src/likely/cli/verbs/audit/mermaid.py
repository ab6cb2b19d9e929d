"""likely audit mermaid: sequence diagrams from flows in words, and a check of diagrams that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.help import LIST
from likely.cli.options import refuse_same_file
from likely.cli.verbs.audit.common import ReportOption, check_reports, header_of, listed, measured, show_reports
from likely.errors import DataError
from likely.io.jsonl import read_lines


@flags.grouped
def mermaid(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    file: Annotated[
        str, typer.Argument(help='JSONL of {"id", "input_prompt", "expected_output"}, or a diagram (.mmd).')
    ],
    modes: Annotated[
        str,
        typer.Option(
            "--modes", metavar=LIST, help="zero-shot, one-shot, guided, guided one-shot, with commas between."
        ),
    ] = "zero-shot,one-shot,guided,guided one-shot",
    max_tokens: flags.MaxTokens = 512,
    official: Annotated[
        Path | None, typer.Option("--official", help="Folder with npm's mermaid and jsdom: ask Mermaid's parser, too.")
    ] = None,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Does the model write valid and complete sequence diagrams?  Free, with an example, and held to the grammar.

    A file that ends in .mmd is a diagram: it is parsed, and the first error is named with line and column.

    Examples:

      likely audit mermaid flows.jsonl --limit 8 --report diagrams.html

      likely audit mermaid flows.jsonl -m gemma3 --modes zero-shot,guided -o answers.jsonl

      likely audit mermaid diagram.mmd
    """
    from likely.audit.mermaid.benchmark import diagram_cases, diagram_modes, diagram_report, diagrams
    from likely.audit.mermaid.official import official_errors

    if file.endswith(".mmd"):
        _check_diagram(file)
        return
    check_reports(report)
    refuse_same_file(file, out.output)
    records = [line.record for line in read_lines(file)]
    cases = diagram_cases(records[: out.limit], file)
    perturb = diagram_modes(cases, listed(modes))
    with model.open() as lm:
        header = header_of(lm, "mermaid", {"modes": list(listed(modes)), "max_tokens": max_tokens})
        found = measured(cases, perturb, diagrams(lm, max_tokens=max_tokens), header, out)
    check = None if official is None else lambda texts: official_errors(texts, official)
    show_reports([diagram_report(found, header=header, check=check)], report, as_json=as_json)


def _check_diagram(file: str) -> None:
    from likely.audit.mermaid.parser import parse_sequence
    from likely.io.whole_file import read_text

    text = read_text(file)
    try:
        diagram = parse_sequence(text)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    typer.echo(f"valid: {len(diagram.participants)} participants, {len(diagram.messages)} messages")
