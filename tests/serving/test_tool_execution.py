"""Calls pass every check before they run; refused calls are repaired at most twice; changes never run twice."""

from __future__ import annotations

import itertools
import json
import threading
from typing import Literal

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.audit.function_calling import as_functions, function_cases
from likely.errors import DataError
from likely.lm.results import Answer
from likely.serving.tools import CallRefused, Toolbox, ToolChoice, best_tools, run_tools, tool
from likely.serving.tools.registry import Tool

FILES = {"a.txt", "b.txt"}


def make_box(**options):
    ran = []

    @tool(
        effect="write",
        references=[lambda given: None if given["file"] in FILES else f"there is no file {given['file']}"],
        preconditions=[lambda given: "it is locked" if given["file"] == "b.txt" else None],
    )
    def delete(file: str, times: int = 1) -> str:
        """Delete a file."""
        ran.append(file)
        return "done"

    @tool(effect="pure")
    def add(a: int, b: float = 1.0) -> float:
        """Add."""
        ran.append("add")
        return a + b

    return Toolbox([delete, add], **options), ran


BAD = [
    ("delete", "no json", "parse", ""), ("delete", "[1]", "parse", ""), ("delete", '{"file": "a', "parse", ""),
    ("delete", "{}", "schema", "/file"), ("delete", '{"file": 3}', "schema", "/file"),
    ("delete", '{"file": "a.txt", "times": "1"}', "schema", "/times"),
    ("delete", '{"file": "a.txt", "times": true}', "schema", "/times"),
    ("delete", '{"file": "a.txt", "more": 1}', "schema", "/more"),
    ("delete", '{"file": "c.txt"}', "references", ""), ("delete", '{"file": "b.txt"}', "preconditions", ""),
    ("delte", "{}", "references", ""), ("add", '{"a": 1.5}', "schema", "/a"), ("add", '{"a": "1"}', "schema", "/a"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "stage", "path"), BAD)
def test_what_a_stage_refuses_does_not_run(name, arguments, stage, path):
    box, ran = make_box()
    result = box.execute(name, arguments)
    assert (result.outcome, result.observation.stage, result.observation.path) == ("refused", stage, path)
    assert ran == [] and not result.executed and box.check(name, arguments) == result.observation
    assert json.loads(result.content())["error"].keys() == {"stage", "path", "message"}


def test_a_whole_number_is_a_float_and_nothing_else_is_converted():
    box, _ = make_box()
    assert box.execute("add", '{"a": 1, "b": 2}').value == 3.0
    assert box.execute("add", '{"a": 1, "b": "2"}').outcome == "refused"


def test_changes_need_permission_and_approval():
    box, ran = make_box(writes=False)
    assert "not allowed" in box.execute("delete", '{"file": "a.txt"}').observation.message
    asked = []
    box, ran2 = make_box(approve=lambda found, given: asked.append((found.name, given["file"])))
    assert "not approved" in box.execute("delete", '{"file": "a.txt"}').observation.message
    assert box.execute("add", '{"a": 1}').outcome == "done"  # changes nothing, so nobody is asked
    assert asked == [("delete", "a.txt")] and ran == [] and ran2 == ["add"]


def test_a_check_that_fails_itself_refuses():
    ran = []

    def check(given):
        raise KeyError("table")

    @tool(effect="write", preconditions=[check])
    def change() -> str:
        """Change."""
        ran.append(1)
        return ""

    assert Toolbox([change]).execute("change", "{}").observation.stage == "preconditions" and ran == []


def test_a_key_runs_once_and_an_unknown_outcome_is_never_repeated():
    release, keys = threading.Event(), []

    @tool(effect="write", timeout_s=0.01)
    def pay(amount: int, idempotency_key: str) -> str:
        """Pay."""
        keys.append(idempotency_key)
        if amount > 5:
            release.wait()
        if amount < 0:
            raise RuntimeError("connection lost")
        return "paid"

    assert "idempotency_key" not in pay.definition["function"]["parameters"]["properties"]
    box = Toolbox([pay])
    first = box.execute("pay", '{"amount": 1}', key="k")
    assert first.outcome == "done" and box.execute("pay", '{"amount": 1}', key="k") is first and keys == ["k"]
    assert box.execute("pay", '{"amount": 1}').outcome == "done" and len(keys) == 2  # another call, asked for anew
    for amount in (9, -1):  # too late, and broken off
        late = box.execute("pay", json.dumps({"amount": amount}), key=f"k{amount}")
        assert late.outcome == "unknown" and late.observation.stage == "execute" and not late.may_repair
        again = box.execute("pay", json.dumps({"amount": amount}))
        assert again.outcome == "refused" and "do not repeat" in again.observation.message
        assert box.execute("pay", json.dumps({"amount": amount}), key=f"k{amount}") is late
    release.set()
    assert len(keys) == 4


def test_results_are_checked():
    @tool
    def number() -> int:
        """A number."""
        return "three"  # type: ignore[return-value]

    @tool
    def thing() -> object:
        """A thing."""
        return threading.Lock()

    box = Toolbox([number, thing])
    for name in ("number", "thing"):
        result = box.execute(name, "{}")
        assert (result.outcome, result.observation.stage) == ("failed", "result")
    with pytest.raises(CallRefused, match="promises"):
        number.call("{}")


def test_a_schema_alone_is_checked_like_a_signature():
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    box = Toolbox([Tool(lambda **given: given, "pick", "", schema=schema)])
    assert box.execute("pick", '{"n": 2}').value == {"n": 2}
    wrong = [box.execute("pick", text).observation for text in ('{"n": 3}', "{}", '{"n": 1, "m": 1}')]
    assert [(w.stage, w.path) for w in wrong] == [("schema", "/n"), ("schema", ""), ("schema", "")]


def test_names_are_those_that_every_client_takes():
    def odd() -> str:
        """Odd."""
        return ""

    with pytest.raises(DataError, match="64 letters"):
        tool(name="a.b")(odd)


# --- the conversation -------------------------------------------------------------------------------------------------


class Scripted:
    """Says what it was told to say, and notes what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = iter(texts), []

    def chat(self, messages, **options):
        self.asked.append((messages, options))
        text = next(self.texts)
        return Answer(text, [1], [-0.1], -0.1, -0.1, "stop", 1, 0.0, prompt_tokens=3)


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_a_refused_call_is_repaired_and_then_answered():
    box, ran = make_box()
    lm = Scripted(call("delete", '{"file": "c.txt"}'), call("delete", '{"file": "a.txt"}'), "It is gone.")
    run = run_tools(lm, [{"role": "user", "content": "Delete it."}], box)
    assert (run.ended, run.text, run.repairs, run.escalate, ran) == ("answered", "It is gone.", 1, False, ["a.txt"])
    assert [turn.repair for turn in run.turns] == [False, True, False]
    assert "there is no file c.txt" in lm.asked[1][0][-1]["content"]  # what was wrong, as the model reads it
    first, repair, last = (options["grammar"] for _, options in lm.asked)
    assert "before" in first and "before" not in repair and 'add\\"' not in repair and first == last
    assert [m["role"] for m in run.messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]


def test_of_many_tools_those_are_offered_that_fit_the_question():
    box, ran = make_box()
    lm = Scripted(call("delete", '{"file": "c.txt"}'), call("delete", '{"file": "a.txt"}'), "Gone.")
    run = run_tools(lm, [{"role": "user", "content": "Delete a file"}], box, most_offered=1)
    assert run.ended == "answered" and ran == ["a.txt"]
    for messages, options in lm.asked:
        assert '"delete"' in messages[0]["content"] and '"add"' not in messages[0]["content"]
        assert "delete" in options["grammar"] and 'add\\"' not in options["grammar"]
    functions = box.functions
    assert [f["name"] for f in best_tools("Please add 3 and 4", functions, 1)] == ["add"]
    assert best_tools("add", functions, 2) == functions and best_tools("nothing known", functions, 1) == functions[:1]
    assert best_tools("x", [], 3) == []
    with pytest.raises(ValueError, match="at least 1"):
        best_tools("add", functions, 0)


def test_the_right_tool_of_a_hundred_is_among_eight():
    """Questions of the leaderboard, each with the functions of a hundred of them on offer."""
    cases = function_cases("simple_python", limit=100)
    functions = [as_functions(case.functions)[0][0] for case in cases]
    questions = [case.messages[-1]["content"] for case in cases]
    found = [own in best_tools(asked, functions, 8) for asked, own in zip(questions, functions, strict=True)]
    assert np.mean(found) > 0.9
    by_chance = [own in best_tools("", functions, 8) for own in functions]
    assert np.mean(by_chance) == 0.08


def test_two_repairs_and_no_more():
    box, ran = make_box()
    lm = Scripted(*itertools.repeat(call("delete", '{"file": "b.txt"}'), 9))
    run = run_tools(lm, [{"role": "user", "content": "x"}], box)
    assert (run.ended, run.repairs, run.escalate, ran, len(lm.asked)) == ("repairs", 2, True, [], 3)
    assert run_tools(Scripted(call("add", '{"a": 1')[:45]), [], box, max_repairs=0).ended == "repairs"  # it was cut


def test_a_run_ends_where_nobody_knows_what_was_done():
    @tool(effect="write")
    def pay() -> str:
        """Pay."""
        raise OSError("line is dead")

    lm = Scripted(*itertools.repeat(call("pay", "{}"), 9))
    run = run_tools(lm, [], Toolbox([pay]))
    assert run.ended == "unknown" and run.escalate and len(lm.asked) == 1


def test_what_is_done_is_not_done_again_by_a_repair():
    box, ran = make_box()
    lm = Scripted(
        call("delete", '{"file": "a.txt"}') + "\n" + call("add", '{"a": "x"}'), call("add", '{"a": 2}'), "both"
    )
    run = run_tools(lm, [], box)
    assert ran == ["a.txt", "add"] and [c.outcome for c in run.calls] == ["done", "refused", "done"]
    lm = Scripted(call("add", '{"a": 2}'))
    assert run_tools(lm, [], box, answer_after=False).ended == "called"
    assert run_tools(Scripted(*[call("add", '{"a": 2}')] * 3), [], box, max_turns=3).ended == "turns"


def test_a_real_grammar_holds_every_reply(tmp_path):
    """A random model that must call: whatever it writes is a call that the types accept."""

    @tool(effect="pure")
    def pick(which: Literal["the", "cat"]) -> str:
        """Pick."""
        return which

    path = write_tiny_llama(tmp_path / "tiny.gguf", seed=3, context=1024)
    with likely.load(str(path), threads=1) as lm:
        run = run_tools(
            lm, [{"role": "user", "content": "a"}], Toolbox([pick]), choice=ToolChoice("required", parallel=False),
            answer_after=False, max_tokens=80,
        )  # fmt: skip
    assert run.ended == "called" and run.calls[0].value in ("the", "cat")
