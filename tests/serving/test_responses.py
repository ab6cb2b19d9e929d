"""POST /v1/responses by the official client: the same texts, calls and numbers as a chat."""

from __future__ import annotations

import json

import openai
import pytest
from helpers_for_serving import ask, serving
from tiny_gguf import write_tiny_llama

import likely

RESPONSES = "/v1/responses"
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
TOOL = {
    "type": "function", "name": "pick", "description": "", "strict": True,
    "parameters": {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("responses") / "tiny.gguf", seed=3, context=2048)
    with likely.load(str(path), threads=1) as lm, serving(lm) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def as_chat(client, text, **options):
    return client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": text}], logprobs=True, top_logprobs=2,
        extra_body={"stop_repetition": True}, **options,
    )  # fmt: skip


def test_a_response_is_the_chats_text_with_its_numbers(client):
    expected = as_chat(client, "the cat", max_tokens=8, seed=3).choices[0]
    found = client.responses.create(
        model="tiny", input="the cat", max_output_tokens=8, top_logprobs=2, extra_body={"seed": 3}
    )
    assert found.output_text == expected.message.content
    [part] = found.output[0].content
    assert [e.logprob for e in part.logprobs] == pytest.approx([e.logprob for e in expected.logprobs.content])
    assert (found.status, expected.finish_reason) in {("incomplete", "length"), ("completed", "stop")}
    assert found.usage.output_tokens == len(expected.logprobs.content) and found.usage.total_tokens > 8


def test_pieces_add_up_to_the_whole(client):
    options = {
        "model": "tiny",
        "input": "the cat",
        "max_output_tokens": 8,
        "extra_body": {"seed": 3, "drafter": "none"},
    }
    whole = client.responses.create(**options)
    events = list(client.responses.create(**options, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text and events[-1].response.status == whole.status
    with client.responses.stream(model="tiny", input="the cat", max_output_tokens=8, extra_body={"seed": 3}) as stream:
        assert stream.get_final_response().output_text == whole.output_text if "completed" in kinds[-1] else True


def test_messages_instructions_and_forms(client):
    told = [{"role": "system", "content": "the"}, {"role": "user", "content": "cat"}]
    expected = client.chat.completions.create(
        model="tiny", messages=told, max_tokens=30, seed=2,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
    )  # fmt: skip
    found = client.responses.create(
        model="tiny", instructions="the", input=[{"role": "user", "content": [{"type": "input_text", "text": "cat"}]}],
        max_output_tokens=30, extra_body={"seed": 2},
        text={"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}},
    )  # fmt: skip
    assert found.output_text == expected.choices[0].message.content
    assert json.loads(found.output_text)["a"] in ("x", "y")


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_their_results(client, stream):
    asked = {"model": "tiny", "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False,
             "max_output_tokens": 120, "extra_body": {"seed": 1}}  # fmt: skip
    question = {"role": "user", "content": "pick"}
    reply = client.responses.create(input=[question], **asked, stream=stream)
    if stream:
        events = list(reply)
        reply = events[-1].response
        pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
        assert "".join(pieces) == reply.output[0].arguments
    [call] = reply.output
    assert call.type == "function_call" and call.name == "pick" and json.loads(call.arguments)["a"] in ("x", "y")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    again = client.responses.create(
        input=[question, call.model_dump(exclude_none=True), result], model="tiny", max_output_tokens=5,
        tools=[TOOL], tool_choice="none",
    )  # fmt: skip
    assert again.output_text is not None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, 'field "input" is missing'),
        ({"input": "a", "previous_response_id": "resp_1"}, "keeps no responses"),
        ({"input": "a", "max_output_tokens": 99999}, "max_output_tokens must be at most"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0]: text"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "functions only"),
        ({"input": "a", "tool_choice": {"type": "x"}}, "tool_choice"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type must be"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "temperature": -1}, "temperature"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "tool_call_id"),
        (
            {
                "input": [
                    {"role": "user", "content": "a"},
                    {"type": "function_call_output", "call_id": "x", "output": "y"},
                ],
                "instructions": "b",
            },
            "input: no call before it",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(tiny, body, message):
    status, reply = ask(tiny, lambda client: client.post(RESPONSES, body))
    assert status == 400 and message in reply["error"]["message"] and "\n" not in reply["error"]["message"]


def test_what_has_no_effect_is_told(tiny):
    async def question(client):
        asked = {"input": "a", "max_output_tokens": 2, "store": True, "reasoning": {"effort": "low"}}
        return await client.ok(RESPONSES, **asked), await client.http.post(RESPONSES, json={**asked, "stream": True})

    whole, streamed = ask(tiny, question)
    assert any("store" in line for line in whole["warnings"]) and any("reasoning" in line for line in whole["warnings"])
    last = [line for line in streamed.text.splitlines() if line.startswith("data: {")][-1]
    assert json.loads(last.removeprefix("data: "))["response"]["warnings"] == whole["warnings"]
