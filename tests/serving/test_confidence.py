"""Chats that ask how sure an answer is: the number that Model.chat gives, or a refusal."""

from __future__ import annotations

import pytest
from answer_calibrators import calibrator_of
from helpers_for_serving import ask

import likely
from likely.calibration.store import keep

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Is 3 odd?"}]
GREEDY = {"temperature": 0, "max_tokens": 6}


pytestmark = pytest.mark.xdist_group("confidence of chats")


@pytest.fixture(scope="module")
def calibrator(tiny_path):
    """Fitted to greedy answers of the tiny model."""
    with likely.load(str(tiny_path), threads=1) as tiny:
        answers = [tiny.ask(f"Is {i} odd?", max_tokens=6) for i in range(40)]
        return calibrator_of(tiny, {"temperature": 0.0, "max_tokens": 6}, answers)


@pytest.fixture
def kept(calibrator, tmp_path, monkeypatch):
    """The calibrator, kept for the tiny model."""
    monkeypatch.setenv("LIKELY_CALIBRATORS", str(tmp_path / "store"))
    return keep(calibrator)


def test_the_confidence_is_that_of_the_model_itself(tiny, kept):
    expected = tiny.chat(MESSAGES, top_p=1.0, **GREEDY)
    assert expected.confidence is not None

    async def question(client):
        whole = await client.ok(CHAT, messages=MESSAGES, confidence=True, n=2, **GREEDY)
        events = await client.events(CHAT, messages=MESSAGES, confidence=True, **GREEDY)
        return whole["choices"], events

    choices, events = ask(tiny, question)
    for choice in choices:
        assert choice["message"]["content"] == expected.text
        assert choice["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
    told = [c for event in events for c in event["choices"] if "confidence" in c]
    assert [(c["finish_reason"], c["confidence"]) for c in told] == [
        (choices[0]["finish_reason"], pytest.approx(expected.confidence, abs=1e-6))
    ]


def test_no_confidence_unless_asked_for(tiny, kept):
    async def question(client):
        return await client.ok(CHAT, messages=MESSAGES, **GREEDY)

    assert "confidence" not in ask(tiny, question)["choices"][0]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"max_tokens": 5},
        {"regex": "yes|no"},
        {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES]},
    ],
    ids=["temperature", "top_k", "max_tokens", "form", "system"],
)
def test_settings_that_nothing_was_fitted_for_are_refused(tiny, kept, other):
    async def questions(client):
        return await client.post(CHAT, {"messages": MESSAGES, "confidence": True, **GREEDY, **other})

    status, reply = ask(tiny, questions)
    assert status == 400 and reply["error"]["param"] == "confidence"
    assert "likely calibrate fit" in reply["error"]["message"]
    status, reply = ask(tiny, questions, calibrator=kept)
    assert status == 400 and "fitted for another settings" in reply["error"]["message"]


def test_what_does_not_change_an_answers_law_does_not_matter(tiny, kept):
    neutral = {"seed": 5, "drafter": "lookup", "top_p": 1.0, "presence_penalty": 0, "stop": [], "logprobs": True}

    async def question(client):
        return await client.ok(CHAT, messages=MESSAGES, confidence=True, **GREEDY, **neutral)

    assert 0 < ask(tiny, question)["choices"][0]["confidence"] < 1


def test_without_any_calibrator(tiny):
    status, reply = ask(tiny, lambda client: client.post(CHAT, {"messages": MESSAGES, "confidence": True}))
    assert status == 400 and 'task "default"' in reply["error"]["message"]


def test_of_answers_of_another_kind_nothing_is_known(tiny, kept):
    others = [
        {"ignore_eos": True},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "the"}]},
        {"tools": [{"type": "function", "function": {"name": "now"}}]},
    ]

    async def question(client):
        body = {"messages": MESSAGES, "confidence": True, **GREEDY}
        return [await client.post(CHAT, {**body, **other}) for other in others]

    for status, reply in ask(tiny, question, calibrator=kept):
        assert status == 400 and "nothing is known" in reply["error"]["message"]
