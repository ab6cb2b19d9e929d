"""How far a model's answers to a question and to its probes lie apart, and what that says about their being right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.audit.case import Case, CaseRecord, Perturb, Variant
from likely.audit.probes import Probe, question_of_case
from likely.audit.report import AuditReport, Finding, ReportExample, share_interval
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.metrics.bootstrap import interval, mean_interval
from likely.metrics.checks import Floats, softmax
from likely.metrics.grading import LETTERS
from likely.metrics.paired import paired_difference
from likely.metrics.ranking import auroc
from likely.scoring.choices import ChoiceStyle

ORIGINAL = "original"
UNSTEADY = 0.1  # a flip rate above it is something to do something about


def check_other_model(auditor_sha256: Iterable[str | None], audited_sha256: str | None) -> None:
    """DataError where probes were written by the model that is audited."""
    if audited_sha256 is not None and audited_sha256 in set(auditor_sha256):
        raise DataError("the probes were written by the model that is audited: take another writer, or --allow-self")


def probe_variants(probes: Sequence[Probe], *, style: ChoiceStyle = "answers", seed: int = 0) -> Perturb:
    """The question and its probes that passed as variants.

    style  "answers": the choices' own words are scored; "letters": they stand in the prompt in an order of each
           variant's own, and their letters are scored (likelihoods come back in the order of the case)
    """
    of: dict[str, list[Probe]] = {}
    for probe in probes:
        if probe.passed:
            of.setdefault(probe.case, []).append(probe)

    def perturb(case: Case) -> list[Variant]:
        if len(case.choices) < 2 or case.answer is None:
            raise DataError(f'case "{case.id}" needs "choices" and "answer"')
        texts = {ORIGINAL: question_of_case(case), **{f"probe {p.number + 1}": p.text for p in of.get(case.id, ())}}
        return [_asked(case, name, text, style, seed) for name, text in texts.items()]

    return perturb


def _asked(case: Case, name: str, text: str, style: ChoiceStyle, seed: int) -> Variant:
    if style == "answers":
        return Variant(name, f"Question: {text}\nAnswer:", tuple(f" {c}" for c in case.choices), {"asked": text})
    digits = int(fingerprint([seed, case.id, name], 8), 16)
    order = [int(i) for i in np.random.default_rng(digits).permutation(len(case.choices))]
    lines = "\n".join(f"{LETTERS[k]}. {case.choices[i]}" for k, i in enumerate(order))
    letters = [f" {LETTERS[order.index(i)]}" for i in range(len(order))]  # of each choice, in the order of the case
    return Variant(name, f"Question: {text}\n{lines}\nAnswer:", tuple(letters), {"asked": text, "order": order})


@dataclass(frozen=True)
class Consistency:
    """What one case's answers say, over the question and its n probes.

    flips       share of the probes whose likeliest choice is not that of the question; None without probes
    dispersion  generalised Jensen-Shannon divergence of the distributions over choices, nats
    worst       smallest probability of the right choice
    single      distribution of the question alone;  pooled: mean of all
    """

    flips: float | None
    dispersion: float
    worst: float
    single: Floats
    pooled: Floats


def consistency_of(record: CaseRecord) -> Consistency:
    """From the values (see `scoring.choices.normalised`) of each variant, by softmax."""
    laws = np.array([softmax(np.array(fields["values"], np.float64)) for fields in record.variants.values()])
    first = int(laws[0].argmax())
    answer = record.case.answer
    assert answer is not None
    return Consistency(
        float(np.mean(laws[1:].argmax(axis=1) != first)) if len(laws) > 1 else None,
        jensen_shannon(laws), float(laws[:, answer].min()), laws[0], laws.mean(axis=0),
    )  # fmt: skip


def jensen_shannon(laws: Floats) -> float:
    """H(mean of the laws) - mean of their H, nats: 0 iff all are equal, at most log of their number.

    laws  (M, K) distributions
    """
    return max(0.0, _entropy(laws.mean(axis=0)) - float(np.mean([_entropy(law) for law in laws])))


def _entropy(law: Floats) -> float:
    positive = law[law > 0]
    return float(-(positive * np.log(positive)).sum())


def consistency_report(
    records: Sequence[CaseRecord], *, header: Mapping[str, Any], probes: Sequence[Probe] = (), resamples: int = 2000
) -> AuditReport:
    """Flips, dispersion, whether inconsistent answers are wrong more often, and what pooling over probes gains."""
    found = [consistency_of(record) for record in records]
    answers = np.array([record.case.answer for record in records])
    n = len(records)

    def mean(quantity: str, values: Sequence[float], unit: str) -> Finding:
        if not values:
            return Finding("answers", quantity, None, note="no case has a probe")
        ends = share_interval if unit == "share" else mean_interval
        low, high = ends(list(values), resamples=resamples)
        return Finding("answers", quantity, float(np.mean(values)), low, high, unit, len(values))

    single_right = np.array([c.single.argmax() for c in found]) == answers
    pooled_right = np.array([c.pooled.argmax() for c in found]) == answers
    single_brier, pooled_brier = (
        np.array([_brier(getattr(c, name), int(a)) for c, a in zip(found, answers, strict=True)])
        for name in ("single", "pooled")
    )
    flips = [c.flips for c in found if c.flips is not None]
    findings = [
        mean("flip rate", flips, "share"),
        mean("dispersion", [c.dispersion for c in found], "nats"),
        mean("worst probability of the right choice", [c.worst for c in found], "probability"),
        mean("accuracy, the question alone", single_right.astype(float).tolist(), "share"),
        mean("accuracy, pooled over probes", pooled_right.astype(float).tolist(), "share"),
    ]
    for quantity, first, second, unit in (
        ("accuracy gained by pooling", single_right, pooled_right, "share"),
        ("Brier score, pooled less alone", single_brier, pooled_brier, ""),
    ):
        gap = paired_difference(first.astype(float), second.astype(float), resamples=resamples)
        findings.append(Finding("answers", quantity, gap.mean, gap.low, gap.high, unit, n))
    apart = np.array([c.dispersion for c in found])
    findings.append(_errors_found(apart, ~single_right, resamples))
    if probes:
        passed = [float(p.passed) for p in probes]
        low, high = share_interval(passed, resamples=resamples)
        findings.append(Finding("probes", "pass the screens", float(np.mean(passed)), low, high, "share", len(passed)))
    order = np.argsort(-apart, kind="stable")
    table = [
        {"id": records[i].case.id, "question": question_of_case(records[i].case), "dispersion": float(apart[i]),
         "flips": found[i].flips, "right": bool(single_right[i]), "right, pooled": bool(pooled_right[i]),
         "probes": len(records[i].variants) - 1}
        for i in order
    ]  # fmt: skip
    without = sum(c.flips is None for c in found)
    rate, error = findings[0], findings[7]
    verdicts = [
        f"Asked in other words, the model changes its answer in {rate.value:.0%} of the probes (95 % interval "
        f"{rate.low:.0%} to {rate.high:.0%})."
        if rate.value is not None else "No question has a probe that passed the screens.",
        f"Its inconsistent answers are wrong more often (AUROC {error.text()})."
        if error.low is not None and error.low > 0.5
        else f"Whether inconsistent answers are wrong more often cannot be said: {error.note}."
        if error.value is None
        else f"Inconsistency does not tell which answers are wrong (AUROC {error.text()}).",
    ]  # fmt: skip
    if without:
        verdicts.append(f"{without} of {n} questions have no probe that passed the screens.")
    return AuditReport(
        "Consistency over other wordings",
        "Does the model answer the same when it is asked in other words?",
        verdicts, findings, header, table, _examples(records, order),
        ("Whether every probe keeps the meaning: screens are cheap, and people judge a sample (likely audit review).",
         "Answers in free text: the choices' likelihoods are compared."),
        (
            "Flip rate: the share of other wordings that change the likeliest choice. 0 is best; at 0.1 one wording in "
            "ten decides what is answered. Dispersion is the same without a threshold: 0 nats where all wordings give "
            "one distribution.",
            "AUROC: the chance that a wrong answer was less consistent than a right one. 0.5 says nothing, 1 tells "
            "every error; believe it where the whole interval lies above 0.5. A Brier score is an error, so that a "
            "negative difference is a gain.",
        ),
        _advice(rate, error, findings[5]),
    )  # fmt: skip


def _advice(rate: Finding, error: Finding, gained: Finding) -> list[str]:
    if rate.value is None:
        return ["Give probes that pass the screens: likely audit probes make writes them with another model."]
    found = []
    if rate.low is not None and rate.low > UNSTEADY:
        found.append(
            "Do not trust a single wording: test with the wording that users really send, or ask in several and take "
            f"the mean of the distributions (accuracy here {gained.text()} by that)."
        )
    elif rate.high is not None and rate.high < UNSTEADY:
        found.append(f"Nothing: fewer than one wording in {1 / UNSTEADY:.0f} changes the answer.")
    else:
        found.append(f"Give more questions: whether more than one wording in {1 / UNSTEADY:.0f} matters is not clear.")
    if error.low is not None and error.low > 0.5:
        found.append("Use it as a warning: where wordings disagree, ask a person or a larger model.")
    return found


def _brier(law: Floats, answer: int) -> float:
    target = np.zeros(len(law))
    target[answer] = 1.0
    return float(((law - target) ** 2).sum())


def _errors_found(apart: Floats, wrong: Any, resamples: int) -> Finding:
    name = "AUROC of dispersion for wrong answers"
    if wrong.all() or not wrong.any():
        return Finding("answers", name, None, note="all answers are right, or all wrong", n=len(wrong))
    low, high = interval(auroc, apart, wrong.astype(np.int64), resamples=resamples)
    return Finding("answers", name, float(auroc(apart, wrong.astype(np.int64))), low, high, "", len(wrong))


def _examples(records: Sequence[CaseRecord], order: Any, most: int = 5) -> list[ReportExample]:
    found = []
    for i in order[:most]:
        record = records[i]
        for name, fields in record.variants.items():
            choice = fields["prediction"]
            said = "a tie" if choice is None else record.case.choices[choice]
            right = fields["right"]
            found.append(
                ReportExample(
                    f"{record.case.id}, {name}: {fields['asked']}", f"likeliest: {said}; coloured: the right choice",
                    "", tuple(right["tokens"]), tuple(right["logprobs"]),
                )
            )  # fmt: skip
    return found
