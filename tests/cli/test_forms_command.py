"""--schema, --regex, --choices, --grammar on generate, ask and chat."""

from __future__ import annotations

import json
import re

import pytest
from test_commands import one_line

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(SCHEMA))
    return path


@pytest.mark.parametrize("verb", ["generate", "ask"])
def test_a_schema_gives_a_value_with_its_numbers(cli, tiny, schema, verb):
    record = cli(verb, "ab", "-m", tiny, "--schema", schema, "--max-tokens", 100, "--seed", 3, "--json").json
    assert record["complete"] and record["value"].keys() == {"name", "n"}
    assert json.loads(record["text"]) == record["value"]
    assert record["text"] == json.dumps(record["value"], ensure_ascii=False)  # a space after , and :
    assert [field["pointer"] for field in record["fields"]] == ["/name", "/n"]
    shares = [*record["fields"], record["structure"]]
    assert sum(s["logprob"] + s["forced_logprob"] for s in shares) == pytest.approx(record["sequence_logprob"])
    assert record["log_weight"] == pytest.approx(sum(record["token_log_masses"])) and record["log_weight"] < 0
    plain = cli(verb, "ab", "-m", tiny, "--schema", schema, "--max-tokens", 100, "--seed", 3)
    assert plain.code == 0 and plain.out == record["text"] + "\n" and plain.err == ""
    shown = cli(verb, "ab", "-m", tiny, "--schema", schema, "--max-tokens", 100, "--seed", 3, "--show")
    (line,) = [line for line in shown.out.splitlines() if line.startswith("/name")]
    assert f"{record['fields'][0]['logprob']:.4f}" in line and "\x1b" not in shown.out


def test_the_other_forms(cli, tiny, tmp_path):
    assert cli("generate", "ab", "-m", tiny, "--choices", "yes, no").out in ("yes\n", "no\n")
    assert cli("generate", "ab", "-m", tiny, "--choices", '["a, b", "c,"]').out in ("a, b\n", "c,\n")
    assert re.fullmatch(r"[ab]{4}\n", cli("generate", "ab", "-m", tiny, "--regex", "[ab]{4}").out)
    (tmp_path / "g.lark").write_text('start: "x" | "[" start "]"\n')
    assert re.fullmatch(r"\[*x\]*\n", cli("generate", "ab", "-m", tiny, "--grammar", tmp_path / "g.lark", "-t", 0).out)
    several = cli("generate", "ab", "-m", tiny, "--regex", "[ab]{2}", "-n", 3)
    assert re.fullmatch(r"(--- \d [ab]{2}\n){3}", several.out)


def test_settings_of_a_form(cli, tiny, schema):
    loose = cli("generate", "ab", "-m", tiny, "--schema", schema, "-s", "whitespace=any", "--max-tokens", 200)
    assert loose.code == 0 and json.loads(loose.out)
    one_line(cli("generate", "ab", "-m", tiny, "--schema", schema, "-s", "whitespace=none"), 2, "whitespace", "compact")
    one_line(cli("generate", "ab", "-m", tiny, "-s", "whitespace=any"), 2, "without a form")


def test_a_text_that_is_not_whole_is_exit_code_1(cli, tiny, schema):
    call = ("generate", "ab", "-m", tiny, "--schema", schema, "--max-tokens", 12, "-s", "close_on_budget=False")
    done = cli(*call)
    assert done.code == 1 and done.out.startswith('{"name": "')
    assert done.err == (
        "Error: the text is not complete: it ended after 12 tokens, inside the string at /name: raise --max-tokens, or "
        "bound strings by maxLength in the schema or -s max_string=60\n"
    )
    done = cli(*call, "--json")
    record = json.loads(done.out)
    assert done.code == 1 and record["value"] is None and record["complete"] is False and record["fields"] is None
    many = cli(*call, "-n", 2)
    assert many.code == 1 and many.err.startswith("Error: 2 of 2 texts: the text is not complete")
    cut = cli("generate", "ab", "-m", tiny, "--regex", "a{30}", "--stop", "aaa")
    assert cut.code == 1 and cut.out == "\n" and "--stop" in cut.err


def test_wrong_forms_are_one_line(cli, tiny, tmp_path, schema):
    bad = tmp_path / "bad.json"
    bad.write_text('{"type":\n  object}')
    call = ("generate", "ab", "-m", tmp_path / "no such model.gguf")  # refused before a model is opened
    one_line(cli(*call, "--schema", bad), 1, f"{bad}:2:3: not JSON")
    bad.write_text("[1]")
    one_line(cli(*call, "--schema", bad), 1, "a JSON Schema is an object, found list")
    bad.write_bytes(b"\xff")
    one_line(cli(*call, "--schema", bad), 1, "not UTF-8 (byte 0)")
    bad.write_text("[" * 100_000)
    one_line(cli(*call, "--schema", bad), 1, "nested too deeply")
    one_line(cli(*call, "--schema", tmp_path / "none.json"), 1, "cannot read", "none.json", "No such file")
    one_line(cli(*call, "--grammar", tmp_path / "none.lark"), 1, "cannot read")
    one_line(cli(*call, "--schema", schema, "--regex", "a"), 2, "choose one form", "--schema, --regex")
    one_line(cli(*call, "--choices", "a,,b"), 2, "at least one character")
    one_line(cli(*call, "--choices", "[1, 2]"), 2, "string")
    one_line(cli(*call, "--choices", "a", "--choices", "b"), 2, "--choices", "give it once, with commas between")
    (tmp_path / "bad.lark").write_text('start: "a" bb\n')
    one_line(cli(*call, "--grammar", tmp_path / "bad.lark"), 1, "bad.lark is no grammar", 'at 1(8): unknown name: "bb"')
    one_line(cli(*call, "--choices", '["a'), 2, "not a JSON list")
    one_line(cli("generate", "ab", "-m", tiny, "--regex", "(a"), 1, "(a")


def test_every_question_of_a_file_has_its_value(cli, tiny, tmp_path):
    file, out = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"id": i, "question": f"{i}?"}) + "\n" for i in range(4)))
    assert cli("ask", file, "-m", tiny, "--choices", "yes,no", "-o", out).code == 0
    header, *answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert header["settings"]["choices"] == ["yes", "no"] and len(answers) == 4
    assert all(a["value"] == a["text"] in ("yes", "no") and a["complete"] and a["fields"] for a in answers)
    done = cli("ask", file, "-m", tiny, "--regex", "a{9}b*", "--max-tokens", 3, "-s", "close_on_budget=False")
    assert done.code == 1 and f"4 answers are not complete, the first is that of {file}:1 (length)" in done.err
    assert [json.loads(line)["value"] for line in done.out.splitlines()[1:]] == [None] * 4


def test_chat_answers_in_the_form(cli, tiny):
    done = cli("chat", "-m", tiny, "--choices", "yes,no", "--json", stdin="Hello?\nReally?\n")
    assert done.code == 0 and [line["value"] in ("yes", "no") for line in done.lines] == [True, True]
    done = cli(
        "chat", "-m", tiny, "--regex", "a{30}", "--max-tokens", 3, "-s", "close_on_budget=False", stdin="Hi\nHo\n"
    )
    assert done.code == 1 and "not complete" in done.err


@pytest.mark.slow
def test_what_cannot_be_enforced(cli, tiny, tmp_path):
    """Refused; or drawn until it holds; or left out, and said so."""
    path = tmp_path / "f.json"
    path.write_text('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2, "uniqueItems": true}')
    call = ("generate", "ab", "-m", tiny, "--schema", path, "--threads", 1, "-s", "whitespace=compact")
    one_line(cli(*call), 1, "uniqueItems", "validate")
    for seed in range(6):
        held = cli(*call, "--seed", seed, "-s", "on_unsupported=validate", "-s", "retries=50", "--json")
        assert sorted(held.json["value"]) == [1, 2]
        again = cli("ask", *call[1:], "--seed", seed, "-s", "on_unsupported=validate", "-s", "retries=50")
        assert sorted(json.loads(again.out)) == [1, 2]  # greedy at first, then at temperature 1
    left = [cli(*call, "--seed", seed, "-s", "on_unsupported=ignore") for seed in range(6)]
    assert all(done.code == 0 and done.err == 'Warning: not enforced: "uniqueItems" at the top\n' for done in left)
    assert {done.out for done in left} & {"[1,1]\n", "[2,2]\n"}
