"""likely audit all: every audit that has its input, of one model, in one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.options import origin
from likely.cli.printing import reporter
from likely.cli.verbs.audit.common import ReportOption, check_reports, listed, show_reports
from likely.io.jsonl import read_lines


@flags.grouped
def audit_all(
    model: flags.ModelFlags,
    cases: Annotated[str | None, typer.Option("--cases", help="JSONL of cases, as for likely audit ablate.")] = None,
    segments: Annotated[str, typer.Option("--segments", help="Segments of the cases to switch, with commas.")] = "",
    questions: Annotated[
        str | None, typer.Option("--questions", help="JSONL of questions, as for likely audit probes.")
    ] = None,
    probes: Annotated[Path | None, typer.Option("--probes", help="Their probes, by another model.")] = None,
    flows: Annotated[str | None, typer.Option("--flows", help="JSONL of flows, as for likely audit mermaid.")] = None,
    limit: flags.LimitOption = None,
    max_tokens: flags.MaxTokens = 256,
    kept: Annotated[
        Path | None, typer.Option("--kept", help="Folder of what is measured: a stopped run goes on there.")
    ] = None,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Every audit that has its input, of one model, in one report: the verdicts first, then each audit.

    Examples:

      likely audit all -m smollm2 --cases cases.jsonl --segments context --report audit.html

      likely audit all --questions questions.jsonl --probes probes.jsonl --flows flows.jsonl --report audit.html
    """
    from likely.audit.ablation import SegmentAblation
    from likely.audit.case import read_cases
    from likely.audit.mermaid.benchmark import diagram_cases
    from likely.audit.probes import question_cases, read_probes
    from likely.audit.suite import AuditSuite

    check_reports(report)
    named = listed(segments)
    suite = AuditSuite(
        cases=() if cases is None else read_cases(cases, limit=limit),
        ablation=SegmentAblation(named, tuple(("swap", name) for name in named)) if named else None,
        questions=() if questions is None else question_cases(_records(questions, limit), questions),
        probes=() if probes is None else read_probes(probes),
        flows=() if flows is None else diagram_cases(_records(flows, limit), flows),
        max_tokens=max_tokens,
    )
    with model.open() as lm:
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
        found = suite.run(lm, header=origin(lm), folder=kept, said=reporter("audit"))
    show_reports(found, report, as_json=as_json)


def _records(file: str, limit: int | None) -> list[dict]:
    return [line.record for line in read_lines(file)][:limit]
