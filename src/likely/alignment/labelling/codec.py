"""Labelled spans as a text that a language model writes, and any text back to spans.

"book a table at the Ritz:restaurant name;tomorrow:time range": spans in order of occurrence, each "words:label", with
";" between them; a sentence without spans is one fixed word.  A backslash before ; : or \\ makes it a plain character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from likely.alignment.labelling.spans import LabelledSpan, TagScheme, check_spans, spans_of, tags_of

ESCAPE = "\\"
SPACES = " \t\r\n"  # between words; any other character may stand in one
ProblemKind = Literal["empty_response", "no_label", "bad_label", "not_in_sentence"]


@dataclass(frozen=True)
class SpanProblem:
    """What of a response could not be used.

    kind  empty_response: there is nothing;  no_label: an item without ":";  bad_label: its label is no option;
          not_in_sentence: its words are not there, or all their places are taken
    at    the character of the response where the item begins;  item: as it stands there
    """

    kind: ProblemKind
    at: int
    item: str


@dataclass(frozen=True)
class DecodedSpans:
    """What a response says of its sentence: spans in order of the response, and what was dropped.

    places  (start, end) of each span's item in the response, in characters
    """

    spans: tuple[LabelledSpan, ...]
    places: tuple[tuple[int, int], ...]
    problems: tuple[SpanProblem, ...]


@dataclass(frozen=True)
class _Item:
    """One "words:label" of a response; label None where there is no colon."""

    start: int
    end: int
    words: str
    label: str | None


class SpanCodec:
    """Spans of a sentence to text and back.

    labels  types of spans; shown with "-" and "_" as spaces ("creative-work" is "creative work"), or {type: words}
    empty   the response for a sentence without spans;  sep: between spans;  kv: between a span and its label
    """

    def __init__(
        self, labels: Sequence[str] | Mapping[str, str], *, empty: str = "none", sep: str = ";", kv: str = ":"
    ):
        if not labels:
            raise ValueError("no labels: a codec needs at least one type of span")
        given = labels if isinstance(labels, Mapping) else {label: natural(label) for label in labels}
        for name, mark in (("sep", sep), ("kv", kv)):
            if len(mark) != 1 or not mark.isascii() or not mark.isprintable() or mark in (" ", ESCAPE):
                raise ValueError(f"{name} must be one ASCII character, neither space nor backslash, got {mark!r}")
        if sep == kv:
            raise ValueError(f"sep and kv must differ, both are {sep!r}")
        seen: dict[str, str] = {}
        for label, words in given.items():
            if words != " ".join(words.split()) or not words or {sep, kv, ESCAPE} & set(words):
                raise ValueError(
                    f"label {label!r}: {words!r} must be words with single spaces, without {sep} {kv} or backslash"
                )
            if (other := seen.setdefault(words.lower(), label)) != label:
                raise ValueError(f"labels {other!r} and {label!r} read alike ({words!r}): give words for them")
        if not empty.strip() or empty != empty.strip() or {sep, kv, ESCAPE} & set(empty):
            raise ValueError(f"empty must be a word without {sep} {kv} or backslash, got {empty!r}")
        self.labels = dict(given)
        self.empty, self.sep, self.kv = empty, sep, kv
        self._label_of = {words.lower(): label for label, words in given.items()}

    @property
    def options(self) -> list[str]:
        """The labels as they are written."""
        return list(self.labels.values())

    # --- to text ----------------------------------------------------------------------------------------------------

    def encode(self, tokens: Sequence[str], tags: Sequence[str], scheme: TagScheme = "iob2") -> str:
        """The response for a tagged sentence."""
        if len(tokens) != len(tags):
            raise ValueError(f"{len(tokens)} words have {len(tags)} tags")
        return self.encode_spans(tokens, spans_of(tags, scheme))

    def encode_spans(self, tokens: Sequence[str], spans: Sequence[LabelledSpan]) -> str:
        """The response; ValueError for spans that overlap or labels that are no option."""
        ordered = check_spans(spans, len(tokens))
        return self.sep.join(self._written(tokens, span) for span in ordered) if ordered else self.empty

    def _written(self, tokens: Sequence[str], span: LabelledSpan) -> str:
        if span.label not in self.labels:
            raise ValueError(f"label {span.label!r} is none of the options ({', '.join(self.labels)})")
        surface = self.escaped(" ".join(tokens[span.start : span.end]))
        return f"{surface}{self.kv}{self.labels[span.label]}"

    def escaped(self, text: str) -> str:
        """With a backslash before each separator and backslash."""
        return re.sub(f"[{re.escape(self.sep + self.kv + ESCAPE)}]", lambda found: ESCAPE + found[0], text)

    def why_not_exact(self, tokens: Sequence[str], spans: Sequence[LabelledSpan]) -> str | None:
        """Why the response of these spans does not say which words they are, in one line; None where it does.

        A surface that also occurs unlabelled earlier is read at its first place.
        """
        try:
            text = self.encode_spans(tokens, spans)
        except ValueError as error:
            return str(error)
        found = self.decode_spans(text, tokens)
        for wanted, got in zip(sorted(spans), found.spans, strict=False):
            if wanted != got:
                words = " ".join(tokens[wanted.start : wanted.end])
                return f"{words!r} also occurs before it (words {got.start}..{got.end}), where it would be found"
        return None if len(found.spans) == len(spans) else f"{len(spans)} spans, {len(found.spans)} are read back"

    # --- from text --------------------------------------------------------------------------------------------------

    def decode(self, text: str, tokens: Sequence[str], scheme: TagScheme = "iob2") -> tuple[list[str], DecodedSpans]:
        """(tags, what was read and what was dropped) of any text whatever."""
        found = self.decode_spans(text, tokens)
        return tags_of(found.spans, len(tokens), scheme), found

    def decode_spans(self, text: str, tokens: Sequence[str]) -> DecodedSpans:
        """The spans that any text names.

        Each item is looked for after the end of the one before it, then from the beginning among words without a label;
        one that is not found is dropped, and the report says where and why.
        """
        if text.strip(SPACES) == self.empty:
            return DecodedSpans((), (), ())
        if not text.strip(SPACES):
            return DecodedSpans((), (), (SpanProblem("empty_response", 0, ""),))
        taken = [False] * len(tokens)
        spans: list[LabelledSpan] = []
        places: list[tuple[int, int]] = []
        problems: list[SpanProblem] = []
        after = 0
        for item in self._items(text):
            label = None if item.label is None else self._label_of.get(item.label.lower())
            kind: ProblemKind | None = None
            start = None
            words = [word for word in re.split(f"[{SPACES}]", item.words) if word]
            if item.label is None:
                kind = "no_label"
            elif label is None:
                kind = "bad_label"
            else:
                start = _find(words, tokens, taken, after)
                if start is None:
                    start = _find(words, tokens, taken, 0)
                kind = "not_in_sentence" if start is None else None
            if kind is not None or start is None or label is None:
                problems.append(SpanProblem(kind or "not_in_sentence", item.start, text[item.start : item.end]))
                continue
            after = start + len(words)
            taken[start:after] = [True] * len(words)
            spans.append(LabelledSpan(start, after, label))
            places.append((item.start, item.end))
        return DecodedSpans(tuple(spans), tuple(places), tuple(problems))

    def _items(self, text: str) -> list[_Item]:
        """The parts between separators, split at their last colon; escapes are undone."""
        items: list[_Item] = []
        plain: list[str] = []  # characters of the item, escapes undone
        start, colon, at = 0, -1, 0  # colon: its place in `plain`

        def close(end: int) -> None:
            whole = "".join(plain)
            if colon < 0:
                items.append(_Item(start, end, whole.strip(SPACES), None))
            else:
                items.append(_Item(start, end, whole[:colon].strip(SPACES), " ".join(whole[colon + 1 :].split())))

        while at < len(text):
            mark = text[at]
            if mark == ESCAPE and at + 1 < len(text):
                plain.append(text[at + 1])
                at += 2
                continue
            if mark == self.sep:
                close(at)
                plain, start, colon = [], at + 1, -1
            else:
                colon = len(plain) if mark == self.kv else colon
                plain.append(mark)
            at += 1
        close(len(text))
        return items


def natural(label: str) -> str:
    """A type of span in words: "creative-work" is "creative work"."""
    return " ".join(re.split(r"[\s_-]+", label.strip("_- ")))


def _find(words: Sequence[str], tokens: Sequence[str], taken: Sequence[bool], start: int) -> int | None:
    """Where these words stand next, none of them taken."""
    n = len(words)
    if not n:
        return None
    wanted = list(words)
    for at in range(start, len(tokens) - n + 1):
        if list(tokens[at : at + n]) == wanted and not any(taken[at : at + n]):
            return at
    return None
