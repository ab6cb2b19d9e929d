"""Remote models: exact numbers from an honest server, a refusal from every other, and nothing leaked on the way."""

from __future__ import annotations

import gzip
import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fake_server import Raw, Reply, ToyServer, toy_server
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.errors import CapabilityError, DataError, LikelyError, ModelError, RemoteError
from likely.lm.remote import http as remote_http
from likely.lm.remote.echo import Unusable, read_echo, score_answer
from likely.lm.remote.http import base_url, find_key, sse_data
from likely.lm.remote.model import RemoteModel
from likely.models.chat_template import ChatTemplate
from likely.runtimes.toy import exact_logprob


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIKELY_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def toy() -> Iterator[ToyServer]:
    with toy_server() as server:
        yield server


def remote(server: ToyServer, **options: Any) -> RemoteModel:
    return RemoteModel(server.url, **{"backoff_s": 0.0, **options})


def exact(server: ToyServer, prompt: str, answer: str) -> float:
    encode = server.tokenizer.encode
    return exact_logprob(server.runtime, encode(answer), given=(server.tokenizer.bos_id, *encode(prompt)))


# --- an honest server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shows_bos", [False, True])
def test_scores_are_those_of_the_model(shows_bos: bool) -> None:
    with toy_server(shows_bos=shows_bos) as toy, remote(toy) as lm:
        for prompt in ("Hello ", "ü", "Is it? "):
            for scored in lm.score(prompt, ["a", "World.\n", "éü", ""]):
                assert scored.sequence_logprob == pytest.approx(exact(toy, prompt, scored.text), abs=1e-4)
                assert scored.tokens == list(scored.text) and scored.token_ids is None
                assert scored.context_tokens is None or scored.context_tokens == len(prompt) + 1
                assert scored.mean_logprob == (
                    pytest.approx(scored.sequence_logprob / len(scored.text)) if scored.text else None
                )
        if shows_bos:
            assert lm.score("", ["ab"])[0].sequence_logprob == pytest.approx(exact(toy, "", "ab"), abs=1e-4)
        else:
            with pytest.raises(DataError, match="prompt must not be empty"):
                lm.score("", ["ab"])


def test_scoring_is_checked_once(toy: ToyServer) -> None:
    lm = remote(toy)
    assert lm.capabilities.score and not lm.capabilities.why_not
    before = len(toy.requests)
    lm.score("a", ["b", "c"])
    assert len(toy.requests) == before + 2


def test_a_server_that_wants_max_tokens_0_is_asked_so(toy: ToyServer) -> None:
    def lie(body: Reply, reply: Reply) -> Reply | Raw:
        return (
            Raw(400, b'{"error": "with echo max_tokens must be 0"}')
            if body.get("echo") and body["max_tokens"]
            else reply
        )

    toy.lie = lie
    lm = remote(toy)
    assert lm.score("Hello", ["x"])[0].sequence_logprob == pytest.approx(exact(toy, "Hello", "x"), abs=1e-4)


def test_top_logprobs_are_the_most_likely_tokens(toy: ToyServer) -> None:
    scored = remote(toy).score("Hello", ["ab"], top_logprobs=3)[0]
    assert scored.top_logprobs is not None
    law = toy.law(toy.tokenizer.encode("Hello"))
    best = [toy.tokenizer.token_text(int(i)) for i in (-law).argsort()[:3]]
    assert [top.text for top in scored.top_logprobs[0]] == best
    assert [top.logprob for top in scored.top_logprobs[0]] == pytest.approx(sorted(law)[::-1][:3], abs=1e-5)


def test_generation_and_its_logprobs(toy: ToyServer) -> None:
    lm = remote(toy)
    whole = lm.generate("Once", max_tokens=7, temperature=0)
    tokens = toy.tokenizer.encode("Once")
    for character in whole.text:
        assert toy.token(tokens, {"temperature": 0}, 0) == toy.tokenizer.encode(character)[0]
        tokens += toy.tokenizer.encode(character)
    assert whole.finish_reason in ("length", "stop") and whole.prompt_tokens == 5
    assert whole.sequence_logprob == pytest.approx(exact(toy, "Once", whole.text), abs=1e-4)
    stream = lm.stream("Once", max_tokens=7, temperature=0)
    assert "".join(stream) == whole.text
    assert stream.result is not None and stream.result.token_logprobs == whole.token_logprobs
    assert stream.result.finish_reason == whole.finish_reason and stream.result.prompt_tokens == 5


def test_chat_and_ask_and_their_streams_agree(toy: ToyServer) -> None:
    lm = remote(toy)
    messages = [{"role": "user", "content": "hi"}]
    chat = lm.chat(messages, max_tokens=6, temperature=0, top_logprobs=2)
    assert chat.sequence_logprob == pytest.approx(exact(toy, "user: hi\n", chat.text), abs=1e-4)
    assert chat.top_logprobs is not None and all(len(row) == 2 for row in chat.top_logprobs)
    stream = lm.stream_chat(messages, max_tokens=6, temperature=0, top_logprobs=2)
    assert stream.finish().token_logprobs == chat.token_logprobs and stream.result.top_logprobs == chat.top_logprobs
    assert lm.ask("hi", max_tokens=6).text == lm.stream_ask("hi", max_tokens=6).finish().text == chat.text
    lm.ask("hi", system="Be brief", max_tokens=1)
    assert toy.requests[-1][1]["messages"][0] == {"role": "system", "content": "Be brief"}


def test_lists_keep_their_order_with_at_most_eight_at_a_time(toy: ToyServer) -> None:
    lm = remote(toy)
    prompts = [f"a{'b' * i}" for i in range(30)]
    assert [g.text for g in lm.generate(prompts, max_tokens=3)] == [lm.generate(p, max_tokens=3).text for p in prompts]
    assert toy.most_running <= 8


def test_samples_are_made_even_where_n_is_ignored() -> None:
    with toy_server(ignores_n=True) as toy:
        several = remote(toy).generate("Once", n=3, seed=5, max_tokens=8)
        assert [g.sample for g in several] == [0, 1, 2] and [g.seed for g in several] == [5, 6, 7]
        assert len({g.text for g in several}) == 3
    with toy_server() as toy:
        assert len({g.text for g in remote(toy).generate("Once", n=3, max_tokens=8)}) == 3
        assert len(toy.requests) == 2  # the name of the model, and one for all three


def test_stop_strings_and_seeds_are_passed_on(toy: ToyServer) -> None:
    lm = remote(toy)
    full = lm.generate("Once", seed=3, max_tokens=8)
    assert full.text == lm.generate("Once", seed=3, max_tokens=8).text != lm.generate("Once", seed=4, max_tokens=8).text
    cut = lm.generate("Once", seed=3, max_tokens=8, stop=full.text[2])
    assert cut.text == full.text[: full.text.index(full.text[2])] and cut.finish_reason == "stop"


def test_a_stream_closed_early_keeps_its_part(toy: ToyServer) -> None:
    stream = remote(toy).stream("Once", max_tokens=8)
    first = next(stream)
    result = stream.close()
    assert result.text == first and result.finish_reason == "cancelled" and len(result.token_logprobs) == 1


# --- liars ------------------------------------------------------------------------------------------------------------


def change(**edits: Callable[[Any], Any]) -> Callable[[Reply, Reply], Reply]:
    """A lie about the log-probabilities of echoed completions: each named list goes through its function."""

    def lie(body: Reply, reply: Reply) -> Reply:
        if body.get("echo"):
            held = reply["choices"][0]["logprobs"]
            held.update({name: edit(held[name]) for name, edit in edits.items()})
        return reply

    return lie


def ignores_echo(body: Reply, reply: Reply) -> Reply:
    n = len(body["prompt"]) if body.get("echo") else 0
    (choice,) = reply["choices"]
    held = choice["logprobs"]
    logprobs = held and {name: values[n:] for name, values in held.items()}
    return {**reply, "choices": [{**choice, "text": choice["text"][n:], "logprobs": logprobs}]}


def only_generated_logprobs(body: Reply, reply: Reply) -> Reply:
    text = reply["choices"][0]["text"]
    lied = ignores_echo(body, reply)
    lied["choices"][0]["text"] = text
    return lied


def no_logprobs(body: Reply, reply: Reply) -> Reply:
    if body.get("echo"):
        reply["choices"][0]["logprobs"] = None
    return reply


def cut_text(body: Reply, reply: Reply) -> Reply:
    if body.get("echo"):
        reply["choices"][0]["text"] = reply["choices"][0]["text"][3:]
    return reply


def same_for_every_prompt(body: Reply, reply: Reply) -> Reply:
    """Answers, generated or given, as if there were no prompt; consistent with itself."""
    held = reply["choices"][0]["logprobs"]
    if held:
        held["token_logprobs"] = [v and -1.0 for v in held["token_logprobs"]]
        held["top_logprobs"] = [row and {k: -1.0 for k in row} for row in held["top_logprobs"]]
    return reply


LIES: dict[str, tuple[Callable[[Reply, Reply], Reply | Raw], str]] = {
    "ignores echo": (ignores_echo, "did not echo"),
    "zeros": (change(token_logprobs=lambda v: [0.0] * len(v)), "are 0"),
    "zeros after null": (change(token_logprobs=lambda v: [None] + [0.0] * (len(v) - 1)), "are 0"),
    "only generated": (only_generated_logprobs, "do not join"),
    "no logprobs": (no_logprobs, "sent no logprobs"),
    "nulls": (change(token_logprobs=lambda v: [None] * len(v)), "token 1, a log-probability is None"),
    "null list": (change(token_logprobs=lambda v: None), "no tokens with logprobs"),
    "positive": (change(token_logprobs=lambda v: [x and -x for x in v]), "a log-probability is"),
    "NaN": (change(token_logprobs=lambda v: [v[0], *[math.nan] * (len(v) - 1)]), "token 1, a log-probability is nan"),
    "out of range": (
        change(token_logprobs=lambda v: [v[0], *[-(10**400)] * (len(v) - 1)]),
        "of token 1, a log-probability is nan",
    ),
    "words": (
        change(token_logprobs=lambda v: [v[0], *["-1.0"] * (len(v) - 1)]),
        "token 1, a log-probability is '-1.0'",
    ),
    "too few": (change(token_logprobs=lambda v: v[:-1]), "log-probabilities for"),
    "cuts the text": (cut_text, "did not echo"),
    "other tokens": (change(tokens=lambda v: ["x"] * len(v)), "do not join"),
    "drops a token": (
        lambda b, r: change(**dict.fromkeys(("tokens", "token_logprobs", "text_offset"), lambda v: v[:2] + v[3:]))(
            b, r
        ),
        "do not join",
    ),
    "shifted by one": (change(token_logprobs=lambda v: [None, *v[2:], -1.5]), "when it is told"),
    "shifted back": (
        change(token_logprobs=lambda v: [None, *v[:-1]][: len(v)] if v[1] else v),
        "token 1, a log-probability is None",
    ),
    "made up": (
        change(token_logprobs=lambda v: [None, *[-0.01 * i - 20 for i in range(1, len(v))]]),
        "when it is told",
    ),
    "the prompt does not matter": (same_for_every_prompt, "does not depend on the prompt"),
    "refuses echo": (lambda b, r: Raw(400, b'{"error": "no echo here"}') if b.get("echo") else r, "no echo here"),
    "no logprobs at all": (
        lambda b, r: Raw(500, b'{"error": {"message": "logprobs is not supported"}}') if "logprobs" in b else r,
        "logprobs is not supported",
    ),
    "no completions": (lambda b, r: Raw(404, b'{"detail": "Not Found"}'), "Not Found"),
    "no choices": (lambda b, r: {"choices": []}, "no choices"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_never_becomes_a_score(toy: ToyServer, name: str) -> None:
    toy.lie, words = LIES[name]
    lm = remote(toy)
    with pytest.raises(
        CapabilityError, match=r'^This server returned no log-probabilities for the prompt, so "score"'
    ) as e:
        lm.score("The sky is", [" blue"])
    assert words in str(e.value) and "\n" not in str(e.value)
    assert not lm.capabilities.score and lm.capabilities.why_not == str(e.value)
    before = len(toy.requests)
    with pytest.raises(CapabilityError):
        lm.score("The sky is", [" blue"])
    assert len(toy.requests) == before  # the answer is remembered


@pytest.mark.parametrize("name", sorted(set(LIES) - {"the prompt does not matter", "shifted by one", "made up"}))
def test_a_server_that_starts_to_lie_is_caught_where_the_reply_shows_it(toy: ToyServer, name: str) -> None:
    lm = remote(toy)
    lm.score("The sky is", [" blue"])
    toy.lie = LIES[name][0]
    with pytest.raises((CapabilityError, RemoteError)):
        lm.score("The sky is", [" blue"])


def test_generated_zeros_are_no_logprobs(toy: ToyServer) -> None:
    def zeros(body: Reply, reply: Reply) -> Reply:
        held = reply["choices"][0]["logprobs"]
        return held.update(token_logprobs=[0.0] * len(held["tokens"])) or reply

    toy.lie = zeros
    result = remote(toy).generate("Once", max_tokens=4, temperature=0)
    assert result.text and result.token_logprobs is None and result.sequence_logprob is None


@pytest.mark.parametrize("value", [math.nan, 1.0, "x", None, True, -(10**400)])
def test_impossible_generated_logprobs_are_an_error(toy: ToyServer, value: object) -> None:
    def lie(body: Reply, reply: Reply) -> Reply:
        held = reply["choices"][0]["logprobs"]
        return held.update(token_logprobs=[value] * len(held["tokens"])) or reply

    toy.lie = lie
    with pytest.raises(RemoteError, match="makes no sense"):
        remote(toy).generate("Once", max_tokens=4)


def test_a_server_without_logprobs_generates_without_them(toy: ToyServer) -> None:
    toy.lie = LIES["no logprobs at all"][0]
    lm = remote(toy)
    assert lm.generate("Once", max_tokens=4).token_logprobs is None
    before = len(toy.requests)
    assert lm.chat([{"role": "user", "content": "x"}], max_tokens=4).token_logprobs is None
    assert lm.stream("Once", max_tokens=4).finish().token_logprobs is None
    assert len(toy.requests) == before + 2  # not tried again
    with pytest.raises(CapabilityError, match="gives no log-probabilities"):
        lm.generate("Once", max_tokens=4, top_logprobs=2)


# --- broken servers ---------------------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[Raw, str]] = {
    "HTML": (Raw(200, b"<html><title>Welcome</title>\n<script>x</script>nginx</html>"), 'with JSON: "Welcome nginx"'),
    "HTML error": (Raw(403, b"<h1>Forbidden</h1>"), 'answered 403: "Forbidden": set api_key='),
    "broken JSON": (Raw(200, b'{"choices": [{"te'), "did not answer with JSON"),
    "deep JSON": (Raw(200, b"[" * 100_000), "did not answer with JSON"),
    "list": (Raw(200, b"[]"), "JSON object"),
    "empty": (Raw(200, b""), r"\(an empty reply\)"),
    "error with 200": (Raw(200, b'{"error": {"message": "overloaded"}}'), 'answered: "overloaded"'),
    "no choices": (Raw(200, b"{}"), "sent no choices"),
    "no text": (Raw(200, b'{"choices": [{"index": 0}]}'), "without text"),
    "bad request": (
        Raw(400, b'{"error": {"message": "max_tokens\\nis too\\tlarge"}}'),
        '400: "max_tokens is too large"',
    ),
    "long error": (Raw(400, b'{"error": "' + b"long " * 10_000 + b'"}'), r"long lo\.\.\.\"$"),
    "compressed": (Raw(200, gzip.compress(b"{}"), {"Content-Encoding": "gzip"}), "compressed its reply"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_broken_reply_is_one_line_and_not_retried(toy: ToyServer, name: str) -> None:
    lm = remote(toy, model="toy")
    toy.script, words = [ERRORS[name][0]], ERRORS[name][1]
    with pytest.raises(RemoteError, match=words) as caught:
        lm.generate("Once")
    assert len(toy.requests) == 1 and not caught.value.retryable
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_passing_errors_are_retried(toy: ToyServer, status: int) -> None:
    lm = remote(toy, model="toy")
    toy.script = [Raw(status, b"busy")] * 2
    assert lm.generate("Once", max_tokens=2).text
    toy.script = [Raw(status, b"busy")] * 9
    with pytest.raises(RemoteError, match=f'answered {status}: "busy"') as caught:
        lm.generate("Once")
    assert caught.value.retryable and caught.value.status == status and len(toy.requests) == 3 + 4


def test_waits_double_and_follow_retry_after_up_to_a_cap(toy: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote_http.time, "sleep", waits.append)
    after = ["", "7", "100000", "Wed, 01 Jan 2020 00:00:00 GMT", "soon"]
    toy.script = [Raw(429, b"", {"Retry-After": value} if value else {}) for value in after]
    remote(toy, model="toy", backoff_s=0.5, retries=5).generate("Once", max_tokens=1)
    assert waits == [0.5, 7.0, remote_http.RETRY_AFTER_CAP_S, 0.0, 8.0]


def test_a_server_that_is_not_there_is_an_error_after_retries() -> None:
    with socket.socket() as held:  # bound, not listening: nobody else can take the port
        held.bind(("127.0.0.1", 0))
        lm = RemoteModel(f"http://127.0.0.1:{held.getsockname()[1]}", model="x", backoff_s=0.0)
        with pytest.raises(RemoteError, match="cannot be reached") as caught:
            lm.generate("Once")
    assert caught.value.retryable and caught.value.status is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_hanging_server_is_left_after_timeout_s(toy: ToyServer, stream: bool) -> None:
    begun = b'data: {"choices": [{"text": "a"}]}\n\n' if stream else b"{"
    toy.script = [Raw(200, begun, {"Content-Type": "text/event-stream"}, hang=True)]
    lm = remote(toy, model="toy", timeout_s=0.2)
    with pytest.raises(RemoteError, match=r"did not answer within 0\.2 s") as caught:
        lm.stream("Once").finish() if stream else lm.generate("Once")
    assert caught.value.retryable and len(toy.requests) == 1


def test_a_server_that_drips_is_left_after_timeout_s(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(remote_http.time, "monotonic", lambda: float(next(clock)))

    class Drip(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b" "

    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Drip()))
    with pytest.raises(RemoteError, match="did not answer within 60 s"):
        RemoteModel("http://x", model="x", transport=transport).generate("Once")


def test_a_huge_reply_is_cut_off(toy: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_http, "MAX_REPLY_BYTES", 100_000)
    toy.script = [Raw(200, b" " * 100_001)]
    with pytest.raises(RemoteError, match="sent more than 100000 bytes"):
        remote(toy, model="toy").generate("Once")


def test_a_connection_that_breaks_is_retried(toy: ToyServer) -> None:
    toy.script = [Raw(200, b"{", {"Content-Length": "1000", "Connection": "close"})] * 2

    assert remote(toy, model="toy", timeout_s=5).generate("Once", max_tokens=1).text is not None


SSE = {"Content-Type": "text/event-stream"}
PIECE = b'data: {"choices": [{"text": "a"}]}\n\n'
STREAMS: dict[str, tuple[Raw, str]] = {
    "no stream": (Raw(200, b'{"choices": []}'), "without a stream"),
    "broken event": (Raw(200, PIECE + b'data: {"choices"\n\n', SSE), "did not answer with JSON"),
    "error event": (Raw(200, PIECE + b'data: {"error": {"message": "out of memory"}}\n\n', SSE), '"out of memory"'),
    "ends early": (Raw(200, PIECE, SSE), "ended the stream before it was done"),
    "empty": (Raw(200, b"", SSE), "ended the stream before it was done"),
    "no object": (Raw(200, b"data: 7\n\n", SSE), "JSON object"),
    "refused": (Raw(400, b'{"error": "no"}'), 'answered 400: "no"'),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_broken_stream_is_one_line(toy: ToyServer, name: str) -> None:
    toy.script = [STREAMS[name][0]]
    stream = remote(toy, model="toy").stream("Once")
    with pytest.raises(RemoteError, match=STREAMS[name][1]) as caught:
        stream.finish()
    assert "\n" not in str(caught.value)
    assert stream.result is not None and stream.result.finish_reason == "cancelled"


def test_a_stream_needs_no_done_after_its_finish_reason(toy: ToyServer) -> None:
    toy.script = [Raw(200, PIECE + b'data: {"choices": [{"text": "b", "finish_reason": "stop"}]}', SSE)]
    result = remote(toy, model="toy").stream("Once").finish()
    assert (result.text, result.finish_reason) == ("ab", "stop")


def test_a_long_stream_is_cut_off(toy: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_http, "MAX_EVENT_BYTES", 1000)
    toy.script = [Raw(200, b"data: " + b"x" * 5000, SSE)]
    with pytest.raises(RemoteError, match="stream is too long"):
        remote(toy, model="toy").stream("Once").finish()


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=5), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
)
def test_events_do_not_depend_on_how_the_bytes_are_cut(texts: list[str], end: str, sizes: list[int]) -> None:
    data = f": comment{end}{end}" + "".join(f"id: 1{end}data: {t}{end}data:{t}{end}{end}" for t in texts)
    raw, chunks, i = data.encode(), [], 0
    while raw:
        size = sizes[i % len(sizes)]
        chunks.append(raw[:size])
        raw, i = raw[size:], i + 1
    # one space after the colon belongs to the format
    assert list(sse_data(chunks)) == [f"{t}\n{t[1:] if t.startswith(' ') else t}" for t in texts]


# --- addresses and keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_url", "used"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("http://h/v1", "http://h/v1"),
        (" http://h/v1/ ", "http://h/v1"),
        ("http://h/v1/completions", "http://h/v1"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://h/v1/models", "http://h/v1"),
        ("https://h/api/v1", "https://h/api/v1"),
        ("https://h/openai", "https://h/openai/v1"),
        ("https://h/v1beta", "https://h/v1beta"),
    ],
)
def test_addresses_with_and_without_v1(given_url: str, used: str) -> None:
    assert str(base_url(given_url)) == used


@pytest.mark.parametrize("url", ["ftp://h", "h:8000", "http://", "http://h?x=1", "http://h#x", "http://[", ""])
def test_what_is_no_address_is_an_error(url: str) -> None:
    with pytest.raises(ModelError, match="address of a server"):
        RemoteModel(url)


def test_keys_go_only_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    assert find_key(base_url("https://api.openai.com/v1"), None) == "sk-openai"
    for other in ("http://api.openai.com", "https://openai.com.evil.org", "https://evilopenai.com", "http://localhost"):
        assert find_key(base_url(other), None) is None
    monkeypatch.setenv("LIKELY_API_KEY", "sk-likely")
    assert find_key(base_url("http://localhost"), None) == "sk-likely"
    assert find_key(base_url("http://localhost"), "sk-given") == "sk-given"
    with pytest.raises(ModelError, match="no header can carry") as caught:
        find_key(base_url("http://localhost"), "sk-secret\n")
    assert "secret" not in str(caught.value)


def test_the_key_is_sent_and_never_printed(toy: ToyServer) -> None:
    lm = remote(toy, api_key="sk-secret")
    lm.generate("Once", max_tokens=1)
    assert all(headers["Authorization"] == "Bearer sk-secret" for _, _, headers in toy.requests)
    toy.script = [Raw(401, b'{"error": {"message": "Incorrect API key provided: sk-secret."}}')]
    with pytest.raises(RemoteError, match=r"provided: \*\*\*") as caught:
        lm.generate("Once")
    shown = RemoteModel("http://user:pa55@h:1/v1", api_key="sk-secret")
    for text in (str(caught.value), repr(caught.value), repr(lm), repr(shown)):
        assert "secret" not in text and "pa55" not in text


def test_redirects_stay_on_the_host(toy: ToyServer) -> None:
    lm = remote(toy, model="toy", api_key="sk-secret")
    toy.script = [Raw(307, b"", {"Location": "/v1/completions"})]
    assert lm.generate("Once", max_tokens=1).text is not None
    with toy_server() as other:
        for status, target in [(307, other.url), (308, other.url + "/v1/completions"), (302, "/v1/completions")]:
            toy.script = [Raw(status, b"", {"Location": target})]
            with pytest.raises(RemoteError, match="redirects to"):
                lm.generate("Once")
        assert not other.requests
    toy.script = [Raw(308, b"", {"Location": "/v1/completions"})] * 9
    with pytest.raises(RemoteError, match="redirects more than 3 times"):
        lm.generate("Once")


def test_the_only_model_is_found_and_several_are_a_question(toy: ToyServer) -> None:
    assert remote(toy).name == "toy"
    for listed in ("[]", '[{"id": "a"}, {"id": "b"}]', "null"):
        toy.script = [Raw(200, f'{{"data": {listed}}}'.encode())]
        with pytest.raises(ModelError, match="choose a model with model="):
            remote(toy).generate("Once")


def test_options_that_change_nothing_pass(toy: ToyServer) -> None:
    lm = remote(toy)
    neutral = {"top_k": 0, "min_p": 0.0, "beams": 0, "drafter": None, "repetition_penalty": 1.0, "stop_tokens": ()}
    assert lm.generate("Once", max_tokens=3, **neutral).text == lm.generate("Once", max_tokens=3).text
    assert not set(neutral) & set(toy.requests[1][1])
    assert lm.score("Once", ["a"], window=None, stride=None, entropy=False) == lm.score("Once", ["a"])
    assert (lm.info.name, lm.info.runtime, lm.info.source) == ("toy", "server", f"{toy.url}/v1")


def test_wrong_options_are_errors(toy: ToyServer) -> None:
    lm = remote(toy)
    with pytest.raises(TypeError, match=r'unknown option "temprature"; did you mean "temperature"'):
        lm.generate("Once", temprature=1)
    with pytest.raises(CapabilityError, match=r"not asked for drafter= .got 'lookup'.; load the model locally"):
        lm.generate("Once", drafter="lookup")
    with pytest.raises(CapabilityError, match="cannot score with window=; load the model locally"):
        lm.score("Once", ["upon"], window=8)
    with pytest.raises(ValueError, match="max_tokens must be a whole number"):
        lm.generate("Once", max_tokens=0)
    with pytest.raises(CapabilityError, match="one text"):
        lm.stream("Once", n=2)
    with pytest.raises(TypeError, match="list of strings"):
        lm.score("Once", "upon")
    with pytest.raises(DataError, match="unknown role"):
        lm.chat([{"role": "usr", "content": "x"}])
    with pytest.raises(CapabilityError, match="tokenizer"):
        _ = lm.tokenizer
    assert not toy.requests


# --- reading echoes ---------------------------------------------------------------------------------------------------


def echoed(text: str, tokens: list[str], logprobs: list[float | None], offsets: list[int] | None = None) -> Reply:
    return {"text": text, "logprobs": {"tokens": tokens, "token_logprobs": logprobs, "text_offset": offsets}}


def scored(choice: Reply, prompt: str, answer: str) -> Any:
    return score_answer(read_echo(choice, prompt + answer), prompt, answer, prompt_tokens=None, top=0)


def test_a_token_across_the_boundary_counts_to_the_answer() -> None:
    result = scored(echoed("a bcd!", ["a", " bc", "d", "!"], [None, -1.0, -2.0, -9.0]), "a b", "cd")
    assert result.tokens == [" bc", "d"] and result.sequence_logprob == -3.0 and result.straddles
    result = scored(echoed("a bcd!", ["a", " b", "cd", "!"], [None, -1.0, -2.0, -9.0]), "a b", "cd")
    assert result.tokens == ["cd"] and result.sequence_logprob == -2.0 and not result.straddles


@pytest.mark.parametrize(
    ("tokens", "offsets"),
    [
        (["a", "bytes:\\xf0\\x9f", "bytes:\\x99\\x82", "b"], None),
        (["a", "", "", "b"], [0, 1, 1, 2]),
        (["a", "\ufffd", "\ufffd", "b"], [0, 1, 1, 2]),
        (["a", "\ufffd", "\ufffd", "b"], None),
        (["a", "\ufffd", "\ufffd", "b"], [0, 1, 2, 3]),  # counted as the tokens' own lengths
    ],
)
def test_halves_of_a_character_belong_to_it(tokens: list[str], offsets: list[int] | None) -> None:
    choice = echoed("a🙂b", tokens, [None, -1.0, -2.0, -4.0], offsets)
    assert scored(choice, "a", "🙂b").sequence_logprob == -7.0
    assert scored(choice, "a🙂", "b").sequence_logprob == -4.0
    assert scored(choice, "a", "🙂b").straddles is False


def test_tokens_around_breaks_are_placed_only_where_there_is_one_way() -> None:
    choice = echoed("x é🙂 é b", ["x", " é\ufffd", "\ufffd\ufffd", " é", " b"], [None, -1.0, -2.0, -4.0, -8.0])
    assert scored(choice, "x", " é🙂 é b").sequence_logprob == -15.0
    assert scored(choice, "x é🙂", " é b").sequence_logprob == -12.0
    straddling = scored(choice, "x ", "é🙂 é b")
    assert straddling.sequence_logprob == -15.0 and straddling.straddles
    two = echoed("a🙂🙂b", ["a", "\ufffd", "\ufffd", "\ufffd", "b"], [None, -1.0, -2.0, -4.0, -8.0])
    assert scored(two, "a", "🙂🙂b").sequence_logprob == -15.0
    with pytest.raises(DataError, match="does not show apart"):
        scored(two, "a🙂", "🙂b")
    for tokens in (["a", "\ufffd", "🙂", "\ufffd", "b"], ["a", "\ufffd", "c"], ["a", "\ufffd"], ["a", "", "b"]):
        with pytest.raises(Unusable, match="do not join"):
            scored(echoed("a🙂🙂🙂b", tokens, [None, -1.0, -2.0, -3.0, -4.0][: len(tokens)]), "a", "🙂🙂🙂b")


def test_unreadable_tokens_cannot_stand_for_readable_text() -> None:
    for tokens in (["", "", ""], ["\ufffd", "\ufffd", "\ufffd"], ["a", "\ufffd", ""]):
        with pytest.raises(Unusable, match="do not join"):
            scored(echoed("abc", tokens, [None, -1.0, -2.0], [0, 1, 2]), "a", "bc")


def test_a_hidden_beginning_of_sequence_is_seen_through() -> None:
    choice = echoed("ab", ["<s>", "a", "b"], [None, -1.0, -2.0], [0, 3, 4])
    assert scored(choice, "", "ab").sequence_logprob == -3.0
    assert scored(choice, "a", "b").tokens == ["b"]


def test_a_new_token_beyond_the_text_may_be_half_a_character() -> None:
    choice = echoed("ab", ["a", "b", "bytes:\\xcc"], [None, -1.0, -2.0])
    assert scored({**choice, "text": "ab\ufffd"}, "a", "b").sequence_logprob == -1.0
    with pytest.raises(Unusable, match="do not join"):
        scored({**choice, "text": "abX"}, "a", "b")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=2, max_size=12), st.data())
def test_the_answers_tokens_are_those_that_hold_its_bytes(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=6)))
    parts = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]

    def name(part: bytes) -> str:
        try:
            return part.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in part)

    split = data.draw(st.integers(1, len(text) - 1))
    prompt, answer = text[:split], text[split:]
    logprobs: list[float | None] = [-float(i + 1) for i in range(len(parts))]
    result = scored(echoed(text, [name(p) for p in parts], logprobs), prompt, answer)
    boundary, expected, at = len(prompt.encode()), [], 0
    for part, value in zip(parts, logprobs, strict=True):
        at += len(part)
        if at > boundary:
            expected.append(value)
    assert result.token_logprobs == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["", "a", "ab", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tokens", "token_logprobs", "text_offset", "top_logprobs", "content", "a"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=200)
@given(json_values, st.sampled_from(["ab", "abx", "", None]))
def test_any_reply_is_read_or_refused(held: object, text: object) -> None:
    try:
        echo = read_echo({"text": text, "logprobs": held}, "ab")
    except Unusable:
        return
    assert "".join(echo.tokens).startswith("ab") or "" in echo.tokens
    assert all(value is None or value <= 0 for value in echo.logprobs)


@settings(max_examples=100)
@given(json_values)
def test_any_json_reply_generates_or_is_one_line(value: object) -> None:
    logprobs = {"content": [{"token": value, "logprob": value, "top_logprobs": [{"token": value}]}]}
    if isinstance(value, list):
        logprobs = {"content": value}
    held = value if isinstance(value, dict) else {"choices": [{"text": "a", "logprobs": logprobs}]}
    body = json.dumps(held).encode()
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(body)))
    try:
        RemoteModel("http://x", model="x", transport=transport, retries=0).generate("Once")
    except LikelyError as error:
        assert "\n" not in str(error)


# --- llama.cpp's Python server ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["plain", "logits_all"])
def llama_server(request: pytest.FixtureRequest, smollm2_path: Any) -> Iterator[tuple[str, str]]:
    pytest.importorskip("fastapi")
    pytest.importorskip("llama_cpp")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(smollm2_path), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--n_ctx", "256", "--n_threads", "1", "--n_threads_batch", "1"]
    command += ["--logits_all", str(request.param == "logits_all")]
    env = {k: v for k, v in os.environ.items() if k not in ("CONFIG_FILE", "PORT", "HOST")}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
    log: list[str] = []
    ready = threading.Event()

    def watch() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if "Uvicorn running" in line:
                ready.set()
        ready.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        assert ready.wait(60) and process.poll() is None, "".join(log[-20:])
        yield request.param, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.real
def test_llama_cpp_python_server_generates_and_is_refused_as_a_scorer(
    llama_server: tuple[str, str], smollm2_path: Any
) -> None:
    from llama_cpp import Llama

    llama = Llama(str(smollm2_path), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)

    def greedy(prompt: str, n: int) -> str:
        return llama.create_completion(prompt, max_tokens=n, temperature=0)["choices"][0]["text"]

    kind, url = llama_server
    with RemoteModel(url, backoff_s=0.0) as lm:
        with pytest.raises(CapabilityError, match="would be meaningless") as caught:
            lm.score("The capital of France is", [" Paris"])
        # With logits_all it does answer, with the values of one place further on: plausible, and wrong.
        assert ("when it is told" if kind == "logits_all" else "not supported") in str(caught.value)
        whole = lm.generate("1, 2, 3, 4, 5,", max_tokens=8, temperature=0)
        assert whole.text == greedy("1, 2, 3, 4, 5,", 8)
        assert (whole.token_logprobs is not None) == (kind == "logits_all")
        stream = lm.stream("1, 2, 3, 4, 5,", max_tokens=8, temperature=0)
        assert "".join(stream) == whole.text
        question = [{"role": "user", "content": "What is 2 + 2?"}]
        answer = lm.ask(question[0]["content"], max_tokens=8)
        assert answer.text == greedy(ChatTemplate(llama.metadata["tokenizer.chat_template"]).render(question), 8)
        # asked again, the server goes on from what it has cached, whose sums may tip a near-tie: the same for both
        again = lm.ask(question[0]["content"], max_tokens=8)
        assert lm.stream_chat(question, max_tokens=8, temperature=0).finish().text == again.text
        pair = lm.generate(["1, 2, 3, 4, 5,", "a, b, c, d, e,"], max_tokens=2, n=2, temperature=0)
        assert [[g.text for g in group] for group in pair] == [[" 6"] * 2, [" f,"] * 2]
    llama.close()
