"""A real server, the official client, many at once, and clients that hang up."""

from __future__ import annotations

import asyncio
import random
import time

import httpx
import numpy as np
import openai
import pytest
from helpers_for_serving import serving

import likely
from likely.runtimes.prefix_cache import MOST_TWICE

PROMPTS = [f"{a} {b}" for a in ("the cat", "on the", "this is", "then they") for b in ("sat", "and", "that", "went")]


@pytest.fixture(scope="module")
def served(tiny_path):
    """(address, a model of the same file for comparison)"""
    with (
        likely.load(str(tiny_path), threads=1) as lm,
        likely.load(str(tiny_path), threads=1) as own,
    ):
        with serving(lm) as url:
            yield url, own
        assert lm.runtime.free_tokens() == lm.runtime.limits.tokens_held


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


def settings(i: int) -> dict:
    return {"max_tokens": 24, "seed": i, "temperature": (0.0, 1.0)[i % 2], "logprobs": i % 3}


async def streamed(client, i: int, *, leave_after: int | None = None):
    """(text, logprobs) of one stream; None if it was left after some pieces."""
    stream = await client.completions.create(model="tiny", prompt=PROMPTS[i], stream=True, **settings(i))
    text, values = "", []
    count = 0
    async for chunk in stream:
        (choice,) = chunk.choices
        text += choice.text
        values += choice.logprobs.token_logprobs if choice.logprobs else []
        count += 1
        if leave_after is not None and count >= leave_after:
            await stream.close()
            return None
    return text, values


def everything_is_free(url: str) -> None:
    """Room comes back once the server has noticed; waits for the state."""
    while True:
        health = httpx.get(f"{url}/health").json()
        if health["requests"] == 0 and health["free_tokens"] + MOST_TWICE >= health_at_rest[url]:
            return
        time.sleep(0.01)


health_at_rest: dict[str, int] = {}


@pytest.fixture(autouse=True)
def room_comes_back(served):
    url = served[0]
    health_at_rest.setdefault(url, httpx.get(f"{url}/health").json()["free_tokens"])
    assert health_at_rest[url] == served[1].runtime.free_tokens()
    yield
    everything_is_free(url)


@pytest.mark.slow
def test_sixteen_streams_at_once_are_each_as_alone_while_others_hang_up(served):
    url, own = served
    alone = []
    for i, prompt in enumerate(PROMPTS):
        options = settings(i)
        k = options.pop("logprobs")
        alone.append(own.generate(prompt, top_logprobs=k, **options))
    rng = random.Random(0)

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            leaving = [streamed(client, rng.randrange(16), leave_after=rng.randrange(1, 12)) for _ in range(12)]
            staying = [streamed(client, i) for i in range(16)]
            scoring = [asyncio.to_thread(score, [" cat", " mat"] * 20) for _ in range(2)]
            mixed = [*staying, *leaving, *scoring]
            order = list(range(len(mixed)))
            rng.shuffle(order)
            done = await asyncio.gather(*[mixed[i] for i in order])
            found = dict(zip(order, done, strict=True))
            return [found[i] for i in range(16)], [found[i] for i in range(28, 30)]

    def score(answers):
        reply = httpx.post(f"{url}/v1/score", json={"prompt": "the", "answers": answers}, timeout=60)
        return [a["sequence_logprob"] for a in reply.raise_for_status().json()["answers"]]

    streams, scores = asyncio.run(run())
    for (text, values), expected in zip(streams, alone, strict=True):
        assert text == expected.text
        assert values == pytest.approx(expected.token_logprobs, abs=1e-4)
    expected = [s.sequence_logprob for s in own.score("the", [" cat", " mat"])] * 20
    for found in scores:
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_official_client_reads_everything(served, client):
    _, own = served
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "likely"
    local = own.generate("the cat", n=2, max_tokens=6, seed=1, top_logprobs=2)
    reply = client.completions.create(model="tiny", prompt="the cat", n=2, max_tokens=6, seed=1, logprobs=2)
    assert [c.text for c in reply.choices] == [g.text for g in local]
    assert reply.choices[1].logprobs.token_logprobs == pytest.approx(local[1].token_logprobs, abs=1e-4)
    assert reply.usage.total_tokens == local[0].prompt_tokens + sum(len(g.token_ids) for g in local)
    messages = [{"role": "user", "content": "the cat"}]
    answer = own.chat(messages, temperature=0.0, max_tokens=6)
    chat = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=6, logprobs=True, top_logprobs=1
    )
    assert chat.choices[0].message.content == answer.text
    assert [c.logprob for c in chat.choices[0].logprobs.content] == pytest.approx(answer.token_logprobs, abs=1e-4)
    pieces = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=6, stream=True,
        extra_body={"drafter": "lookup", "top_k": 5},
    )  # fmt: skip
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == answer.text


def test_errors_reach_the_official_client_as_its_own(client):
    with pytest.raises(openai.BadRequestError, match="context 256"):
        client.completions.create(model="tiny", prompt="the cat " * 200)
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="top_k"):
        client.completions.create(model="tiny", prompt="a", extra_body={"top_k": "5"})


@pytest.mark.parametrize("size", [2**20, 4 * 2**20])
def test_a_client_that_sends_too_much_sees_why_it_is_refused(served, size):
    for path, headers, status in (("completions", {}, 413), ("score", {"Content-Type": "text/plain"}, 415)):
        sent = {"Content-Type": "application/json", **headers}
        reply = httpx.post(f"{served[0]}/v1/{path}", content=b"x" * (size + 1), headers=sent)
        assert reply.status_code == status and reply.json()["error"]["message"]


def test_our_own_client_scores_through_it_as_locally(served):
    url, own = served
    prompt, answers = "the cat sat on", [" the mat", " a cat", " é🙂", "", "e"]
    local = own.score(prompt, answers, top_logprobs=2)
    with likely.load(url) as remote:
        assert remote.capabilities.score, remote.capabilities.why_not
        found = remote.score(prompt, answers, top_logprobs=2)
        assert remote.generate("the", max_tokens=8, seed=3).text == own.generate("the", max_tokens=8, seed=3).text
        assert (
            remote.stream("the", max_tokens=8, seed=3).finish().text == own.generate("the", max_tokens=8, seed=3).text
        )
    for mine, theirs in zip(local, found, strict=True):
        np.testing.assert_allclose(theirs.token_logprobs, mine.token_logprobs, rtol=0, atol=1e-4)
        assert (theirs.context_tokens, theirs.straddles) == (mine.context_tokens, mine.straddles)
        tops = [[t.logprob for t in row] for row in theirs.top_logprobs or []]
        assert len(tops) == len(mine.token_logprobs)
        for row, expected in zip(tops, mine.top_logprobs, strict=True):
            np.testing.assert_allclose(row, [t.logprob for t in expected], rtol=0, atol=1e-4)
