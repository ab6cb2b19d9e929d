"""All audits of one model in one report: what it found first, then each audit in full."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from likely.audit.ablation import SegmentAblation, ablation_report
from likely.audit.case import Case, Measure, Perturb, likelihoods, run_audit
from likely.audit.consistency import check_other_model, consistency_report, probe_variants
from likely.audit.inversion import (
    InverterConfig,
    RoundedLogprobs,
    TextOnly,
    audit_recovery,
    exposure_report,
    hidden_size_of,
    measure_runtime,
)
from likely.audit.inversion.exposure import random_texts
from likely.audit.inversion.recovered import RecoveryPlan
from likely.audit.mermaid.benchmark import MODES, diagram_modes, diagram_report, diagrams
from likely.audit.probes import Probe
from likely.audit.reach.gradient import gradient_of
from likely.audit.reach.report import reach_audit, reach_measure
from likely.audit.reach.search import search_method
from likely.audit.report import AuditReport, Finding
from likely.audit.spectral import measure_spectra, spectral_report
from likely.errors import CapabilityError, DataError, LikelyError
from likely.io.hashes import fingerprint
from likely.io.whole_file import write_whole_file
from likely.runtimes.protocol import Runtime

SUMMARISED = 3  # figures of each audit that the summary shows


@dataclass(frozen=True)
class AuditPlace:
    """Where an audit of a suite works: the model, what its numbers depend on, and the folder that keeps them."""

    model: Any
    header: Mapping[str, Any]
    folder: Path | None = None

    def settings(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The header of one audit."""
        return {**self.header, "kind": f"audit {name}", "settings": dict(settings)}

    @property
    def runtime(self) -> Runtime:
        """The model's, or CapabilityError for a server, which is not attacked."""
        runtime: Runtime | None = getattr(self.model, "runtime", None)
        if runtime is None:
            raise CapabilityError("this audit needs a model on this machine, not a server")
        return runtime

    def file(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name

    def measured(
        self, name: str, cases: Sequence[Case], perturb: Perturb, measure: Measure, settings: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """`run_audit` in the folder: (records, header)."""
        # all of them: a case may be asked with parts of another one
        asked = fingerprint([case.to_record() for case in cases])
        own = self.settings(name, {**settings, "cases": asked})
        return run_audit(cases, perturb, measure, header=own, output=self.file(f"{name}.jsonl")), own

    def kept(
        self, name: str, settings: Mapping[str, Any], make: Callable[[dict[str, Any]], AuditReport]
    ) -> AuditReport:
        """A report that has no cases to go on from, made once: the folder's own where it was made with this header."""
        own, path = self.settings(name, settings), self.file(f"{name}.json")
        if path is not None and path.is_file():
            try:
                record = json.loads(path.read_text("utf-8"))
                if record["made_with"] == own:
                    return AuditReport.from_dict(record["report"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} is no kept report ({type(error).__name__}): remove it") from None
            raise DataError(f"{path} was made with another model or settings: choose another folder")
        report = make(own)
        if path is not None:
            record = {"made_with": own, "report": report.to_dict()}
            write_whole_file(path, (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())
        return report


@dataclass(frozen=True)
class AuditPart:
    """One audit of a suite: a name, what it is asked with, in words, and how it is run."""

    name: str
    cases: str
    run: Callable[[AuditPlace], AuditReport]


@dataclass(frozen=True)
class AuditSuite:
    """Audits, in the order of the report.

    left_out  audits that are not among them, with the reason, as lines of the report
    """

    parts: Sequence[AuditPart]
    left_out: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("there is nothing to audit: give cases, questions with probes, flows, states or prompts")

    def run(
        self, model: Any, *, header: Mapping[str, Any], folder: Path | None = None,
        said: Callable[[str], None] = lambda line: None,
    ) -> list[AuditReport]:  # fmt: skip
        """The reports, a summary first.

        header  what the numbers depend on besides the settings: model, tokenizer, version
        folder  where what is measured is kept, so that a stopped run goes on
        said    told of each audit before it begins, and of the processor time it took
        An audit that the model's runtime or this installation cannot do is left out, and the summary says why.
        """
        place, reports, asked = AuditPlace(model, header, folder), list[AuditReport](), list[str]()
        left_out = list(self.left_out)
        for part in self.parts:
            said(f"{part.name}: {part.cases}")
            begun = time.process_time()
            try:
                reports.append(part.run(place))
                asked.append(f"{part.name}: {part.cases}.")
            except CapabilityError as error:
                left_out.append(f"{part.name}: {error}")
            said(f"{part.name}: {time.process_time() - begun:.0f} s of processor time")
        if not reports:
            raise LikelyError(f"no audit could be run: {left_out[0]}")
        return [summary(reports, header=header, asked=asked, left_out=left_out), *reports]


# --- the parts --------------------------------------------------------------------------------------------------------


def ablate_part(cases: Sequence[Case], ablation: SegmentAblation, what: str = "your cases") -> AuditPart:
    """Segments on and off."""

    def run(at: AuditPlace) -> AuditReport:
        found, own = at.measured(
            "ablate", cases, ablation.perturb(cases), likelihoods(at.model), ablation.settings()
        )  # fmt: skip
        return ablation_report(found, ablation, header=own)

    return AuditPart("ablate", f"{len(cases)} cases: {what}", run)


def probes_part(questions: Sequence[Case], probes: Sequence[Probe], what: str = "your questions") -> AuditPart:
    """Consistency over other wordings."""

    def run(at: AuditPlace) -> AuditReport:
        check_other_model((probe.origin.get("sha256") for probe in probes), at.model.info.sha256)
        found, own = at.measured(
            "probes", questions, probe_variants(probes), likelihoods(at.model), {"style": "answers"}
        )  # fmt: skip
        return consistency_report(found, header=own, probes=probes)

    return AuditPart("probes", f"{len(questions)} questions with {len(probes)} other wordings: {what}", run)


def mermaid_part(
    flows: Sequence[Case], what: str = "your flows", *, modes: Sequence[str] = MODES, max_tokens: int = 256
) -> AuditPart:
    """Sequence diagrams from flows in words."""

    def run(at: AuditPlace) -> AuditReport:
        found, own = at.measured(
            "mermaid", flows, diagram_modes(flows, modes), diagrams(at.model, max_tokens=max_tokens),
            {"modes": list(modes), "max_tokens": max_tokens},
        )  # fmt: skip
        return diagram_report(found, header=own)

    return AuditPart("mermaid", f"{len(flows)} flows, {len(modes)} ways to ask: {what}", run)


def reach_part(
    cases: Callable[[Any], Sequence[Case]], what: str, *, lengths: Sequence[int] = (1, 2, 4), seed: int = 0
) -> AuditPart:
    """Targets forced by a few tokens; `cases` are made with the model's tokenizer.  Gradients come from torch."""

    def run(at: AuditPlace) -> AuditReport:
        runtime, tokenizer = at.runtime, at.model.tokenizer
        asked = cases(tokenizer)
        measure = reach_measure(
            runtime, tokenizer, search_method("gcg", gradient_of(at.model.info.source)), lengths=lengths,
            forbid=sorted(set(tokenizer.special_tokens.values())), seed=seed,
        )  # fmt: skip
        settings = {"method": "gcg", "lengths": list(lengths), "seed": seed}
        return reach_audit(
            asked, measure, lengths, header=at.settings("reach", settings), output=at.file("reach.jsonl")
        )  # fmt: skip

    return AuditPart("reach", f"controls of {', '.join(map(str, lengths))} tokens: {what}", run)


def exposure_part(*, seed: int = 0) -> AuditPart:
    """What the model's own log-probabilities would give away, were all of them returned."""

    def run(at: AuditPlace) -> AuditReport:
        def make(own: dict[str, Any]) -> AuditReport:
            runtime = at.runtime
            size = hidden_size_of(runtime)
            texts = random_texts(runtime, size + 100, seed=seed)
            found = exposure_report(measure_runtime(runtime, texts, hidden_size=size, seed=seed), header=own)
            question = "Were all its log-probabilities returned: how much of the model, and of a prompt, do they tell?"
            return replace(found, question=question)

        return at.kept("exposure", {"seed": seed}, make)

    return AuditPart("exposure", "texts of random tokens", run)


def invert_part(
    prompts: Sequence[str], render: Callable[[Any, str], Sequence[int]], what: str = "your prompts", *,
    steps: int = 4, epochs: int = 60, seed: int = 0,
) -> AuditPart:  # fmt: skip
    """Hidden prompts from log-probabilities, rounded ones and text alone.

    render(model, prompt) -> the token ids that the model reads
    """
    config = InverterConfig(epochs=epochs, batch=32, seed=seed)
    plan = RecoveryPlan(steps, (steps,), 0.2, config, (RoundedLogprobs(2), TextOnly()), seed=seed)

    def run(at: AuditPlace) -> AuditReport:
        def make(own: dict[str, Any]) -> AuditReport:
            return audit_recovery(
                at.runtime, prompts, lambda text: render(at.model, text), plan, header=own,
                folder=at.file("logprobs"),
            )  # fmt: skip

        return at.kept(
            "invert", {"steps": steps, "epochs": epochs, "seed": seed, "prompts": fingerprint(list(prompts))}, make
        )

    return AuditPart("invert", f"{len(prompts)} prompts, {steps} steps of each answer: {what}", run)


def spectral_part(
    windows: Callable[[Any], Sequence[Sequence[int]]], what: str, *, tokens: int = 256
) -> AuditPart:  # fmt: skip
    """The last hidden states; `windows` are made with the model's tokenizer."""

    def run(at: AuditPlace) -> AuditReport:
        def make(own: dict[str, Any]) -> AuditReport:
            [found] = measure_spectra(at.model, windows(at.model.tokenizer), tokens=tokens)
            return spectral_report(found, header=own)

        return at.kept("spectral", {"text": what, "tokens": tokens}, make)

    return AuditPart("spectral", what, run)


def summary(
    reports: Sequence[AuditReport], *, header: Mapping[str, Any], asked: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> AuditReport:  # fmt: skip
    """The verdicts of all reports, what to do, and the first figures of each, in one."""
    findings = [
        Finding(_short(report), f"{f.subject}: {f.quantity}", f.value, f.low, f.high, f.unit, f.n, f.note)
        for report in reports
        for f in report.findings[:SUMMARISED]
    ]
    return AuditReport(
        f"Audit of {header.get('model', 'the model')}",
        "How steerable, how leaky and how consistent is this model? Each audit changes one thing about a prompt and "
        "looks at how the likelihood of the answer moves.",
        [f"{_short(report)}: {line}" for report in reports for line in report.verdicts],
        findings,
        header,
        caveats=(*(f"Not run: {line}" for line in left_out), "Anything that none of the audits below asked for.",
                 "Other prompts than those below: a model may behave otherwise on yours."),
        reading=(
            *(f"Asked with: {line}" for line in asked),
            "An interval, [from, to], holds the true value in 95 of 100 such runs, over the n cases; two values whose "
            "intervals overlap widely cannot be told apart. Likelihoods are natural logarithms (nats): 0.69 is a "
            "factor of 2, 2.3 a factor of 10.",
            "Below, each audit says what was asked, what it found, what to do, and which values are good or bad; then "
            "all figures, one row per case, and cases to look at, whose tokens are coloured by how likely they were.",
        ),
        advice=sorted(  # what is to be done comes first
            (f"{_short(report)}: {line}" for report in reports for line in report.advice),
            key=lambda line: ": Nothing" in line,
        ),
    )  # fmt: skip


def _short(report: AuditReport) -> str:
    return report.title.partition(":")[0]
