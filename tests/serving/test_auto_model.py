"""The model "auto": who answers is in the headers, and a fallback that cannot be reached is never silent."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from helpers_for_serving import ask

from likely.calibration.calibrator import Calibrator
from likely.calibration.recalibrators.table import make
from likely.errors import RemoteError
from likely.lm.results import Answer

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


async def raw_auto(client):
    return await raw(client, model="auto")
