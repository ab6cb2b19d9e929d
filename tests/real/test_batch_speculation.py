"""Batches of a real model in every layout of the cache: the text of plain decoding, one prompt at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripts import script

from likely.decoding.drafting.lookup import PromptLookup
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]
ALIGNED = script("aligned_caches")
GroupTorchRuntime, RepadTorchRuntime = ALIGNED.GroupTorchRuntime, ALIGNED.RepadTorchRuntime
SameLength = script("same_length").SameLength
PROMPTS = (
    "Say it again: one two three one two three one two three",
    "a b c d a b c d a b",
    "The history of the town goes back to the history of the",
    "x",
)


def decode(lm, runtime, requests, policy=None):
    loop = Loop(runtime, lm.tokenizer.token_bytes, lm.tokenizer.end_ids, policy=policy)
    ids = [loop.add(request) for request in requests]
    done = {}
    while not loop.idle:
        done |= {event.request: event.finish for event in loop.step() if event.finish}
    return [done[i] for i in ids]


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [(RepadTorchRuntime, Sampling(temperature=0)), (GroupTorchRuntime, Sampling(seed=3))],
    ids=["repad, greedy", "group, keyed"],
)
def test_ragged_batches_equal_plain_decoding_alone(kind, sampling, oracle):
    runtime = kind(oracle.runtime.module, revision="here")
    # a conversation's control tokens hold the end token, which is this model's padding token
    chat = [oracle.render([{"role": "user", "content": p}]).tokens for p in PROMPTS[:2]]
    prompts = [*chat, *(oracle.encode_prompt(p) for p in PROMPTS)]
    requests = [
        Request(tuple(p), sampling, max_tokens=5 + i, drafter=PromptLookup(), draft_budget=5)
        for i, p in enumerate(prompts)
    ]
    done = decode(oracle, runtime, requests, SameLength(batch_size=3, window=4))
    for request, found in zip(requests, done, strict=True):
        [alone] = decode(oracle, oracle.runtime, [replace(request, drafter=None)])
        assert alone.tokens == found.tokens
        np.testing.assert_allclose(alone.logprobs, found.logprobs, atol=1e-4)
    assert sum(d.accepted for d in done) > 0 and runtime.alignment.copied > 0
