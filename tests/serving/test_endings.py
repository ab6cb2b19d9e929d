"""Why a text ended, as a client sees it: OpenAI's words, and what lies beyond them in `stop_reason`."""

from __future__ import annotations

from helpers_for_serving import ask, toy_model

COMPLETIONS = "/v1/completions"


def test_a_text_that_runs_in_circles_is_stopped_and_says_so():
    model = toy_model(context_length=600, tokens_held=5000)
    body = {"prompt": "abc", "temperature": 0, "logit_bias": {"3": 100}, "max_tokens": 200}

    async def question(client):
        whole = await client.ok(COMPLETIONS, **body)
        cut = await client.ok(COMPLETIONS, **body, stop_repetition=True)
        events = await client.events(COMPLETIONS, **body, stop_repetition=True)
        return whole["choices"][0], cut["choices"][0], events

    whole, cut, events = ask(model, question)
    assert whole["finish_reason"] == "length" and "stop_reason" not in whole
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", "repetition")
    assert cut["text"] == whole["text"][: len(cut["text"])] and len(cut["text"]) < len(whole["text"]) == 200
    last = events[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "repetition")
    assert "".join(event["choices"][0]["text"] for event in events) == cut["text"]


def test_the_end_of_the_context_is_a_length_that_says_so():
    model = toy_model(context_length=64, tokens_held=24)
    body = {"prompt": "abc", "logit_bias": {"3": 100}, "max_tokens": 24}

    async def question(client):
        first = await client.ok(COMPLETIONS, **body)
        return first["choices"][0], (await client.ok(COMPLETIONS, prompt="a", max_tokens=2))["choices"][0]

    cut, after = ask(model, question)
    assert (cut["finish_reason"], cut["stop_reason"]) == ("length", "context") and len(cut["text"]) == 21
    assert after["finish_reason"] in ("stop", "length")
