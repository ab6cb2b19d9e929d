"""What every verb with a FILE does alike: outputs refused early, results taken up, Ctrl-C that says how far it came."""

from __future__ import annotations

import json

import pytest
from test_commands import one_line

from likely.cli.file_run import FileRun, read_file
from likely.cli.flags import FileFlags, ModelFlags
from likely.errors import CapabilityError, DataError, ModelError
from likely.io.jsonl import Results, read_lines, text_field

HEADER = {"likely": "0", "kind": "test"}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(10)))
    return path


def read(source, output=None, **given):
    return read_file(
        str(source), lambda line, where: text_field(line, "text", where), FileFlags(output), expected="x", **given
    )


def upper(run, done):
    def work(lines, advance):
        done.extend(line.number for line in lines)
        advance(len(lines))
        return [{"upper": run.item(line).upper()} for line in lines]

    return work


def test_only_missing_lines_are_written_and_cut_chunks_computed_whole(source, tmp_path):
    target, done = tmp_path / "out.jsonl", []
    whole = read(source, target)
    whole.run(HEADER, whole.by_chunks(upper(whole, done)), size=4)
    expected = target.read_bytes()
    target.write_bytes(b"".join(expected.splitlines(keepends=True)[:6]))  # header and five lines
    again = read(source, target)
    done.clear()
    again.run(HEADER, again.by_chunks(upper(again, done)), size=4)
    assert done == [5, 6, 7, 8, 9, 10] and target.read_bytes() == expected
    assert [r["upper"] for r in again.records()] == [f"T{i}" for i in range(10)]


def test_without_an_output_records_are_printed_or_kept(source, capfdbinary):
    printed, kept = read(source), read(source)
    printed.run(HEADER, printed.by_chunks(upper(printed, [])))
    assert len(capfdbinary.readouterr().out.splitlines()) == 11 and printed.records() == []
    kept.run(HEADER, kept.by_chunks(upper(kept, [])), stdout=False)
    assert capfdbinary.readouterr().out == b"" and kept.records()[0]["upper"] == "T0"


def test_a_line_that_the_model_refuses_is_named_or_left_out(source, capsys):
    def refuse(lines, advance):
        if any(line.number == 3 for line in lines):
            raise ModelError("too long")
        return [{} for _ in lines]

    strict, lenient = read(source), read(source)
    with pytest.raises(DataError, match=r"in\.jsonl:3: too long"):
        strict.run(HEADER, strict.by_chunks(refuse), stdout=False)
    lenient.run(HEADER, lenient.by_chunks(refuse, skip=True), stdout=False)
    assert [r["line"] for r in lenient.records()] == [1, 2, 4, 5, 6, 7, 8, 9, 10] and lenient.left_out == 1
    assert capsys.readouterr().err == f"skipped: {source}:3: too long\n"


def test_what_is_no_lines_fault_is_raised_as_it_is(source):
    calls = []

    def refuse(lines, advance):
        calls.append(len(lines))
        raise CapabilityError("not with this model")

    lines = read(source)
    with pytest.raises(CapabilityError):
        lines.run(HEADER, lines.by_chunks(refuse, skip=True), stdout=False)
    assert calls == [10]


def test_ctrl_c_says_how_far_the_file_came(source, tmp_path, monkeypatch, capsys):
    target, write = tmp_path / "out.jsonl", Results.write

    def interrupted(results, records):
        write(results, records)
        if len(results.done) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Results, "write", interrupted)
    lines = read(source, target)
    with pytest.raises(KeyboardInterrupt):
        lines.run(HEADER, lines.by_chunks(upper(lines, [])))
    assert capsys.readouterr().err == f"stopped: 6 new, 6 of 10 lines are in {target}; the same command goes on\n"
    assert [line.record.get("line") for line in read_lines(target)] == [None, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("verb", ["ask", "score", "choices", "extract", "risk", "grade", "uncertainty"])
def test_an_output_that_cannot_be_written_is_refused_before_a_model_is_loaded(cli, tmp_path, monkeypatch, verb):
    monkeypatch.setattr(ModelFlags, "open", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "schema.json").write_text("{}")
    more = {"extract": ["--schema", tmp_path / "schema.json"], "risk": ["--task", "adult"], "grade": ["--by", "exact"]}
    path = tmp_path / "in.jsonl"
    path.write_text("{}\n")
    call = (verb, path, *more.get(verb, []), "-o")
    one_line(cli(*call, tmp_path / "no" / "out.jsonl"), 1, "cannot write", "does not exist")
    one_line(cli(*call, tmp_path), 1, "cannot write", "a folder")
    one_line(cli(*call, path), 2, "would replace the input")


def test_a_run_needs_no_header_line_where_nothing_is_printed(source):
    lines = FileRun[None]("rows", list(read_lines(source)), {}, None)
    lines.run({}, lambda chunks, _: ((line, {}) for chunk in chunks for line in chunk), stdout=False)
    assert len(lines.records()) == 10
