"""likely audit all: every audit of one model, in one report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likely.cli import flags
from likely.cli.file_run import read_file
from likely.cli.help import LIST
from likely.cli.options import origin
from likely.cli.printing import reporter
from likely.cli.verbs.audit.common import ReportOption, check_reports, listed, show_reports
from likely.cli.verbs.audit.invert import prompt_of, prompt_tokens
from likely.errors import DataError, check_choice
from likely.io.jsonl import read_lines

if TYPE_CHECKING:
    from likely.audit.suite import AuditPart


@flags.grouped
def audit_all(
    model: flags.ModelFlags,
    source: Annotated[str | None, typer.Argument(metavar="MODEL", help="The model, as -m names it.")] = None,
    only: Annotated[
        str, typer.Option("--only", metavar=LIST, help="Audits to run, with commas between: {audits}.  [default: all]")
    ] = "",
    cases: Annotated[str | None, typer.Option("--cases", help="JSONL of cases, as for likely audit ablate.")] = None,
    segments: Annotated[
        str, typer.Option("--segments", metavar=LIST, help="Segments of the cases to switch, with commas.")
    ] = "",
    questions: Annotated[
        str | None, typer.Option("--questions", help="JSONL of questions, as for likely audit probes.")
    ] = None,
    probes: Annotated[
        Path | None, typer.Option("--probes", help="Their probes, by another model.  [default: fixed frames]")
    ] = None,
    flows: Annotated[str | None, typer.Option("--flows", help="JSONL of flows, as for likely audit mermaid.")] = None,
    states: Annotated[str | None, typer.Option("--states", help="JSONL of cases, as for likely audit reach.")] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="JSONL of prompts, as for likely audit invert.")
    ] = None,
    limit: flags.LimitOption = None,
    max_tokens: flags.MaxTokens = 256,
    kept: Annotated[
        Path | None, typer.Option("--kept", help="Folder of what is measured: a stopped run goes on there.")
    ] = None,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Every audit of one model in one report: what was found and what to do first, then each audit in full.

    Without files each audit asks small public cases of its own, sized for an hour with a small model on two cores.
    With files those audits run that have one; --only names others, too.

    Examples:

      likely audit all smollm2 --kept audit --report audit.html

      likely audit all smollm2 --only reach,invert --limit 4

      likely audit all -m smollm2 --cases cases.jsonl --segments context --questions questions.jsonl --report audit.html
    """
    from likely.audit.standard import SIZES, standard_part
    from likely.audit.suite import AuditSuite

    check_reports(report)
    model = model.named(source)
    files = {"ablate": cases, "probes": questions, "mermaid": flows, "reach": states, "invert": prompts}
    given = {name: file for name, file in files.items() if file is not None}
    if bool(segments) != ("ablate" in given) or (probes is not None and questions is None):
        raise typer.BadParameter("--cases and --segments are given together; --probes needs --questions")
    chosen = listed(only)
    for name in chosen:
        check_choice("audit", name, SIZES)
    named = {*chosen, *given} or set(SIZES)
    parts: list[AuditPart] = []
    left_out: list[str] = []
    for name in SIZES:
        if name not in named:
            left_out.append(f"{name}: not asked for")
            continue
        try:
            if name in given:
                parts.append(_of_file(name, given[name], listed(segments), probes, limit, max_tokens))
            else:
                parts.append(standard_part(name, prompt_tokens, most=limit, max_tokens=max_tokens))
        except DataError as error:
            if name in chosen or name in given:
                raise
            left_out.append(f"{name}: {error}")
    suite = AuditSuite(parts, left_out)
    with model.open("scoring") as lm:
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
        found = suite.run(lm, header=origin(lm), folder=kept, said=reporter("audit") or (lambda line: None))
    show_reports(found, report, as_json=as_json)


def _of_file(
    name: str, file: str, segments: Sequence[str], probes: Path | None, limit: int | None, max_tokens: int
) -> AuditPart:
    """An audit of a file that was given."""
    from likely.audit import suite
    from likely.audit.ablation import SegmentAblation
    from likely.audit.case import read_cases
    from likely.audit.mermaid.benchmark import diagram_cases
    from likely.audit.probes import question_cases, read_probes
    from likely.audit.reach.report import reach_case
    from likely.audit.standard import framed_probes

    if name == "ablate":
        ablation = SegmentAblation(tuple(segments), tuple(("swap", segment) for segment in segments))
        return suite.ablate_part(read_cases(file, limit=limit), ablation, file)
    if name == "invert":
        run = read_file(file, prompt_of, flags.FileFlags(limit=limit), expected='lines like {"prompt": "..."}',
                        bare="prompt")  # fmt: skip
        return suite.invert_part([run.item(line) for line in run.lines], prompt_tokens, file)
    lines = list(read_lines(file))[:limit]
    if name == "probes":
        questions = question_cases([line.record for line in lines], file)
        known = {case.id for case in questions}
        found = framed_probes(questions) if probes is None else [p for p in read_probes(probes) if p.case in known]
        return suite.probes_part(questions, found, file)
    if name == "mermaid":
        return suite.mermaid_part(diagram_cases([line.record for line in lines], file), file, max_tokens=max_tokens)
    cases = [reach_case(line.record, f"{file}:{line.number}") for line in lines]
    return suite.reach_part(lambda tokenizer: cases, f"{len(cases)} cases, {file}")
