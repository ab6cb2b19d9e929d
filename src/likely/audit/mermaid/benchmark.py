"""The benchmark: a flow in words, a sequence diagram from the model, free or held to the grammar, scored by rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from likely.audit.case import Case, CaseRecord, Measure, Perturb, Variant
from likely.audit.mermaid.criteria import CRITERIA, diagram_text, score_response
from likely.audit.mermaid.drawing import draw_diagram
from likely.audit.mermaid.grammar import close_diagram, named_participants, sequence_grammar
from likely.audit.mermaid.lexer import MermaidSyntaxError
from likely.audit.mermaid.parser import parse_sequence
from likely.audit.report import AuditReport, Finding, ReportExample, share_interval
from likely.errors import DataError, check_choice
from likely.metrics.paired import paired_difference

MODES = ("zero-shot", "one-shot", "guided", "guided one-shot")
EXPECTED = 'lines like {"id": "1", "input_prompt": "...", "expected_output": "sequenceDiagram ..."}'


def diagram_cases(records: Sequence[Mapping[str, Any]], where: str = "record") -> list[Case]:
    """Records with "input_prompt" and "expected_output" as cases; a reference that is no valid diagram is an error."""
    found = []
    for number, record in enumerate(records, 1):
        prompt, wanted = record.get("input_prompt"), record.get("expected_output")
        if not (isinstance(prompt, str) and isinstance(wanted, str)):
            raise DataError(f"{where} {number}: {EXPECTED} are expected")
        try:
            parse_sequence(wanted)
        except MermaidSyntaxError as error:
            raise DataError(f"{where} {number}: the reference is no valid diagram: {error}") from None
        found.append(Case(str(record.get("id", number)), {"flow": prompt}, reference=wanted))
    if not found:
        raise DataError(f"there are no cases: {EXPECTED} are expected")
    return found


def diagram_modes(cases: Sequence[Case], modes: Sequence[str] = MODES) -> Perturb:
    """A variant per mode; "one-shot" shows another case with its diagram first: the next one of another flow."""
    for mode in modes:
        check_choice("mode", mode, MODES)
    if len(cases) < 2 and any("one-shot" in mode for mode in modes):
        raise DataError("one-shot needs a second case to show")
    place = {case.id: i for i, case in enumerate(cases)}

    def perturb(case: Case) -> list[Variant]:
        flow = str(case.segments["flow"])
        others = [*cases[place[case.id] + 1 :], *cases[: place[case.id]]]
        names = named_participants(flow)
        shown = next(
            (c for c in others if named_participants(str(c.segments["flow"])) != names), others[0] if others else case
        )
        example = f"{shown.segments['flow']}\n\n{shown.reference}\n\n"
        return [Variant(mode, example + flow if "one-shot" in mode else flow) for mode in modes]

    return perturb


def diagrams(model: Any, *, max_tokens: int = 512) -> Measure:
    """Greedy answers with their scores; those of guided modes are held to the grammar, and closed where they were cut.

    Fields: "text", "finish_reason", "closed" (whether a cut diagram was closed), "scores" (`DiagramScores`), "tokens"
    and "logprobs" of the answer.
    """

    def measure(asked: Sequence[tuple[Case, Variant]]) -> Iterator[dict[str, Any]]:
        free = [variant.prompt for _, variant in asked if not variant.name.startswith("guided")]
        answers = iter(list(model.ask_each(free, temperature=0.0, max_tokens=max_tokens)) if free else [])
        for case, variant in asked:
            guided = variant.name.startswith("guided")
            if guided:
                grammar = sequence_grammar(named_participants(str(case.segments["flow"])))
                answer = model.ask(
                    variant.prompt, grammar=grammar, close_on_budget=False, temperature=0.0, max_tokens=max_tokens
                )
            else:
                answer = next(answers)
            cut = guided and not answer.complete
            text = close_diagram(answer.text) if cut else answer.text
            scores = score_response(text, parse_sequence(case.reference or ""))
            yield {
                "text": text, "finish_reason": answer.finish_reason, "closed": cut, "scores": scores.to_dict(),
                "overall": scores.overall, "tokens": answer.tokens or [], "logprobs": answer.token_logprobs or [],
            }  # fmt: skip

    return measure


def diagram_report(
    records: Sequence[CaseRecord], *, header: Mapping[str, Any], examples: int = 4,
    check: Callable[[Sequence[str]], Sequence[str | None]] | None = None,
) -> AuditReport:  # fmt: skip
    """Means of every criterion in every mode, with intervals over cases, and differences of modes on the same cases.

    check  Mermaid's own parser (see `official.official_errors`): agreement of its verdicts with ours is reported
    """
    modes = list(records[0].variants)
    n, findings = len(records), []
    for mode in modes:
        found = [r.variants[mode] for r in records]
        for name in ("overall", *CRITERIA):
            values = [f["overall"] if name == "overall" else f["scores"][name] for f in found]
            given = [float(v) for v in values if v is not None]
            if given:
                low, high = share_interval(given)
                findings.append(Finding(mode, name, float(np.mean(given)), low, high, "share", len(given)))
            else:
                findings.append(Finding(mode, name, None, note="in no case", n=0))
        for key, what in (("closed", "cut and closed"),):
            findings.append(Finding(mode, what, sum(bool(f[key]) for f in found) / n, unit="share", n=n))
    for mode in modes[1:]:
        first, second = ([r.variants[m]["overall"] for r in records] for m in (modes[0], mode))
        gap = paired_difference(first, second)
        findings.append(Finding(f"{mode} less {modes[0]}", "overall", gap.mean, gap.low, gap.high, "share", n))
    if check is not None:
        texts = [diagram_text(f["text"])[0] for r in records for f in r.variants.values()]
        ours = [bool(f["scores"]["valid"]) for r in records for f in r.variants.values()]
        same = [(error is None) == valid for error, valid in zip(check(texts), ours, strict=True)]
        findings.append(
            Finding("Mermaid's parser", "agrees with ours", sum(same) / len(same), unit="share", n=len(same))
        )
    valid = {mode: next(f for f in findings if (f.subject, f.quantity) == (mode, "valid")) for mode in modes}
    best = max(
        modes, key=lambda mode: next(f.value or 0 for f in findings if (f.subject, f.quantity) == (mode, "overall"))
    )
    verdicts = [
        "Valid diagrams: " + ", ".join(f"{mode} {valid[mode].value:.0%}" for mode in modes) + ".",
        f"Best by the mean of all criteria: {best}.",
    ]
    rows = [
        {"id": r.case.id, **{f"{mode}: {what}": (f["overall"] if what == "overall" else bool(f["scores"][what]))
                             for mode, f in r.variants.items() for what in ("valid", "overall")}}
        for r in records
    ]  # fmt: skip
    return AuditReport(
        "Sequence diagrams from flows in words",
        "Does the model turn a described flow into a valid and complete Mermaid sequence diagram?",
        verdicts, sorted(findings, key=lambda f: f.quantity != "valid"), header, rows, _examples(records, examples),
        ("Whether a person would find the diagrams useful.", "How Mermaid draws them: the drawings are our own."),
        (
            "Every criterion is a share between 0 and 1, and 1 is best. valid: the text is a diagram at all; clean: "
            "and nothing else; participants, messages and the others: how much of the reference is there (F1). Where "
            "fewer than all are valid, that is what a program behind the model has to expect.",
            "guided: held to the grammar of diagrams while it writes, so that no invalid one can come; one-shot: after "
            "an example.",
        ),
        _advice({mode: found.value or 0.0 for mode, found in valid.items()}, best),
    )  # fmt: skip


def _advice(valid: Mapping[str, float], best: str) -> list[str]:
    free = [share for mode, share in valid.items() if not mode.startswith("guided")]
    found = [f"Ask in the mode {best}: of those tried it has the best mean of all criteria."]
    if free and max(free) < 1 and any(mode.startswith("guided") for mode in valid):
        found.append(
            "Hold the model to the grammar where a program reads its diagrams (likely.audit.mermaid.sequence_grammar, "
            "or any form of your own: docs, structured output): without it some are not valid."
        )
    return found


def _examples(records: Sequence[CaseRecord], most: int) -> list[ReportExample]:
    found = []
    for record in records[:most]:
        for mode, fields in record.variants.items():
            text, _ = diagram_text(fields["text"])
            try:
                figure, note = draw_diagram(parse_sequence(text)), f"valid; overall {fields['overall']:.2f}"
            except MermaidSyntaxError as error:
                figure, note = "", f"not valid: {error}"
            prompt = str(record.case.segments["flow"]) if mode == next(iter(record.variants)) else ""
            found.append(
                ReportExample(
                    f"{record.case.id}, {mode}", note, prompt, tuple(fields["tokens"]), tuple(fields["logprobs"]),
                    "" if fields["tokens"] else fields["text"], figure,
                )
            )  # fmt: skip
    return found
