"""Tags and spans: what seqeval's strict mode reads, in both schemes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from likely.alignment.labelling.spans import (
    LabelledSpan,
    check_tags,
    find_scheme,
    span_f1,
    spans_of,
    tags_of,
)
from likely.errors import DataError

IOB2 = ["O", "B-a", "I-a", "B-b", "I-b"]
IOBES = [*IOB2, "E-a", "S-a", "E-b", "S-b"]


def random_tags(rng, alphabet, sentences=200):
    return [rng.choice(alphabet, size=rng.integers(1, 9)).tolist() for _ in range(sentences)]


@pytest.mark.parametrize(("scheme", "alphabet"), [("iob2", IOB2), ("iobes", IOBES)])
def test_f1_is_that_of_seqeval_strict_also_on_malformed_tags(scheme, alphabet):
    seqeval = pytest.importorskip("seqeval.metrics")
    from seqeval import scheme as schemes

    rng = np.random.default_rng(0)
    gold = random_tags(rng, alphabet)
    predicted = [
        [str(rng.choice(alphabet)) if rng.random() < 0.3 else tag for tag in tags] for tags in gold
    ]  # near enough to agree often
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = seqeval.classification_report(
            gold, predicted, mode="strict", scheme=getattr(schemes, scheme.upper()), output_dict=True, zero_division=0
        )
    ours = span_f1(gold, predicted, scheme=scheme)
    assert ours["micro"]["support"] == theirs["micro avg"]["support"] > 100
    for mine, name in ((ours["micro"], "micro avg"), (ours["per_type"]["a"], "a"), (ours["per_type"]["b"], "b")):
        for measure, theirs_name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert mine[measure] == pytest.approx(theirs[name][theirs_name], abs=1e-12)
    assert 0.2 < ours["micro"]["f1"] < 0.9


@pytest.mark.parametrize("scheme", ["iob2", "iobes"])
def test_spans_become_tags_and_come_back(scheme):
    rng = np.random.default_rng(1)
    for _ in range(200):
        spans, at = [], 0
        while at < 10:
            at += int(rng.integers(0, 3))
            end = at + int(rng.integers(1, 4))
            if end <= 12:
                spans.append(LabelledSpan(at, end, str(rng.choice(["a", "b"]))))
            at = end
        tags = tags_of(spans, 12, scheme)
        check_tags(tags, scheme)
        assert spans_of(tags, scheme) == spans


def test_neighbours_of_one_type_stay_apart():
    assert spans_of(["B-a", "B-a", "I-a"]) == [LabelledSpan(0, 1, "a"), LabelledSpan(1, 3, "a")]


def test_overlapping_spans_have_no_tags():
    with pytest.raises(ValueError, match="overlap"):
        tags_of([LabelledSpan(0, 2, "a"), LabelledSpan(1, 3, "b")], 4)
    with pytest.raises(ValueError, match="not inside 2 words"):
        tags_of([LabelledSpan(1, 3, "a")], 2)


@pytest.mark.parametrize(
    ("tags", "scheme", "word"),
    [
        (["O", "I-a"], "iob2", "word 2"), (["B-a", "I-b"], "iob2", "word 2"), (["S-a"], "iob2", "word 1"),
        (["B-a", "O"], "iobes", "word 1"), (["B-a"], "iobes", "word 1"), (["x"], "iob2", "word 1"),
        (["B-"], "iob2", "word 1"), (["E-a"], "iobes", "word 1"), (["S-a", "E-a"], "iobes", "word 2"),
    ],
)  # fmt: skip
def test_a_malformed_tag_is_named(tags, scheme, word):
    with pytest.raises(DataError, match=word):
        check_tags(tags, scheme)


def test_the_scheme_is_found():
    assert find_scheme([["O"], ["B-a", "E-a"]]) == "iobes" and find_scheme([["B-a", "I-a"]]) == "iob2"


def test_nothing_found_and_nothing_there_is_zero():
    assert span_f1([["O"]], [["O"]])["micro"]["f1"] == 0.0
    with pytest.raises(ValueError, match="sentence 0"):
        span_f1([["O"]], [["O", "O"]])
