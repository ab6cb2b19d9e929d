"""A text that fills its context ends with reason "context" and what it has, on every runtime; the next call works."""

from __future__ import annotations

import asyncio

import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.decoding.request import Request
from likely.serving.engine import AsyncEngine

LONG = {"max_tokens": 400, "min_tokens": 400}
CONTEXT = 40


@pytest.fixture(scope="module", params=["llamacpp", "torch", "native"])
def lm(request, tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with likely.load(str(path), runtime=request.param, context=CONTEXT, threads=1) as model:
        yield model


def ended(lm, found) -> None:
    """It ended with the context, its text is that of a roomier run, and the model goes on."""
    assert found.finish_reason == "context" and found.text
    after = lm.generate("a", max_tokens=3, min_tokens=3)
    assert after.finish_reason == "length" and len(after.token_ids) == 3


@pytest.mark.parametrize("drafter", [None, "lookup", "auto"])
def test_generate_ends_with_the_same_text(lm, drafter):
    found = lm.generate("ab ab ab", **LONG, seed=3, drafter=drafter, draft_budget=6 if drafter else "auto")
    ended(lm, found)
    assert len(lm.encode_prompt("ab ab ab")) + len(found.token_ids) == CONTEXT
    assert found.token_ids == lm.generate("ab ab ab", **LONG, seed=3).token_ids


def test_ask_and_a_stream(lm):
    ended(lm, lm.ask("a?", **LONG))
    stream = lm.stream("ab", **LONG, seed=1)
    pieces = list(stream)
    ended(lm, stream.result)
    assert "".join(pieces) == stream.result.text


def test_a_batch_and_samples(lm):
    alone = [lm.generate(prompt, **LONG, seed=2) for prompt in ("a", "ab", "ba")]
    together = lm.generate(["a", "ab", "ba"], **LONG, seed=2)
    for one, other in zip(alone, together, strict=True):
        ended(lm, other)
        assert one.token_ids == other.token_ids
    samples = lm.generate("ab", **LONG, n=3, seed=2)
    for sample in samples:
        ended(lm, sample)
    assert samples[0].token_ids == alone[1].token_ids


def test_beams(lm):
    ended(lm, lm.generate("ab", **LONG, temperature=0, beams=3))


def test_the_engine_of_the_server(lm):
    async def run():
        engine = AsyncEngine(lm, max_running=8)
        try:
            requests = [Request(tuple(lm.encode_prompt("ab")), max_tokens=400, min_tokens=400) for _ in range(3)]
            tickets = [engine.submit(request) for request in requests]
            return [[event async for event in ticket][-1].finish for ticket in tickets]
        finally:
            engine.close()

    finished = asyncio.run(run())
    assert [each.reason for each in finished] == ["context"] * 3
    assert len({tuple(each.tokens) for each in finished}) == 1
    ended(lm, lm.generate("ab", **LONG, seed=1))
