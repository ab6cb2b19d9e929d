"""What an audit found, for whoever did not run it: figures with intervals, verdicts in sentences, cases to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from likely.io.hashes import fingerprint
from likely.metrics.bootstrap import mean_interval
from likely.metrics.intervals import wilson


@dataclass(frozen=True)
class Finding:
    """One figure: value and interval (low, high) of `quantity` of `subject`, over n cases; None where undefined."""

    subject: str
    quantity: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    n: int = 0
    note: str = ""

    def text(self, digits: int = 3) -> str:
        """As in "0.734 [0.702, 0.765] nats"; a count, as in "576 dimensions"."""
        if self.value is None:
            return self.note or "not defined"
        ends = "" if self.low is None or self.high is None else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        value = f"{self.value:.{0 if not ends and float(self.value).is_integer() else digits}f}"
        return f"{value}{ends}{f' {self.unit}' if self.unit else ''}"


def share_interval(values: Sequence[float], *, resamples: int = 2000) -> tuple[float, float]:
    """(low, high) of a mean of values in [0, 1]: by bootstrap, or Wilson's where all are 0 or 1 and it may have no
    width."""
    if set(values) <= {0.0, 1.0}:
        return wilson(round(sum(values)), len(values))
    return mean_interval(list(values), resamples=resamples)


@dataclass(frozen=True)
class ReportExample:
    """A case to look at: a prompt, a text of the model or an answer with its tokens' log-probabilities, a drawing.

    figure  SVG, made by this package alone
    """

    title: str
    note: str = ""
    prompt: str = ""
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    text: str = ""
    figure: str = ""


@dataclass(frozen=True)
class AuditReport:
    """One audit of one model.

    question  what was asked of the model, in one sentence;  verdicts: what was found, one sentence each
    reading   what the figures mean, which values are good and which are bad;  advice: what to do about these
    caveats   what the figures do not say;  cases: one row per case;  examples: cases to look at
    header    what the numbers depend on: model, tokenizer, settings, version
    """

    title: str
    question: str
    verdicts: Sequence[str]
    findings: Sequence[Finding]
    header: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]] = ()
    examples: Sequence[ReportExample] = ()
    caveats: Sequence[str] = field(default_factory=tuple)
    reading: Sequence[str] = ()
    advice: Sequence[str] = ()

    @property
    def digest(self) -> str:
        """Of the header: two reports with one digest were made with the same model and settings."""
        return fingerprint(dict(self.header))

    def finding(self, subject: str, quantity: str) -> Finding:
        """The figure of that name; KeyError if there is none."""
        for one in self.findings:
            if (one.subject, one.quantity) == (subject, quantity):
                return one
        raise KeyError((subject, quantity))

    def to_dict(self) -> dict[str, Any]:
        """All but the examples."""
        return {
            "title": self.title, "question": self.question, "config": self.digest, "header": dict(self.header),
            "verdicts": list(self.verdicts), "findings": [asdict(one) for one in self.findings],
            "cases": [dict(case) for case in self.cases], "caveats": list(self.caveats),
            "reading": list(self.reading), "advice": list(self.advice),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> AuditReport:
        """What `to_dict` gave."""
        names = ("title", "question", "verdicts", "header", "cases", "caveats", "reading", "advice")
        return cls(findings=[Finding(**one) for one in record["findings"]], **{name: record[name] for name in names})

    def to_jsonl(self) -> str:
        """A line about the whole, then a line per figure, then a line per case."""
        whole = self.to_dict()
        findings, cases = whole.pop("findings"), whole.pop("cases")
        lines = [
            {"kind": "report", **whole}, *({"kind": "finding", **f} for f in findings),
            *({"kind": "case", **c} for c in cases),
        ]  # fmt: skip
        return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)

    def to_markdown(self, *, level: int = 1) -> str:
        """The report without its examples; level: of its heading."""
        head = "#" * level
        parts = [f"{head} {self.title}", self.question]
        for heading, lines in (
            ("What was found", self.verdicts),
            ("What to do", self.advice),
            ("How to read it", self.reading),
        ):
            parts += [f"{head}# {heading}"] if lines else []
            parts.append("\n".join(f"- {line}" for line in lines))
        parts.append(markdown_table(("", "figure", "value", "n"), [
            (f.subject, f.quantity, f.text(), str(f.n) if f.n else "") for f in self.findings
        ]))  # fmt: skip
        if self.cases:
            heads = list(dict.fromkeys(name for case in self.cases for name in case))
            rows = [[_cell(case.get(name)) for name in heads] for case in self.cases]
            parts += [f"{head}# Cases", markdown_table(heads, rows)]
        if self.caveats:
            parts += [f"{head}# Not shown", "\n".join(f"- {line}" for line in self.caveats)]
        parts.append(f"Made with: {described(self.header)}; settings {self.digest}.")
        return "\n\n".join(part for part in parts if part) + "\n"


def described(header: Mapping[str, Any]) -> str:
    """The plain fields of a header in one line; long digests are cut."""
    shown = []
    for name, value in header.items():
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            text = str(value)
            shown.append(f"{name} {text[:12] if name in ('sha256', 'tokenizer') else text}")
    return ", ".join(shown)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; bars and line breaks inside cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
