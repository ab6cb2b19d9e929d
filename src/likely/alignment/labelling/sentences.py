"""Sentences and their spans from files: CoNLL columns, JSON lines, and data sets by name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likely.alignment.labelling.spans import LabelledSpan, TagScheme, check_spans, check_tags, find_scheme, spans_of
from likely.data.datasets import find_set, load_records
from likely.errors import DataError, names_in
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line, read_lines

CONLL = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".iobes", ".tsv", ".txt")
WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")
TAG = re.compile(r"O|[A-Z]-.+")
MOST_WORDS = 2048  # of a sentence


@dataclass(frozen=True)
class Sentence:
    """Words and, where they are known, the labelled spans over them.

    spans    None: not labelled
    where    file and line, for errors;  line: what a results file says of its input
    text, offsets  the text that the words were cut from, (start, end) of each in it; None for words that came as such
    """

    tokens: tuple[str, ...]
    spans: tuple[LabelledSpan, ...] | None = None
    where: str = ""
    line: Line | None = None
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] | None = None

    def with_offsets(self, span: LabelledSpan) -> dict[str, Any]:
        """A span as JSON: words, and characters where the sentence came as a text."""
        found = {
            "start": span.start, "end": span.end, "label": span.label,
            "text": " ".join(self.tokens[span.start : span.end]),
        }  # fmt: skip
        if self.text is not None and self.offsets is not None:
            first, last = self.offsets[span.start][0], self.offsets[span.end - 1][1]
            found |= {"text": self.text[first:last], "start_char": first, "end_char": last}
        return found


def labels_of(sentences: Iterable[Sentence]) -> list[str]:
    """The types of spans that occur, sorted."""
    return sorted({span.label for sentence in sentences for span in sentence.spans or ()})


def cut_words(text: str, bounds: Iterable[int] = ()) -> list[tuple[int, int]]:
    """(start, end) of the words of a text: letters and digits, or one mark; none goes over one of `bounds`."""
    cuts = sorted(set(bounds))
    words: list[tuple[int, int]] = []
    for found in WORD.finditer(text):
        start, end = found.span()
        for cut in cuts:
            if start < cut < end:
                words.append((start, cut))
                start = cut
        words.append((start, end))
    return words


def from_text(
    text: str, spans: Sequence[tuple[int, int, str]] | None = None, *, where: str = "", line: Line | None = None
) -> Sentence:
    """A sentence from a text, its spans given as (start, end, label) in characters; DataError for impossible ones."""
    for start, end, label in spans or ():
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise DataError(
                f"{where}: the span {start}..{end} ({label}) is not inside a text of {len(text)} characters"
            )
    offsets = cut_words(text, itertools.chain.from_iterable((a, b) for a, b, _ in spans or ()))
    if not offsets:
        raise DataError(f"{where}: the text has no words")
    found = None
    if spans is not None:
        found = tuple(
            LabelledSpan(sum(b <= start for _, b in offsets), sum(a < end for a, _ in offsets), label)
            for start, end, label in sorted(spans)
        )
    return _checked(Sentence(tuple(text[a:b] for a, b in offsets), found, where, line, text, tuple(offsets)))


def read_sentences(file: str | Path, *, labelled: bool = True, limit: int | None = None) -> list[Sentence]:
    """All sentences of a file; DataError names file and line.

    file      CoNLL (.conll, .bio, .tsv, .txt ...: a word a line, its tag in the last column, a blank line between
              sentences), JSON lines, or "NAME:SPLIT" of a data set
    labelled  whether every sentence must have tags; otherwise those without are taken as they are

    JSON lines hold {"tokens": [...], "tags": [...]}; or a text with spans in characters, {"text": "...", "spans":
    [{"start": 0, "end": 4, "label": "x"}]}; or, without tags, tokens or a text alone.
    """
    name = str(file)
    known = ":" in name and not Path(name).exists()
    if known:
        found = load_sentences(*name.split(":", 1))
    else:
        found = _conll(name) if name.removesuffix(".gz").endswith(CONLL) else _jsonl(name)
    sentences = list(itertools.islice(found, limit))
    if not sentences:
        raise DataError(f"{name} holds no sentences: expected CoNLL columns or lines like {EXAMPLE}")
    for sentence in sentences if labelled else ():
        if sentence.spans is None:
            raise DataError(f"{sentence.where}: no tags: expected lines like {EXAMPLE}")
    return sentences


EXAMPLE = '{"tokens": ["to", "Oslo"], "tags": ["O", "B-city"]}'


def load_sentences(name: str, split: str, *, data_dir: str | Path | None = None) -> Iterator[Sentence]:
    """Sentences of a data set that has tokens and tags, or texts with aspects (term, polarity, from, to).

    A row whose spans overlap is left out: tags cannot say it.  A tag that continues no span is none, as in `spans_of`.
    """
    file = find_set(name, data_dir=data_dir).find(split).name
    for number, record in enumerate(load_records(name, file, data_dir=data_dir), 1):
        where, line = f"{name}/{file}:{number}", Line(number, record, fingerprint(record))
        if "aspects" not in record:
            yield _sentence(record, where, line, None)
            continue
        spans = [(a["from"], a["to"], a["polarity"]) for a in record["aspects"]]
        ordered = sorted(spans)
        if all(one[1] <= other[0] for one, other in itertools.pairwise(ordered)):
            yield from_text(record["text"], spans, where=where, line=line)


def _jsonl(name: str) -> Iterator[Sentence]:
    lines = list(read_lines(name))
    tags = [line.record["tags"] for line in lines if _is_words(line.record.get("tags"))]
    scheme = find_scheme(tags)
    for line in lines:
        yield _sentence(line.record, f"{name}:{line.number}", line, scheme)


def _sentence(record: dict[str, Any], where: str, line: Line, scheme: TagScheme | None) -> Sentence:
    tokens, tags, spans = record.get("tokens"), record.get("tags"), record.get("spans")
    if isinstance(tokens, list):
        if not _is_words(tokens):
            raise DataError(f'{where}: field "tokens" must be a list of words without spaces')
        if tags is None:
            return _checked(Sentence(tuple(tokens), None, where, line))
        if not _is_words(tags) or len(tags) != len(tokens):
            count = f"{len(tags)}" if isinstance(tags, list) else "no list of"
            raise DataError(f'{where}: field "tags" must hold one tag per word: {len(tokens)} words, {count} tags')
        return _tagged(tokens, tags, where, line, scheme)
    text = record.get("text")
    if not isinstance(text, str):
        found = names_in(record)
        raise DataError(f'{where}: field "tokens" (or "text") is missing (found: {found}); expected {EXAMPLE}')
    if spans is None:
        return from_text(text, where=where, line=line)
    read: list[tuple[int, int, str]] = []
    for span in spans if isinstance(spans, list) else [None]:
        match span:
            case {"start": int(start), "end": int(end), "label": str(label)} if label.strip():
                read.append((start, end, label))
            case _:
                raise DataError(
                    f'{where}: field "spans" must hold objects like {{"start": 0, "end": 4, "label": "city"}} '
                    f"(characters), found {span!r:.80}"
                )
    return from_text(text, read, where=where, line=line)


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v and not re.search(r"[ \t\r\n]", v) for v in value)


def _conll(name: str) -> Iterator[Sentence]:
    """Sentences of a file of columns, the word first and its tag last, without lines of -DOCSTART- and comments."""
    blocks = list(_blocks(name))
    scheme = find_scheme([row[-1] for _, row in block] for block in blocks)
    for block in blocks:
        first, columns = block[0][0], {len(row) for _, row in block}
        where = f"{name}:{first}"
        if len(columns) > 1:
            odd = next(number for number, row in block if len(row) != len(block[0][1]))
            raise DataError(f"{name}:{odd}: {len(dict(block)[odd])} columns, the sentence's first line has {columns}")
        tokens = [row[0] for _, row in block]
        line = Line(first, {"tokens": tokens}, fingerprint([row for _, row in block]))
        if columns == {1}:
            yield _checked(Sentence(tuple(tokens), None, where, line))
        else:
            yield _tagged(tokens, [row[-1] for _, row in block], where, line, scheme, [n for n, _ in block])


def _blocks(name: str) -> Iterator[list[tuple[int, list[str]]]]:
    """(number of the line, its columns) of each sentence."""
    import gzip

    block: list[tuple[int, list[str]]] = []
    try:
        with gzip.open(name, "rt", encoding="utf-8") if name.endswith(".gz") else open(name, encoding="utf-8") as file:
            for number, raw in enumerate(file, 1):
                if len(raw) > 1_000_000:
                    raise DataError(f"{name}:{number}: a line of {len(raw):,} characters is no row of columns")
                text = raw.rstrip("\r\n")
                row = text.split("\t") if "\t" in text else text.split(" ")
                row = [cell for cell in row if cell]
                if not row or row[0] == "-DOCSTART-":
                    if block:
                        yield block
                    block = []
                elif block or row[0] != "#" or TAG.fullmatch(row[-1]):  # otherwise it is a comment
                    block.append((number, row))
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 (byte {error.start})") from None
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    if block:
        yield block


def _tagged(
    tokens: Sequence[str],
    tags: Sequence[str],
    where: str,
    line: Line,
    scheme: TagScheme | None,
    numbers: Sequence[int] = (),
) -> Sentence:
    """scheme  None: IOB2 of a published set, with its flaws"""
    try:
        if scheme is not None:
            check_tags(tags, scheme)
    except DataError as error:
        if numbers:  # a word a line: say which
            at = int(re.findall(r"\d+", str(error))[0])
            where = f"{where.rsplit(':', 1)[0]}:{numbers[at - 1]}"
        raise DataError(f"{where}: {error}") from None
    return _checked(Sentence(tuple(tokens), tuple(spans_of(tags, scheme or "iob2")), where, line))


def _checked(sentence: Sentence) -> Sentence:
    if not sentence.tokens:
        raise DataError(f"{sentence.where}: a sentence without words")
    if len(sentence.tokens) > MOST_WORDS:
        raise DataError(
            f"{sentence.where}: {len(sentence.tokens):,} words, at most {MOST_WORDS:,}: cut it into sentences"
        )
    if sentence.spans is not None:
        try:
            check_spans(sentence.spans, len(sentence.tokens))
        except ValueError as error:
            raise DataError(f"{sentence.where}: {error}") from None
    return sentence
