"""CoKE: does a model answer questions about proteins from their sequence, or from context that tools made?

49 four-way questions about 17 proteins of Swiss-Prot: with nothing, with the sequence, with context (Pfam, InterPro,
domains, GO terms), with both; with the sequence shuffled, and with context terms left out that hold a choice.  Two
models.  Then cases whose answer is known to stand in one segment and not in the other.

  python reproductions/coke.py           sequences cut at 200 residues
  python reproductions/coke.py --full    whole sequences, two wordings of the prompt

What was measured is kept (--kept): a stopped run goes on from there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from study import (
    arguments,
    conclude,
    data_sources,
    figure_with,
    model_source,
    report,
    run_script,
    run_study,
)

import likely
from likely.audit.ablation import SegmentAblation, ablation_report, motif_tokens
from likely.audit.case import Case, CaseRecord, likelihoods, reference_logprob, run_audit
from likely.audit.report import AuditReport
from likely.audit.standard import told_cases
from likely.data import load_records
from likely.errors import DataError
from likely.evidence import Check, Evidence, Figure, Source
from likely.metrics.paired import PairedDifference, paired_difference
from likely.scoring.likelihood import surface_lengths

MODELS = ("smollm2", "gemma3")
FILES = (("protein-context-qa", "proteins.jsonl"), ("protein-context-qa", "questions.jsonl"))
WORDINGS: Mapping[str, tuple[str, str]] = {  # what the two segments are called
    "plain": ("sequence", "context"),
    "long": ("amino acid sequence of the protein", "what databases say about the protein"),
}
AMINO_ACIDS = frozenset("ACDEFGHIKLMNPQRSTVWY" + "XBZUO")
RESIDUES = 200
TIE = 1e-6  # what is equal is not below


def protein_cases(proteins: Sequence[Mapping[str, Any]], questions: Sequence[Mapping[str, Any]], names: tuple[str, str],
                  residues: int | None) -> list[Case]:  # fmt: skip
    """The questions as cases with two segments; DataError for letters that are no amino acids and double accessions."""
    known: dict[str, Mapping[str, Any]] = {}
    for protein in proteins:
        if strange := set(protein["sequence"]) - AMINO_ACIDS:
            raise DataError(
                f"{protein['accession']}: {sorted(strange)} are no amino acids (upper-case letters, X BZUO)"
            )
        if protein["accession"] in known:
            raise DataError(f"{protein['accession']} stands twice in the file of proteins")
        known[protein["accession"]] = protein
    sequence, context = names
    found = []
    for number, asked in enumerate(questions):
        protein = known[asked["accession"]]
        segments = {sequence: protein["sequence"][:residues], context: context_terms(protein["context"])}
        found.append(
            Case(
                f"{asked['accession']}-{asked['kind']}-{number}", {**segments, "question": asked["question"]},
                tuple(asked["choices"]), asked["answer"], meta={"protein": asked["accession"], "kind": asked["kind"]},
            )
        )  # fmt: skip
    return found


def context_terms(context: Mapping[str, Any]) -> tuple[str, ...]:
    """Motifs and GO terms as the template of CoKE has them, one term each."""
    motifs = [f"{one['id']} {one['name']}" for one in (*context["pfam"], *context["interpro"])]
    return (
        *motifs,
        *(f"domain {d}" for d in context["domains"]),
        *(f"{g['aspect']} {g['term']}" for g in context["go"]),
    )


# --- what was measured, pooled ----------------------------------------------------------------------------------------


def by_unit(runs: Sequence[Sequence[CaseRecord]], variant: str, value: Callable[[Mapping[str, Any]], float], unit: str
            ) -> NDArray[np.float64]:  # fmt: skip
    """Mean over runs and cases of each unit (a protein): questions about one protein are not independent."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for record in run:
            found.setdefault(str(record.case.meta.get(unit, record.case.id)), []).append(
                value(record.variants[variant])
            )
    return np.array([np.mean(values) for values in found.values()])


def correct(fields: Mapping[str, Any]) -> float:
    return float(fields["correct"])


def contrast(runs: Sequence[Sequence[CaseRecord]], of: str, over: str, value: Callable[[Mapping[str, Any]], float]
             ) -> PairedDifference:  # fmt: skip
    return paired_difference(by_unit(runs, over, value, "protein"), by_unit(runs, of, value, "protein"))


CONTRASTS = (
    ("context", "sequence"), ("sequence", "none"), ("sequence", "shuffle:sequence"), ("sequence+context", "context"),
    ("context guarded", "none"), ("context guarded", "sequence"),
)  # fmt: skip


def pooled(runs: Sequence[Sequence[CaseRecord]]) -> tuple[list[Figure], list[Check]]:
    """Figures and checks over all models and wordings, by protein."""
    figures = []
    variants = list(runs[0][0].variants)
    n = len(by_unit(runs, "none", correct, "protein"))
    for variant in variants:
        shares = by_unit(runs, variant, correct, "protein")
        found = paired_difference(np.zeros(n), shares)
        figures.append(figure_with(variant, "accuracy", found.mean, (found.low, found.high), unit="share", n=n,
                                   of="proteins"))  # fmt: skip
    gains = {}
    for of, over in CONTRASTS:
        found = gains[of, over] = contrast(runs, of, over, reference_logprob)
        figures.append(figure_with(f"{of} over {over}", "log p of the right answer", found.mean,
                                   (found.low, found.high), unit="nats", n=n, of="proteins"))  # fmt: skip
    accuracy = {f.subject: f for f in figures if f.quantity == "accuracy"}
    extra = contrast(runs, "sequence+context", "context", correct)
    figures.append(figure_with("sequence+context over context", "accuracy gained", extra.mean, (extra.low, extra.high),
                               unit="share of questions", n=n, of="proteins"))  # fmt: skip
    bounds = (
        ("context: accuracy missing to 40 %", 0.4 - accuracy["context"].value, 0.0, "share"),
        ("context over sequence: lower end of the gain, negated", -gains["context", "sequence"].low, -TIE, "nats"),
        ("sequence alone: lower end of its accuracy (chance is 25 %)", accuracy["sequence"].low, 0.25, "share"),
        ("both over context alone: accuracy gained", extra.mean, 0.0, "share"),
        ("both over context alone: log p gained", gains["sequence+context", "context"].mean, 0.0, "nats"),
        ("sequence over its shuffle: lower end", gains["sequence", "shuffle:sequence"].low, 0.0, "nats"),
    )  # fmt: skip
    return figures, [Check(statement=s, value=float(v), bound=b, unit=u) for s, v, b, u in bounds]  # type: ignore[arg-type]


def power(reports: Mapping[str, AuditReport]) -> tuple[list[Figure], list[Check]]:
    """The tool itself: the passage must be found useful, the digits noise."""
    figures, checks = [], []
    for name, made in reports.items():
        for segment in ("passage", "digits"):
            f = made.finding(segment, "gain given none")
            assert f.value is not None and f.low is not None and f.high is not None
            figures.append(figure_with(f"{name}, {segment}", "log p of the right answer", f.value, (f.low, f.high),
                                       unit="nats", n=f.n, of="made-up cases"))  # fmt: skip
        used = made.finding("passage", "gain given digits")
        noise = made.finding("digits", "gain over its shuffle")
        assert used.low is not None and noise.low is not None
        checks.append(Check(statement=f"{name}: a passage that holds the answer, lower end of its gain, negated",
                            value=-used.low, bound=-TIE, unit="nats"))  # fmt: skip
        checks.append(Check(statement=f"{name}: random digits over their shuffle, lower end", value=noise.low,
                            bound=0.0, unit="nats"))  # fmt: skip
    return figures, checks


def study(
    models: Mapping[str, Any], proteins: Sequence[Mapping[str, Any]], questions: Sequence[Mapping[str, Any]], *,
    residues: int | None, told: int, full: bool, sources: Sequence[Source], data: Sequence[Source],
    kept: Path | None = None, threads: int = 1, report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    started = time.perf_counter()
    wordings = WORDINGS if full else {"plain": WORDINGS["plain"]}
    runs: list[list[CaseRecord]] = []
    reports: dict[str, AuditReport] = {}
    cuts: list[Figure] = []

    def measured(name: str, lm: Any, label: str, cases: list[Case], ablation: SegmentAblation) -> list[CaseRecord]:
        header = {"model": name, "sha256": lm.info.sha256, "cases": label, "residues": residues, **ablation.settings()}
        path = kept and kept / f"{name}-{label}-{residues}-{len(cases)}.jsonl"
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        found = run_audit(cases, ablation.perturb(cases), likelihoods(lm), header=header, output=path)
        report(f"{name}, {label}: {len(found)} cases after {time.perf_counter() - started:.0f} s")
        return found

    for name, lm in models.items():
        for label, names in wordings.items():
            sequence, context = names
            ablation = SegmentAblation(names, (("shuffle", sequence),), guarded=(context,))
            found = measured(name, lm, label, protein_cases(proteins, questions, names, residues), ablation)
            runs.append([CaseRecord(r.case, {plain_name(v, names): f for v, f in r.variants.items()}) for r in found])
        ablation = SegmentAblation(("digits", "passage"), (("shuffle", "digits"),))
        found = measured(name, lm, "told", told_cases(told), ablation)
        reports[name] = ablation_report(found, ablation, header={}, resamples=2000)
        sequences = [p["sequence"] for p in proteins]
        tokenizer = lm.tokenizer
        cut = motif_tokens(tokenizer.encode, partial(surface_lengths, tokenizer), sequences, common_motifs(sequences))
        characters = sum(map(len, sequences))
        cuts.append(Figure(subject=f"{name}, sequences", quantity="tokens per residue", value=cut.per_character,
                           unit="tokens", n=characters, of="residues", note="counted"))  # fmt: skip
        cuts.append(Figure(subject=f"{name}, motifs", quantity="begin and end with tokens", value=cut.aligned or 0.0,
                           unit="share", n=sum(cut.cuts.values()), of="cuts of motifs", note="counted"))  # fmt: skip
    figures, checks = pooled(runs)
    more, others = power(reports)
    value = {(f.subject, f.quantity): f.value for f in figures}
    return conclude(
        "coke",
        title="CoKE: context instead of raw sequences",
        claim="Questions about proteins are answered best from context that tools made; the raw sequence adds "
        "nothing, alone or beside the context.",
        paper_figure="Context alone beats sequence alone and both together, consistently (abstract, no numbers)",
        ours="accuracy "
        + ", ".join(
            f"{value[name, 'accuracy']:.0%} with {what}"
            for name, what in (
                ("none", "nothing"),
                ("sequence", "the sequence"),
                ("context", "context"),
                ("sequence+context", "both"),
                ("context guarded", "context without the choices' words"),
            )
        )
        + f"; the right answer is {value['context over sequence', 'log p of the right answer']:.2f} nats likelier from "
        f"context than from the sequence, {value['sequence over shuffle:sequence', 'log p of the right answer']:+.2f} "
        "from the sequence than from its shuffle",
        figures=[*figures, *more, *cuts],
        checks=[*checks, *others],
        samples=f"{len(questions)} questions about {len(proteins)} proteins, {len(wordings)} wording(s) of the prompt, "
        f"{len(models)} models; {told} made-up cases a model",
        intervals="95 %: percentile bootstrap over proteins (means over their questions, models and wordings), 10,000 "
        "resamples, fixed seed",
        full=full,
        models=sources,
        data=data,
        threads=threads,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Models for science, models above 270M parameters, and open answers judged by experts.",
            "InterProScan, BLAST and Foldseek: the context is what Swiss-Prot entries hold, so that it is better than "
            "tools would make it, and may hold the answer (hence the figures without the choices' words).",
            "Sequences beyond 200 residues, and other wordings (--full)." if residues else "Structures.",
            "Whether the differences of accuracy are real: 49 questions tell 15 points from none at best; the "
            "likelihoods tell more.",
        ],
    )


def plain_name(variant: str, names: tuple[str, str]) -> str:
    return variant.replace(names[0], WORDINGS["plain"][0]).replace(names[1], WORDINGS["plain"][1])


def common_motifs(sequences: Sequence[str], length: int = 4, count: int = 50) -> list[str]:
    """The most frequent pieces of this length."""
    seen: dict[str, int] = {}
    for sequence in sequences:
        for start in range(len(sequence) - length + 1):
            piece = sequence[start : start + length]
            seen[piece] = seen.get(piece, 0) + 1
    return sorted(seen, key=lambda piece: (-seen[piece], piece))[:count]


def measure(options: argparse.Namespace) -> Evidence:
    proteins, questions = (list(load_records(*file)) for file in FILES)
    if options.quick:
        proteins, questions = (
            proteins[:3],
            [q for q in questions if q["accession"] in {p["accession"] for p in proteins[:3]}],
        )
    residues = None if options.full else 40 if options.quick else RESIDUES
    names = MODELS[:1] if options.quick else MODELS
    with ExitStack() as opened:
        models = {
            name: opened.enter_context(likely.load(name, runtime="native", threads=options.threads, use="scoring"))
            for name in names
        }
        return study(
            models, proteins, questions, residues=residues, told=8 if options.quick else 64, full=options.full,
            sources=[model_source(name) for name in names], data=data_sources(FILES), kept=options.kept,
            threads=options.threads, report=report,
        )  # fmt: skip


def main() -> None:
    parser = arguments(
        full="whole sequences, two wordings", quick="a smoke run: 3 proteins, one model", threads="of the runtime",
        kept="coke",
    )  # fmt: skip
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
