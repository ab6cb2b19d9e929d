"""Rules and their votes: against a slow obvious version, snorkel where it is installed, and files that are wrong."""

from __future__ import annotations

import gzip
import json
import re

import numpy as np
import pytest

from likely.data import find_path, load_records
from likely.errors import ConstraintError, DataError
from likely.weak_supervision.labelling_rules import LabelingFunction, Votes, check_votes, described, read_rules

CLASSES = ("ham", "spam")
TREC = ("description", "entity", "abbreviation", "human", "location", "numeric")


def slow_votes(records, texts, classes):
    found = []
    for text in texts:
        row = []
        for record in records:
            fires = re.search(record["pattern"], text.lower()) is not None
            row.append(classes.index(record["label"]) if fires else -1)
        found.append(row)
    return np.array(found)


@pytest.mark.parametrize(("name", "classes"), [("sms-spam", CLASSES), ("trec", TREC)])
def test_votes_are_those_of_a_slow_obvious_version(name, classes):
    texts = [record["text"] for record in load_records(name, "test")][::9]
    records = list(load_records(name, "rules"))
    expected = slow_votes(records, texts, classes)
    assert (expected >= 0).any(axis=1).mean() > 0.3
    path = find_path(name, "rules")
    for fast, rows in ((True, slice(None)), (False, slice(0, None, 6))):
        rules = read_rules(path, classes, fast=fast)
        assert len(rules) == len(records) == {"sms-spam": 73, "trec": 68}[name]
        votes = Votes.of(rules, texts[rows], classes)
        np.testing.assert_array_equal(votes.matrix, expected[rows])


def test_votes_are_those_of_snorkel():
    labeling = pytest.importorskip("snorkel.labeling")
    pandas = pytest.importorskip("pandas")
    texts = [record["text"] for record in load_records("sms-spam", "test")][:40]
    rules = read_rules(find_path("sms-spam", "rules"), CLASSES, fast=True)
    theirs = [labeling.LabelingFunction(rule.name, f=lambda row, rule=rule: rule.vote(row.text)) for rule in rules]
    applied = labeling.PandasLFApplier(theirs).apply(pandas.DataFrame({"text": texts}), progress_bar=False)
    np.testing.assert_array_equal(Votes.of(rules, texts, CLASSES).matrix, applied)


def test_a_function_is_a_rule_and_patterns_see_lower_case():
    rules = [LabelingFunction("long", lambda text: len(text) > 5, 0), LabelingFunction("free", "free", 1)]
    votes = Votes.of(rules, ["FREE", "nothing", "free entry"], CLASSES)
    assert votes.matrix.tolist() == [[-1, 1], [0, -1], [0, 1]]
    assert votes.coverage.tolist() == pytest.approx([2 / 3, 2 / 3])


def test_shares_and_the_model_in_front():
    votes = Votes(np.array([[0, 1], [1, 1], [-1, -1]]), ("a", "b"), CLASSES).with_answers([1, -1, -1])
    assert votes.names == ("model", "a", "b") and votes.matrix[:, 0].tolist() == [1, -1, -1]
    np.testing.assert_allclose(votes.shares(), [[1 / 3, 2 / 3], [0, 1], [0.5, 0.5]])
    with pytest.raises(ValueError, match=r"answers must be \(3,\)"):
        votes.with_answers([1])


@pytest.mark.parametrize(
    ("votes", "said"),
    [
        ([[0, 2]], r"row 0 is \[0, 2\]"),
        ([[0, 1], [0, -2]], r"row 1 is \[0, -2\]"),
        ([[0.5]], "row 0"),
        ([[np.nan]], "whole numbers"),
        ([0, 1], "shape"),
        (np.empty((0, 2)), "at least one row"),
    ],
)
def test_votes_that_are_none(votes, said):
    with pytest.raises(ValueError, match=said):
        check_votes(votes, 2)


def test_a_hostile_pattern_cannot_hang():
    rule = LabelingFunction("evil", "(a+)+b", 0)
    assert rule.vote("a" * 5000) == -1 and rule.vote("aab") == 0
    for pattern, said in ((r"(a)\1", "backreference"), ("(", "regular expression")):
        with pytest.raises(ConstraintError, match=f'rule "evil": .*{said}'):
            LabelingFunction("evil", pattern, 0)
    assert LabelingFunction("twice", r"(a)\1", 0, fast=True).vote("AA") == 0


def test_what_a_pattern_says():
    pattern = r"( |^)(call|ring\.|ring)[^\w]* ([^\s]+ )*(free|free)[^\w]*( |$)"
    assert described(pattern) == 'It has "call" or "ring", then "free".'
    assert described("[0-9]{4}") == "It matches [0-9]{4}."
    assert LabelingFunction("a", "x", 0, text="It names a prize.").sentence == "It names a prize."
    assert "long" in LabelingFunction("long", len, 0).sentence


def test_a_file_of_rules(tmp_path):
    path = tmp_path / "rules.jsonl.gz"
    lines = [
        {"label": "spam", "pattern": "free", "text": "It is free."},
        {"label": "ham", "pattern": "thanks", "name": "t", "exemplar": "Thanks a lot"},
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    rules = read_rules(path, CLASSES)
    found = [(rule.name, rule.label, rule.sentence) for rule in rules]
    assert found == [("rule 1", 1, "It is free."), ("t", 0, 'It has "thanks".')]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"label": "eggs", "pattern": "x"}, r'rules.jsonl:1: "eggs" is no class \(allowed: ham, spam\)'),
        ({"label": "ham"}, 'rules.jsonl:1: field "pattern" must be a text'),
        ({"label": "ham", "pattern": "("}, "rules.jsonl:1: .*not a regular expression"),
        ({"label": "ham", "pattern": "x", "lable": "y"}, 'unknown field "lable"; did you mean "label"'),
        ({"label": "ham", "pattern": "x", "text": 3}, 'field "text" must be a text'),
    ],
)
def test_files_that_are_wrong(tmp_path, line, said):
    path = tmp_path / "rules.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=said):
        read_rules(path, CLASSES)


def test_an_empty_file_is_an_error(tmp_path):
    path = tmp_path / "rules.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no rules"):
        read_rules(path, CLASSES)
