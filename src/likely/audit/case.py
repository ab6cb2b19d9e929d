"""Cases of an audit, their variants, and the run over both: how an answer's likelihood moves when the prompt changes.

A case is a prompt in named segments and what is known of its answer.  An audit changes one thing about it at a time
(variants) and measures each.  What is measured goes to a JSON-lines file, a line per case; a run that was stopped goes
on there, and a second run with the same settings gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line, Results, read_checked, read_lines, unfinished
from likely.metrics.grading import choice_index, choices_of
from likely.scoring.choices import Normalise, decide, normalised
from likely.scoring.scored import PairScorer, Scored

SegmentText = str | tuple[str, ...]  # a text, or a list of terms
CASES = 'lines like {"id": "1", "segments": {"context": "...", "question": "..."}, "choices": [...], "answer": 0}'
AT_ONCE = 16  # cases measured together, and at most so many are measured again after a kill


@dataclass(frozen=True)
class Case:
    """One prompt in named segments, in the order in which they stand, and what is known of its answer.

    segments   name -> text, or a tuple of terms that stand on one line
    choices    the answers on offer, answer the number of the right one;  reference: the right answer's text
    meta       other fields of the record, which no model sees
    """

    id: str
    segments: Mapping[str, SegmentText]
    choices: tuple[str, ...] = ()
    answer: int | None = None
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any], where: str = "record") -> Case:
        """{"id", "segments", and "choices" with "answer", or "reference"}; DataError names `where`."""
        segments = record.get("segments")
        if not isinstance(segments, Mapping) or not segments:
            raise DataError(f'{where}: field "segments" must name the parts of the prompt: {CASES} are expected')
        read = {name: _segment(text, f'{where}: segment "{name}"') for name, text in segments.items()}
        choices = choices_of(record, where) or []
        answer = record.get("answer")
        if choices and answer is not None:
            try:
                answer = choice_index(answer, choices)
            except ValueError as error:
                raise DataError(f"{where}: {error}") from None
        elif answer is not None:
            raise DataError(f'{where}: "answer" is the number of a choice, and there are no "choices"')
        reference = record.get("reference")
        if reference is not None and not (isinstance(reference, str) and reference.strip()):
            raise DataError(f'{where}: field "reference" must be a text that is not empty')
        known = {"id", "segments", "choices", "answer", "reference"}
        meta = {name: value for name, value in record.items() if name not in known}
        return cls(str(record.get("id", where)), read, tuple(choices), answer, reference, meta)

    def to_record(self) -> dict[str, Any]:
        """The record that `of` reads."""
        segments = {name: text if isinstance(text, str) else list(text) for name, text in self.segments.items()}
        return {
            "id": self.id, "segments": segments, "choices": list(self.choices) or None, "answer": self.answer,
            "reference": self.reference, **self.meta,
        }  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to put a case: the prompt, the answers that are scored after it, and what was done, as JSON fields."""

    name: str
    prompt: str
    answers: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseRecord:
    """What was measured of a case: variant -> fields."""

    case: Case
    variants: Mapping[str, Mapping[str, Any]]


Perturb = Callable[[Case], Sequence[Variant]]
Measure = Callable[[Sequence[tuple[Case, Variant]]], Iterable[Mapping[str, Any]]]  # JSON fields of each, in order


def read_cases(path: str | Path, *, limit: int | None = None) -> list[Case]:
    """The cases of a JSON-lines file, each with an id of its own; DataError names file and line."""
    name = "stdin" if str(path) == "-" else str(path)
    found: dict[str, Case] = {}

    def keep(line: Line) -> None:
        at = f"{name}:{line.number}"
        case = Case.of({"id": str(line.number), **line.record}, at)
        if case.id in found:
            raise DataError(f'{at}: a second case has the id "{case.id}"')
        found[case.id] = case

    read_checked(path, keep, limit=limit)
    if not found:
        raise DataError(f"{name} holds no cases: {CASES} are expected")
    return list(found.values())


def run_audit(
    cases: Sequence[Case],
    perturb: Perturb,
    measure: Measure,
    *,
    header: Mapping[str, Any],
    output: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    at_once: int = AT_ONCE,
) -> list[CaseRecord]:
    """Measure every variant of every case; results in the order of the cases.

    header    what the numbers depend on: model, settings ...; an output that was made with another one is refused
    output    JSON lines, one per case, written as soon as its chunk is done; None: nothing is written
    progress  called with the number of cases that are new
    at_once   cases that are measured together, and measured again after a kill
    """
    lines = [Line(i, record, fingerprint(record)) for i, record in enumerate((c.to_record() for c in cases), 1)]
    at = dict(zip((line.number for line in lines), cases, strict=True))
    if output is None:
        chunks = [lines[start : start + at_once] for start in range(0, len(lines), at_once)]
        return [one for chunk in chunks for one in _measured([at[n.number] for n in chunk], perturb, measure, progress)]
    with Results(output, dict(header), overwrite=overwrite) as results:
        for chunk in unfinished(lines, results, "cases", size=at_once):
            made = _measured([at[line.number] for line in chunk], perturb, measure, progress)
            for line, one in zip(chunk, made, strict=True):
                if not results.is_done(line, "cases"):
                    record = {"line": line.number, "input": line.digest, "id": one.case.id}
                    results.write([{**record, "variants": dict(one.variants)}])
    return [CaseRecord(at[r["line"]], r["variants"]) for r in _records(output) if r.get("line") in at]


def _measured(
    cases: Sequence[Case], perturb: Perturb, measure: Measure, progress: Callable[[int], None] | None
) -> list[CaseRecord]:
    asked = [(case, variant) for case in cases for variant in perturb(case)]
    found: dict[str, dict[str, Mapping[str, Any]]] = {case.id: {} for case in cases}
    for (case, variant), fields in zip(asked, measure(asked), strict=True):
        found[case.id][variant.name] = {**variant.notes, **fields}
    if progress:
        progress(len(cases))
    return [CaseRecord(case, found[case.id]) for case in cases]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    return (line.record for line in read_lines(path))


def _segment(text: Any, where: str) -> SegmentText:
    if isinstance(text, str):
        return text
    if isinstance(text, list) and all(isinstance(term, str) for term in text):
        return tuple(text)
    raise DataError(f"{where} must be a text or a list of texts, found {type(text).__name__}")


# --- the measure that audits by likelihood share ----------------------------------------------------------------------


def likelihoods(model: PairScorer, *, normalise: Normalise = "token") -> Measure:
    """Teacher-forced log-likelihood of the answers of each variant, all in one call of `score_pairs`.

    Fields: "logprobs" log p(answer | prompt) per answer in nats; "values" what is compared (see
    `scoring.choices.normalised`; no "pmi"); "prediction" the number of the largest, None for a tie; "correct" where the
    right answer is known; "right" the tokens of the right answer with their logprobs.
    """
    if normalise == "pmi":
        raise ValueError('normalise must be one of sum, token, byte here, got "pmi"')

    def measure(asked: Sequence[tuple[Case, Variant]]) -> Iterator[dict[str, Any]]:
        pairs = [(variant.prompt, answer) for _, variant in asked for answer in variant.answers]
        scored = iter(model.score_pairs(pairs))
        for case, variant in asked:
            yield choice_fields(case, variant, [next(scored) for _ in variant.answers], normalise)

    return measure


def choice_fields(case: Case, variant: Variant, scored: Sequence[Scored], normalise: Normalise) -> dict[str, Any]:
    """The fields of `likelihoods` for one variant."""
    values = normalised(
        [s.sequence_logprob for s in scored],
        normalise=normalise,
        tokens=[max(1, len(s.token_logprobs)) for s in scored],
        sizes_bytes=[max(1, len(answer.strip().encode())) for answer in variant.answers],
    )
    prediction, _ = decide(values)
    right = 0 if len(scored) == 1 else case.answer
    fields: dict[str, Any] = {
        "logprobs": [s.sequence_logprob for s in scored], "values": values, "prediction": prediction
    }  # fmt: skip
    if right is not None:
        answer = scored[right]
        fields["right"] = {"tokens": answer.tokens, "logprobs": answer.token_logprobs}
        if len(scored) > 1:
            fields["correct"] = prediction == right
    return fields


def reference_logprob(fields: Mapping[str, Any]) -> float:
    """log p(right answer | prompt), nats."""
    return float(sum(fields["right"]["logprobs"]))
