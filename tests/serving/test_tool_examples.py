"""Logged calls as training data: what was carried out stays, what was refused goes with its results."""

from __future__ import annotations

import json

import pytest

from likely.cli.app import run
from likely.errors import DataError
from likely.serving.tools import CallParser, Toolbox, export_training_data, tool, training_example


@tool(references=[lambda given: None if given["file"] == "a.txt" else "there is no such file"])
def read(file: str) -> str:
    """Read a file."""
    return "text of it"


BOX = Toolbox([read])


def turn(number, *files):
    """An assistant's message with calls, and what the toolbox says to them."""
    calls = [
        {"id": f"call_{number}_{i}", "type": "function",
         "function": {"name": "read", "arguments": json.dumps({"file": file})}}
        for i, file in enumerate(files)
    ]  # fmt: skip
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *BOX.run(calls)]


USER = [{"role": "user", "content": "Read it."}]
LAST = [{"role": "assistant", "content": "It says: text of it"}]


def texts(example):
    return [(m["role"], m["content"]) for m in example["messages"]]


def calls_in(text):
    parser = CallParser()
    parser.push(text, last=True)
    return [json.loads(arguments)["file"] for _, arguments in parser.calls]


def test_a_repaired_call_is_taught_as_the_first_attempt():
    found = training_example([*USER, *turn(0, "b.txt"), *turn(1, "a.txt"), *LAST], BOX.functions)
    again = training_example([*USER, *turn(1, "a.txt"), *LAST], BOX.functions)
    assert found == again and [role for role, _ in texts(found)] == ["system", "user", "assistant", "user", "assistant"]
    assert "Read a file." in texts(found)[0][1] and calls_in(texts(found)[2][1]) == ["a.txt"]
    assert "text of it" in texts(found)[3][1] and "there is no such file" not in json.dumps(found)


def test_of_several_calls_the_wrong_ones_go_and_nothing_ends_with_a_question():
    found = training_example([*USER, *turn(0, "b.txt", "a.txt")], BOX.functions)
    assert texts(found)[-1][0] == "assistant" and calls_in(texts(found)[-1][1]) == ["a.txt"]
    assert training_example([*USER, *turn(0, "b.txt")], BOX.functions) is None
    assert training_example([*USER, *LAST], BOX.functions) is None
    twice = [*USER, *turn(0, "a.txt"), *turn(1, "a.txt"), *LAST]
    assert training_example(twice, BOX.functions, min_verified=2) is not None
    assert training_example(twice, BOX.functions, min_verified=3) is None
    unanswered = [*USER, turn(0, "a.txt")[0]]  # nobody knows whether that was right
    assert training_example(unanswered, BOX.functions) is None


def test_the_verb_writes_what_sft_reads(tmp_path, capsys):
    logged = [{"messages": [*USER, *turn(0, name), *LAST], "tools": BOX.definitions} for name in ("a.txt", "b.txt")]
    source, out = tmp_path / "logged.jsonl", tmp_path / "examples.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in logged))
    assert run(["tools", "export", str(source), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"conversations": 2, "examples": 1}
    (line,) = map(json.loads, out.read_text().splitlines())
    assert {m["role"] for m in line["messages"]} <= {"system", "user", "assistant"}
    with pytest.raises(DataError, match='conversation 1: "messages"'):
        export_training_data([{"messages": "x"}], out)
