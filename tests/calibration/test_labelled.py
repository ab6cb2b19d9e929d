"""Labelled lines as arrays, and errors that name file, line and field."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from likely.calibration.labelled import read_labelled
from likely.errors import DataError


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "labelled.jsonl"


def test_the_kinds_of_plain_lines(file):
    found = read_labelled(write(file, {"probs": [0.2, 0.8], "label": 1}, {"probs": [0.5, 0.5], "label": 0}))
    assert found.kind == "probs" and found.labels.tolist() == [1, 0] and found.origin is None
    found = read_labelled(write(file, {"logits": [0.0, math.log(3)], "label": 1}))
    np.testing.assert_allclose(found.predictions(), [[0.25, 0.75]])
    confidence, correct = found.outcomes(found.predictions())
    assert confidence == pytest.approx([0.75]) and correct.tolist() == [1]
    found = read_labelled(write(file, {"confidence": 0.9, "correct": True}, {"confidence": 0, "correct": 0}))
    assert found.kind == "confidence" and found.x.tolist() == [0.9, 0.0] and found.labels.tolist() == [1, 0]


def test_files_of_our_own_verbs(file):
    made = {"likely": "0", "kind": "choices", "model": "m", "sha256": "a", "template": None, "settings": {}}
    line = {"values": [-1.0, -2.0, -3.0], "label": 2, "raw_confidence": 0.6, "correct": 0, "confidence": None}
    found = read_labelled(write(file, made, line))
    assert found.kind == "logits" and found.origin == made and found.x.shape == (1, 3)
    line = {"label": 1, "answers": [{"sequence_logprob": -1.5}, {"sequence_logprob": -2.5}]}
    assert read_labelled(write(file, {**made, "kind": "score"}, line)).x.tolist() == [[-1.5, -2.5]]
    line = {"token_logprobs": [-0.5, -1.5], "sequence_logprob": -2.0, "correct": 1, "confidence": None}
    header = {"likely": "0", "kind": "grade", "answers": {**made, "kind": "ask"}}
    found = read_labelled(write(file, header, line))
    assert found.kind == "answer" and found.origin == {**made, "kind": "ask"}
    assert found.x.tolist() == [[-2.0, -1.0, -1.5, math.log(2)]]
    assert found.predictions() == found.as_given() == pytest.approx([math.exp(-2)]) and found.stated is None
    given = read_labelled(write(file, header, {**line, "confidence": 0.7}))  # as the answers were given
    assert given.as_given().tolist() == [0.7] and given.predictions() == pytest.approx([math.exp(-2)])
    assert read_labelled(write(file, header, {**line, "confidence": 0.7}, line)).stated is None
    formed = read_labelled(write(file, header, {**line, "token_log_masses": [-0.4, 0.0]}))
    assert formed.x[0] == pytest.approx([-1.6, -0.8, -1.5, math.log(2)])
    with pytest.raises(DataError, match="not graded"):
        read_labelled(write(file, {**made, "kind": "ask"}, line))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"probs": [0.2, 0.9], "label": 0}, r"row 0 sums to 1\.1"),
        ({"probs": [1.0], "label": 0}, "1 class"),
        ({"probs": [0.5, None], "label": 0}, r"probs\[1\] must be a number"),
        ({"logits": [0.5, 1.0], "label": 2}, r"label.*0\.\.1"),
        ({"logits": [0.5, 1.0]}, "label"),
        ({"logits": "0.5", "label": 0}, "list of numbers"),
        ({"confidence": 1.5, "correct": 1}, r"0\.\.1, got 1\.5"),
        ({"confidence": 0.5, "correct": 2}, "correct"),
        ({"confidence": 0.5}, "correct"),
        ({"question": "?"}, "question"),
    ],
)
def test_bad_lines_are_named(file, record, message):
    with pytest.raises(DataError, match=rf"labelled\.jsonl:2: .*{message}"):
        read_labelled(write(file, {"likely": "0", "kind": "score"}, record))


def test_one_kind_and_one_number_of_classes_per_file(file):
    with pytest.raises(DataError, match=":2: a line of confidence among lines of probs"):
        read_labelled(write(file, {"probs": [0.5, 0.5], "label": 0}, {"confidence": 0.5, "correct": 1}))
    with pytest.raises(DataError, match=":2: 3 classes, the lines before have 2"):
        read_labelled(write(file, {"probs": [0.5, 0.5], "label": 0}, {"probs": [0.5, 0.25, 0.25], "label": 0}))
    with pytest.raises(DataError, match="no labelled lines"):
        read_labelled(write(file))


def graded(*lines, system=None):
    """A file of likely grade: header, then lines."""
    answers = {"kind": "ask", "model": "m", "sha256": "a" * 64, "settings": {"temperature": 0.0, "system": system}}
    whole = [{"kind": "grade", "likely": "0", "answers": answers}, *lines]
    return "".join(json.dumps(line) + "\n" for line in whole)


def one(**more):
    return {"sequence_logprob": -1.0, "token_logprobs": [-0.5, -0.5], "correct": 1, **more}


def test_answers_of_another_model_or_another_system_message_do_not_count_as_the_files(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_text(graded(one(), one(answered_by="m"), one(answered_by=None)))
    assert len(read_labelled(path)) == 3
    path.write_text(graded(one(), one(answered_by="bigger")))
    with pytest.raises(DataError, match=r"g.jsonl:3: answered by bigger, the file is of m"):
        read_labelled(path)
    path.write_text(graded(one(), one(system="Be brief.")))
    with pytest.raises(DataError, match=r"g.jsonl:3: asked with a system message of its own"):
        read_labelled(path)
    path.write_text(graded(one(system="Be brief."), system="Be brief."))
    assert len(read_labelled(path)) == 1


def test_a_header_is_no_line_of_the_limit(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_text(graded(*[one()] * 5))
    assert len(read_labelled(path, limit=3)) == 3 and len(read_labelled(path, limit=9)) == 5
    path.write_text("".join(json.dumps({"confidence": 0.5, "correct": 1}) + "\n" for _ in range(5)))
    assert len(read_labelled(path, limit=3)) == 3


def test_numbers_that_no_float_holds(tmp_path):
    path = tmp_path / "huge.jsonl"
    path.write_text('{"logits": [1' + "0" * 400 + ', 0], "label": 0}\n')
    with pytest.raises(DataError, match=r"huge.jsonl:1: logits holds a number that is too large"):
        read_labelled(path)
