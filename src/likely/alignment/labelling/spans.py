"""Tags of words become labelled spans and back, and strict F1 over spans.

Schemes: "iob2" (B- begins every span, I- continues it; also called BIO) and "iobes" (S- is a span of one word, E- ends
a longer one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from likely.errors import DataError, check_choice

TagScheme = Literal["iob2", "iobes"]
SCHEMES: tuple[TagScheme, ...] = get_args(TagScheme)
OUTSIDE = "O"
_PREFIXES = {"iob2": "BI", "iobes": "BIES"}


@dataclass(frozen=True, order=True)
class LabelledSpan:
    """Words [start, end) of a sentence and what they are."""

    start: int
    end: int
    label: str


def spans_of(tags: Sequence[str], scheme: TagScheme = "iob2") -> list[LabelledSpan]:
    """The spans, in order, read strictly: a tag that continues nothing (I-x after O or after another type) is no span.

    The same as seqeval's `mode="strict"` with schemes IOB2 and IOBES.
    """
    check_choice("scheme", scheme, SCHEMES)
    found: list[LabelledSpan] = []
    start, label, whole = -1, "", False  # the span that is open; whole: it may end here
    for at, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = _parts(tag)
        if start >= 0 and not (whole and scheme == "iobes") and prefix in ("I", "E") and kind == label:
            whole = scheme == "iob2" or prefix == "E"
            continue
        if start >= 0 and whole:
            found.append(LabelledSpan(start, at, label))
        start = -1
        if prefix in ("B", "S"):
            start, label, whole = at, kind, scheme == "iob2" or prefix == "S"
    return found


def tags_of(spans: Iterable[LabelledSpan], length: int, scheme: TagScheme = "iob2") -> list[str]:
    """One tag per word; ValueError for spans that overlap or lie outside the sentence."""
    check_choice("scheme", scheme, SCHEMES)
    tags = [OUTSIDE] * length
    for span in check_spans(spans, length):
        tags[span.start : span.end] = ["B-" + span.label] + ["I-" + span.label] * (span.end - span.start - 1)
        if scheme == "iobes":
            last = "S-" if span.end == span.start + 1 else "E-"
            tags[span.end - 1] = last + span.label
    return tags


def check_spans(spans: Iterable[LabelledSpan], length: int) -> list[LabelledSpan]:
    """The spans in order; ValueError unless they lie apart from each other inside a sentence of `length` words."""
    ordered, end, before = sorted(spans), 0, None
    for span in ordered:
        if not 0 <= span.start < span.end <= length:
            raise ValueError(f"the span {span.start}..{span.end} ({span.label}) is not inside {length} words")
        if span.start < end:
            raise ValueError(
                f"the spans {before} and {span.start}..{span.end} ({span.label}) overlap: nested and overlapping spans "
                f"have no tags; keep one of them"
            )
        end, before = span.end, f"{span.start}..{span.end} ({span.label})"
    return ordered


def check_tags(tags: Sequence[str], scheme: TagScheme = "iob2") -> None:
    """DataError naming the word (from 1) of the first tag that is not of the scheme, or that continues no span."""
    before, label = OUTSIDE, ""
    for at, tag in enumerate([*tags, OUTSIDE], 1):
        prefix, kind = _parts(tag)
        if prefix != OUTSIDE and (prefix not in _PREFIXES[scheme] or not kind):
            allowed = ", ".join(f"{p}-TYPE" for p in _PREFIXES[scheme])
            raise DataError(f"word {at}: unknown tag {tag!r} (scheme {scheme}: O, {allowed})")
        open_before = before in ("B", "I")
        if prefix in ("I", "E") and not (open_before and kind == label):
            begins = f"S-{kind} or B-{kind}" if scheme == "iobes" else f"B-{kind}"
            raise DataError(f"word {at}: {tag} continues no span of its type: a span begins with {begins}")
        if scheme == "iobes" and open_before and prefix not in ("I", "E"):
            raise DataError(f"word {at - 1}: the span of type {label} has no end (E-{label})")
        before, label = prefix, kind


def find_scheme(tags: Iterable[Sequence[str]]) -> TagScheme:
    """ "iobes" where a tag begins with S- or E-, else "iob2"."""
    return "iobes" if any(tag[:2] in ("S-", "E-") for sentence in tags for tag in sentence) else "iob2"


def _parts(tag: str) -> tuple[str, str]:
    """(prefix, type); a tag of no known form has itself as prefix."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash else (tag, "")


# --- F1 ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpanCounts:
    """How many spans are right, were predicted, and are there to find; sums of such counts are counts."""

    right: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """2 · right / (predicted + gold); 0 where there is nothing."""
        return 2 * self.right / both if (both := self.predicted + self.gold) else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "precision": self.precision, "recall": self.recall, "f1": self.f1,
            "right": self.right, "predicted": self.predicted, "support": self.gold,
        }  # fmt: skip


def count_spans(gold: Iterable[LabelledSpan], predicted: Iterable[LabelledSpan]) -> SpanCounts:
    """Of one sentence; a span is right if both boundaries and its label are."""
    wanted, found = set(gold), set(predicted)
    return SpanCounts(len(wanted & found), len(found), len(wanted))


def span_f1(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, scheme: TagScheme = "iob2"
) -> dict[str, Any]:
    """Strict span precision, recall and F1 of tag sequences: {"micro": {...}, "per_type": {label: {...}}}.

    Counts are summed over sentences; a measure without any span to divide by is 0.  Equal to seqeval's
    `classification_report(mode="strict", scheme=IOB2)`.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} sentences have gold tags, {len(predicted)} predicted ones")
    right: Counter[str] = Counter()
    there: Counter[str] = Counter()
    given: Counter[str] = Counter()
    for at, (wanted, got) in enumerate(zip(gold, predicted, strict=True)):
        if len(wanted) != len(got):
            raise ValueError(f"sentence {at}: {len(wanted)} gold tags, {len(got)} predicted ones")
        one, other = set(spans_of(wanted, scheme)), set(spans_of(got, scheme))
        right.update(span.label for span in one & other)
        there.update(span.label for span in one)
        given.update(span.label for span in other)
    return {
        "micro": SpanCounts(right.total(), given.total(), there.total()).to_dict(),
        "per_type": {
            label: SpanCounts(right[label], given[label], there[label]).to_dict() for label in sorted(there | given)
        },
    }
