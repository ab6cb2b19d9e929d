"""The API in the process: the local model's numbers and texts in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest
from helpers_for_serving import ask, client_of, toy_model
from tiny_gguf import write_tiny_llama

import likely
from likely.runtimes.toy import exact_logprob
from likely.scoring.likelihood import Item, score_items
from likely.serving import ServerLimits

COMPLETIONS, CHAT, SCORE = "/v1/completions", "/v1/chat/completions", "/v1/score"
TEXTS = ["the cat sat on the mat", "é🙂 naïve", "a", "<|im_start|>user\nthe<|im_end|>"]


# --- echo -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_echo_holds_each_tokens_logprob_and_place(tiny, text):
    tokens = tiny.tokenizer.encode(text, parse_special=True)
    expected = score_items(tiny.runtime, [Item(tuple(tokens), 1)], top=3)[0]

    async def question(client):
        return await client.ok(COMPLETIONS, prompt=text, echo=True, max_tokens=0, logprobs=3)

    reply = ask(tiny, question)
    (choice,) = reply["choices"]
    block = choice["logprobs"]
    assert choice["text"] == text and choice["finish_reason"] == "length"
    assert block["token_logprobs"] == [None, *expected.logprobs]
    assert block["top_logprobs"][0] is None
    for value, row, top in zip(expected.logprobs, block["top_logprobs"][1:], expected.tops, strict=True):
        assert row.keys() and value in row.values() and max(row.values()) == pytest.approx(top[0][1], abs=1e-6)
        assert 3 <= len(row) <= 4
    offsets = block["text_offset"]
    assert offsets[0] == 0 and offsets == sorted(offsets)
    raw = b"".join(
        bytes.fromhex(t.removeprefix("bytes:").replace("\\x", "")) if t.startswith("bytes:") else t.encode()
        for t in block["tokens"]
    )
    assert raw.decode() == text
    for name, offset in zip(block["tokens"], offsets, strict=True):
        assert name.startswith("bytes:") or text.startswith(name, offset)
    assert reply["usage"] == {"prompt_tokens": len(tokens), "completion_tokens": 0, "total_tokens": len(tokens)}


def test_with_a_beginning_of_sequence_token_the_first_token_has_a_condition():
    model = toy_model(add_bos=True)
    tokens = model.tokenizer.encode("abc")
    bos = model.tokenizer.bos_id

    async def question(client):
        return await client.ok(COMPLETIONS, prompt=["abc", ""], echo=True, max_tokens=0, logprobs=0)

    first, empty = ask(model, question)["choices"]
    found = first["logprobs"]["token_logprobs"]
    for i, value in enumerate(found):
        assert value == pytest.approx(exact_logprob(model.runtime, [tokens[i]], given=(bos, *tokens[:i])), abs=1e-5)
    assert first["logprobs"]["top_logprobs"] == [{"abc"[i]: v} for i, v in enumerate(found)]
    assert first["logprobs"]["tokens"] == ["a", "b", "c"] and first["logprobs"]["text_offset"] == [0, 1, 2]
    assert empty["logprobs"] == {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


@pytest.mark.parametrize("runtime", ["llamacpp", "torch"])
def test_a_space_that_the_tokenizer_puts_in_front_is_not_in_the_echo(tmp_path, runtime):
    path = write_tiny_llama(tmp_path / "spm.gguf", tokenizer="llama", add_bos=True)
    text = "the cat é"
    threads = {"threads": 1} if runtime == "llamacpp" else {}
    with likely.load(str(path), runtime=runtime, **threads) as lm:
        (local,) = lm.score("", [text], top_logprobs=2)

        async def question(client):
            echo = await client.ok(COMPLETIONS, prompt=text, echo=True, max_tokens=0, logprobs=2)
            return echo["choices"][0]["logprobs"], await client.ok(SCORE, prompt="", answers=[text])

        block, scored = ask(lm, question)
    # The beginning-of-sequence token is the condition of the first one, and is not shown.
    assert block["token_logprobs"] == pytest.approx(local.token_logprobs, abs=1e-5)
    assert scored["answers"][0]["token_logprobs"] == pytest.approx(local.token_logprobs, abs=1e-5)
    assert block["text_offset"][0] == 0 and text.startswith(block["tokens"][0]) and block["tokens"][0]
    readable = [t for t in block["tokens"] if not t.startswith("bytes:")]
    assert "".join(readable) == "the cat " + ("" if len(readable) < len(block["tokens"]) else "é")


def test_echo_with_new_tokens_is_one_text_with_one_block(tiny):
    local = tiny.generate("the cat", max_tokens=6, seed=3, top_logprobs=2)

    async def question(client):
        body = {"prompt": "the cat", "max_tokens": 6, "seed": 3, "logprobs": 2}
        plain = await client.ok(COMPLETIONS, **body)
        echoed = await client.ok(COMPLETIONS, **body, echo=True)
        prompt = await client.ok(COMPLETIONS, **{**body, "max_tokens": 0}, echo=True)
        return [reply["choices"][0] for reply in (plain, echoed, prompt)]

    plain, echoed, prompt = ask(tiny, question)
    assert plain["text"] == local.text and echoed["text"] == "the cat" + local.text
    assert plain["logprobs"]["token_logprobs"] == pytest.approx(local.token_logprobs, abs=1e-6)
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert echoed["logprobs"][name] == prompt["logprobs"][name] + plain["logprobs"][name]
    shifted = [len("the cat") + offset for offset in plain["logprobs"]["text_offset"]]
    assert echoed["logprobs"]["text_offset"] == prompt["logprobs"]["text_offset"] + shifted


@pytest.mark.parametrize("drafter", ["none", "lookup"])
def test_details_of_tokens_are_their_entropy_and_whether_they_were_guessed(drafter):
    lm = toy_model()
    body = {
        "max_tokens": 56,
        "logit_bias": {"0": 4},
        "temperature": 0,
        "drafter": drafter,
        "draft_budget": 3,
        "token_details": True,
    }

    async def question(client):
        whole = await client.ok(COMPLETIONS, prompt="abab", logprobs=1, echo=True, **body)
        pieces = await client.events(COMPLETIONS, prompt="abab", logprobs=1, **body)
        return whole, pieces, await client.post(COMPLETIONS, {"prompt": "a", "token_details": True})

    whole, pieces, (status, refused) = ask(lm, question)
    block = whole["choices"][0]["logprobs"]
    [scored] = lm.score("a", [whole["choices"][0]["text"][1:]], entropy=True)
    known = 1 + len(scored.entropies)
    assert block["entropies"][0] is None
    assert block["entropies"][1:known] == pytest.approx(scored.entropies, abs=1e-5)
    details = whole["usage"].get("completion_tokens_details", {"accepted_prediction_tokens": 0})
    assert sum(block["drafted"]) == details["accepted_prediction_tokens"]
    assert (sum(block["drafted"]) > 0) == (drafter == "lookup")
    streamed = [piece["choices"][0]["logprobs"] for piece in pieces if piece["choices"][0]["logprobs"]]
    for name in ("entropies", "drafted"):
        assert [value for piece in streamed for value in piece[name]] == pytest.approx(block[name][4:])
    assert status == 400 and "token_details needs logprobs" in refused["error"]["message"]


def test_details_of_a_chat_come_whole_and_in_pieces(tiny):
    body = {"messages": [{"role": "user", "content": "the cat the cat"}], "max_tokens": 8, "seed": 4}

    async def question(client):
        asked = {**body, "logprobs": True, "token_details": True, "drafter": "none"}
        return (
            await client.ok(CHAT, **asked),
            await client.events(CHAT, **asked),
            await client.ok(CHAT, **body, logprobs=True),
        )

    whole, pieces, plain = ask(tiny, question)
    content = whole["choices"][0]["logprobs"]["content"]
    assert [(entry["entropy"] > 0, entry["drafted"]) for entry in content] == [(True, False)] * len(content)
    blocks = [piece["choices"][0]["logprobs"] for piece in pieces]
    assert [entry for block in blocks if block for entry in block["content"]] == content
    assert all("entropy" not in entry for entry in plain["choices"][0]["logprobs"]["content"])


def test_the_end_token_has_its_logprob_and_no_text():
    """lm_eval drops the last token of an echo with one new one: it must be there also when it is the end."""
    model = toy_model()
    end = model.tokenizer.eos_id

    async def question(client):
        bias = {str(end): 100}
        plain = await client.ok(COMPLETIONS, prompt="ab", echo=True, max_tokens=1, logprobs=1, logit_bias=bias)
        chat = await client.events(COMPLETIONS, prompt="ab", max_tokens=1, logprobs=1, logit_bias=bias)
        return plain["choices"][0], chat[-1]["choices"][0]

    choice, last = ask(model, question)
    assert choice["text"] == "ab" and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"] == ["a", "b", "<end>"]
    assert choice["logprobs"]["token_logprobs"][2] == pytest.approx(
        exact_logprob(model.runtime, [end], given=model.tokenizer.encode("ab")), abs=1e-5
    )
    assert last["text"] == "" and last["finish_reason"] == "stop" and last["logprobs"]["tokens"] == ["<end>"]


# --- generation -------------------------------------------------------------------------------------------------------

SETTINGS = [
    {"seed": 5},
    {"temperature": 0},
    {"seed": 6, "temperature": 0.7, "top_p": 0.8},
    {"seed": 7, "top_k": 5, "drafter": "lookup", "draft_budget": 3},
    {"seed": 8, "min_p": 0.05, "presence_penalty": 0.5, "frequency_penalty": -0.5},
    {"seed": -(2**63), "stop": ["a", "e"]},
    {"seed": 9, "n": 3},
    {"seed": 10, "logit_bias": {"70": 5.0, "71": -100}},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_completions_and_streams_are_the_local_models_texts(tiny, settings):
    prompts = ["the cat", "on the"]
    local_settings = {**settings, "logit_bias": {int(k): v for k, v in settings.get("logit_bias", {}).items()}}
    local = tiny.generate(prompts, max_tokens=12, **local_settings)
    flat = [g for group in local for g in (group if isinstance(group, list) else [group])]

    async def question(client):
        body = {"prompt": prompts, "max_tokens": 12, "logprobs": 1, **settings}
        return await client.ok(COMPLETIONS, **body), await client.events(COMPLETIONS, **body)

    whole, events = ask(tiny, question)
    assert [c["index"] for c in whole["choices"]] == list(range(len(flat)))
    for i, (choice, expected) in enumerate(zip(whole["choices"], flat, strict=True)):
        assert choice["text"] == expected.text
        assert choice["finish_reason"] == ("length" if expected.finish_reason == "context" else expected.finish_reason)
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected.token_logprobs, abs=1e-5)
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == i]
        assert "".join(c["text"] for c in mine) == choice["text"]
        blocks = [c["logprobs"] for c in mine if c["logprobs"]]
        for name, column in choice["logprobs"].items():
            assert [entry for block in blocks for entry in block[name]] == column
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
    assert whole["usage"]["completion_tokens"] == sum(len(g.token_ids) for g in flat)


def test_without_a_seed_each_reply_has_a_fresh_one_that_can_be_used_again(tiny):
    async def question(client):
        a = await client.ok(COMPLETIONS, prompt="the", max_tokens=12)
        b = await client.ok(COMPLETIONS, prompt="the", max_tokens=12)
        again = await client.ok(COMPLETIONS, prompt="the", max_tokens=12, seed=a["seed"])
        return a, b, again

    a, b, again = ask(tiny, question)
    assert a["seed"] != b["seed"] and a["choices"] != b["choices"] and a["choices"] == again["choices"]
    assert a["system_fingerprint"] == tiny.runtime.revision and a["model"] == "tiny"


def test_a_models_own_settings_hold_where_a_chat_names_none(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "own_settings", {"frequency_penalty": 2.0})
    asked = {"messages": [{"role": "user", "content": "cat"}], "max_tokens": 16, "seed": 4}
    form = {"regex": "[ab]{8}"}
    settings = [{}, {"temperature": 1.0}, {"frequency_penalty": 0.0}, form]

    async def question(client):
        found = [await client.ok(CHAT, **asked, **given) for given in settings]
        response = await client.ok("/v1/responses", input="cat", max_output_tokens=16, seed=4)
        return [each["choices"][0]["message"]["content"] for each in found], response

    texts, response = ask(tiny, question)
    local = [{}, {"temperature": 1.0, "top_p": 1.0}, {"frequency_penalty": 0.0}, form]
    assert texts == [tiny.chat(**asked, **given).text for given in local] and texts[0] != texts[2]
    assert response["output"][0]["content"][0]["text"] == texts[0]
    assert (response["temperature"], response["top_p"]) == (0.2, 0.9)


def test_chat_is_the_local_chat(tiny):
    messages = [{"role": "system", "content": "the"}, {"role": "user", "content": "cat <|im_end|>"}]
    local = tiny.chat(messages, max_tokens=8, seed=4, top_logprobs=2)
    parts = [{"type": "text", "text": "cat "}, {"type": "text", "text": "<|im_end|>"}]

    async def question(client):
        body = {
            "messages": messages,
            "max_tokens": 8,
            "seed": 4,
            "logprobs": True,
            "top_logprobs": 2,
            "drafter": "none",
        }
        whole = await client.ok(CHAT, **body)
        events = await client.events(CHAT, **body, stream_options={"include_usage": True})
        same = [{"role": "developer", "content": "the"}, {"role": "user", "content": parts}]
        other = await client.ok(CHAT, messages=same, max_completion_tokens=8, seed=4)
        return whole, events, other

    whole, events, other = ask(tiny, question)
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": local.text, "refusal": None}
    assert other["choices"][0]["message"]["content"] == local.text and other["choices"][0]["logprobs"] is None
    content = choice["logprobs"]["content"]
    assert [c["logprob"] for c in content] == pytest.approx(local.token_logprobs, abs=1e-6)
    assert [bytes(c["bytes"]) for c in content] == [
        tiny.tokenizer.token_bytes(t) or tiny.tokenizer.token_text(t).encode() for t in local.token_ids
    ]
    for entry, row in zip(content, local.top_logprobs, strict=True):
        assert [t["logprob"] for t in entry["top_logprobs"]] == pytest.approx([t.logprob for t in row], abs=1e-6)
    *body, last = events
    cached = last["usage"].pop("prompt_tokens_details")["cached_tokens"]
    assert whole["usage"].pop("prompt_tokens_details") == {"cached_tokens": 0}
    assert cached == whole["usage"]["prompt_tokens"] - 1  # all but the token whose row is wanted
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in body)
    pieces = [event["choices"][0] for event in body]
    assert pieces[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(p["delta"].get("content", "") for p in pieces) == local.text
    assert [c for p in pieces if p["logprobs"] for c in p["logprobs"]["content"]] == content
    assert pieces[-1]["delta"] == {} and pieces[-1]["finish_reason"] == choice["finish_reason"]


def test_a_base_model_refuses_to_chat_and_says_what_to_do():
    async def question(client):
        return await client.post(CHAT, {"messages": [{"role": "user", "content": "a"}]})

    status, reply = ask(toy_model(), question)
    assert status == 400 and "no chat template" in reply["error"]["message"]


def test_without_max_tokens_a_chat_goes_on_until_the_context_is_full(tiny):
    async def question(client):
        end = {str(token): -100 for token in tiny.tokenizer.end_ids}
        return await client.ok(CHAT, messages=[{"role": "user", "content": "the"}], logit_bias=end)

    reply = ask(tiny, question)
    assert reply["usage"]["total_tokens"] in (256, 257) and reply["choices"][0]["finish_reason"] == "length"


# --- scores -----------------------------------------------------------------------------------------------------------


def test_score_gives_the_fields_of_scored(tiny):
    answers = [" cat", " mat and", "", "é"]
    local = [s.to_dict() for s in tiny.score("the", answers, top_logprobs=2, entropy=True)]

    async def question(client):
        return await client.ok(SCORE, prompt="the", answers=answers, top_logprobs=2, entropy=True)

    assert ask(tiny, question)["answers"] == local


def test_a_probability_of_zero_is_null_or_minus_9999_never_broken_json():
    model = toy_model()
    rows = model.runtime._logits_of

    def never_b(prefix):
        row = rows(prefix)
        row[1] = -math.inf
        return row

    model.runtime._logits_of = never_b

    async def question(client):
        echo = await client.ok(COMPLETIONS, prompt="ab", echo=True, max_tokens=0, logprobs=0)
        return await client.ok(SCORE, prompt="a", answers=["b"]), echo

    scored, echo = ask(model, question)
    assert scored["answers"][0]["sequence_logprob"] is None
    assert echo["choices"][0]["logprobs"]["token_logprobs"] == [None, -9999.0]


# --- the server around it ---------------------------------------------------------------------------------------------


def test_models_and_health(tiny):
    async def question(client):
        listed = (await client.http.get("/v1/models")).json()
        one = (await client.http.get("/v1/models/tiny")).json()
        missing = await client.http.get("/v1/models/other")
        health = (await client.http.get("/health")).json()
        return listed, one, missing, health

    listed, one, missing, health = ask(tiny, question)
    assert listed["object"] == "list" and listed["data"] == [one] and one["id"] == "tiny"
    assert one["context_length"] == 256 and one["system_fingerprint"] == tiny.runtime.revision
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    assert health["status"] == "ok" and health["requests"] == 0


def test_a_key_is_asked_for_everywhere_but_at_health():
    async def question(client):
        body = {"prompt": "a", "max_tokens": 1}
        refused = [await client.post(COMPLETIONS, body)]
        for header in ("Bearer", "Bearer ", "Bearer wrong", "secret", "Basic secret", "Bearer sécret".encode()):
            sent = {"Authorization": header, "Content-Type": "application/json"}
            reply = await client.http.post(SCORE, content="{}", headers=sent)
            refused.append((reply.status_code, reply.json()))
        listed = await client.http.get("/v1/models")
        refused.append((listed.status_code, listed.json()))
        assert (await client.http.get("/health")).status_code == 200
        return refused, await client.post(COMPLETIONS, body, Authorization="Bearer secret")

    refused, accepted = ask(toy_model(), question, api_key="secret")
    for status, reply in refused:
        assert status == 401 and reply["error"]["code"] == "invalid_api_key"
        assert "secret" not in reply["error"]["message"]
    assert accepted[0] == 200


class Gate:
    """Holds every call of a model until it is opened."""

    def __init__(self, model):
        self.entered, self.opened = threading.Event(), threading.Event()
        self._forward = model.runtime.forward
        model.runtime.forward = self._held

    def _held(self, work):
        self.entered.set()
        self.opened.wait()
        return self._forward(work)


def test_a_full_queue_is_429_with_retry_after_and_clears():
    model = toy_model()
    gate = Gate(model)

    async def question(client):
        first = asyncio.create_task(client.ok(COMPLETIONS, prompt="a", max_tokens=2))
        await asyncio.to_thread(gate.entered.wait)
        for path, body in ((COMPLETIONS, {"prompt": "a"}), (SCORE, {"prompt": "a", "answers": ["b"]})):
            full = await client.http.post(path, json=body)
            assert full.status_code == 429 and full.headers["retry-after"] == "1"
            assert full.json()["error"]["code"] == "queue_full"
        gate.opened.set()
        await first
        await client.ok(COMPLETIONS, prompt="a", max_tokens=2)

    ask(model, question, limits=ServerLimits(max_running=1, max_queue=0))


def test_a_request_past_its_deadline_ends_and_frees_its_room():
    model = toy_model()
    gate = Gate(model)

    async def question(client):
        body = {"prompt": "a", "max_tokens": 60}
        late = await client.http.post(COMPLETIONS, json=body)
        assert late.status_code == 408 and late.headers["x-should-retry"] == "false"
        stream = await client.http.post(COMPLETIONS, json={**body, "stream": True})
        blocks = stream.text.strip().split("\n\n")
        assert stream.status_code == 200 and '"deadline"' in blocks[-1] and "[DONE]" not in stream.text
        scored = await client.http.post(SCORE, json={"prompt": "a", "answers": ["b"]})
        assert scored.status_code == 408
        gate.opened.set()
        await until_idle(client)

    ask(model, question, limits=ServerLimits(deadline_s=0.05))


async def until_idle(client):
    """Wait for the state, not for a time."""
    while client.engine.waiting or client.engine.free_tokens != client.engine.model.runtime.limits.tokens_held:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, SCORE])
def test_a_client_that_goes_away_frees_its_room(stream, path):
    model = toy_model()
    gate = Gate(model)
    body = b'{"prompt": "a", "max_tokens": 60, "stream": %s}' % (b"true" if stream else b"false")
    if path == SCORE:
        body = b'{"prompt": "a", "answers": ["b", "c"]}'

    async def run():
        async with client_of(model) as client:
            gone, sent = asyncio.Event(), []
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive():
                if messages:
                    return messages.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            scope = {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
                "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
                "headers": [(b"content-type", b"application/json")], "client": ("x", 1), "server": ("y", 2),
            }  # fmt: skip
            task = asyncio.create_task(client.app(scope, receive, send))
            await asyncio.to_thread(gate.entered.wait)
            gone.set()
            await task
            gate.opened.set()
            await until_idle(client)
            return sent

    sent = asyncio.run(run())
    assert not any(b"DONE" in message.get("body", b"") for message in sent)
    assert model.runtime.calls <= 2 and not model.runtime._open
