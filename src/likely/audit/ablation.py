"""Does a model use a segment of its prompt, or is it noise?  Segments on, off, shuffled, and the likelihood each way.

The likelihood of the right answer says more than right or wrong: with n cases the mean of log p(right | with) -
log p(right | without) has an interval that a share of n does not reach.  CoKE asks this of protein sequences and of
context made by tools; here a case is any prompt in named segments.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from likely.audit.case import Case, CaseRecord, Perturb, SegmentText, Variant, reference_logprob
from likely.audit.report import AuditReport, Finding, ReportExample
from likely.errors import DataError, nearest
from likely.metrics.intervals import wilson
from likely.metrics.paired import paired_difference

SegmentControl = Literal["shuffle", "swap", "filler"]
CONTROLS: Mapping[str, str] = {
    "shuffle": "its words, or the characters of a text without spaces, in random order",
    "swap": "the segment of another case",
    "filler": "as many characters that say nothing",
}
NOTHING, EMPTY = "none", "(none found)"
FILLER = "and so on, "
QUESTION, ANSWER = "question", "Answer:"


@dataclass(frozen=True)
class SegmentAblation:
    """Which variants of a case are asked.

    switched  segments that are on in some variants and off in others: every subset of them is one, named "a+b"
    controls  (kind, segment): the variant "kind:segment" has this segment alone, spoilt; see `CONTROLS`
    guarded   segments from which terms and sentences that hold a choice are left out, in variants "... guarded"
    cut       the segment that is cut where a prompt has more than `room` tokens, and `count_tokens`, which counts them
    seed      of the shuffling
    """

    switched: tuple[str, ...]
    controls: tuple[tuple[str, str], ...] = ()
    guarded: tuple[str, ...] = ()
    cut: str | None = None
    room: int | None = None
    count_tokens: Callable[[str], int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.switched) <= 4 or len(set(self.switched)) != len(self.switched):
            raise ValueError(f"name 1 to 4 different segments to switch on and off, got {list(self.switched)}")
        for kind, name in self.controls:
            if kind not in CONTROLS:
                raise ValueError(f'unknown control "{kind}"{nearest(kind, CONTROLS)} (allowed: {", ".join(CONTROLS)})')
            self._check_switched(name, f"{kind}:{name}")
        for name in self.guarded:
            self._check_switched(name, f"guard {name}")
        if (self.room is None) != (self.count_tokens is None):
            raise ValueError("room and count_tokens are given together")

    def _check_switched(self, name: str, what: str) -> None:
        if name not in self.switched:
            allowed = ", ".join(self.switched)
            raise ValueError(f'{what}: "{name}" is not switched{nearest(name, self.switched)} (allowed: {allowed})')

    @property
    def subsets(self) -> list[tuple[str, ...]]:
        """Of the switched segments, the empty one first."""
        sizes = range(len(self.switched) + 1)
        return [subset for size in sizes for subset in itertools.combinations(self.switched, size)]

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON."""
        return {
            "switched": list(self.switched), "controls": [f"{kind}:{name}" for kind, name in self.controls],
            "guarded": list(self.guarded), "cut": self.cut, "room": self.room, "seed": self.seed,
        }  # fmt: skip

    def perturb(self, cases: Sequence[Case]) -> Perturb:
        """The variants of each of these cases; the others give the segments of "swap"."""
        for case in cases:
            missing = [name for name in self.switched if name not in case.segments]
            if missing:
                have = ", ".join(case.segments)
                raise DataError(f'case "{case.id}" has no segment "{missing[0]}" (it has: {have})')
            if not case.choices and case.reference is None:
                raise DataError(f'case "{case.id}" needs "choices" with "answer", or a "reference"')
        others = {case.id: cases[(i + 1) % len(cases)] for i, case in enumerate(cases)}

        def variants(case: Case) -> list[Variant]:
            found = [self._variant(case, subset, named(subset)) for subset in self.subsets]
            for subset in self.subsets:
                if set(subset) & set(self.guarded):
                    found.append(self._variant(case, subset, f"{named(subset)} guarded", guard=True))
            for kind, name in self.controls:
                text = spoilt(kind, case.segments[name], others[case.id].segments[name], self._rng(case, kind))
                found.append(self._variant(case, (name,), f"{kind}:{name}", instead={name: text}))
            return found

        return variants

    def _rng(self, case: Case, kind: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(f"{kind}:{case.id}".encode())])

    def _variant(
        self, case: Case, on: tuple[str, ...], name: str, *, guard: bool = False,
        instead: Mapping[str, SegmentText] | None = None,
    ) -> Variant:  # fmt: skip
        segments = {key: text for key, text in case.segments.items() if key not in self.switched or key in on}
        segments |= instead or {}
        notes: dict[str, Any] = {}
        if guard:
            for key in self.guarded:
                if key in segments:
                    segments[key], dropped = without_answers(segments[key], case.choices or (case.reference or "",))
                    notes["dropped"] = notes.get("dropped", 0) + dropped
        empty = [key for key in on if not written(segments[key])]
        if empty:
            notes["empty"] = empty
        answers = tuple(f" {choice}" for choice in case.choices) or (f" {case.reference}",)
        prompt, kept = self._fitting(segments, max(answers, key=len), case.id)
        if kept is not None:
            notes["kept_characters"] = kept
        return Variant(name, prompt, answers, notes)

    def _fitting(self, segments: dict[str, SegmentText], answer: str, where: str) -> tuple[str, int | None]:
        """(the prompt, how many characters of the segment that is cut remain; None: nothing was cut)"""
        prompt = prompt_of(segments)
        if self.room is None or self.count_tokens is None or self.count_tokens(prompt + answer) <= self.room:
            return prompt, None
        if self.cut is None or self.cut not in segments:
            raise DataError(f'case "{where}" does not fit {self.room} tokens, and none of its segments may be cut')
        whole = written(segments[self.cut])

        def cut_at(length: int) -> str:
            return prompt_of({**segments, str(self.cut): whole[:length]})

        low, high = 0, len(whole)
        while low < high:  # the longest beginning that fits
            middle = (low + high + 1) // 2
            fits = self.count_tokens(cut_at(middle) + answer) <= self.room
            low, high = (middle, high) if fits else (low, middle - 1)
        if self.count_tokens(cut_at(low) + answer) > self.room:
            raise DataError(f'case "{where}" does not fit {self.room} tokens even without what may be cut ({self.cut})')
        return cut_at(low), low


# --- prompts ----------------------------------------------------------------------------------------------------------


def named(subset: Sequence[str]) -> str:
    """The name of the variant with these segments on."""
    return "+".join(subset) or NOTHING


def written(text: SegmentText) -> str:
    """A segment as the prompt has it."""
    return text if isinstance(text, str) else "; ".join(text)


def prompt_of(segments: Mapping[str, SegmentText]) -> str:
    """One line per segment, "Name: text", in order, the question last, then "Answer:"."""
    order = [name for name in segments if name != QUESTION] + [name for name in segments if name == QUESTION]
    lines = [f"{name[:1].upper()}{name[1:]}: {written(segments[name]) or EMPTY}" for name in order]
    return "\n".join([*lines, ANSWER])


def without_answers(text: SegmentText, choices: Sequence[str]) -> tuple[SegmentText, int]:
    """(the segment without terms, or of a text sentences, that hold one of the choices, how many were left out).

    Compared word by word, without case and punctuation, so that "art" is not found in "artist".
    """
    sought = [f" {' '.join(_words(choice))} " for choice in choices if _words(choice)]

    def holds(part: str) -> bool:
        said = f" {' '.join(_words(part))} "
        return any(choice in said for choice in sought)

    parts = re.split(r"(?<=[.!?])\s+|\n", text) if isinstance(text, str) else list(text)
    kept = [part for part in parts if not holds(part)]
    return (" ".join(kept) if isinstance(text, str) else tuple(kept)), len(parts) - len(kept)


def spoilt(kind: str, text: SegmentText, other: SegmentText, rng: np.random.Generator) -> SegmentText:
    """What a control puts in place of a segment; `other` is that of another case."""
    if kind == "swap":
        return other
    plain = written(text)
    if kind == "filler":
        return (FILLER * (len(plain) // len(FILLER) + 1))[: len(plain)]
    pieces = plain.split() if " " in plain.strip() else list(plain)
    return (" " if " " in plain.strip() else "").join(pieces[i] for i in rng.permutation(len(pieces)))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


# --- what it says -----------------------------------------------------------------------------------------------------


def ablation_report(
    records: Sequence[CaseRecord], ablation: SegmentAblation, *, header: Mapping[str, Any], title: str = "",
    resamples: int = 10_000,
) -> AuditReport:  # fmt: skip
    """Accuracy and mean log p(right answer) of each variant, and what each segment gains, all paired over cases.

    gain of s given r   mean over cases of log p(right | s, r) - log p(right | r), nats
    verdict             "noise" where the interval of a segment's gain alone reaches zero or below; "noise beyond" a
                        control (its words without their order, say) where the control is not worse than the segment
    """
    if not records:
        raise ValueError("there is nothing to report: no cases were measured")
    names = list(records[0].variants)
    logprobs = {name: np.array([reference_logprob(r.variants[name]) for r in records]) for name in names}
    findings: list[Finding] = []
    for name in names:
        hits = [r.variants[name]["correct"] for r in records if "correct" in r.variants[name]]
        if hits:
            low, high = wilson(sum(hits), len(hits))
            findings.append(Finding(name, "accuracy", sum(hits) / len(hits), low, high, "share", len(hits)))
    n = len(records)

    def difference(of: str, over: str, subject: str, quantity: str) -> Finding:
        found = paired_difference(logprobs[over], logprobs[of], resamples=resamples)
        return Finding(subject, quantity, found.mean, found.low, found.high, "nats", n)

    verdicts, advice = list[str](), list[str]()
    for s in ablation.switched:
        for rest in (subset for subset in ablation.subsets if s not in subset):
            both = tuple(x for x in ablation.switched if x in (*rest, s))
            findings.append(difference(named(both), named(rest), s, f"gain given {named(rest)}"))
        spoils = [kind for kind, name in ablation.controls if name == s]
        for kind in spoils:
            findings.append(difference(s, f"{kind}:{s}", s, f"gain over its {kind}"))
        if s in ablation.guarded:
            findings.append(difference(f"{s} guarded", NOTHING, s, "gain with the guard"))
        said, todo = _verdict(s, [f for f in findings if f.subject == s], spoils)
        verdicts.append(said)
        advice.append(todo)
    whole = named(ablation.switched)
    if len(ablation.switched) > 1:
        best = max(names[: len(ablation.subsets)], key=lambda name: float(logprobs[name].mean()))
        verdicts.append(
            f"The right answer is likeliest with {best} ({logprobs[best].mean():.2f} nats); "
            f"with everything ({whole}) {logprobs[whole].mean():.2f}, with nothing {logprobs[NOTHING].mean():.2f}."
        )
    rows = [
        {"id": r.case.id, **{name: float(logprobs[name][i]) for name in names}} for i, r in enumerate(records)
    ]  # fmt: skip
    return AuditReport(
        title or f"Ablation of {', '.join(ablation.switched)}",
        "How much likelier does each segment of the prompt make the right answer?",
        verdicts,
        [*findings, *_counts(records)],
        header,
        rows,
        _examples(records, named(()), whole),
        ("Whether the model would use the segment in a prompt of another form.",),
        reading=(
            "A gain says how much likelier the right answer becomes with the segment: +0.69 nats is twice as likely, "
            "-0.69 half as likely, 0 no change.",
            "Good: the whole interval of a gain lies above 0, and so does that over a control. Bad: it reaches 0, so "
            "the model may as well not have read the segment, or lies below 0, so that the segment misleads it.",
            "A name is that of the segments in the prompt; none: none of those that are switched"
            + "".join(f"; {kind}, in a segment's place: {CONTROLS[kind]}" for kind in dict(ablation.controls))
            + ".",
        ),
        advice=advice,
    )


def _verdict(segment: str, findings: Sequence[Finding], spoils: Sequence[str]) -> tuple[str, str]:
    """What was found, and what to do."""
    leave = f"Leave {segment} out of the prompt, or put it in another form and audit again: it costs tokens"
    alone = next(f for f in findings if f.quantity == f"gain given {NOTHING}")
    assert alone.low is not None and alone.high is not None
    if alone.high < 0:
        said = f"{segment} does harm: it makes the right answer less likely, {alone.text()} alone."
        return said, f"{leave} and misleads."
    if alone.low <= 0:
        return f"{segment} is noise: its gain alone, {alone.text()}, cannot be told from none.", f"{leave} for nothing."
    for kind in spoils:
        over = next(f for f in findings if f.quantity == f"gain over its {kind}")
        if over.low is not None and over.low <= 0:
            other = CONTROLS[kind]
            said = (
                f"{segment} is noise beyond its form: it gains {alone.text()} alone, and {other} in its place does as "
                f"well (difference {over.text()})."
            )
            return said, f"Look at what {segment} says: {other} does as well, so the gain is not due to its content."
    return f"{segment} is used: it gains {alone.text()} alone.", f"Keep {segment} in the prompt."


def _counts(records: Sequence[CaseRecord]) -> list[Finding]:
    """How often a prompt was cut, a segment was empty, a term was left out."""
    found = []
    for key, what in (("kept_characters", "prompts cut"), ("empty", "empty segments")):
        count = sum(key in fields for r in records for fields in r.variants.values())
        if count:
            found.append(Finding("prompts", what, float(count), unit="prompts", n=len(records)))
    dropped = sum(fields.get("dropped", 0) for r in records for fields in r.variants.values())
    if dropped:
        found.append(Finding("guard", "terms left out", float(dropped), unit="terms", n=len(records)))
    return found


def _examples(records: Sequence[CaseRecord], without: str, with_all: str, most: int = 6) -> list[ReportExample]:
    """The cases whose right answer moved most, either way."""

    def moved(record: CaseRecord) -> float:
        return reference_logprob(record.variants[with_all]) - reference_logprob(record.variants[without])

    ordered = sorted(records, key=moved)
    chosen = ordered if len(ordered) <= most else [*ordered[: most // 2], *ordered[-(most // 2) :]]
    found = []
    for record in chosen:
        prompt = prompt_of(record.case.segments)
        for name in (without, with_all):
            right = record.variants[name]["right"]
            found.append(
                ReportExample(
                    f"{record.case.id}: the right answer with {name}", f"moved by {moved(record):+.2f} nats",
                    prompt if name == with_all else "", tuple(right["tokens"]), tuple(right["logprobs"]),
                )
            )  # fmt: skip
    return found


# --- tokens of a segment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MotifTokens:
    """How a tokenizer cuts texts without spaces, such as sequences of proteins, and motifs in them.

    per_character  tokens per character of the texts
    aligned        share of the motifs' occurrences that begin and end where tokens do; None without occurrences
    cuts           motif -> in how many different ways it is cut into tokens, over its occurrences
    """

    per_character: float
    aligned: float | None
    cuts: Mapping[str, int]


def motif_tokens(encode: Callable[[str], Sequence[int]], lengths: Callable[[Sequence[int]], Sequence[int]],
                 texts: Sequence[str], motifs: Sequence[str]) -> MotifTokens:  # fmt: skip
    """How tokens lie over motifs.

    encode   text -> token ids;  lengths: token ids -> bytes of each
    """
    tokens = aligned = occurrences = 0
    ways: dict[str, set[tuple[int, ...]]] = {motif: set() for motif in motifs}
    for text in texts:
        ids = list(encode(text))
        edges = [0, *itertools.accumulate(lengths(ids))]
        tokens += len(ids)
        for motif in motifs:
            for found in re.finditer(f"(?={re.escape(motif)})", text):
                start = len(text[: found.start()].encode())
                end = start + len(motif.encode())
                occurrences += 1
                aligned += start in edges and end in edges
                ways[motif].add(tuple(edge - start for edge in edges if start <= edge <= end))
    characters = sum(map(len, texts))
    if not characters:
        raise ValueError("there is no text to cut into tokens")
    share = aligned / occurrences if occurrences else None
    return MotifTokens(tokens / characters, share, {motif: len(found) for motif, found in ways.items()})
