from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.errors import DataError
from likely.io.jsonl import MAX_LINE_BYTES, Results, parse_line, read_lines, text_field

HEADER = {"model": "m", "settings": {"top": 0}}


def lines_of(path):
    return [json.loads(raw) for raw in path.read_bytes().splitlines()]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(10)))
    return path


def run(source, target, upto=10, header=HEADER, **options):
    with Results(target, header, **options) as results:
        for line in read_lines(source):
            if line.number <= upto and not results.is_done(line, str(source)):
                results.write([{"line": line.number, "input": line.digest, "value": line.record["prompt"]}])


@given(st.integers(0, 700))
@settings(max_examples=80, deadline=None)
def test_a_file_cut_anywhere_is_completed_without_loss_or_repeat(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    source, target, whole = folder / "in", folder / "out", folder / "whole"
    source.write_text("".join(json.dumps({"prompt": f"é{i}"}) + "\n" for i in range(10)))
    run(source, whole)
    target.write_bytes(whole.read_bytes()[:cut])
    run(source, target)
    assert target.read_bytes() == whole.read_bytes()


def test_a_second_run_adds_nothing(source, tmp_path):
    target = tmp_path / "out.jsonl"
    run(source, target, upto=4)
    run(source, target)
    before = target.read_bytes()
    run(source, target)
    assert target.read_bytes() == before
    assert [r["line"] for r in lines_of(target)[1:]] == list(range(1, 11))


def test_runs_with_other_settings_never_mix(source, tmp_path):
    target = tmp_path / "out.jsonl"
    run(source, target, upto=3)
    with pytest.raises(DataError, match="another settings"):
        run(source, target, header={"model": "m", "settings": {"top": 5}})
    run(source, target, header={"model": "other", "settings": {}}, overwrite=True)
    assert lines_of(target)[0]["model"] == "other"


def test_a_changed_input_is_noticed(source, tmp_path):
    target = tmp_path / "out.jsonl"
    run(source, target)
    source.write_text(source.read_text().replace("p3", "changed"))
    with pytest.raises(DataError, match=":4 has changed"):
        run(source, target)


def test_another_kind_of_file_is_not_overwritten(source, tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("my notes\n")
    with pytest.raises(DataError, match="not JSON"):
        run(source, target)
    assert target.read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[1]", "expected an object"),
        (b"[" * 100_000, "nested|not JSON"),
        (b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}', "bytes, at most"),
    ],
    ids=["cut", "nan", "inf", "utf8", "list", "deep", "long"],
)
def test_bad_lines_are_one_clear_error(raw, message):
    with pytest.raises(DataError, match=message) as error:
        parse_line(raw, "file:7")
    assert str(error.value).startswith("file:7: ") and "\n" not in str(error.value)


def test_missing_and_wrong_fields_name_line_and_found_fields(source):
    line = next(read_lines(source))
    with pytest.raises(DataError, match=r'f:1: field "answer" is missing \(found: "prompt"\)'):
        text_field(line, "answer", "f")
    line.record["prompt"] = 3
    with pytest.raises(DataError, match="must be a string, found int"):
        text_field(line, "prompt", "f")
    with pytest.raises(DataError, match="cannot read"):
        list(read_lines("/does/not/exist"))


def test_gz_is_read_and_a_damaged_one_is_one_line(source, tmp_path):
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    assert list(read_lines(packed)) == list(read_lines(source))
    raw = packed.read_bytes()
    for damaged in (b"no gzip at all", raw[: len(raw) // 2], raw[:30] + b"\xff\xff\xff\xff" + raw[34:], raw[:-1]):
        packed.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read .*in\.jsonl\.gz") as error:
            list(read_lines(packed))
        assert "\n" not in str(error.value)


def test_taking_back_restores_every_earlier_state_of_the_file(source, tmp_path):
    target, states = tmp_path / "out.jsonl", []
    for upto in range(1, 11):
        run(source, target, upto=upto)
        states.append(target.read_bytes())
    with Results(target, HEADER) as results:
        for number in range(10, 5, -1):
            assert results.take_back() == number
            assert target.read_bytes() == states[number - 2]
        line = list(read_lines(source))[5]
        assert not results.is_done(line, "in")
        results.write([{"line": 6, "input": line.digest, "value": "p5"}])
        assert results.is_done(line, "in")
    assert target.read_bytes() == states[5]
    with Results(target, HEADER) as results:
        assert [results.take_back() for _ in range(7)] == [6, 5, 4, 3, 2, 1, None]
    assert len(lines_of(target)) == 1


def test_one_process_writes_at_a_time(source, tmp_path):
    target = tmp_path / "out.jsonl"
    with Results(target, HEADER), pytest.raises(DataError, match=r"out\.jsonl is being written by another process"):
        Results(target, HEADER, overwrite=True)
    run(source, target)
    assert len(lines_of(target)) == 11


def test_only_a_cut_header_is_begun_anew(source, tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("one line of notes, without an end")
    with pytest.raises(DataError, match="not a results file"):
        run(source, target)
    assert target.read_text() == "one line of notes, without an end"
    target.write_bytes(json.dumps(HEADER).encode()[:9])
    run(source, target)
    assert len(lines_of(target)) == 11


def test_a_results_file_that_cannot_be_opened_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"^cannot write .*No such file or directory$"):
        Results(tmp_path / "no" / "out.jsonl", HEADER)
