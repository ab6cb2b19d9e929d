"""The model "auto": who answers is in the headers, and a fallback that cannot be reached is never silent."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from helpers_for_serving import ask, serving
from tiny_gguf import write_tiny_llama

import likely
from likely.calibration.calibrator import Calibrator
from likely.calibration.recalibrators.table import make
from likely.errors import RemoteError
from likely.lm.results import Answer
from likely.serving import form_worker, listening
from likely.serving.routing import Budget, Router, evidence_of
from likely.serving.tools import ToolChoice, tool_form

CHAT = "/v1/chat/completions"
FIELDS = {"messages": [{"role": "user", "content": "Is 3 odd?"}], "temperature": 0, "max_tokens": 6}


@pytest.fixture
def calibrator():
    """Bound to nothing: σ(mean log-probability)."""
    made = make("answer").restore(
        {"mean_": [0.0] * 4, "scale_": [1.0] * 4, "weights_": [0, 1.0, 0, 0], "intercept_": 0.0}
    )
    return Calibrator(made, "answer", np.linspace(0.01, 0.99, 99), np.ones(99, int))


class Large:
    """Answers everything, or cannot be reached."""

    info = SimpleNamespace(name="large", sha256="1" * 64)

    def __init__(self, error=None):
        self.error, self.asked = error, 0

    def stream_chat(self, messages, **options):
        self.asked += 1
        if self.error:
            raise self.error
        answer = Answer("of course", [1], [-0.1], -0.1, -0.1, "stop", 1, 0.0, confidence=0.99, answered_by="large")
        return _Stream(answer)


class _Stream:
    def __init__(self, answer):
        self.result = answer

    def __iter__(self):
        return iter(["of course"])


async def raw(client, **fields):
    return await client.http.post(CHAT, json={**FIELDS, **fields})


@pytest.mark.parametrize(("at_least", "route", "text"), [(0.999, "large", "of course"), (0.001, "small", None)])
def test_auto_says_who_answered(tiny, calibrator, at_least, route, text):
    large = Large()

    async def question(client):
        models = (await client.http.get("/v1/models")).json()
        one = (await client.http.get("/v1/models/auto")).json()
        reply = await raw(client, model="auto")
        events = await client.events(CHAT, **FIELDS, model="auto")
        return models, one, reply, events, (await client.http.get("/metrics")).text

    models, one, reply, events, metrics = ask(tiny, question, fallback=large, calibrator=calibrator, at_least=at_least)
    assert [m["id"] for m in models["data"]][1:] == ["auto"] and one["id"] == "auto"
    assert reply.status_code == 200 and reply.headers["x-likely-route"] == route
    assert 0 < float(reply.headers["x-likely-confidence"]) < 0.999
    choice = reply.json()["choices"][0]
    assert text is None or (choice["message"]["content"], choice["answered_by"]) == (text, "large")
    assert f'likely:route_total{{route="{route}"}} 2.0' in metrics
    assert large.asked == (2 if route == "large" else 0)
    last = [c for e in events for c in e["choices"] if "answered_by" in c]
    assert len(last) == 1 and (last[0]["answered_by"] == "large") == (route == "large")


def test_a_model_behind_it_takes_no_settings_of_the_first(tiny, calibrator, monkeypatch):
    monkeypatch.setattr(tiny, "own_settings", {"frequency_penalty": 0.6})
    large = Caller()
    ask(tiny, raw_auto, fallback=large, calibrator=calibrator, at_least=0.999)
    assert large.asked == 1 and "frequency_penalty" not in large.options


def test_without_a_threshold_there_is_no_auto(tiny, calibrator):
    async def question(client):
        models = (await client.http.get("/v1/models")).json()
        return models, await raw(client, model="auto"), await raw(client)

    models, reply, plain = ask(tiny, question, fallback=Large(), calibrator=calibrator)
    assert [m["id"] for m in models["data"]][1:] == [] and reply.status_code == 404
    assert plain.status_code == 200 and "x-likely-route" not in plain.headers


def test_a_fallback_that_cannot_be_reached_is_an_error_or_is_said(tiny, calibrator):
    given = {"calibrator": calibrator, "at_least": 0.999}
    down = Large(RemoteError("cannot reach the server"))
    failed = ask(tiny, raw_auto, fallback=down, **given)
    assert failed.status_code >= 500
    flagged = ask(tiny, raw_auto, fallback=down, if_unavailable="answer", **given)
    choice = flagged.json()["choices"][0]
    assert flagged.headers["x-likely-route"] == "small-large-unavailable"
    assert "cannot reach the server" in choice["why"] and choice["answered_by"] != "large" and not choice["abstained"]
    assert choice["message"]["content"]


def test_a_response_says_why_there_is_none(tiny, calibrator):
    async def question(client):
        asked = {"input": "Is 3 odd?", "max_output_tokens": 6, "temperature": 0.0}
        whole = await client.ok("/v1/responses", **asked)
        return whole, (await client.http.post("/v1/responses", json={**asked, "stream": True})).text

    whole, streamed = ask(tiny, question, calibrator=calibrator, at_least=0.999)
    [message] = whole["output"]
    [part] = message["content"]
    assert part == {"type": "refusal", "refusal": whole["why"]} and whole["abstained"]
    assert 0 < whole["confidence"] < 0.999
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line.startswith("data: {")]
    assert [e["delta"] for e in events if e["type"] == "response.refusal.delta"] == [whole["why"]]
    assert events[-1]["response"]["output"][0]["content"] == [part] and events[-1]["response"]["abstained"]


class Slow(Large):
    """Answers when the server behind `url` takes nothing new."""

    def stream_chat(self, messages, **options):
        self.begun.set()
        while httpx.get(f"{self.url}/health").status_code != 503:
            pass
        return super().stream_chat(messages, **options)


def test_what_a_fallback_is_writing_may_end_before_the_server_does(tiny, calibrator, monkeypatch):
    monkeypatch.setattr(listening, "LAST_S", 0.1)
    large = Slow()
    large.begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with serving(tiny, fallback=large, calibrator=calibrator, at_least=0.999) as large.url:
            reply = pool.submit(httpx.post, f"{large.url}{CHAT}", json={**FIELDS, "model": "auto"}, timeout=60)
            assert large.begun.wait(60)
        assert reply.result().json()["choices"][0]["message"]["content"] == "of course"


async def raw_auto(client):
    return await raw(client, model="auto")


# --- a router behind "auto": calls of tools, too ----------------------------------------------------------------------

CALL = '<tool_call>\n{"name": "pick", "arguments": {"word": "cat"}}\n</tool_call>'
PICK = {"name": "pick", "parameters": {"type": "object", "properties": {"word": {"enum": ["the", "cat", "and"]}},
                                       "required": ["word"], "additionalProperties": False}}  # fmt: skip
NOW = {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
REQUIRED = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80, "stop_repetition": False}


class Caller(Large):
    """Calls `pick`, and keeps what it was asked."""

    def stream_chat(self, messages, **options):
        self.asked += 1
        self.messages, self.options = messages, options
        if self.error:
            raise self.error
        return _Stream(Answer(CALL, [1], [-0.1], -0.1, -0.1, "stop", 1, 0.0))


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("auto") / "tiny.gguf", seed=3, context=4096)
    with likely.load(str(path), threads=1) as lm:
        yield lm


def routed(lm, calibrator, large, share, question, **more):
    """Ask behind a router that sends this share of the labelled answers to the large model."""
    router = Router(lm, large, confidence=calibrator, policy=Budget(share), **more)
    return ask(lm, question, fallback=large, router=router, if_unavailable=router.if_unavailable)


def offered(*functions):
    return {"tools": [{"type": "function", "function": each} for each in functions], **REQUIRED}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_calls_of_auto_go_where_the_router_says_whole_and_streamed(roomy, calibrator, share):
    large = Caller()

    async def question(client):
        reply = await raw(client, model="auto", **offered(PICK))
        events = await client.events(CHAT, **{**FIELDS, **offered(PICK)}, model="auto")
        return reply, events, (await client.http.get("/metrics")).text

    reply, events, metrics = routed(roomy, calibrator, large, share, question)
    route = "large" if share else "small"
    assert reply.headers["x-likely-route"] == route and f'likely:route_total{{route="{route}"}} 2.0' in metrics
    choice = reply.json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "pick" and choice["finish_reason"] == "tool_calls"
    pieces = [
        c["delta"]["tool_calls"][0]["function"] for e in events for c in e["choices"] if "tool_calls" in c["delta"]
    ]
    assert pieces[0]["name"] == "pick"
    assert "".join(piece["arguments"] for piece in pieces) == call["function"]["arguments"]
    assert [c["finish_reason"] for e in events for c in e["choices"]][-1] == "tool_calls"
    assert large.asked == (2 if share else 0)
    if share:
        assert call["function"]["arguments"] == '{"word": "cat"}' and choice["answered_by"] == "large"
        assert "pick" in large.messages[0]["content"] and large.options["grammar"]
        assert large.options["calibrator"] is None  # nobody else decides about it
    assert 0 < float(reply.headers["x-likely-confidence"]) < 1
    assert f"likely:cost_total {2 * (21.0 if share else 1.0)}" in metrics  # 1 of each small call, 20 of a large one


def test_a_call_that_leaves_no_choice_is_the_small_models(roomy, calibrator):
    """`now` has no arguments: the form determines the call, so that the larger model could say nothing else."""
    large = Caller()
    reply = routed(roomy, calibrator, large, 1.0, lambda client: raw(client, model="auto", **offered(NOW)))
    assert reply.headers["x-likely-route"] == "small" and reply.headers["x-likely-confidence"] == "-"
    assert large.asked == 0 and reply.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "now"


def test_a_call_that_was_cut_falls_back_or_says_that_it_could_not(roomy, calibrator):
    cut = offered(PICK) | {"stop": ['"word"']}
    large = Caller()
    reply = routed(roomy, calibrator, large, 0.0, lambda client: raw(client, model="auto", **cut))
    assert reply.headers["x-likely-route"] == "large" and "refused" in reply.json()["choices"][0]["why"]
    down = Caller(RemoteError("cannot reach the server"))
    given = routed(
        roomy, calibrator, down, 0.0, lambda client: raw(client, model="auto", **cut), if_unavailable="answer"
    )
    choice = given.json()["choices"][0]
    assert given.headers["x-likely-route"] == "small-large-unavailable" and "cannot reach" in choice["why"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "{" and choice["finish_reason"] == "stop"


def test_the_grammar_of_tools_is_built_once(roomy, calibrator, monkeypatch):
    built = []
    monkeypatch.setattr(form_worker, "tool_form", lambda *given: built.append(1) or tool_form(*given))
    reply = routed(roomy, calibrator, Caller(), 1.0, lambda client: raw(client, model="auto", **offered(PICK)))
    assert reply.headers["x-likely-route"] == "large" and len(built) == 1


def test_the_confidence_of_a_served_call_is_the_routers_own(roomy, calibrator):
    router = Router(roomy, Caller(), confidence=calibrator, policy=Budget(0.0))
    answer = router.chat(FIELDS["messages"], max_tokens=6, temperature=0)
    reply = routed(roomy, calibrator, Caller(), 0.0, lambda client: raw(client, model="auto"))
    assert reply.json()["choices"][0]["message"]["content"] == answer.answer.text
    assert reply.json()["choices"][0]["confidence"] == pytest.approx(answer.p_correct, abs=1e-9)
    form = tool_form([PICK], ToolChoice("required", parallel=False))
    local = roomy.chat(FIELDS["messages"], grammar=form.source, max_tokens=80, temperature=0, stop_repetition=False)
    assert evidence_of(roomy, local, form).informative


@pytest.mark.parametrize(
    ("more", "word"),
    [({"at_least": 0.5}, "threshold of its own"), ({"n": 2}, "one answer at a time"),
     ({"ignore_eos": True}, "nothing is known"), ({"logit_bias": {"3": 1}}, "one model's tokens")],
)  # fmt: skip
def test_what_a_router_knows_nothing_of_is_refused(roomy, calibrator, more, word):
    reply = routed(roomy, calibrator, Caller(), 0.5, lambda client: raw(client, model="auto", **more))
    assert reply.status_code == 400 and word in reply.json()["error"]["message"]


def test_without_a_router_calls_of_auto_are_refused_with_what_would_take_them(roomy, calibrator):
    async def question(client):
        return await raw(client, model="auto", **offered(PICK)), await raw(client, **offered(PICK))

    auto, named = ask(roomy, question, fallback=Large(), calibrator=calibrator, at_least=0.5)
    assert auto.status_code == 400 and "likely serve --router FILE" in auto.json()["error"]["message"]
    assert named.status_code == 400 and "tools" in named.json()["error"]["message"]
    with pytest.raises(ValueError, match="threshold"):
        ask(roomy, raw_auto, at_least=0.5, router=Router(roomy, Large(), confidence=calibrator, policy=Budget(0.5)))
