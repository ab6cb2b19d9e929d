"""Requests that must be refused: at once, in one line, in OpenAI's shape, and before the model is touched."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from helpers_for_serving import ask, client_of

from likely.serving import ServerLimits
from likely.serving.api import answering
from likely.serving.api.endpoints import chats
from likely.serving.api.replies import CompletionLogprobs

COMPLETIONS, CHAT, SCORE = "/v1/completions", "/v1/chat/completions", "/v1/score"
USER = [{"role": "user", "content": "the"}]


def completion(**fields):
    return COMPLETIONS, {"prompt": "the", "max_tokens": 2, **fields}


def chat(**fields):
    return CHAT, {"messages": USER, "max_tokens": 2, **fields}


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def after_call(*, number="c", content="ok", said=None, calls=(CALL,)):
    """A chat in which a tool was called and answered."""
    called = {"role": "assistant", "content": said, "tool_calls": list(calls) if isinstance(calls, tuple) else calls}
    return chat(messages=[*USER, called, {"role": "tool", "tool_call_id": number, "content": content}])


def deep_schema(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


BIG = 2**63
REFUSED = {
    "empty body": (COMPLETIONS, b""),
    "no JSON": (COMPLETIONS, b"{"),
    "no object": (COMPLETIONS, b"[]"),
    "bad UTF-8": (COMPLETIONS, b'{"prompt": "\xff"}'),
    "half a surrogate pair": (COMPLETIONS, b'{"prompt": "\\ud800"}'),
    "deep nesting": (COMPLETIONS, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep object": (CHAT, b'{"messages": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"),
    "number of 100,000 digits": (COMPLETIONS, b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}"),
    "bias of 100,000 digits": (COMPLETIONS, b'{"prompt": "a", "logit_bias": {"1": ' + b"9" * 100_000 + b"}}"),
    "NaN": (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}'),
    "Infinity": (COMPLETIONS, b'{"prompt": "a", "temperature": Infinity}'),
    "1e999": (COMPLETIONS, b'{"prompt": "a", "temperature": 1e999}'),
    "NaN bias": (COMPLETIONS, b'{"prompt": "a", "logit_bias": {"1": NaN}}'),
    "nothing": (COMPLETIONS, {}),
    "a tool's answer to a list": after_call(number=["c"]),
    "a tool's answer to nothing": after_call(number=None),
    "a tool's answer to another call": after_call(number="d"),
    "a tool's answer as an object": after_call(content={"a": 1}),
    "words beside a call as a number": after_call(said=5),
    "words beside a call as an object": after_call(said={"a": 1}),
    "calls as a number": after_call(calls=5),
    "calls as an object": after_call(calls={}),
    "an object among prompts": completion(prompt=["a", {}]),
    "an empty string among stops": completion(stop=["a", ""]),
    "a prediction as a number": chat(prediction=5),
    "no prompt": (COMPLETIONS, {"prompt": None}),
    "empty list": completion(prompt=[]),
    "a token id beyond the vocabulary": completion(prompt=[1, 320]),
    "a negative token id": completion(prompt=[[1, 2], [-3]]),
    "token ids and texts": completion(prompt=[1, "a"]),
    "an empty list of token ids": completion(prompt=[[]]),
    "more token ids than the context": completion(prompt=[1] * 300),
    "min_tokens over max_tokens": completion(min_tokens=9),
    "ignore_eos with a form": completion(ignore_eos=True, regex="a+"),
    "a timeout of nothing": completion(timeout=0),
    "a priority as text": completion(priority="high"),
    "a salt that is long": completion(cache_salt="a" * 300),
    "object as prompt": completion(prompt={"text": "a"}),
    "too many prompts": completion(prompt=["a"] * 65),
    "prompt too long": completion(prompt="the cat sat on the mat " * 100),
    "prompt far too long": completion(prompt="x" * 900_000),
    "negative max_tokens": completion(max_tokens=-1),
    "no tokens": completion(max_tokens=0),
    "max_tokens 2^63": completion(max_tokens=BIG),
    "max_tokens over the context": completion(max_tokens=257),
    "max_tokens as text": completion(max_tokens="5"),
    "max_tokens as truth": completion(max_tokens=True),
    "max_tokens as float": completion(max_tokens=2.5),
    "n 0": completion(n=0),
    "n huge": completion(n=10**6),
    "n 2^63": completion(n=BIG),
    "logprobs huge": completion(logprobs=1000),
    "logprobs negative": completion(logprobs=-1),
    "logprobs 2^63": completion(logprobs=BIG),
    "seed 2^63": completion(seed=BIG),
    "seed -2^63 - 1": completion(seed=-BIG - 1),
    "temperature negative": completion(temperature=-0.1),
    "temperature huge": completion(temperature=1e30),
    "top_p 0": completion(top_p=0),
    "top_p over 1": completion(top_p=1.01),
    "top_k negative": completion(top_k=-1),
    "top_k 2^63": completion(top_k=BIG),
    "min_p over 1": completion(min_p=2),
    "penalty huge": completion(presence_penalty=1e9),
    "stop empty": completion(stop=""),
    "stop with an empty string": completion(stop=["a", ""]),
    "stop too long": completion(stop="x" * 257),
    "too many stops": completion(stop=["x"] * 17),
    "stop as number": completion(stop=5),
    "bias for no token": completion(logit_bias={"abc": 1}),
    "bias for a negative token": completion(logit_bias={"-1": 1}),
    "bias beyond the vocabulary": completion(logit_bias={"320": 1}),
    "bias for token 2^63": completion(logit_bias={str(BIG): 1}),
    "bias huge": completion(logit_bias={"1": 1e9}),
    "too many biases": completion(logit_bias={str(i): 1 for i in range(5000)}),
    "bias as list": completion(logit_bias=[1, 2]),
    "wide draft budget": completion(draft_budget=2000),
    "unknown drafter": completion(drafter="lokup"),
    "drafter as object": completion(drafter={"path": "/etc/passwd"}),
    "stream as text": completion(stream="yes"),
    "options without a stream": completion(stream_options={"include_usage": True}),
    "wrong stream option": completion(stream=True, stream_options={"usage": True}),
    "other model": completion(model="gpt-4"),
    "model as number": completion(model=5),
    "best_of": completion(best_of=5),
    "suffix": completion(suffix="end"),
    "a template": chat(chat_template="{{ ''.__class__ }}"),
    "template arguments": chat(chat_template_kwargs={"a": 1}),
    "a tensor": completion(prompt_embeds="AAAA"),
    "a processor by name": completion(logits_processors=["os.system"]),
    "no messages": chat(messages=[]),
    "messages as text": chat(messages="hello"),
    "message as text": chat(messages=["hello"]),
    "message without a role": chat(messages=[{"content": "a"}]),
    "message without content": chat(messages=[{"role": "user"}]),
    "unknown role": chat(messages=[{"role": "root", "content": "a"}]),
    "content as number": chat(messages=[{"role": "user", "content": 5}]),
    "an image": chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    "odd part": chat(messages=[{"role": "user", "content": [{"type": "text", "text": 5}]}]),
    "unknown message field": chat(messages=[{"role": "user", "content": "a", "template": "b"}]),
    "too many messages": chat(messages=USER * 2000),
    "conversation too long": chat(messages=[{"role": "user", "content": "the cat " * 400}]),
    "tools": chat(tools=[{"type": "function"}]),
    "a tool with an odd name": chat(tools=[{"type": "function", "function": {"name": "a b"}}]),
    "two tools of one name": chat(tools=[{"type": "function", "function": {"name": "a"}}] * 2),
    "a choice of no tool": chat(
        tools=[{"type": "function", "function": {"name": "a"}}],
        tool_choice={"type": "function", "function": {"name": "b"}},
    ),
    "tools required where there are none": chat(tool_choice="required"),
    "a tool whose schema is none": chat(
        tools=[{"type": "function", "function": {"name": "a", "parameters": {"type": 5}}}]
    ),
    "a result of no call": (CHAT, {"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}]}),
    "a format of no kind": chat(response_format={}),
    "an unknown format": chat(response_format={"type": "yaml"}),
    "a format with more": chat(response_format={"type": "json_object", "schema": {}}),
    "no schema": chat(response_format={"type": "json_schema"}),
    "a schema beside its place": chat(response_format={"type": "json_schema", "schema": {"type": "object"}}),
    "a schema that is a list": chat(response_format={"type": "json_schema", "json_schema": {"schema": []}}),
    "a schema of no type": chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "person"}}}),
    "a schema for nothing": completion(guided_json={"type": "object", "properties": {"a": False}, "required": ["a"]}),
    "a schema that leads nowhere": completion(guided_json={"$ref": "#/$defs/none"}),
    "a schema from elsewhere": completion(guided_json={"$ref": "http://127.0.0.1:1/schema.json"}),
    "a keyword nobody enforces": completion(guided_json={"type": "array", "uniqueItems": True}),
    "a schema in broken JSON": completion(guided_json='{"type"'),
    "a schema in deep JSON": completion(guided_json="[" * 100_000),
    "a deep schema": completion(guided_json=deep_schema(150)),
    "two forms": completion(regex="a", choices=["b"]),
    "two forms in one": completion(structured_outputs={"regex": "a", "choice": ["b"]}),
    "structured by nothing known": completion(structured_outputs={"structural_tag": "a"}),
    "no choices": completion(choices=[]),
    "an empty choice": completion(choices=["a", ""]),
    "numbers as choices": completion(guided_choice=[1]),
    "an open pattern": completion(regex="(a"),
    "a pattern with look-around": completion(regex="(?=a)b"),
    "a grammar of no start": completion(grammar="a: b"),
    "an empty grammar": completion(grammar=" "),
    "a grammar that reads files": completion(grammar='%import "/etc/passwd" (start)'),
    "top_logprobs alone": chat(top_logprobs=2),
    "token_details alone": chat(token_details=True),
    "token_details of another type": chat(logprobs=True, token_details="yes"),
    "top_logprobs huge": chat(logprobs=True, top_logprobs=21),
    "logprobs as number": chat(logprobs=5),
    "two limits": chat(max_completion_tokens=3),
    "no answers": (SCORE, {"prompt": "a", "answers": []}),
    "answer as text": (SCORE, {"prompt": "a", "answers": "b"}),
    "answers as numbers": (SCORE, {"prompt": "a", "answers": [1]}),
    "too many answers": (SCORE, {"prompt": "a", "answers": ["b"] * 1025}),
    "answer too long": (SCORE, {"prompt": "a", "answers": ["b", "the cat " * 200]}),
    "a long prompt again and again": (SCORE, {"prompt": "a" * 100_000, "answers": ["b"] * 100}),
    "body too large": (COMPLETIONS, json.dumps({"prompt": "x" * 2**20})),
}


@pytest.fixture(scope="module")
def refused(tiny_path):
    """Every reply, from one server that must survive them all."""
    import likely

    async def question(client):
        calls = []
        forward = lm.runtime.forward
        lm.runtime.forward = lambda work: calls.append(work) or forward(work)
        replies = {name: await client.post(path, body) for name, (path, body) in REFUSED.items()}
        assert not calls, "the model was touched"
        await client.ok(COMPLETIONS, prompt="the", max_tokens=2)
        assert client.engine.waiting == 0
        return replies

    with likely.load(str(tiny_path), threads=1) as lm:
        return ask(lm, question)


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_line(refused, name):
    status, reply = refused[name]
    assert status == {"body too large": 413, "other model": 404}.get(name, 400), reply
    error = reply["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 600
    assert not any(word in error["message"] for word in ("Traceback", "pydantic", "instance of"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prompt too long", ["tokens", "256"]),
        ("max_tokens over the context", ["256", "257"]),
        ("n huge", ["n", "32", "1000000"]),
        ("no tokens", ["max_tokens", "0"]),
        ("unknown role", ["root", "user"]),
        ("bias beyond the vocabulary", ["320"]),
        ("other model", ["gpt-4", "tiny"]),
        ("body too large", [str(2**20)]),
        ("a tool's answer to nothing", ["messages[2]", "tool_call_id", "string"]),
        ("a tool's answer as an object", ["messages[2]", "content", "string"]),
        ("calls as a number", ["messages[1]", "tool_calls", "list", "5"]),
        ("an object among prompts", ["prompt[1]", "string", "dict"]),
        ("an empty string among stops", ["stop[1]", "at least 1 character"]),
    ],
)
def test_says_what_was_wrong_and_what_is_allowed(refused, name, words):
    message = refused[name][1]["error"]["message"]
    for word in words:
        assert word in message, message


def test_fields_of_openai_that_ask_for_nothing_pass(tiny):
    neutral = {
        "user": "me", "store": False, "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
        "parallel_tool_calls": True, "metadata": None, "service_tier": "auto", "seed": None, "stop": None, "n": None,
    }  # fmt: skip

    async def question(client):
        await client.ok(CHAT, messages=USER, max_tokens=2, **neutral)
        await client.ok(COMPLETIONS, prompt="the", max_tokens=2, best_of=1, suffix=None, logprobs=None, echo=None)

    ask(tiny, question)


def test_only_json_is_read(tiny):
    """A web page can send other types to a local server without asking the browser's user."""

    async def question(client):
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            reply = await client.http.post(COMPLETIONS, content=b'{"prompt": "a"}', headers={"Content-Type": kind})
            assert reply.status_code == 415 and "application/json" in reply.json()["error"]["message"]
        for method, path, status in (
            ("GET", COMPLETIONS, 405),
            ("POST", "/v1/embeddings", 404),
            ("GET", "/page/nosuch.js", 404),
        ):
            reply = await client.http.request(method, path)
            assert reply.status_code == status and "/v1/completions" in reply.json()["error"]["message"]

    ask(tiny, question)


def test_a_large_body_is_read_within_bounds_and_refused(tiny):
    async def run():
        async with client_of(tiny, limits=ServerLimits(max_body_bytes=1000, body_timeout_s=0.05)) as client:
            taken = []

            async def endless():
                while True:
                    taken.append(1)
                    yield b"x" * 400

            headers = {"Content-Type": "application/json"}
            reply = await client.http.post(COMPLETIONS, content=endless(), headers=headers)
            assert reply.status_code == 413 and len(taken) <= 45
            declared = {**headers, "Content-Length": str(2**63)}
            reply = await client.http.post(COMPLETIONS, content=b"{}", headers=declared)
            assert reply.status_code == 413

            async def stalled():
                yield b"{"
                await asyncio.Event().wait()

            reply = await client.http.post(COMPLETIONS, content=stalled(), headers=headers)
            assert reply.status_code == 408

    asyncio.run(run())


def test_a_reply_of_too_many_numbers_is_refused(tiny, monkeypatch):
    monkeypatch.setattr("likely.serving.api.answering.MAX_NUMBERS", 100)

    async def question(client):
        refused = [
            await client.post(COMPLETIONS, {"prompt": "the", "max_tokens": 30, "n": 2, "logprobs": 1}),
            await client.post(COMPLETIONS, {"prompt": "cat" * 10, "max_tokens": 0, "echo": True, "logprobs": 20}),
            await client.post(CHAT, {"messages": USER, "logprobs": True}),
            await client.post(SCORE, {"prompt": "the", "answers": ["cat"] * 5, "top_logprobs": 20}),
        ]
        await client.ok(COMPLETIONS, prompt="the", max_tokens=30, n=3)
        return refused

    for status, reply in ask(tiny, question):
        assert status == 400 and "at most 100" in reply["error"]["message"]


def test_a_reply_of_many_numbers_is_made_beside_the_event_loop(tiny, monkeypatch):
    threads: dict[str, list[bool]] = {}

    def watched(name, work):
        def watch(*given, **named):
            threads.setdefault(name, []).append(threading.current_thread() is threading.main_thread())
            return work(*given, **named)

        return watch

    places = {answering: "json_response", chats: "chat_content", CompletionLogprobs: "block"}
    for place, name in places.items():
        monkeypatch.setattr(place, name, watched(name, getattr(place, name)))

    async def question(client):
        replies = [
            await client.ok(COMPLETIONS, prompt="the cat", max_tokens=3, n=2, logprobs=3, echo=True, seed=1),
            await client.ok(CHAT, messages=USER, max_tokens=3, logprobs=True, top_logprobs=3, seed=1, temperature=0),
            await client.ok(SCORE, prompt="the", answers=["cat", "dog"], top_logprobs=3),
        ]
        return [reply.get("choices", reply.get("answers")) for reply in replies]

    few = ask(tiny, question)
    assert all(all(found) for found in threads.values()) and len(threads) == 3
    threads.clear()
    monkeypatch.setattr(answering, "MANY_NUMBERS", 2)
    assert ask(tiny, question) == few
    assert not any(any(found) for found in threads.values()) and len(threads) == 3
