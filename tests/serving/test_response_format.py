"""Forms through the server: the local texts, real clients, mixed batches, and refusals that hurt nobody else."""

from __future__ import annotations

import asyncio
import json
import re

import openai
import pytest
from helpers_for_serving import ask, serving, toy_model
from pydantic import BaseModel, Field

import likely

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Person(BaseModel, extra="forbid"):
    name: str = Field(max_length=6)
    age: int = Field(ge=0, le=150)
    tags: list[str] = Field(max_length=2)


# bounds of what the tiny model, which writes noise, would else write for ever
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "Who?"}]


def json_schema(schema=SCHEMA, **more):
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, **more}}


@pytest.fixture(scope="module")
def own(tiny_path):
    with likely.load(str(tiny_path), threads=1) as lm:
        yield lm


@pytest.fixture(scope="module")
def url(tiny_path):
    with likely.load(str(tiny_path), threads=1) as lm, serving(lm) as url:
        yield url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


# --- the official client ----------------------------------------------------------------------------------------------


def test_parse_gives_objects(client):
    class Small(BaseModel, extra="forbid"):
        n: int = Field(ge=0, le=9)
        yes: bool

    reply = client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Small, seed=1, max_tokens=60)
    assert reply.choices[0].finish_reason == "stop" and isinstance(reply.choices[0].message.parsed, Small)


@pytest.mark.parametrize("drafter", ["none", "lookup"])
def test_a_schema_is_held_and_the_text_is_the_local_ones(client, own, drafter):
    local = own.chat(MESSAGES, schema=SCHEMA, seed=5, max_tokens=60)
    asked = {
        "model": "tiny", "messages": MESSAGES, "response_format": json_schema(strict=True), "seed": 5, "max_tokens": 60,
        "extra_body": {"drafter": drafter},
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == local.text and json.loads(local.text).keys() == {"name", "age"}
    with client.chat.completions.create(**asked, stream=True) as stream:
        pieces = [chunk.choices[0] for chunk in stream]
    assert "".join(piece.delta.content or "" for piece in pieces) == local.text and len(pieces) > 3
    assert pieces[-1].finish_reason == "stop"


@pytest.mark.slow
def test_n_texts_each_in_the_form(client, own):
    local = own.generate("the", schema=SCHEMA, n=4, seed=2, max_tokens=60)
    reply = client.completions.create(
        model="tiny", prompt="the", n=4, seed=2, max_tokens=60, extra_body={"response_format": json_schema()}
    )
    assert [choice.text for choice in reply.choices] == [result.text for result in local]
    assert len({choice.text for choice in reply.choices}) > 1
    assert all(json.loads(choice.text).keys() == {"name", "age"} for choice in reply.choices)


@pytest.mark.parametrize(
    ("field", "matches"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"json": {"enum": [7, 8]}}}, "[78]"),
        ({"structured_outputs": {"json": '{"enum": [7, 8]}', "regex": None}}, "[78]"),
        ({"structured_outputs": {"grammar": 'start: "x" | "y"'}}, "[xy]"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
        ({"guided_json": {"enum": [7, 8]}}, "[78]"),
        ({"guided_grammar": 'start: "x" | "y"'}, "[xy]"),
        ({"choices": ["yes", "no"]}, "yes|no"),
        ({"regex": "[ab]{3}"}, "[ab]{3}"),
        ({"grammar": 'start: "x" | "y"'}, "[xy]"),
    ],
)
def test_names_that_clients_use(client, field, matches):
    reply = client.completions.create(model="tiny", prompt="the", max_tokens=9, extra_body=field)
    assert re.fullmatch(matches, reply.choices[0].text) and reply.choices[0].finish_reason == "stop"


def test_json_object(client):
    reply = client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=40, seed=3
    )
    assert isinstance(json.loads(reply.choices[0].message.content), dict) or reply.choices[0].finish_reason == "length"


def test_bad_schemas_are_one_line_for_the_client(client):
    for schema, word in (({"type": "person"}, "person"), ({"type": "array", "uniqueItems": True}, "uniqueItems")):
        with pytest.raises(openai.BadRequestError) as refusal:
            client.chat.completions.create(
                model="tiny", messages=MESSAGES, response_format=json_schema(schema), max_tokens=9
            )
        assert word in refusal.value.message and "\n" not in refusal.value.message


def test_what_is_not_strict_leaves_out_what_cannot_be_enforced(client):
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 3}
    reply = client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format=json_schema(schema, strict=False), max_tokens=40
    )
    assert set(json.loads(reply.choices[0].message.content)) <= {1, 2}


# --- beside others ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_in_one_batch_everybody_gets_what_they_get_alone(tiny):
    """Guided and free, sampled and greedy, with and without drafts, all at once."""
    forms = [{}, {"response_format": json_schema()}, {"regex": "[a-z]{8}"}, {"choices": ["the cat", "the dog", "x"]}]
    asked = [
        {
            "prompt": f"the {i}",
            "max_tokens": 60,
            "seed": i,
            "temperature": i % 2,
            "drafter": ("none", "lookup")[i % 3 == 0],
        }
        | forms[i % 4]
        for i in range(12)
    ]

    async def question(client):
        alone = [await client.ok(COMPLETIONS, **body) for body in asked]
        together = await asyncio.gather(*(client.ok(COMPLETIONS, **body) for body in asked))
        return alone, together

    alone, together = ask(tiny, question)
    texts = [reply["choices"][0]["text"] for reply in alone]
    assert texts == [reply["choices"][0]["text"] for reply in together]
    for i, text in enumerate(texts):
        if i % 4 == 1:
            assert json.loads(text).keys() == {"name", "age"}
        if i % 4 == 2:
            assert re.fullmatch("[a-z]{8}", text)


def test_a_dead_end_ends_that_request_alone():
    """The toy's alphabet has no digits: nothing may follow."""

    async def question(client):
        free = {"prompt": "the", "max_tokens": 40, "seed": 1}
        before = await client.ok(COMPLETIONS, **free)
        dead = {"prompt": "the", "max_tokens": 40, "regex": "the [0-9]+"}
        replies = await asyncio.gather(
            client.ok(COMPLETIONS, **free), client.post(COMPLETIONS, dead), client.post(COMPLETIONS, dead)
        )
        streamed = await client.http.post(COMPLETIONS, json={**dead, "stream": True})
        assert client.engine.waiting == 0
        return before, replies, streamed.text

    before, (free, *dead), streamed = ask(toy_model(), question)
    assert free["choices"] == before["choices"]
    for status, reply in dead:
        assert status == 400 and "no token can follow" in reply["error"]["message"], reply
    last = json.loads(streamed.strip().split("\n\n")[-1].removeprefix("data: "))
    assert "no token can follow" in last["error"]["message"] and "[DONE]" not in streamed


@pytest.mark.slow
def test_a_pattern_that_is_too_dear_is_refused_and_the_server_goes_on(tiny):
    async def question(client):
        status, reply = await client.post(COMPLETIONS, {"prompt": "a", "max_tokens": 4, "regex": "(a{1000}){1000}"})
        return status, reply, await client.ok(COMPLETIONS, prompt="a", max_tokens=4, regex="b+")

    status, reply, after = ask(tiny, question)
    assert status == 400 and "\n" not in reply["error"]["message"] and len(reply["error"]["message"]) < 300
    assert after["choices"][0]["text"].startswith("b")


def test_echo_and_log_probabilities_beside_a_form(tiny):
    local = tiny.generate("the", choices=["cat", "dog"], seed=1, top_logprobs=2)

    async def question(client):
        body = {"prompt": "the", "choices": ["cat", "dog"], "seed": 1, "logprobs": 2, "echo": True}
        return (await client.ok(COMPLETIONS, **body))["choices"][0]

    choice = ask(tiny, question)
    assert choice["text"] == "the" + local.text
    found = choice["logprobs"]["token_logprobs"][-len(local.token_logprobs) :]
    assert found == pytest.approx(local.token_logprobs, abs=1e-6)  # the model's own, not those under the form
