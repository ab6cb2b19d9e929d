"""A diffusion model behind the server: streams come block by block, what has no meaning is refused."""

from __future__ import annotations

import asyncio

import pytest
from helpers_for_serving import Client
from tiny_diffusion import train_backwards

import likely
from likely.decoding.diffusion import FreeDave
from likely.serving import create_app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_backwards(tmp_path_factory.mktemp("served") / "backwards", steps=20)


def served(folder, asking):
    """What `asking(client, lm)` gives with the model served in this process."""
    with likely.load(folder) as lm:
        lm.with_decoding(block_length=2, accelerator=FreeDave(2))
        app = create_app(lm)

        async def run():
            async with app.router.lifespan_context(app):
                return await asking(Client(app), lm)

        return asyncio.run(run())


def test_a_completion_and_its_stream(folder):
    async def asking(client, lm):
        settings = {"prompt": "abca", "max_tokens": 4, "temperature": 0}
        whole = await client.ok("/v1/completions", **settings)
        pieces = await client.events("/v1/completions", **settings)
        several = await client.ok("/v1/completions", **{**settings, "prompt": ["abca", "bbac"], "n": 2})
        return whole, pieces, several

    whole, pieces, several = served(folder, asking)
    text = whole["choices"][0]["text"]
    parts = [piece["choices"][0]["text"] for piece in pieces if piece["choices"]]
    assert "".join(parts) == text and max(map(len, parts)) <= 2
    assert [choice["text"] for choice in several["choices"]][:2] == [text, text]
    with likely.load(folder) as lm:
        assert text == lm.with_decoding(block_length=2).generate("abca", temperature=0.0, max_tokens=4).text


def test_scores_are_bounds(folder):
    async def asking(client, lm):
        return await client.ok("/v1/score", prompt="abca", answers=["acba"]), lm.score("abca", ["acba"])

    found, [wanted] = served(folder, asking)
    [answer] = found["answers"]
    assert answer["kind"] == "lower_bound" and answer["sequence_logprob"] == wanted.sequence_logprob


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"logprobs": 2}, "lower bound"), ({"drafter": "lookup"}, "FreeDave"),
        ({"guided_regex": "a+"}, "guided_regex:"), ({"choices": ["a", "b"]}, "/v1/score says which"),
        ({"drafter": "lookup"}, "drafter=PromptLookup is"), ({"top_p": 0.5}, "temperature alone"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(folder, body, said):
    async def asking(client, lm):
        return await client.post("/v1/completions", {"prompt": "abca", "max_tokens": 4, **body})

    status, reply = served(folder, asking)
    assert 400 <= status < 500 and said in reply["error"]["message"]
