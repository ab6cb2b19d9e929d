"""Sentences from files: both forms, both schemes, and errors that name the line."""

from __future__ import annotations

import gzip
import json

import pytest

from likely.alignment.labelling.sentences import cut_words, from_text, read_sentences
from likely.alignment.labelling.spans import LabelledSpan
from likely.errors import DataError

CONLL = "-DOCSTART- -X- O\n\n# a comment\nAnn NN B-person\nsaw VB O\n\nNew NN B-place\nYork NN I-place\n"


def test_columns_are_read(tmp_path):
    file = tmp_path / "x.conll"
    file.write_text(CONLL)
    one, two = read_sentences(file)
    assert one.tokens == ("Ann", "saw") and one.spans == (LabelledSpan(0, 1, "person"),)
    assert two.spans == (LabelledSpan(0, 2, "place"),) and two.where == f"{file}:7"
    with gzip.open(tmp_path / "y.conll.gz", "wt") as out:
        out.write(CONLL.replace(" ", "\t"))
    assert [s.tokens for s in read_sentences(tmp_path / "y.conll.gz")] == [one.tokens, two.tokens]
    assert len(read_sentences(file, limit=1)) == 1


def test_iobes_is_recognised_over_the_whole_file(tmp_path):
    file = tmp_path / "x.bio"
    file.write_text("a B-x\nb E-x\n\nc S-x\n")
    assert [s.spans for s in read_sentences(file)] == [(LabelledSpan(0, 2, "x"),), (LabelledSpan(0, 1, "x"),)]


def test_lines_of_json_are_read(tmp_path):
    file = tmp_path / "x.jsonl"
    rows = [
        {"tokens": ["to", "Oslo"], "tags": ["O", "B-city"]},
        {"text": "The fish was fine, the wine wasn't.", "spans": [{"start": 4, "end": 8, "label": "good"},
                                                              {"start": 23, "end": 27, "label": "bad"}]},
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two = read_sentences(file)
    assert one.spans == (LabelledSpan(1, 2, "city"),)
    assert [two.with_offsets(s) for s in two.spans] == [
        {"start": 1, "end": 2, "label": "good", "text": "fish", "start_char": 4, "end_char": 8},
        {"start": 6, "end": 7, "label": "bad", "text": "wine", "start_char": 23, "end_char": 27},
    ]
    assert read_sentences(file, labelled=False)[0] == one


def test_words_are_cut_at_spans():
    assert [("don't-stop")[a:b] for a, b in cut_words("don't-stop")] == ["don't-stop"]
    assert cut_words("ab cd.", (1,)) == [(0, 1), (1, 2), (3, 5), (5, 6)]
    found = from_text("redwine", [(3, 7, "drink")])
    assert found.tokens == ("red", "wine") and found.spans == (LabelledSpan(1, 2, "drink"),)


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("x.conll", "a O\nb I-x\n", ":2: word 2: I-x continues no span"), ("x.conll", "a O\nb\n", ":2: 1 columns"),
        ("x.conll", "a\nb\n", ":1: no tags"), ("x.conll", "", "holds no sentences"),
        ("x.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}\n', ":1: .*1 words, 2 tags"),
        ("x.jsonl", '\n{"tokens": ["a b"], "tags": ["O"]}\n', ":2: .*without spaces"),
        ("x.jsonl", '{"words": 1}\n', ':1: field "tokens" .*"words"'),
        ("x.jsonl", '{"tokens": ["a"]}\n', ":1: no tags"),
        ("x.jsonl", '{"text": "ab", "spans": [{"start": 0, "end": 3, "label": "x"}]}\n', ":1: the span 0..3"),
        ("x.jsonl", '{"text": "ab cd", "spans": [{"start": 0, "end": 4, "label": "x"}, '
                    '{"start": 3, "end": 5, "label": "x"}]}\n', ":1: .*overlap"),
        ("x.jsonl", '{"text": "ab", "spans": [1]}\n', ':1: field "spans"'), ("x.jsonl", "{", ":1: not JSON"),
        ("x.jsonl", '{"text": "  "}\n', ":1: the text has no words"),
    ],
)  # fmt: skip
def test_an_error_names_the_line(tmp_path, name, text, wrong):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(DataError, match=wrong):
        read_sentences(file)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "x.conll").write_bytes(b"a \xff\n")
    for name in ("x.conll", "missing.conll", "missing.jsonl"):
        with pytest.raises(DataError):
            read_sentences(tmp_path / name)
