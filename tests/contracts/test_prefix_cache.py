"""Beginnings that stay computed: the same texts and numbers as without, within their bounds, and room comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factories import FACTORIES

from likely.decoding.drafting.lookup import PromptLookup
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import KvFull
from likely.runtimes.prefix_cache import LEAST, PrefixCache
from likely.runtimes.protocol import Work

SHARING = ["toy", pytest.param("torch", marks=pytest.mark.slow), "llamacpp", "native", "native-fp32"]


def build(name):
    make, tolerance = FACTORIES[name]
    return make(), tolerance


def loop_of(runtime, prefixes=None, **options):
    return Loop(runtime, lambda token: bytes([97 + token % 26]), frozenset({2}), prefixes=prefixes, **options)


def conversations(vocabulary, count, seed=0):
    """Prompts in families: a long common beginning, then ends of their own, some of which go on from another."""
    rng = np.random.default_rng(seed)
    families = [rng.integers(3, vocabulary, size=16).tolist() for _ in range(3)]
    found = []
    for i in range(count):
        prompt = families[i % 3] + rng.integers(3, vocabulary, size=rng.integers(1, 8)).tolist()
        found.append(
            Request(
                tuple(prompt),
                Sampling(temperature=(0.0, 1.0)[i % 2], seed=i),
                max_tokens=int(rng.integers(1, 10)),
                samples=1 + (i % 4 == 3),
                drafter=PromptLookup() if i % 3 == 1 else None,
                top_logprobs=i % 2,
                cache_salt="ab"[i % 5 == 0],
            )
        )
    return found


def answers(loop, requests, rng=None):
    """(request, sample) -> the whole sample; requests arrive while others run, and some are cancelled (left out)."""
    waiting, done, left, ids = list(enumerate(requests)), {}, set(), {}
    while waiting or not loop.idle:
        if waiting and (rng is None or rng.random() < 0.6):
            i, request = waiting.pop(0)
            ids[loop.add(request)] = i
        if rng is not None and ids and rng.random() < 0.05:
            number = int(rng.choice(list(ids)))
            loop.cancel(number)
            left.add(ids[number])
        for event in loop.step():
            assert event.error is None, event.error
            if event.finish:
                done[ids[event.request], event.sample] = event.finish
    return {key: finish for key, finish in done.items() if key[0] not in left}


@pytest.mark.parametrize("name", SHARING)
def test_texts_and_logprobs_are_those_without_the_cache(name):
    runtime, tolerance = build(name)
    requests = conversations(runtime.vocab_size, 18)
    plain = {(i, s): f for i, r in enumerate(requests) for (_, s), f in answers(loop_of(runtime), [r]).items()}
    prefixes = PrefixCache(runtime)
    found = answers(loop_of(runtime, prefixes, prefill_tokens=3), requests * 2, np.random.default_rng(1))
    assert len(found) > 30 and prefixes.found > prefixes.looked_up / 3
    for (i, sample), finish in found.items():
        other = plain[i % len(requests), sample]
        if tolerance == 0.0:
            assert (finish.tokens, finish.logprobs, finish.tops) == (other.tokens, other.logprobs, other.tops)
        else:
            same = min(len(finish.tokens), len(other.tokens)) if finish.tokens == other.tokens else 0
            assert np.allclose(finish.logprobs[:same], other.logprobs[:same], atol=10 * tolerance)
    assert all(finish.tokens == plain[i % len(requests), s].tokens for (i, s), finish in found.items())
    prefixes.clear()
    assert runtime.free_tokens() == runtime.limits.tokens_held and prefixes.tokens == prefixes.sequences == 0


def test_the_next_turn_of_a_chat_computes_only_what_is_new():
    runtime, _ = build("native")
    prefixes = PrefixCache(runtime)
    first = Request(tuple(range(3, 23)), Sampling(temperature=0), max_tokens=8)
    [turn] = answers(loop_of(runtime, prefixes), [first]).values()
    assert turn.cached_tokens == 0
    told = (*first.prompt, *turn.tokens)
    [next_turn] = answers(loop_of(runtime, prefixes), [replace(first, prompt=(*told, 5, 6, 7))]).values()
    assert next_turn.cached_tokens == len(told) - 1  # the row of the last token was wanted, its keys never computed
    [other] = answers(loop_of(runtime, prefixes), [replace(first, prompt=(*told, 5, 6, 7), cache_salt="x")]).values()
    assert other.cached_tokens == 0 and other.logprobs == next_turn.logprobs


def test_many_who_ask_at_once_compute_a_common_beginning_once():
    runtime, _ = build("toy")
    common = tuple(np.random.default_rng(0).integers(3, 11, size=50).tolist())
    requests = [Request((*common, i % 8 + 3, i % 5 + 3), Sampling(seed=i), max_tokens=3) for i in range(8)]
    prefixes = PrefixCache(runtime)
    loop = loop_of(runtime, prefixes, step_tokens=16)
    for request in requests:
        loop.add(request)
    before = runtime.tokens_computed
    while not loop.idle:
        loop.step()
    assert runtime.tokens_computed - before <= 50 + 8 * (2 + 3)


def test_what_is_kept_gives_way_to_a_text_that_needs_the_room():
    runtime, _ = build("toy")  # 1,024 tokens, context 64
    prefixes = PrefixCache(runtime, max_tokens=1000)
    rng = np.random.default_rng(3)
    requests = [
        Request(tuple(rng.integers(3, 11, size=40).tolist()), Sampling(seed=i), max_tokens=20) for i in range(60)
    ]
    loop = loop_of(runtime, prefixes)
    found = answers(loop, requests)
    assert len(found) == 60 and all(finish.reason in ("length", "stop") for finish in found.values())
    assert prefixes.tokens > 100


@pytest.mark.parametrize("most", [{"max_tokens": 120}, {"max_sequences": 3}])
def test_bounds_hold_and_the_least_recently_used_goes_first(most):
    runtime, _ = build("toy")
    prefixes = PrefixCache(runtime, **most)
    texts = [[3 + i] * 30 for i in range(6)]
    for i, text in enumerate(texts):
        sequence = runtime.open()
        runtime.forward([Work(sequence, np.array(text))])
        assert prefixes.keep(text, sequence)
        if i >= 1:  # the first one stays in use
            again = prefixes.fork([*texts[0], 9])
            assert again is not None and again.length == 30
            runtime.close(again)
        assert prefixes.tokens <= most.get("max_tokens", 10**6)
        assert prefixes.sequences <= most.get("max_sequences", 10**6)
    assert [prefixes.match(text) for text in texts[1:3]] == [0, 0] and prefixes.match(texts[-1]) == 30


def test_a_tree_agrees_with_a_list_of_texts():
    """Look-ups against the slow obvious form: the longest common beginning with any text that was kept."""
    runtime, _ = build("toy")
    prefixes = PrefixCache(runtime, max_tokens=10**6, max_sequences=1000)
    rng, known = np.random.default_rng(5), {"": [], "x": []}
    for _ in range(150):
        salt = ("", "x")[rng.integers(2)]
        text = rng.integers(3, 5, size=rng.integers(LEAST, 24)).tolist()
        common = max((sum(np.cumprod(np.equal(t[: len(text)], text[: len(t)]))) for t in known[salt]), default=0)
        assert prefixes.match(text, salt) == common
        sequence = prefixes.fork([*text, 9], salt)
        assert (sequence is not None) == (common >= LEAST)
        try:
            sequence = sequence or runtime.open()
            if sequence.length < len(text):
                runtime.forward([Work(sequence, np.array(text[sequence.length :]))])
        except KvFull:
            assert prefixes.evict()
            known = {"": [], "x": []}
            if sequence is not None:
                runtime.close(sequence)
            continue
        if prefixes.keep(text, sequence, salt):
            known[salt].append(text)
        else:
            runtime.close(sequence)
    # evicting one leaf at a time never leaves less than what the tree says, nor sequences that nobody counts
    while prefixes.sequences:
        held = prefixes.tokens
        prefixes.evict(KvFull(1, 0, "sequences"))
        assert prefixes.tokens < held
    assert runtime.free_tokens() == runtime.limits.tokens_held and not runtime._open


def test_texts_that_have_little_in_common_are_kept_beside_each_other():
    runtime, _ = build("native")
    prefixes = PrefixCache(runtime)
    common = list(range(3, 3 + LEAST - 1))  # too little for a fork
    texts = [[*common, 20 + i, *range(30, 50)] for i in range(4)]
    for text in texts:
        answers(loop_of(runtime, prefixes), [Request(tuple(text), Sampling(temperature=0), max_tokens=2)])
    assert all(prefixes.match(text) == len(text) for text in texts)
    assert runtime.free_tokens() + prefixes.tokens == runtime.limits.tokens_held
    while prefixes.evict(KvFull(1, 0, "sequences")):
        assert runtime.free_tokens() + prefixes.tokens >= runtime.limits.tokens_held
    assert runtime.free_tokens() == runtime.limits.tokens_held and prefixes.tokens == 0


def test_a_runtime_that_cannot_fork_keeps_nothing():
    runtime, _ = build("toy")
    runtime.capabilities = replace(runtime.capabilities, fork=False)
    prefixes = PrefixCache(runtime)
    sequence = runtime.open()
    assert not prefixes.keep([3] * 20, sequence) and prefixes.fork([3] * 20) is None


def test_those_with_a_smaller_priority_begin_first():
    runtime, _ = build("toy")

    class OneAtATime:
        def admits(self, running):
            return running < 1

        def choose(self, ready):
            return list(ready)

    loop = loop_of(runtime, policy=OneAtATime())
    ids = [loop.add(Request((3, 4), max_tokens=2, priority=p)) for p in (0, 5, -1, 0)]
    ended = []
    while not loop.idle:
        ended += [event.request for event in loop.step() if event.finish]
    assert ended == [ids[2], ids[0], ids[3], ids[1]]
