"""LLMAuditor: does a model answer the same in other words that another model wrote, and what does it say if not?

Gemma-3-270M writes probes of questions, by a structured template and by a naive one; SmolLM2-135M answers the questions
of TruthfulQA and of ARC-Easy and their probes, and the same questions in frames that keep the meaning for certain.

  python reproductions/llmauditor.py           60 questions of each set, 3 probes
  python reproductions/llmauditor.py --full   200 questions of each set, 5 probes

What was measured is kept (--kept): a stopped run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from study import (
    arguments,
    conclude,
    data_sources,
    figure_with,
    model_source,
    report,
    run_script,
    run_study,
    share_figure,
)

import likely
from likely.audit.case import Case, likelihoods, run_audit
from likely.audit.consistency import consistency_report, probe_variants
from likely.audit.probes import (
    NAIVE,
    STRUCTURED,
    Probe,
    ProbeTemplate,
    meaning_gains,
    probe_of,
    question_of_case,
    screen_probe,
    write_probes,
)
from likely.audit.report import AuditReport
from likely.audit.standard import FRAMES, RULES, framed_probes
from likely.data import load_records
from likely.evidence import Check, Evidence, Figure, Source
from likely.io.kept import KeptValues
from likely.metrics.bootstrap import mean_interval

WRITER, AUDITED = "gemma3", "smollm2"
FILES: tuple[tuple[str, str | None], ...] = (("truthfulqa", None), ("arc-easy", "test.jsonl.gz"))
TIE = 1e-6  # what is equal is not below


def questions(name: str, file: str | None, count: int) -> list[Case]:
    """Multiple-choice questions as cases; of TruthfulQA with one true option, all in a fixed order of their own."""
    rng = np.random.default_rng(0)
    found = []
    for number, record in enumerate(islice(load_records(name, file), count)):
        if "mc1_targets" in record:
            options = list(record["mc1_targets"].items())
            order = rng.permutation(len(options))
            choices = tuple(options[i][0] for i in order)
            answer = next(k for k, i in enumerate(order) if options[i][1] == 1)
        else:
            choices, answer = tuple(record["choices"]), int(record["answer"])
        found.append(Case(f"{name}-{number}", {"question": record["question"]}, choices, answer))
    return found


def written(lm: Any, cases: Sequence[Case], template: ProbeTemplate, n: int, kept: KeptValues) -> list[Probe]:
    key = f"{template.digest}-{n}-{lm.info.sha256}-{cases[0].id}-{len(cases)}"
    if key not in kept:
        kept.add({key: [asdict(probe) for probe in write_probes(lm, cases, template, n=n)]})
    return [probe_of(record) for record in kept[key]]


def figures_of(label: str, made: AuditReport) -> list[Figure]:
    return [
        figure_with(label, f.quantity, f.value, (f.low, f.high), unit=f.unit or "probability", n=f.n, of="questions")
        for f in made.findings
        if f.value is not None and f.low is not None and f.high is not None and f.subject == "answers"
    ]


def value(made: AuditReport, quantity: str, end: str = "value") -> float:
    found = getattr(made.finding("answers", quantity), end)
    return float("nan") if found is None else float(found)


def study(
    writer: Any, audited: Any, sets: Mapping[str, Sequence[Case]], *, n: int, gains: int, full: bool,
    sources: Sequence[Source], data: Sequence[Source], kept: Path | None = None, threads: int = 1,
    report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    """sets  name -> questions; the first is the paper's, the last the easier one"""
    started = time.perf_counter()
    store = KeptValues(kept and kept / "probes.jsonl")
    figures, checks, reports = [], [], {}
    passed: dict[str, list[bool]] = {STRUCTURED.name: [], NAIVE.name: []}
    for name, cases in sets.items():
        by = {template.name: written(writer, cases, template, n, store) for template in (STRUCTURED, NAIVE)}
        for template, probes in by.items():
            passed[template] += [probe.passed for probe in probes]
        report(f"{name}: probes are written, {time.perf_counter() - started:.0f} s")
        for label, probes in (("probes of " + WRITER, by[STRUCTURED.name]), (RULES, framed_probes(cases))):
            digest = [probe.text for probe in probes if probe.passed]
            header = {"model": audited.info.sha256, "set": name, "probes": digest}
            path = kept and kept / f"{name}-{label.replace(' ', '_')}-{n}-{len(cases)}.jsonl"
            records = run_audit(cases, probe_variants(probes), likelihoods(audited), header=header, output=path)
            made = reports[name, label] = consistency_report(records, header={}, probes=probes)
            figures += figures_of(f"{name}, {label}", made)
            report(f"{name}, {label}: {made.verdicts[0]} {time.perf_counter() - started:.0f} s")
    shares = {}
    for template, flags in passed.items():
        shares[template] = sum(flags) / len(flags)
        figures.append(share_figure(f"template {template}", "probes pass the screens", sum(flags), len(flags),
                                    unit="share of probes", of="probes"))  # fmt: skip
    mismatched, kept_apart = meaning(writer, next(iter(sets.values())), gains, store)
    figures += mismatched
    first, last = next(iter(sets)), list(sets)[-1]
    rules, easy = reports[first, RULES], reports[last, RULES]
    bounds = (
        (f"{first}, {RULES}: flip rate missing to 15 %", 0.15 - value(rules, "flip rate"), "share"),
        (f"{first}, {RULES}: lower end of the flip rate, negated", -value(rules, "flip rate", "low"), "share"),
        (f"{last}, {RULES}: AUROC of dispersion for errors, 0.5 less its lower end",
         0.5 - value(easy, "AUROC of dispersion for wrong answers", "low"), "probability"),
        (f"{last}, {RULES}: Brier score, pooled less alone, upper end",
         value(easy, "Brier score, pooled less alone", "high"), "squared"),
        (f"{last}, {RULES}: accuracy lost by pooling", -value(easy, "accuracy gained by pooling"), "share"),
        ("structured over naive: share of probes that pass, missing to 10 points",
         0.1 - (shares[STRUCTURED.name] - shares[NAIVE.name]), "share"),
        ("probes of other questions that the screens let pass", kept_apart, "share"),
    )  # fmt: skip
    limit = {"probes of other questions that the screens let pass": 0.05,
             f"{first}, {RULES}: lower end of the flip rate, negated": -TIE}  # fmt: skip
    checks = [Check(statement=s, value=float(v), bound=limit.get(s, 0.0), unit=u) for s, v, u in bounds]
    said = []
    for (name, label), made in reports.items():
        alone, together = (value(made, f"accuracy, {how}") for how in ("the question alone", "pooled over probes"))
        apart = value(made, "AUROC of dispersion for wrong answers")
        said.append(
            f"{name}, {label}: flips {value(made, 'flip rate'):.0%}, accuracy {alone:.0%} alone and {together:.0%} "
            f"pooled, AUROC for errors {apart:.2f}"
        )
    count = sum(map(len, sets.values()))
    return conclude(
        "llmauditor",
        title="LLMAuditor: probes by another model, verified by people",
        claim="A model changes answers when it is asked in other words; where it does, it is wrong more often, and "
        "pooling over wordings is better; a structured template gives more usable probes than a naive one.",
        paper_figure="Reliable probes from one model audit another on TruthfulQA (abstract, no numbers)",
        ours="; ".join(said) + f"; probes that pass the screens: {shares[STRUCTURED.name]:.0%} structured, "
        f"{shares[NAIVE.name]:.0%} naive",
        figures=figures,
        checks=checks,
        samples=f"{count} multiple-choice questions, {n} probes of each by either template, {len(FRAMES)} frames",
        intervals="95 %: percentile bootstrap over questions, fixed seed; Wilson for shares of probes",
        full=full,
        models=sources,
        data=data,
        threads=threads,
        seconds=time.perf_counter() - started,
        not_shown=[
            "People: the paper's annotators, their agreement and their effect are not part of this run; the queue, the "
            "votes and the agreement are in the package (likely audit review).",
            "Writers and audited models above 270M parameters.",
            "Probes of the writer that pass the screens may still change the meaning: hence the frames.",
        ],
    )  # fmt: skip


def meaning(writer: Any, cases: Sequence[Case], count: int, store: KeptValues) -> tuple[list[Figure], float]:
    """Figures of the likelihood that a probe gives its question, and the share of other questions that pass screens."""
    asked = [question_of_case(case) for case in cases]
    foreign = [
        not screen_probe(asked[i], asked[j]) for i in range(len(asked)) for j in range(len(asked)) if i != j
    ]  # fmt: skip
    some = asked[:count]
    pairs = {
        "a frame of the question": [(q, FRAMES[0].format(q)) for q in some],
        "another question": [(q, some[(i + 1) % len(some)]) for i, q in enumerate(some)],
    }
    figures = []
    for name, listed in pairs.items():
        key = f"gains-{name}-{len(listed)}-{json.dumps(listed[0])}"
        if key not in store:
            store.add({key: meaning_gains(writer, listed)})
        gains = store[key]
        figures.append(figure_with(name, "likelier by, per byte", float(np.mean(gains)), mean_interval(gains),
                                   unit="nats", n=len(gains), of="pairs"))  # fmt: skip
    return figures, float(np.mean(foreign))


def measure(options: argparse.Namespace) -> Evidence:
    count, n, gains = (200, 5, 60) if options.full else (6, 1, 4) if options.quick else (60, 3, 30)
    sets = {name: questions(name, file, count) for name, file in FILES}
    kept = None if options.quick else options.kept
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
    with (
        likely.load(WRITER, runtime="native", threads=options.threads) as writer,
        likely.load(AUDITED, runtime="native", threads=options.threads, use="scoring") as audited,
    ):
        return study(
            writer, audited, sets, n=n, gains=gains, full=options.full,
            sources=[model_source(name) for name in (WRITER, AUDITED)], data=data_sources(FILES), kept=kept,
            threads=options.threads, report=report,
        )  # fmt: skip


def main() -> None:
    parser = arguments(full="200 questions of each set, 5 probes", quick="a smoke run: 6 questions, 1 probe",
                       threads="of the runtimes", kept="llmauditor")  # fmt: skip
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
