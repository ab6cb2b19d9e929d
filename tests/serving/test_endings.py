"""Why a text ended, as a client sees it: OpenAI's words, and what lies beyond them in `stop_reason`."""

from __future__ import annotations

from helpers_for_serving import ask, toy_model

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


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


def test_a_prediction_changes_nothing_but_what_was_guessed(tiny):
    body = {"messages": [{"role": "user", "content": "ab"}], "temperature": 0, "max_tokens": 30, "draft_budget": 8}

    async def question(client):
        plain = await client.ok(CHATS, **body, drafter="none")
        text = plain["choices"][0]["message"]["content"]
        guessed = await client.ok(CHATS, **body, prediction={"type": "content", "content": text})
        parts = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
        events = await client.events(
            CHATS, **body, prediction={"type": "content", "content": parts}, stream_options={"include_usage": True}
        )
        wrong = await client.post(CHATS, {**body, "prediction": {"type": "text", "content": "a"}})
        return plain, guessed, events, wrong

    plain, guessed, events, wrong = ask(tiny, question)
    assert guessed["choices"][0]["message"] == plain["choices"][0]["message"]
    assert "completion_tokens_details" not in plain["usage"]
    details = guessed["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"] > 0
    assert events[-1]["usage"]["completion_tokens_details"] == details
    assert wrong[0] == 400 and "prediction" in wrong[1]["error"]["message"]
