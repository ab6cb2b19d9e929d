"""What every audit on the command line does alike: write reports, print verdicts and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags, options
from likely.cli.printing import for_terminal, print_json, print_table, progress
from likely.io.whole_file import check_target, write_for_user

if TYPE_CHECKING:
    from likely.audit.case import Case, CaseRecord, Measure, Perturb
    from likely.audit.report import AuditReport

SUFFIXES = (".html", ".md", ".jsonl")
ReportOption = Annotated[
    list[Path] | None,
    typer.Option("--report", help="Also write the report: .html (coloured tokens), .md or .jsonl (repeatable)."),
]


def check_reports(paths: Sequence[Path] | None) -> None:
    """Refuse files that cannot be written, before a model is loaded."""
    for path in paths or ():
        check_target(path, SUFFIXES)


def listed(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def header_of(model: Any, audit: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of an audit depend on."""
    return {**options.origin(model), "kind": f"audit {audit}", "settings": dict(settings)}


def measured(
    cases: Sequence[Case], perturb: Perturb, measure: Measure, header: Mapping[str, Any], out: flags.FileFlags
) -> list[CaseRecord]:
    """`run_audit` with a bar, into the results file that was named."""
    from likely.audit.case import run_audit

    with progress(len(cases), "measuring", unit="cases") as advance:
        return run_audit(
            cases, perturb, measure, header=header, output=out.output, overwrite=out.overwrite, progress=advance
        )


def write_reports(reports: Sequence[AuditReport], paths: Sequence[Path] | None) -> None:
    """Write the files that were asked for."""
    for path in paths or ():
        write_for_user(path, rendered(reports, path.suffix.lower()).encode())


def show_reports(reports: Sequence[AuditReport], paths: Sequence[Path] | None, *, as_json: bool) -> None:
    """Write the files, then print: JSON, or verdicts and figures."""
    write_reports(reports, paths)
    if as_json:
        found = [report.to_dict() for report in reports]
        print_json(found[0] if len(found) == 1 else {"reports": found})
        return
    for report in reports:
        typer.echo(report.title)
        for line in report.verdicts:
            typer.echo(for_terminal(f"- {line}"))
        print_table(
            ("of", "figure", "value", "n"), [(f.subject, f.quantity, f.text(), f.n or "") for f in report.findings],
            left=3,
        )  # fmt: skip
        typer.echo("")
    for path in paths or ():
        typer.echo(f"written: {path}")


def rendered(reports: Sequence[AuditReport], suffix: str) -> str:
    """The reports as a page, as Markdown or as JSON lines."""
    if suffix == ".html":
        from likely.show.audits import audit_page

        return audit_page(reports)
    if suffix == ".md":
        return "\n".join(report.to_markdown() for report in reports)
    return "".join(report.to_jsonl() for report in reports)
