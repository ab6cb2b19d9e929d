"""likely extract: values from documents, resumable, and never a value that is none."""

from __future__ import annotations

import json

import pytest
from test_commands import one_line
from tiny_gguf import write_tiny_llama

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """With room for a prompt of single bytes."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf", context=1024)


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(SCHEMA))
    return path


@pytest.fixture
def documents(tmp_path):
    """40 lines, three batches; every kind of line that is taken."""
    kinds = [
        lambda i: {"text": f"Ann has {i} cats.", "id": i},
        lambda i: f"Bob has {i} dogs.",
        lambda i: {"prompt": f"Cem has {i} birds.", "meta": {"a": [i]}, "label": None},
        lambda i: {"document": f"Dé has {i} 🐟.", "prompt": "not the document"},
    ]
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps(kinds[i % 4](i), ensure_ascii=False) + "\n" for i in range(40)))
    return path


def results(path):
    header, *records = [json.loads(line) for line in path.read_text().splitlines()]
    return header, records


@pytest.mark.slow
def test_every_document_has_its_value(cli, tiny, schema, documents, tmp_path):
    out = tmp_path / "out.jsonl"
    done = cli("extract", "--schema", schema, documents, "-m", tiny, "--threads", 1, "-o", out, "--max-tokens", 60)
    assert done.code == 0 and done.out == "" and done.err == ""
    header, records = results(out)
    assert header["kind"] == "extract" and header["settings"]["schema"] == SCHEMA and header["template"]
    assert [r["line"] for r in records] == list(range(1, 41))
    for record in records:
        assert record["value"].keys() == {"name", "n"} and record["error"] is None and record["complete"]
        assert [f["pointer"] for f in record["fields"]] == ["/name", "/n"]
        assert list(record["fields"][0])[:2] == ["pointer", "value"]
        total = sum(s["logprob"] + s["forced_logprob"] for s in [*record["fields"], record["structure"]])
        assert total == pytest.approx(record["sequence_logprob"]) and record["log_weight"] <= 0
    assert records[0]["id"] == 0 and records[2]["meta"] == {"a": [2]} and "label" in records[2]
    assert records[3]["prompt"] == "not the document"  # "text", then "document", then "prompt"
    assert "text" not in records[0]
    piped = cli(
        "extract", "--schema", schema, "-m", tiny, "--threads", 1, "--max-tokens", 60, stdin=documents.read_bytes()
    )
    assert piped.out.encode() == out.read_bytes()


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_to_the_same_file(cli, tiny, schema, documents, tmp_path):
    call = ("extract", "--schema", schema, documents, "-m", tiny, "--threads", 1, "--max-tokens", 60)
    assert cli(*call, "-o", tmp_path / "whole.jsonl").code == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for cut in (100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "out.jsonl").write_bytes(whole[:cut])
        assert cli(*call, "-o", tmp_path / "out.jsonl").code == 0
        assert (tmp_path / "out.jsonl").read_bytes() == whole
    other = cli(*call, "-o", tmp_path / "out.jsonl", "--seed", 5)
    one_line(other, 1, "made with another settings")
    assert cli(*call, "--limit", 16, "-o", tmp_path / "few.jsonl").code == 0  # a whole batch
    assert whole.startswith((tmp_path / "few.jsonl").read_bytes())


def test_a_document_without_a_value_has_an_error(cli, tiny, schema, tmp_path):
    """Too long for the context, and cut inside the JSON: never a value, and no other line suffers."""
    docs, out = tmp_path / "docs.jsonl", tmp_path / "out.jsonl"
    docs.write_text("".join(json.dumps(text) + "\n" for text in ("Ann", "Ann and Bob " * 200, "Bob")))
    call = ("extract", "--schema", schema, docs, "-m", tiny, "--threads", 1, "-o", out)
    done = cli(*call, "--max-tokens", 60)
    assert done.code == 1 and done.err.startswith(f"Error: 1 of 3 documents gave no value, the first is {docs}:2: the ")
    assert "context" in done.err and done.err.count("\n") == 1
    _, records = results(out)
    assert [r["value"] is None for r in records] == [False, True, False]
    assert "context" in records[1]["error"] and "fields" not in records[1]
    again = cli(*call, "--max-tokens", 60)  # nothing is left to do, but the file still holds the error
    assert again.code == 1 and again.err == "Error: 1 of 3 documents gave no value\n"

    done = cli(*call, "--max-tokens", 12, "-s", "close_on_budget=False", "--overwrite")
    assert done.code == 1 and "3 of 3 documents" in done.err
    _, records = results(out)
    for record in (records[0], records[2]):
        assert record["value"] is None and record["fields"] is None and not record["complete"]
        assert record["error"].startswith(
            "the text is not complete: it ended after 12 tokens, inside the string at /name"
        )
        assert record["text"].startswith('{"name": "')


def test_one_document(cli, tiny, schema, tmp_path):
    call = ("extract", "--schema", schema, "--text", "Ann has 3 cats.", "-m", tiny, "--threads", 1, "--max-tokens", 60)
    plain = cli(*call)
    record = cli(*call, "--json").json
    assert plain.code == 0 and json.loads(plain.out) == record["value"] and record["model"]
    shown = cli(*call, "--show", "--html", tmp_path / "a.html")
    assert "/name" in shown.out and f"{record['fields'][1]['logprob']:.4f}" in shown.out
    assert (tmp_path / "a.html").read_text().count("<article") == 1
    prompt = cli(*call, "--show-prompt", "--instruction", "Who has cats?")
    assert "Who has cats?" in prompt.err and "Ann has 3 cats." in prompt.err and '"maxLength": 5' in prompt.err
    cut = cli(*call[:-1], 12, "-s", "close_on_budget=False", "--json")
    assert cut.code == 1 and json.loads(cut.out)["value"] is None and "not complete" in cut.err


def test_show_of_a_file_is_for_people(cli, tiny, schema, documents, tmp_path):
    done = cli(
        "extract", "--schema", schema, documents, "-m", tiny, "--threads", 1, "--max-tokens", 60, "--limit", 2, "--show"
    )
    assert done.code == 0 and done.out.count("/name") == 2 and f"{documents}:2" in done.out and '"line"' not in done.out


def test_extract_usage(cli, tiny, schema, documents, tmp_path):
    def lines(*records):
        path = tmp_path / "bad.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        return path

    call = ("extract", "--schema", schema, "-m", tmp_path / "no such model.gguf")
    one_line(cli("extract", documents), 2, "--schema")
    one_line(cli(*call), 2, "FILE")
    one_line(cli(*call, documents, "--text", "a"), 2, "not both")
    one_line(cli(*call, "--text", "a", "-o", tmp_path / "o.jsonl"), 2, "FILE")
    one_line(cli(*call, documents, "-o", documents), 2, "replace the input")
    one_line(cli(*call, documents, "--html", tmp_path / "a.html"), 2, "--text")
    one_line(cli(*call, documents, "--show", "--json"), 2, "choose one")
    one_line(cli(*call, lines({"body": "a"})), 1, "bad.jsonl:1", '"text"', '"body"')
    one_line(cli(*call, lines("a", {"text": 5})), 1, "bad.jsonl:2", "must be a string")
    one_line(cli(*call, lines({"text": " "})), 1, "is empty")
    one_line(cli(*call, lines([1])), 1, "found list")
    one_line(cli(*call, lines({"text": "a", "value": 1})), 1, '"value"', "rename")
    one_line(cli(*call, lines()), 1, "holds no records")
    one_line(cli("extract", "--schema", schema, documents, "-m", tiny, "--threads", 1, "-s", "n=2"), 2, "once")
    one_line(cli("extract", "--schema", schema, documents, "-m", tiny, "--threads", 1, "-s", "tempo=2"), 2, "tempo")


@pytest.mark.slow
def test_ctrl_c_loses_nothing(cli, tiny, schema, documents, tmp_path, monkeypatch):
    from likely.io.jsonl import Results

    call = ("extract", "--schema", schema, documents, "-m", tiny, "--threads", 1, "--max-tokens", 60)
    assert cli(*call, "-o", tmp_path / "whole.jsonl").code == 0
    write, out = Results.write, tmp_path / "out.jsonl"

    def interrupted(results, records):
        write(results, records)
        if len(results.done) == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Results, "write", interrupted)
        done = cli(*call, "-o", out)
    assert done.code == 130 and f"stopped: 20 new, 20 of 40 lines are in {out}" in done.err
    assert (tmp_path / "whole.jsonl").read_bytes().startswith(out.read_bytes()) and len(
        out.read_text().splitlines()
    ) == 21
    assert cli(*call, "-o", out).code == 0 and out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
