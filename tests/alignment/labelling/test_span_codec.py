"""Spans as text: exact round trips where they are possible, and a parser that takes any text."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from likely.alignment.labelling.codec import SpanCodec
from likely.alignment.labelling.sentences import labels_of, load_sentences
from likely.alignment.labelling.spans import LabelledSpan, spans_of
from likely.errors import DataError

CODEC = SpanCodec(["creative-work", "person"])
WORDS = ["Ann", "saw", "a:b;c\\", "Ann", "none"]


def test_the_form():
    tags = ["B-person", "O", "B-creative-work", "I-creative-work", "O"]
    text = CODEC.encode(WORDS, tags)
    assert text == r"Ann:person;a\:b\;c\\ Ann:creative work"
    assert CODEC.decode(text, WORDS)[0] == tags
    assert CODEC.encode(WORDS, ["O"] * 5) == "none" and CODEC.decode(" none", WORDS)[0] == ["O"] * 5


def test_a_word_like_the_empty_response_can_be_labelled():
    tags = ["O", "O", "O", "O", "B-person"]
    assert CODEC.decode(CODEC.encode(WORDS, tags), WORDS)[0] == tags


PIECES = ["a", "b", ":", ";", "\\", "a:", ";b", "a;b", "\\:", "none", "é", "x"]


@st.composite
def tagged(draw):
    words = draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8, unique=True))
    choices = draw(st.lists(st.integers(0, 3), min_size=len(words), max_size=len(words)))
    tags, before = [], "O"
    for choice in choices:
        follow = ["O", "B-person", "B-creative-work", "O" if before == "O" else f"I-{before[2:]}"]
        before = follow[choice]
        tags.append(before)
    return words, tags


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(tagged())
def test_without_repeated_words_the_round_trip_is_exact(case):
    words, tags = case
    assert CODEC.why_not_exact(words, spans_of(tags)) is None
    found, read = CODEC.decode(CODEC.encode(words, tags), words)
    assert found == tags and not read.problems


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.text("an:;\\ \nbx", max_size=40), st.lists(st.sampled_from(["a", "b", "a:", "n"]), min_size=1, max_size=6))
def test_any_text_is_read(text, words):
    tags, read = SpanCodec(["a", "b"]).decode(text, words)
    assert len(tags) == len(words) and len(read.places) == len(read.spans)
    assert all(0 <= p.at <= len(text) and text[p.at :].startswith(p.item) for p in read.problems)
    if not read.spans and text.strip(" \t\r\n") != "none":
        assert read.problems


def test_what_is_dropped_is_said():
    _, read = CODEC.decode("Ann:person;x:person;saw:verb;Ann", WORDS)
    assert [(p.kind, p.at, p.item) for p in read.problems] == [
        ("not_in_sentence", 11, "x:person"), ("bad_label", 20, "saw:verb"), ("no_label", 29, "Ann"),
    ]  # fmt: skip
    assert read.spans == (LabelledSpan(0, 1, "person"),)
    assert CODEC.decode("", WORDS)[1].problems[0].kind == "empty_response"


def test_items_out_of_order_and_labels_in_other_letters_are_found():
    tags, read = CODEC.decode("saw: Creative  Work ;Ann:PERSON;Ann:person;Ann:person", WORDS)
    assert tags == ["B-person", "B-creative-work", "O", "B-person", "O"]
    assert [p.kind for p in read.problems] == ["not_in_sentence"]  # both places are taken


def test_a_surface_that_stands_unlabelled_before_is_reported():
    spans = [LabelledSpan(3, 4, "person")]
    assert "also occurs before" in CODEC.why_not_exact(WORDS, spans)
    assert CODEC.decode(CODEC.encode_spans(WORDS, spans), WORDS)[1].spans == (LabelledSpan(0, 1, "person"),)


def test_impossible_codecs_and_spans_are_refused():
    for labels in ([], ["a_b", "a-b"], ["a:b"], [" "]):
        with pytest.raises(ValueError):
            SpanCodec(labels)
    assert SpanCodec({"a_b": "x", "a-b": "y"}).options == ["x", "y"]
    for bad in ({"sep": "--"}, {"kv": ";"}, {"sep": "\\"}, {"empty": "a;b"}, {"sep": "é"}):
        with pytest.raises(ValueError):
            SpanCodec(["a"], **bad)
    with pytest.raises(ValueError, match="overlap"):
        CODEC.encode_spans(WORDS, [LabelledSpan(0, 2, "person"), LabelledSpan(1, 3, "person")])
    with pytest.raises(ValueError, match="none of the options"):
        CODEC.encode_spans(WORDS, [LabelledSpan(0, 2, "place")])
    with pytest.raises(ValueError, match="5 words have 4 tags"):
        CODEC.encode(WORDS, ["O"] * 4)


@pytest.mark.parametrize(
    ("name", "split", "rows", "inexact", "escaped"),
    [
        ("snips-slots", "train", 3150, 0, 96), ("wnut17", "train", 3394, 2, 17), ("mams-absa", "val", 500, 0, None),
    ],
)  # fmt: skip
def test_published_sets_come_back_exactly_but_for_what_is_reported(name, split, rows, inexact, escaped):
    try:
        sentences = list(load_sentences(name, split))
    except DataError as error:
        pytest.skip(str(error))
    codec, reported = SpanCodec(labels_of(sentences)), 0
    for one in sentences:
        spans = list(one.spans)
        exact = codec.decode_spans(codec.encode_spans(one.tokens, spans), one.tokens).spans == tuple(spans)
        why = codec.why_not_exact(one.tokens, spans)
        assert exact == (why is None)
        reported += not exact
    assert (len(sentences), reported) == (rows, inexact)
    if escaped is not None:
        marks = [any(set(":;") & set(t) for s in o.spans for t in o.tokens[s.start : s.end]) for o in sentences]
        assert sum(marks) == escaped
