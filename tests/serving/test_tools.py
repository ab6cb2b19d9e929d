"""Tools: typed functions, the grammar of calls, calls in conversations, whole and streamed, for the official client."""

from __future__ import annotations

import json
import threading
from enum import Enum
from typing import Literal

import jsonschema
import openai
import pytest
from helpers_for_serving import ask, serving
from pydantic import BaseModel
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import DataError
from likely.serving.tools import CallParser, Toolbox, ToolChoice, tool, tool_form, with_tools

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "the cat"}]
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["the", "cat"]}, "days": {"type": "integer", "minimum": 1, "maximum": 3}},
        "required": ["city", "days"],
    },
}
NOW = {"name": "now"}
OFFERED = [{"type": "function", "function": WEATHER}, {"type": "function", "function": NOW}]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """Room for tools in the prompt, whose every letter is a token."""
    path = write_tiny_llama(tmp_path_factory.mktemp("tools") / "tiny.gguf", seed=3, context=4096)
    with likely.load(str(path), threads=1) as lm:
        yield lm


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ONE, TWO = call("get_weather", '{"city": "cat", "days": 2}'), call("now", "{}")
TEXTS = {
    "": "all", "then <they <t": "text", ONE: "call", f"{ONE}\n{TWO}": "calls", f"then they\n{ONE}": "text and call",
    f"{ONE} and": "none", "a <tool_call> b": "none", call("later", "{}"): "none",
    call("get_weather", '{"city": "cat", "days": 4}'): "none", call("get_weather", '{"city": "cat"}'): "none",
    call("now", '{"a": 1}'): "none",
}  # fmt: skip


def accepts(lm, choice, text, functions=(WEATHER, NOW)):
    held = lm.guide.constraint(tool_form(functions, choice))
    for token in lm.tokenizer.encode(text):
        if not held.permits(token):
            return False
        held.advance(token)
    return held.accepting


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [
        (ToolChoice(), {"all", "text", "call", "calls", "text and call"}),
        (ToolChoice(parallel=False), {"all", "text", "call", "text and call"}),
        (ToolChoice("required"), {"call", "calls"}),
        (ToolChoice("required", "get_weather", parallel=False), {"call"}),
        (ToolChoice("required", "now"), set()),
    ],
)
def test_the_grammar_allows_calls_that_follow_their_schemas(tiny, choice, kinds):
    for text, kind in TEXTS.items():
        assert accepts(tiny, choice, text) == (kind in kinds), (text, kind)


def test_arguments_are_an_object_whatever_their_schema_leaves_open(tiny):
    required, open_one = ToolChoice("required"), [{"name": "now", "parameters": {"description": "anything"}}]
    assert accepts(tiny, required, call("now", "{}"), open_one)
    assert not accepts(tiny, required, call("now", "5"), open_one)
    with pytest.raises(DataError, match='the parameters of "now" are an object, got type "string"'):
        tool_form([{"name": "now", "parameters": {"type": "string"}}], required)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("text", [t for t, kind in TEXTS.items() if kind != "none"])
def test_a_text_in_pieces_is_read_like_the_whole(text, size):
    parser, content, calls = CallParser(), "", {}
    pieces = [text[i : i + size] for i in range(0, len(text), size)] or [""]
    for i, piece in enumerate(pieces):
        new, news = parser.push(piece, last=i == len(pieces) - 1)
        content += new
        for each in news:
            found = calls.setdefault(each.index, [None, ""])
            found[0] = each.name or found[0]
            found[1] += each.arguments
    assert list(calls.values()) == parser.calls and content == parser.content
    written = "\n".join(call(name, arguments) for name, arguments in parser.calls)
    assert "\n".join(filter(None, [content, written])) == text


def test_tools_and_their_results_are_text_for_any_template():
    called = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        {"id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]}  # fmt: skip
    results = [{"role": "tool", "tool_call_id": f"c{i}", "content": f"at {i}"} for i in (1, 2)]
    system = {"role": "system", "content": "Be brief."}
    told = with_tools([system, *USER, called, *results], [NOW])
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be brief.") and '"name": "now"' in told[0]["content"]
    assert told[2]["content"] == f"{TWO}\n{TWO}"
    assert told[3]["content"].count("<tool_response>") == 2 and "at 2" in told[3]["content"]
    assert all(message.keys() == {"role", "content"} for message in told)
    with pytest.raises(DataError, match="c3"):
        with_tools([*USER, {"role": "tool", "tool_call_id": "c3", "content": "x"}], [])


# --- the server -------------------------------------------------------------------------------------------------------


def test_a_call_is_the_same_whole_and_streamed_and_with_a_drafter(roomy):
    fields = {"messages": USER, "tools": OFFERED, "tool_choice": "required", "max_tokens": 120, "seed": 5}

    async def question(client):
        whole = await client.ok(CHAT, **fields, logprobs=True, n=2, drafter="none")
        drafted = await client.ok(CHAT, **fields, logprobs=True, n=2, drafter="lookup")
        events = await client.events(CHAT, **fields, logprobs=True, n=2)
        return whole, drafted, events

    whole, drafted, events = ask(roomy, question)
    for sample, choice in enumerate(whole["choices"]):
        calls = choice["message"]["tool_calls"]
        assert calls and choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        for each in calls:
            schema = {"get_weather": WEATHER, "now": NOW}[each["function"]["name"]].get(
                "parameters", {"maxProperties": 0}
            )
            jsonschema.validate(json.loads(each["function"]["arguments"]), schema)
        assert drafted["choices"][sample]["logprobs"] == choice["logprobs"]
        pieces = [event["choices"][0] for event in events if event["choices"][0]["index"] == sample]
        together: dict[int, dict] = {}
        for piece in pieces:
            for delta in piece["delta"].get("tool_calls", []):
                found = together.setdefault(delta["index"], {"arguments": ""})
                found.setdefault("id", delta.get("id"))
                found.setdefault("name", delta["function"].get("name"))
                found["arguments"] += delta["function"]["arguments"]
        assert [(t["name"], t["arguments"]) for t in together.values()] == [
            (c["function"]["name"], c["function"]["arguments"]) for c in calls
        ]
        assert all(t["id"].startswith("call_") for t in together.values())
        content = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        assert content == choice["logprobs"]["content"]
        assert pieces[-1]["finish_reason"] == "tool_calls"


def test_the_model_may_answer_in_words(roomy):
    no_call = {"logit_bias": {str(roomy.tokenizer.encode("<")[0]): -100}}

    async def question(client):
        offered = await client.ok(CHAT, messages=USER, tools=OFFERED, max_tokens=8, seed=1, **no_call)
        none = await client.ok(CHAT, messages=USER, tools=OFFERED, tool_choice="none", max_tokens=8, seed=1)
        plain = await client.ok(CHAT, messages=USER, max_tokens=8, seed=1)
        counted = await client.ok("/tokenize", messages=USER, tools=OFFERED)
        assert counted["count"] == offered["usage"]["prompt_tokens"]
        return offered, none, plain

    offered, none, plain = ask(roomy, question)
    assert offered["choices"][0]["message"]["content"] and "tool_calls" not in offered["choices"][0]["message"]
    assert offered["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    assert none["choices"][0]["message"] == plain["choices"][0]["message"]


def test_metrics_count_forms_and_calls(roomy):
    offered = {"tools": [{"type": "function", "function": {"name": "now"}}], "tool_choice": "required"}

    async def question(client):
        await client.ok("/v1/completions", prompt="the", max_tokens=8, guided_choice=["cat", "on"])
        await client.ok("/v1/completions", prompt="the", max_tokens=8, guided_choice=["cat", "on"], stop=["at", "n"])
        said = [{"role": "user", "content": "a"}]
        for stop in ([], ["}}"]):
            await client.ok(CHAT, messages=said, max_tokens=80, parallel_tool_calls=False, stop=stop, **offered)
        return (await client.http.get("/metrics")).text

    text = ask(roomy, question)
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    valid = [values.get(f'likely:schema_valid_total{{valid="{each}"}}', "0") for each in ("true", "false")]
    assert valid == ["2.0", "2.0"]
    calls = [
        values.get(f'likely:tool_calls_total{{outcome="{each}",stage="schema"}}', "0") for each in ("accepted", "cut")
    ]
    assert calls == ["1.0", "1.0"]


def test_tools_and_a_form_are_two_forms_unless_a_call_must_be_made(roomy):
    body = {"messages": USER, "tools": OFFERED[1:], "response_format": {"type": "json_object"}, "max_tokens": 80}

    async def question(client):
        return await client.post(CHAT, body), await client.post(CHAT, {**body, "tool_choice": "required"})

    (status, reply), (forced, called) = ask(roomy, question)
    assert status == 400 and "one form" in reply["error"]["message"]
    assert forced == 200 and called["choices"][0]["message"]["tool_calls"]
    assert called["warnings"] == ['"response_format" has no effect where a call must be made']


def test_the_official_client_calls_a_tool_and_sends_its_result_back(roomy):
    @tool
    def get_weather(city: Literal["the", "cat"], days: int = 1) -> dict:
        """Weather of a city."""
        return {"city": city, "days": days}

    box = Toolbox([get_weather])
    with serving(roomy) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        messages = list(USER)
        reply = client.chat.completions.create(
            model="tiny", messages=messages, tools=box.definitions, tool_choice="required", max_tokens=100,
            parallel_tool_calls=False, seed=1,
        )  # fmt: skip
        [made] = reply.choices[0].message.tool_calls
        results = box.run([made])
        assert json.loads(results[0]["content"])["city"] in ("the", "cat")
        messages += [reply.choices[0].message, *results]
        after = client.chat.completions.create(
            model="tiny", messages=messages, tools=box.definitions, tool_choice="auto", max_tokens=5
        )
        assert after.usage.prompt_tokens > reply.usage.prompt_tokens
        assert after.usage.prompt_tokens_details.cached_tokens > reply.usage.prompt_tokens / 2


# --- the registry -----------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    name: str
    height: float | None = None


@tool
def everything(
    number: int, share: float, word: str, yes: bool, kind: Literal["a", "b"], maybe: int | None = None,
    many: list[str] | None = None, place: Place | None = None, colour: Colour = Colour.RED,
) -> str:  # fmt: skip
    """All kinds of arguments."""
    return repr((number, share, word, yes, kind, maybe, many, place, colour))


def test_a_signature_becomes_a_schema_and_arguments_become_values(tiny):
    arguments = {
        "number": 1, "share": 0.5, "word": "é", "yes": True, "kind": "b", "maybe": 3, "many": ["x"],
        "place": {"name": "n", "height": 2.0}, "colour": "blue",
    }  # fmt: skip
    found = everything.call(json.dumps(arguments))
    assert found == repr((1, 0.5, "é", True, "b", 3, ["x"], Place(name="n", height=2.0), Colour.BLUE))
    schema = everything.definition["function"]["parameters"]
    jsonschema.validate(arguments, schema)
    assert schema["required"] == ["number", "share", "word", "yes", "kind"]
    for wrong in ({**arguments, "number": "1.5"}, {**arguments, "more": 1}, {"number": 1}, {**arguments, "kind": "c"}):
        with pytest.raises(DataError, match="everything: "):
            everything.call(json.dumps(wrong))
    tiny.guide.constraint(tool_form([everything.definition["function"]], ToolChoice("required")))


def test_functions_that_json_cannot_call_are_refused():
    def starred(*args: int): ...
    def untyped(a): ...
    def named(a: int, /): ...

    for function, word in ((starred, "args"), (untyped, "has no type"), (named, "by name")):
        with pytest.raises(DataError, match=word):
            tool(function)


def test_nothing_is_called_that_a_check_refuses():
    ran = []

    @tool(effect="write", preconditions=[lambda given: "too many" if given["count"] > 3 else None])
    def delete(count: int) -> str:
        ran.append(count)
        return "done"

    def result(box, arguments, name="delete"):
        [message] = box.run([{"id": "c", "function": {"name": name, "arguments": arguments}}])
        assert message["role"] == "tool" and message["tool_call_id"] == "c"
        return message["content"]

    box = Toolbox([delete])
    assert "too many" in result(box, '{"count": 4}') and "count" in result(box, '{"count": "x"}')
    assert "error" in result(box, "no json") and "delete" in result(box, "{}", name="delte")
    assert "not allowed" in result(Toolbox([delete], writes=False), '{"count": 1}') and ran == []
    assert result(box, '{"count": 3}') == "done" and ran == [3]
    with pytest.raises(DataError, match="one name"):
        Toolbox([delete, delete])


def test_a_tool_that_takes_too_long_or_fails_is_an_error_for_the_model():
    gate = threading.Event()

    @tool(timeout_s=0.01)
    def slow() -> str:
        gate.wait()
        return "late"

    @tool
    def broken(a: int) -> str:
        raise RuntimeError("no\nluck")

    box = Toolbox([slow, broken])
    calls = [{"id": n, "function": {"name": n, "arguments": a}} for n, a in (("slow", "{}"), ("broken", '{"a": 1}'))]
    late, failed = box.run(calls)
    gate.set()
    assert "0.01 s" in json.loads(late["content"])["error"]["message"]
    assert json.loads(failed["content"])["error"] == {"stage": "execute", "path": "", "message": "no luck"}
