from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from helpers_for_loops import END, run, toy_loop

from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import ToyRuntime, exact_logprob

BASE = Request(prompt=(0, 1), sampling=Sampling(temperature=0), max_tokens=4, beams=2)


def all_texts(runtime, prompt, limit, vocab):
    for n in range(1, limit + 1):
        for text in itertools.product(range(vocab), repeat=n):
            if END not in text[:-1] and (text[-1] == END or n == limit):
                yield text, exact_logprob(runtime, text, given=prompt)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_text(seed, penalty):
    loop = toy_loop(vocab=4, seed=seed)
    [done] = run(loop, replace(BASE, max_tokens=3, beams=64, samples=3, length_penalty=penalty))
    best = sorted(all_texts(loop.runtime, (0, 1), 3, 4), key=lambda t: -t[1] / len(t[0]) ** penalty)[:3]
    assert [tuple(d.tokens) for d in done] == [text for text, _ in best]
    np.testing.assert_allclose([sum(d.logprobs) for d in done], [lp for _, lp in best], atol=1e-5)


def test_one_beam_is_greedy():
    for seed in range(6):
        [[beam]] = run(toy_loop(seed=seed), replace(BASE, beams=1, max_tokens=10))
        [[greedy]] = run(toy_loop(seed=seed), replace(BASE, beams=0, max_tokens=10))
        assert beam.tokens[: len(greedy.tokens)] == greedy.tokens


def test_beams_beside_other_requests_and_all_room_back():
    loop = toy_loop(seed=3)
    free = loop.runtime.free_tokens()
    requests = [replace(BASE, beams=3, samples=2, max_tokens=8), replace(BASE, beams=0, max_tokens=8)]
    alone = [[d.tokens for d in run(toy_loop(seed=3), r)[0]] for r in requests]
    assert [[d.tokens for d in done] for done in run(loop, *requests)] == alone
    assert loop.runtime.free_tokens() == free


def test_beams_survive_preemption():
    request = replace(BASE, beams=3, max_tokens=8)
    [[alone]] = run(toy_loop(seed=3), request)
    runtime = ToyRuntime.random(6, seed=3, context_length=64, tokens_held=40)
    assert [d[0].tokens for d in run(toy_loop(runtime), request, request)] == [alone.tokens] * 2


@pytest.mark.parametrize("held", [8, 11, 14, 20, 40])
def test_beams_that_fill_the_cache_end_with_what_they_have(held):
    runtime = ToyRuntime.random(6, seed=3, context_length=64, tokens_held=held)
    loop = toy_loop(runtime)
    [found] = run(loop, replace(BASE, beams=4, samples=2, max_tokens=40, min_tokens=40))
    assert [f.reason for f in found] == ["context"] * 2 and all(f.tokens for f in found)
    assert runtime.free_tokens() == held
    [[after]] = run(loop, replace(BASE, beams=0, max_tokens=2, min_tokens=2))
    assert after.reason == "length"


@pytest.mark.parametrize("width", [2, 4])
def test_equals_transformers_beam_search(width):
    """A tiny transformers model searched by transformers, and by us over its table."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=END, bos_token_id=0, pad_token_id=None, initializer_range=1.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()

    def logits_of(prefix):
        with torch.no_grad():
            return model(torch.tensor([prefix])).logits[0, -1].numpy()

    for first in range(4, 9):
        prompt = (first, 5, 4)
        theirs = model.generate(
            torch.tensor([prompt]), num_beams=width, num_return_sequences=width, do_sample=False, max_new_tokens=7,
            length_penalty=1.0, early_stopping=False, return_dict_in_generate=True, output_scores=True, pad_token_id=11,
        )  # fmt: skip
        loop = toy_loop(ToyRuntime(logits_of, vocab_size=12))
        [done] = run(loop, replace(BASE, prompt=prompt, beams=width, samples=width, max_tokens=7))
        expected = [s[3:].tolist() for s in theirs.sequences]
        expected = [s[: s.index(END) + 1] if END in s else s for s in expected]
        assert [d.tokens for d in done] == [s[: len(d.tokens)] for s, d in zip(expected, done, strict=True)]
        ranks = [sum(d.logprobs) / len(d.tokens) for d in done]
        np.testing.assert_allclose(ranks, theirs.sequences_scores.numpy(), atol=1e-4)


def test_the_distribution_of_the_best_text_is_its_logprob():
    loop = toy_loop(seed=2)
    [[done]] = run(loop, replace(BASE, beams=4, max_tokens=5, top_logprobs=2))
    assert abs(sum(done.logprobs) - exact_logprob(loop.runtime, done.tokens, given=(0, 1))) < 1e-5
    prefix = list(BASE.prompt)
    for token, top in zip(done.tokens, done.tops, strict=True):
        logprobs = log_softmax(loop.runtime._logits_of(tuple(prefix))[None])[0]
        assert top[0][0] == int(logprobs.argmax())
        prefix.append(token)
