"""Cases from files, and runs that resume and give the same bytes."""

from __future__ import annotations

import json

import pytest
from reading_models import ReadingModel

from likely.audit.case import Case, Variant, likelihoods, read_cases, reference_logprob, run_audit
from likely.errors import DataError

RECORD = {
    "id": "a",
    "segments": {"context": ["x", "y"], "question": "q?"},
    "choices": ["u", "v"],
    "answer": "v",
    "kind": 1,
}


def cases(n):
    return [
        Case(f"c{i}", {"context": f"it is {i}", "question": "which?"}, (f"{i}", "none"), 0) for i in range(n)
    ]  # fmt: skip


def two(case):
    answers = tuple(f" {c}" for c in case.choices)
    return [
        Variant("with", f"Context: {case.segments['context']}\nAnswer:", answers, {"note": 1}),
        Variant("without", "Answer:", answers),
    ]


def test_a_record_is_read_and_written_back():
    case = Case.of(RECORD)
    assert case.answer == 1 and case.segments["context"] == ("x", "y") and case.meta == {"kind": 1}
    assert Case.of(case.to_record()) == case


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": {}}, "segments"),
        ({"segments": {"a": 3}}, 'segment "a"'),
        ({"answer": 7}, "here"),
        ({"choices": None}, '"answer" is the number of a choice'),
        ({"choices": None, "answer": None, "reference": " "}, "reference"),
    ],
)
def test_bad_records_name_what_is_wrong(change, message):
    with pytest.raises(DataError, match=message):
        Case.of({**RECORD, **change}, "here")


def test_files_name_line_and_double_ids(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text(f"{json.dumps(RECORD)}\n{json.dumps(RECORD)}\n")
    with pytest.raises(DataError, match=r'cases.jsonl:2: a second case has the id "a"'):
        read_cases(path)
    path.write_text("")
    with pytest.raises(DataError, match="holds no cases"):
        read_cases(path)
    path.write_text(json.dumps({k: v for k, v in RECORD.items() if k != "id"}) + "\n")
    assert read_cases(path)[0].id == "1"


def test_a_run_measures_every_variant_of_every_case():
    model, asked = ReadingModel("Context"), cases(40)
    seen = []
    found = run_audit(asked, two, likelihoods(model), header={}, progress=seen.append)
    assert [r.case for r in found] == asked and sum(seen) == 40 and model.calls == 3
    for record in found:
        assert list(record.variants) == ["with", "without"] and record.variants["with"]["note"] == 1
        assert record.variants["with"]["correct"] and record.variants["with"]["prediction"] == 0
        gain = reference_logprob(record.variants["with"]) - reference_logprob(record.variants["without"])
        assert gain == pytest.approx(2.8904, abs=1e-3)  # log .9 - log .05


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    asked, header = cases(40), {"model": "toy"}
    full = run_audit(asked, two, likelihoods(ReadingModel("Context")), header=header, output=whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:20]) + lines[20][:50])  # a kill in the middle of a line of the second chunk
    model = ReadingModel("Context")
    assert run_audit(asked, two, likelihoods(model), header=header, output=cut) == full
    assert cut.read_bytes() == whole.read_bytes() and model.calls == 2
    again = ReadingModel("Context")
    assert run_audit(asked, two, likelihoods(again), header=header, output=whole) == full and again.calls == 0
    assert run_audit(asked, two, likelihoods(again), header=header) == full


def test_another_setting_or_another_case_is_refused(tmp_path):
    path, asked = tmp_path / "out.jsonl", cases(2)
    run_audit(asked, two, likelihoods(ReadingModel()), header={"seed": 0}, output=path)
    with pytest.raises(DataError, match="another seed"):
        run_audit(asked, two, likelihoods(ReadingModel()), header={"seed": 1}, output=path)
    with pytest.raises(DataError, match="changed"):
        run_audit(cases(3)[1:], two, likelihoods(ReadingModel()), header={"seed": 0}, output=path)


def test_a_tie_is_no_answer():
    class Even(ReadingModel):
        def _scored(self, prompt, answer):
            return super()._scored("", "same")

    [record] = run_audit(cases(1), two, likelihoods(Even()), header={})
    assert record.variants["with"]["prediction"] is None and not record.variants["with"]["correct"]
