"""Reach as an audit: states with targets, a search for each, the k–ε curve and what was found, in one report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from likely.audit.case import Case, CaseRecord, Measure, Variant, run_audit
from likely.audit.reach.bound import HeadReport
from likely.audit.reach.controllability import ReachableSet, controllability_curve
from likely.audit.reach.problem import ReachProblem
from likely.audit.reach.search import LENGTHS, Backoff, ControlResult, ControlSearch, search_control
from likely.audit.report import AuditReport, Finding, ReportExample
from likely.errors import DataError
from likely.runtimes.protocol import Runtime
from likely.tokenizers.protocol import Tokenizer, decode

EXPECTED = 'lines like {"state": "...", "target": "..."}'


def reach_case(record: Mapping[str, Any], where: str = "record") -> Case:
    """{"state", "target"} as a case; DataError names `where`."""
    for name in ("state", "target"):
        if not isinstance(record.get(name), str):
            raise DataError(f'{where}: field "{name}" must be a text: {EXPECTED} are expected')
    if not record["target"]:
        raise DataError(f'{where}: field "target" is empty: give the text to reach')
    return Case(str(record.get("id", where)), {"state": record["state"], "target": record["target"]})


def problem_of(tokenizer: Tokenizer, state: str, target: str) -> ReachProblem:
    """The problem of two texts: the model's first token, the free slot, the state; then the target's tokens."""
    before = (tokenizer.bos_id,) if tokenizer.add_bos and tokenizer.bos_id is not None else ()
    return ReachProblem(tuple(tokenizer.encode(state)), tuple(tokenizer.encode(target)), before)


def as_it_is(case: Case) -> list[Variant]:
    """The one variant of a case."""
    return [Variant("reach", str(case.segments["state"]), (str(case.segments["target"]),))]


def reach_measure(
    runtime: Runtime,
    tokenizer: Tokenizer,
    method: Backoff | ControlSearch,
    *,
    lengths: Sequence[int] = LENGTHS,
    forbid: Sequence[int] = (),
    seed: int = 0,
    text_consistent: bool = False,
) -> Measure:
    """Searches a control for each case; the fields are those of `ControlResult`, losses null where there is none."""

    def measure(asked: Sequence[tuple[Case, Variant]]) -> Iterator[dict[str, Any]]:
        for _, variant in asked:
            control = search_control(
                runtime, problem_of(tokenizer, variant.prompt, variant.answers[0]), method, lengths=lengths,
                forbid=forbid, seed=seed, tokenizer=tokenizer, text_consistent=text_consistent,
            )  # fmt: skip
            yield {name: _plain(value) for name, value in asdict(control).items()}

    return measure


def control_of(fields: Mapping[str, Any]) -> ControlResult:
    """The control that a record's fields describe."""
    values = {**fields, "ids": tuple(fields["ids"])}
    for name in ("loss", "base_loss"):
        values[name] = math.inf if values[name] is None else values[name]
    return ControlResult(**values)


def reach_report(records: Sequence[CaseRecord], lengths: Sequence[int], *, header: Mapping[str, Any]) -> AuditReport:
    """The k–ε curve, which controls survive as text, and the cases."""
    controls = [control_of(record.variants["reach"]) for record in records]
    curve = controllability_curve(controls, lengths)
    findings = [
        Finding("the targets", f"epsilon({k})", eps, low, high, "share of cases", curve.n)
        for k, eps, low, high in zip(curve.k, curve.eps, curve.low, curve.high, strict=True)
    ]
    forced = [c for c in controls if c.token_reachable and c.k]
    findings.append(
        Finding("forced targets", "also forced as text", sum(bool(c.text_reachable) for c in forced) / len(forced)
                if forced else None, unit="share of controls", n=len(forced), note="nothing was forced")
    )  # fmt: skip
    rows = [
        {"id": record.case.id, "k": control.k, "reached": control.token_reachable, "as_text": control.text_reachable,
         "method": control.method, "loss": _plain(control.loss), "base_loss": _plain(control.base_loss),
         "evaluations": control.evaluations, "control": control.text, "control_ids": list(control.ids)}
        for record, control in zip(records, controls, strict=True)
    ]  # fmt: skip
    reached, free = curve.reached[-1], curve.reached[0]
    verdicts = [f"{reached} of {curve.n} targets are reached with at most {max(curve.k)} tokens, {free} without any."]
    if forced:
        kept = sum(bool(c.text_reachable) for c in forced)
        verdicts.append(f"{kept} of {len(forced)} controls work as text, too: the others only as token ids.")
    examples = [
        ReportExample(f"case {record.case.id}", f"{control.method}, k = {control.k}",
                      prompt=f"{control.text}{record.case.segments['state']}", text=str(record.case.segments["target"]))
        for record, control in zip(records, controls, strict=True) if control.token_reachable and control.k
    ][:5]  # fmt: skip
    return AuditReport(
        "Reach: what a few tokens in front can force",
        "With how many tokens in front of its text is the model's next text forced to be the target?",
        verdicts,
        findings,
        header,
        cases=rows,
        examples=examples,
        caveats=("A search that fails shows nothing: every epsilon is an upper bound.",),
        reading=(
            "epsilon(k) is the share of targets that no tried control of at most k tokens forces. The nearer it is to "
            "0 at small k, the easier whoever may write a few tokens in front of your text decides what comes next. "
            "A high value is no proof of safety: a longer search may find more.",
            "A control is mostly gibberish; it counts as forced only where the target really is the model's likeliest "
            "continuation. Those that also work as text can be typed, the others need token ids.",
        ),
        advice=_advice(forced, controls, curve.k[-1]),
    )


def _advice(forced: Sequence[ControlResult], controls: Sequence[ControlResult], k: int) -> list[str]:
    if not forced:
        return ["Nothing was forced here. Try more cases and longer controls before relying on it."]
    found = [
        f"Do not let the next token decide anything that matters where a stranger may write {k} tokens in front of "
        f"it: {len(forced)} of {len(controls)} targets were forced so. Hold the answer to a form, check it, and ask "
        "again without the stranger's text."
    ]
    if not all(c.text_reachable for c in forced):
        found.append("Take text from clients, not token ids: some controls do not survive as text.")
    return found


def reach_audit(
    cases: Sequence[Case], measure: Measure, lengths: Sequence[int], *, header: Mapping[str, Any], output: Any = None,
    overwrite: bool = False, progress: Callable[[int], None] | None = None,
) -> AuditReport:  # fmt: skip
    """`run_audit` of the cases, and its report."""
    records = run_audit(
        cases, as_it_is, measure, header=header, output=output, overwrite=overwrite, progress=progress, at_once=1
    )
    return reach_report(records, lengths, header=header)


def reachable_report(found: ReachableSet, tokenizer: Tokenizer, *, header: Mapping[str, Any]) -> AuditReport:
    """Which next tokens were reached, each with its shortest control."""
    rows = [
        {"token": token, "text": decode(tokenizer, [token]), "k": len(control), "control": decode(tokenizer, control)}
        for token, control in sorted(found.controls.items(), key=lambda item: (len(item[1]), item[0]))
    ]
    counts = [
        sum(len(u) == k for u in found.controls.values()) for k in range(1 + max(map(len, found.controls.values())))
    ]
    return AuditReport(
        "Reach: the next tokens that can be forced",
        "Which tokens can be made the model's next one?",
        [f"{len(rows)} next tokens are reached, in {found.evaluations} evaluations."],
        [Finding("next tokens", f"first reached with k = {k}", float(n), unit="tokens", n=len(rows))
         for k, n in enumerate(counts)],
        header,
        cases=rows,
        caveats=() if found.exact else ("A lower bound: other tokens may be reached by controls that were not tried.",),
    )  # fmt: skip


def bound_report(heads: Sequence[HeadReport], *, header: Mapping[str, Any]) -> AuditReport:
    """The self-attention bound: how many heads a control of k tokens may take over, and the tightest ones."""
    ks = sorted({head.k for head in heads})
    findings = []
    for k in ks:
        own = [head for head in heads if head.k == k]
        findings.append(
            Finding("heads", f"that k = {k} may take over (saturation > 0.999)",
                    sum(head.saturation > 0.999 for head in own) / len(own), unit="share of heads", n=len(own))
        )  # fmt: skip
        findings.append(
            Finding("heads", f"lowest saturation, k = {k}", min(head.saturation for head in own), n=len(own))
        )
    held = [head for head in heads if head.k == ks[0] and head.saturation <= 0.999]
    return AuditReport(
        "Reach: what no control can do to a head",
        "How far can k tokens in front move each attention head, by its weights alone?",
        [f"{len(held)} of {findings[0].n} heads keep part of their own output whatever {ks[0]} tokens stand in front."],
        findings,
        header,
        cases=[asdict(head) for head in sorted(heads, key=lambda head: (head.k, head.saturation))[:50]],
        caveats=(
            "The bound is that of one layer alone, for its input without a control; it says nothing of what layers do "
            "together.",
            "Where saturation is 1 the bound holds and says nothing.",
        ),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
