"""All audits of one model in one report: what it found first, then each audit in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likely.audit.ablation import SegmentAblation, ablation_report
from likely.audit.case import Case, Measure, Perturb, likelihoods, run_audit
from likely.audit.consistency import check_other_model, consistency_report, probe_variants
from likely.audit.mermaid.benchmark import MODES, diagram_modes, diagram_report, diagrams
from likely.audit.probes import Probe
from likely.audit.report import AuditReport, Finding

MoreReports = Callable[[Any], AuditReport]  # an audit of another kind: model -> its report


@dataclass(frozen=True)
class AuditSuite:
    """What is audited; an audit without its input is left out.

    cases, ablation    segments on and off
    questions, probes  consistency over other wordings
    flows              sequence diagrams, in `modes`, of at most `max_tokens`
    more               audits of other kinds, which come last
    """

    cases: Sequence[Case] = ()
    ablation: SegmentAblation | None = None
    questions: Sequence[Case] = ()
    probes: Sequence[Probe] = ()
    flows: Sequence[Case] = ()
    modes: Sequence[str] = MODES
    max_tokens: int = 256
    more: Sequence[MoreReports] = ()

    def __post_init__(self) -> None:
        if bool(self.cases) != (self.ablation is not None):
            raise ValueError("cases and the ablation that says which segments are switched are given together")
        if bool(self.questions) != bool(self.probes):
            raise ValueError("questions and their probes are given together")
        if not (self.cases or self.questions or self.flows or self.more):
            raise ValueError("there is nothing to audit: give cases, questions with probes, or flows")

    def run(
        self, model: Any, *, header: Mapping[str, Any], folder: Path | None = None,
        said: Callable[[str], None] | None = None,
    ) -> list[AuditReport]:  # fmt: skip
        """The reports, a summary first.

        header  what the numbers depend on besides the settings: model, tokenizer, version
        folder  where what is measured is kept, so that a stopped run goes on
        said    told of each audit before it begins
        """
        reports: list[AuditReport] = []

        def measured(name: str, cases: Sequence[Case], perturb: Perturb, measure: Measure, settings: Mapping[str, Any]
                     ) -> tuple[Any, dict[str, Any]]:  # fmt: skip
            if said:
                said(f"{name}: {len(cases)} cases")
            own = {**header, "kind": f"audit {name}", "settings": dict(settings)}
            output = None if folder is None else folder / f"{name}.jsonl"
            return run_audit(cases, perturb, measure, header=own, output=output), own

        if self.ablation is not None:
            found, own = measured(
                "ablate", self.cases, self.ablation.perturb(self.cases), likelihoods(model), self.ablation.settings()
            )
            reports.append(ablation_report(found, self.ablation, header=own))
        if self.questions:
            check_other_model((probe.origin.get("sha256") for probe in self.probes), model.info.sha256)
            found, own = measured(
                "probes", self.questions, probe_variants(self.probes), likelihoods(model), {"style": "answers"}
            )
            reports.append(consistency_report(found, header=own, probes=self.probes))
        if self.flows:
            found, own = measured(
                "mermaid", self.flows, diagram_modes(self.flows, self.modes),
                diagrams(model, max_tokens=self.max_tokens), {"modes": list(self.modes), "max_tokens": self.max_tokens},
            )  # fmt: skip
            reports.append(diagram_report(found, header=own))
        reports += [more(model) for more in self.more]
        return [summary(reports, header=header), *reports]


def summary(reports: Sequence[AuditReport], *, header: Mapping[str, Any]) -> AuditReport:
    """The verdicts of all reports, and the first figures of each, in one."""
    findings = [
        Finding(report.title, f"{f.subject}: {f.quantity}", f.value, f.low, f.high, f.unit, f.n, f.note)
        for report in reports
        for f in report.findings[:3]
    ]
    return AuditReport(
        f"Audit of {header.get('model', 'the model')}",
        "What moves this model's answers, and how far?",
        [f"{report.title}: {line}" for report in reports for line in report.verdicts],
        findings,
        header,
        caveats=("Anything that none of the audits below asked for.",),
    )
