"""The page of one or several audits: figures with intervals, verdicts, cases with coloured tokens and drawings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from likely.audit.report import AuditReport, Finding, ReportExample, described
from likely.show.html import html_table, legend_list, opening, page_style, token_cells
from likely.show.tokens import Token, one_line, visible

_STYLE = """
.texts { grid-template-columns: 1fr; }
h3 { font-size: .875rem; margin: .75rem 0 0; }
.notes { margin: .25rem 0 .5rem; padding-left: 1.2rem; max-width: 70rem; }
.bar { display: block; width: 14rem; height: 1rem; }
.bar line, .bar circle { stroke: currentColor; fill: currentColor; }
.bar .axis { stroke: var(--line); }
.drawing { overflow-x: auto; background: #ffffff; color: #1a1a1a; border-radius: .5rem; padding: .25rem; }
"""


def audit_page(reports: Sequence[AuditReport], *, title: str = "") -> str:
    """A page that loads nothing and has no script; the first report's header stands at the top."""
    if not reports:
        raise ValueError("a page needs at least one report")
    parts = opening(title or reports[0].title, page_style() + _STYLE, None)
    parts.append(f'<p class="soft">{escape(visible(described(reports[0].header)))}</p>')
    if len(reports) > 1:
        links = (f'<li><a href="#a{n}">{_line(report.title)}</a></li>' for n, report in enumerate(reports, 1))
        parts.append(f'<nav aria-label="Contents"><ol class="notes">{"".join(links)}</ol></nav>')
    parts += [legend_list(), "</header>", '<main class="texts">']
    for number, report in enumerate(reports, 1):
        parts += _report(report, number)
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


def _report(report: AuditReport, number: int) -> Iterator[str]:
    yield f'<article aria-labelledby="a{number}"><h2 id="a{number}">{_line(report.title)}</h2>'
    yield f"<p>{_line(report.question)}</p>"
    yield from _notes("What was found", report.verdicts)
    yield from _notes("What to do", report.advice)
    yield from _notes("How to read it", report.reading)
    spans = {f.unit: _span([g for g in report.findings if g.unit == f.unit]) for f in report.findings}
    rows = [
        (_line(f.subject), _line(f.quantity), _line(f.text()), _bar(f, *spans[f.unit]), str(f.n or ""))
        for f in report.findings
    ]
    yield html_table("Figures with 95 % intervals", ("of", "figure", "value", "interval", "n"), rows)
    if report.cases:
        heads = list(dict.fromkeys(name for case in report.cases for name in case))
        cells = [[_value(case.get(name)) for name in heads] for case in report.cases]
        table = html_table("One row per case", [_line(head) for head in heads], cells)
        yield f"<details><summary>All {len(report.cases)} cases</summary>{table}</details>"
    for example in report.examples:
        yield _example(example)
    yield from _notes("Not shown", report.caveats)
    yield f'<p class="soft">Settings {escape(report.digest)}: {_line(described(report.header))}</p></article>'


def _notes(heading: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f'<h3>{heading}</h3><ul class="notes">' + "".join(f"<li>{_line(text)}</li>" for text in lines) + "</ul>"


def _example(example: ReportExample) -> str:
    prompt = f'<pre dir="auto">{escape(visible(example.prompt))}</pre>' if example.prompt else ""
    note = f'<p class="soft">{_line(example.note)}</p>' if example.note else ""
    cells = token_cells(
        [Token(text, logprob) for text, logprob in zip(example.tokens, example.logprobs, strict=True)]
    )  # fmt: skip
    coloured = f'<div class="tokens" dir="auto">{cells}</div>' if cells else ""
    text = f'<pre dir="auto">{escape(visible(example.text))}</pre>' if example.text else ""
    drawing = f'<div class="drawing">{example.figure}</div>' if example.figure else ""
    return f"<details><summary>{_line(example.title)}</summary>{note}{prompt}{coloured}{text}{drawing}</details>"


def _span(findings: Sequence[Finding]) -> tuple[float, float]:
    ends = [end for f in findings for end in (f.value, f.low, f.high) if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (low, low + 1)


def _bar(finding: Finding, low: float, high: float) -> str:
    """The interval on an axis from `low` to `high`, with zero marked."""
    if finding.value is None:
        return ""

    def x(value: float) -> float:
        return 4 + 192 * (value - low) / (high - low)

    ends = "" if finding.low is None or finding.high is None else (
        f'<line x1="{x(finding.low):.1f}" x2="{x(finding.high):.1f}" y1="8" y2="8"/>'
    )  # fmt: skip
    return (
        f'<svg class="bar" viewBox="0 0 200 16" role="img" aria-label="{_line(finding.text())}">'
        f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="16"/>{ends}'
        f'<circle cx="{x(finding.value):.1f}" cy="8" r="3"/></svg>'
    )


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f'<data value="{value!r}">{value:.3f}</data>'
    return _line("yes" if value is True else "no" if value is False else str(value))


def _line(text: str) -> str:
    return escape(one_line(text, 2000))
