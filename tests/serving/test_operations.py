"""What an operator relies on: bounds, ids, keys, metrics, tokens, endings that say why, and fields that are told of."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from helpers_for_serving import ask, client_of, serving, toy_model

from likely.decoding.request import Request
from likely.runtimes.protocol import Work
from likely.serving import ServerLimits
from likely.serving.api.gate import Gate
from likely.serving.engine import AsyncEngine, ShuttingDown
from likely.serving.metrics import ServerMetrics

COMPLETIONS, CHAT, SCORE = "/v1/completions", "/v1/chat/completions", "/v1/score"
USER = [{"role": "user", "content": "the cat"}]


# --- fields -----------------------------------------------------------------------------------------------------------


def test_token_ids_are_prompts_as_their_texts_are(tiny):
    tokens = tiny.tokenizer.encode("the cat sat")
    fields = {"max_tokens": 6, "seed": 3, "echo": True, "logprobs": 2}

    async def question(client):
        text = await client.ok(COMPLETIONS, prompt="the cat sat", **fields)
        ids = await client.ok(COMPLETIONS, prompt=tokens, **fields)
        both = await client.ok(COMPLETIONS, prompt=[tokens, tokens[:2]], **fields)
        return text["choices"], ids["choices"], both["choices"]

    text, ids, both = ask(tiny, question)
    assert ids == text and both[0]["logprobs"] == text[0]["logprobs"] and len(both) == 2
    assert both[1]["text"].startswith("the cat"[: len(tiny.tokenizer.token_bytes(tokens[0]).decode())])


def test_a_text_may_be_told_to_go_on_past_its_end(tiny):
    tiny_end = next(iter(tiny.tokenizer.end_ids))
    eager = {"prompt": "the", "max_tokens": 12, "temperature": 0, "logit_bias": {str(tiny_end): 100}}

    async def question(client):
        return [await client.ok(COMPLETIONS, **eager, **more) for more in ({}, {"min_tokens": 5}, {"ignore_eos": True})]

    plain, least, whole = ask(tiny, question)
    assert [reply["usage"]["completion_tokens"] for reply in (plain, least, whole)] == [1, 6, 12]
    assert [r["choices"][0]["finish_reason"] for r in (plain, least, whole)] == ["stop", "stop", "length"]


def test_usage_comes_with_every_event_where_it_is_asked_for(tiny):
    options = {"include_usage": True, "continuous_usage_stats": True}

    async def question(client):
        return await client.events(COMPLETIONS, prompt="the", max_tokens=6, ignore_eos=True, stream_options=options)

    *events, last = ask(tiny, question)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[-1] == last["usage"]["completion_tokens"] == 6


def test_what_has_no_effect_is_told(tiny):
    fields = {"user": "me", "temprature": 0.5, "safety_identifier": None}

    async def question(client):
        whole = await client.ok(COMPLETIONS, prompt="the", max_tokens=2, **fields)
        events = await client.events(CHAT, messages=USER, max_tokens=2, **fields)
        plain = await client.ok(COMPLETIONS, prompt="the", max_tokens=2)
        return whole, events, plain

    whole, events, plain = ask(tiny, question)
    assert len(whole["warnings"]) == 2 and 'did you mean "temperature"' in whole["warnings"][1]
    assert events[0]["warnings"] == whole["warnings"] and not any("warnings" in event for event in events[1:])
    assert "warnings" not in plain


def test_a_form_whose_texts_may_be_cut_is_told(tiny):
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 100_000}

    async def question(client):
        whole = await client.ok(COMPLETIONS, prompt="the", max_tokens=4, guided_json=schema)
        events = await client.events(COMPLETIONS, prompt="the", max_tokens=4, guided_json=schema)
        closed = await client.ok(COMPLETIONS, prompt="the", max_tokens=4, guided_json={"type": "integer"})
        return whole, events, closed

    whole, events, closed = ask(tiny, question)
    [line] = whole["warnings"]
    assert line.startswith("guided_json: no completion of this schema was found, so that its texts may be cut")
    assert events[0]["warnings"] == [line] and "warnings" not in closed


def test_the_assistant_goes_on_from_what_it_has_begun(tiny):
    begun = [*USER, {"role": "assistant", "content": "then they"}]
    tokens = [*tiny.render(USER).tokens, *tiny.tokenizer.encode("then they")]

    async def question(client):
        going_on = await client.ok(CHAT, messages=begun, max_tokens=6, seed=1, temperature=0)
        same = await client.ok(COMPLETIONS, prompt=tokens, max_tokens=6, seed=1, temperature=0)
        anew = await client.ok(CHAT, messages=begun, max_tokens=1, continue_final_message=False)
        refused = await client.post(CHAT, {"messages": USER, "continue_final_message": True})
        return going_on, same, anew, refused

    going_on, same, anew, (status, refused) = ask(tiny, question)
    assert going_on["choices"][0]["message"]["content"] == same["choices"][0]["text"]
    assert going_on["usage"]["prompt_tokens"] == len(tokens) < anew["usage"]["prompt_tokens"]
    assert status == 400 and "continue_final_message" in refused["error"]["message"]


def test_a_value_that_is_complete_at_the_budget_has_ended_well(tiny):
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    async def question(client):
        closed = await client.ok(CHAT, messages=USER, max_tokens=8, response_format=form, seed=2)
        cut = await client.ok(CHAT, messages=USER, max_tokens=3, seed=2, min_tokens=3)
        return closed["choices"][0], cut["choices"][0]

    closed, cut = ask(tiny, question)
    json.loads(closed["message"]["content"])
    assert closed["finish_reason"] == "stop" and closed.get("stop_reason") in (None, "length")
    assert cut["finish_reason"] == "length" and "stop_reason" not in cut


def test_tokens_and_their_text(tiny):
    async def question(client):
        text = await client.ok("/tokenize", prompt="the cat é🙂")
        chat = await client.ok("/tokenize", messages=USER)
        back = await client.ok("/detokenize", tokens=text["tokens"])
        written = await client.ok("/detokenize", tokens=chat["tokens"])
        refused = await client.post("/detokenize", {"tokens": [10**6]})
        return text, chat, back, written, refused

    text, chat, back, written, (status, _) = ask(tiny, question)
    assert text["tokens"] == tiny.encode_prompt("the cat é🙂") and text["count"] == len(text["tokens"])
    assert back["prompt"] == "the cat é🙂" and status == 400
    assert chat["tokens"] == tiny.render(USER).tokens and written["prompt"] == tiny.render(USER).text


# --- shared beginnings ------------------------------------------------------------------------------------------------


def test_the_cache_changes_no_text_and_no_number(tiny):
    """The same requests, many at once, of a server that keeps beginnings and of one that does not."""
    system = {"role": "system", "content": "the cat sat on the mat and the dog sat on the cat " * 2}
    bodies = [
        {
            "messages": [system, {"role": "user", "content": f"the {word}"}],
            "max_tokens": 8,
            "seed": i,
            "temperature": i % 2,
            "logprobs": True,
            "top_logprobs": 2,
            "n": 1 + (i == 3),
        }
        for i, word in enumerate(["cat", "dog", "mat", "hat", "cat", "this"])
    ]

    async def question(client):
        first = await asyncio.gather(*[client.ok(CHAT, **body) for body in bodies])
        again = await asyncio.gather(*[client.ok(CHAT, **body) for body in bodies])
        return [*first, *again]

    with_cache = ask(tiny, question)
    without = ask(tiny, question, limits=ServerLimits(cached_tokens=0))
    assert [r["choices"] for r in with_cache] == [r["choices"] for r in without]
    cached = [r["usage"]["prompt_tokens_details"]["cached_tokens"] for r in with_cache]
    assert all(r["usage"]["prompt_tokens_details"]["cached_tokens"] == 0 for r in without)
    assert sum(n > 0 for n in cached[:6]) == 5  # the first one computes what they share
    assert all(n == r["usage"]["prompt_tokens"] - 1 for n, r in zip(cached[6:], with_cache[6:], strict=True))


def test_those_with_another_key_or_salt_share_nothing(tiny):
    async def question(client):
        async def cached(key, **more):
            status, reply = await client.post(
                COMPLETIONS, {"prompt": "the cat " * 8, "max_tokens": 1, **more}, Authorization=f"Bearer {key}"
            )
            assert status == 200
            return reply["usage"]["prompt_tokens_details"]["cached_tokens"] > 0

        return [
            await cached("one"), await cached("one"), await cached("two"), await cached("two"),
            await cached("one", cache_salt="x"), await cached("one", cache_salt="x"),
        ]  # fmt: skip

    assert ask(tiny, question, api_key={"A": "one", "B": "two"}) == [False, True] * 3


def test_kept_texts_give_way_to_scores():
    model = toy_model(tokens_held=64, sequences=16)

    async def question(client):
        for i in range(6):
            await client.ok(COMPLETIONS, prompt="abcdefghijklmnop"[i:], max_tokens=8, min_tokens=8)
        held = client.engine.prefixes.tokens
        reply = await client.ok(SCORE, prompt="the quick brown fox ", answers=["jumps over the lazy dog"])
        return held, reply

    held, reply = ask(model, question)
    assert held > 16 and len(reply["answers"][0]["tokens"]) == 23


# --- who, what and how long -------------------------------------------------------------------------------------------


def test_each_reply_has_an_id_and_each_request_a_line(tiny, caplog):
    async def question(client):
        given = await client.http.get("/health", headers={"X-Request-ID": "mine-1"})
        odd = await client.http.get("/health", headers={"X-Request-ID": 'a"b\u00e9'.encode("latin-1")})
        await client.ok(COMPLETIONS, prompt="the", max_tokens=2, min_tokens=2)
        await client.events(COMPLETIONS, prompt="the", max_tokens=2, min_tokens=2)
        return given.headers["x-request-id"], odd.headers["x-request-id"]

    with caplog.at_level(logging.INFO, "likely.access"):
        given, odd = ask(tiny, question)
    assert given == "mine-1" and odd.startswith("req-")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "likely.access"]
    assert [line["path"] for line in lines] == ["/health", "/health", COMPLETIONS, COMPLETIONS]
    assert all(line["status"] == 200 and line["seconds"] >= 0 for line in lines)
    assert [line["usage"]["completion_tokens"] for line in lines[2:]] == [2, 2]


def test_one_of_several_keys_is_enough_and_is_named_in_the_log(tiny, caplog):
    async def question(client):
        replies = [
            await client.http.get("/v1/models", headers={} if key is None else {"Authorization": f"Bearer {key}"})
            for key in ("one", "two", "three", "", None)
        ]
        return [reply.status_code for reply in replies]

    with caplog.at_level(logging.INFO, "likely.access"):
        assert ask(tiny, question, api_key={"A": "one", "B": "two"}) == [200, 200, 401, 401, 401]
    lines = [json.loads(record.message) for record in caplog.records if record.name == "likely.access"]
    assert [line.get("key") for line in lines] == ["A", "B", None, None, None]
    assert "one" not in caplog.text.replace('"None"', "")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:80", 200), ("[::1]:8000", 200), ("10.0.0.7", 200),
        ("model.example", 200), ("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil", 421),
        ("", 421),
    ],
)  # fmt: skip
def test_a_name_that_leads_here_is_not_enough(tiny, host, status):
    async def question(client):
        return (await client.http.get("/health", headers={"Host": host})).status_code

    assert ask(tiny, question, hosts={"model.example"}) == status


def test_metrics_count_what_was_done(tiny):
    async def question(client):
        for _ in range(2):
            await client.ok(COMPLETIONS, prompt="the cat " * 8, max_tokens=5, ignore_eos=True)
        await client.post(COMPLETIONS, {"prompt": 5})
        return (await client.http.get("/metrics")).text

    text = ask(tiny, question)
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["likely:generation_tokens_total"] == "10.0"
    prompt = len(tiny.encode_prompt("the cat " * 8))
    assert float(values["likely:prompt_tokens_total"]) == 2 * prompt
    assert float(values["likely:prefix_cache_queries_total"]) == 2 * prompt
    assert float(values["likely:prefix_cache_hits_total"]) == prompt - 1
    assert values['likely:request_success_total{finished_reason="length"}'] == "2.0"
    assert values["likely:time_to_first_token_seconds_count"] == "2.0"
    assert values["likely:inter_token_latency_seconds_count"] == "8.0"
    assert values["likely:request_queue_time_seconds_count"] == "2.0"
    computed = float(values["likely:iteration_tokens_total_sum"])
    assert computed >= (prompt + 4) + (1 + 4) and float(values["likely:iteration_tokens_total_count"]) <= computed
    assert values[f'likely:http_responses_total{{path="{COMPLETIONS}",status="400"}}'] == "1.0"
    assert values["likely:num_requests_running"] == values["likely:num_requests_waiting"] == "0.0"
    assert float(values["likely:goodput_tokens_per_second"]) > 0
    [joules] = [value for name, value in values.items() if name.startswith("likely:energy_joules_total{source=")]
    assert float(joules) > 0


def test_metrics_tell_of_guesses_by_their_place(tiny):
    async def question(client):
        body = {"prompt": "the the the the", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
        reply = await client.ok(COMPLETIONS, **body, drafter="lookup", draft_budget=3)
        return reply["usage"], (await client.http.get("/metrics")).text

    usage, text = ask(tiny, question)
    values = {
        name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    }
    by_place = [
        value
        for name, value in values.items()
        if name.startswith("likely:spec_decode_num_accepted_tokens_per_pos_total")
    ]
    accepted = usage["completion_tokens_details"]["accepted_prediction_tokens"]
    assert sum(by_place) == values["likely:spec_decode_num_accepted_tokens_total"] == accepted
    assert by_place == sorted(by_place, reverse=True) and len(by_place) <= 3  # no token is kept without those before it
    assert 0 < values["likely:speculation_length"] <= 3


def test_a_request_may_name_a_shorter_time(tiny):
    step = tiny.runtime.forward

    async def question(client):
        tiny.runtime.forward = lambda work: time.sleep(0.02) or step(work)
        whole = await client.post(
            COMPLETIONS, {"prompt": "the", "max_tokens": 200, "timeout": 0.05, "ignore_eos": True}
        )
        reply = await client.http.post(
            COMPLETIONS,
            json={"prompt": "the", "max_tokens": 200, "timeout": 0.05, "ignore_eos": True, "stream": True},
        )
        return whole, reply.text

    (status, reply), stream = ask(tiny, question)
    assert status == 408 and reply["error"]["code"] == "deadline"
    assert "within 0.05 seconds" in reply["error"]["message"] and "within 0.05 seconds" in stream
    assert '"code":"deadline"' in stream and "[DONE]" not in stream


def test_those_who_wait_behind_a_full_house_are_served(tiny):
    limits = ServerLimits(max_running=2, max_queue=6)

    async def question(client):
        body = {"prompt": "the", "max_tokens": 4, "ignore_eos": True}
        replies = await asyncio.gather(*[client.post(COMPLETIONS, body) for _ in range(8)])
        assert client.engine.waiting == 0
        return [status for status, _ in replies]

    assert ask(tiny, question, limits=limits) == [200] * 8


def test_long_prompts_come_in_small_pieces_beside_others(tiny):
    sizes = []
    forward = tiny.runtime.forward

    def noting(work: list[Work]):
        sizes.append([len(item.tokens) for item in work])
        return forward(work)

    async def question(client):
        tiny.runtime.forward = noting
        stream = asyncio.ensure_future(
            client.ok(COMPLETIONS, prompt="a", max_tokens=60, ignore_eos=True, drafter="none")
        )
        while not sizes:
            await asyncio.sleep(0.001)
        await client.ok(COMPLETIONS, prompt="the cat " * 20, max_tokens=1)
        await stream

    ask(tiny, question)
    beside = [max(size) for size in sizes if len(size) > 1]
    assert beside and max(beside) <= 32


# --- connections ------------------------------------------------------------------------------------------------------


def test_a_connection_that_asks_for_nothing_is_closed(tiny):
    limits = ServerLimits(header_timeout_s=0.2, max_connections=3)
    with serving(tiny, limits=limits) as url:
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        silent, half = socket.create_connection(address), socket.create_connection(address)
        half.sendall(b"GET /health HTTP/1.1\r\nHost: x")
        third = socket.create_connection(address)
        third.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in third.recv(2**16)
        fourth = socket.create_connection(address)
        assert b"503" in fourth.recv(2**16)
        assert silent.recv(1) == b""
        with pytest.raises(ConnectionError):
            if half.recv(1) == b"":
                raise ConnectionResetError
        third.sendall(b"GET /hea")  # kept alive, and then half of another request
        assert third.recv(2**16) == b"" or third.recv(2**16) == b""
        assert httpx.get(f"{url}/health").status_code == 200
        for connection in (silent, half, third, fourth):
            connection.close()


def test_bodies_that_never_end_do_not_stand_in_the_way(tiny):
    limits = ServerLimits(max_running=2, max_queue=0, body_timeout_s=5)
    with serving(tiny, limits=limits) as url:
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        half = [socket.create_connection(address) for _ in range(6)]
        for connection in half:
            connection.sendall(head)
        reply = httpx.post(f"{url}{COMPLETIONS}", json={"prompt": "the", "max_tokens": 2})
        assert reply.status_code == 200
        for connection in half:
            connection.close()


def test_a_body_in_another_encoding_is_refused(tiny):
    async def question(client):
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        return await client.http.post(COMPLETIONS, content=b"\x1f\x8b", headers=headers)

    reply = ask(tiny, question)
    assert reply.status_code == 415 and "Content-Encoding" in reply.json()["error"]["message"]


def test_a_silent_stream_says_that_it_lives(tiny):
    step = tiny.runtime.forward

    async def run():
        async with client_of(tiny, limits=ServerLimits(ping_s=0.02)) as client:
            tiny.runtime.forward = lambda work: time.sleep(0.1) or step(work)
            body = {"prompt": "the", "max_tokens": 2, "stream": True, "ignore_eos": True}
            return (await client.http.post(COMPLETIONS, json=body)).text

    text = asyncio.run(run())
    assert ": ping\n\n" in text and text.endswith("data: [DONE]\n\n")


def test_a_stream_that_is_broken_off_says_why(tiny):
    step = tiny.runtime.forward
    begun = threading.Event()
    lines: list[str] = []

    def read(url):
        body = {"prompt": "the", "max_tokens": 200, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}{COMPLETIONS}", json=body, timeout=60) as stream:
            for line in stream.iter_lines():
                begun.set()
                lines.append(line)

    tiny.runtime.forward = lambda work: time.sleep(0.05) or step(work)
    with serving(tiny) as url:  # which lets what runs go on for two seconds
        reader = threading.Thread(target=read, args=(url,))
        reader.start()
        begun.wait()
    reader.join()
    assert '"code":"shutting_down"' in "".join(lines[-3:]) and "data: [DONE]" not in lines


def test_whoever_waits_for_an_engine_that_ends_is_told():
    async def run():
        engine = AsyncEngine(toy_model())
        ticket = engine.submit(Request((1,), max_tokens=60))
        engine.close(ShuttingDown())
        with pytest.raises(ShuttingDown):
            async for _ in ticket:
                pass
        with pytest.raises(ShuttingDown):
            engine.submit(Request((1,)))

    asyncio.run(run())


def test_a_server_that_ends_takes_nothing_new(tiny):
    async def question(client):
        client.app.state.draining = True
        refused = await client.post(COMPLETIONS, {"prompt": "a"})
        health = await client.http.get("/health")
        return refused, health.status_code, health.json()["status"]

    (status, reply), health, word = ask(tiny, question)
    assert status == health == 503 and reply["error"]["code"] == "shutting_down" and word == "draining"


def test_the_gate_lets_other_protocols_pass():
    async def run():
        seen = []

        async def app(scope, receive, send):
            seen.append(scope["type"])

        await Gate(app, hosts=set(), metrics=ServerMetrics(), draining=lambda: False)({"type": "lifespan"}, None, None)
        return seen

    assert asyncio.run(run()) == ["lifespan"]


def test_limits_are_checked():
    for wrong in (
        {"max_running": 0},
        {"max_queue": -1},
        {"form_s": 0},
        {"cached_tokens": -1},
        {"ping_s": np.nan},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ServerLimits(**wrong)
    assert ServerLimits(max_queue=0, cached_tokens=0).most_requests == 64
