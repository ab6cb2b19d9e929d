from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers_for_loops import END, RandomTrees, run, toy_loop
from statistics_of_draws import chi_square_p

from likely.decoding.drafting.lookup import PromptLookup
from likely.decoding.drafting.protocol import FIXED_ONLY, Draft
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling, apply_penalties, pick, processed_logprobs
from likely.errors import CapabilityError, ModelError
from likely.runtimes.protocol import Want, Work
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import ToyRuntime, exact_logprob

GREEDY = Sampling(temperature=0)
BASE = Request(prompt=(0, 1), sampling=GREEDY, max_tokens=12)
SETTINGS = {
    "greedy": GREEDY,
    "sampled": Sampling(seed=4),
    "hot": Sampling(temperature=1.5, top_p=0.9, seed=9),
    "penalised": Sampling(temperature=0.7, repetition_penalty=1.4, frequency_penalty=0.3, seed=2),
    "penalised greedy": Sampling(temperature=0, presence_penalty=0.9, logit_bias={1: 0.5}),
}


def by_hand(runtime, request, sample=0):
    """One token at a time from the table: the slow obvious loop."""
    out, logprobs = [], []
    while len(out) < request.max_tokens and len(request.prompt) + len(out) < runtime.context_length:
        row = runtime._logits_of((*request.prompt, *out))
        seen = apply_penalties(row, request.sampling, request.prompt, out)
        if len(out) < request.min_tokens:
            seen = seen.copy()
            seen[END] = -np.inf
        token = pick(
            seen, request.sampling, noise=request.noise, sample=sample, position=len(request.prompt) + len(out)
        )
        out.append(token)
        logprobs.append(log_softmax(row[None])[0, token])
        if token == END:
            break
    return out, logprobs


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("seed", range(4))
def test_plain_decoding_equals_the_slow_loop(settings, seed):
    loop = toy_loop(seed=seed)
    request = replace(BASE, sampling=settings, min_tokens=3)
    [[done]] = run(loop, request)
    tokens, logprobs = by_hand(loop.runtime, request)
    assert done.tokens == tokens
    np.testing.assert_allclose(done.logprobs, logprobs, atol=1e-6)
    assert done.text == "".join("abc"[t] for t in tokens if t < 3)
    assert done.reason == ("stop" if tokens[-1] == END else "length")
    assert abs(sum(done.logprobs) - exact_logprob(loop.runtime, done.tokens, given=request.prompt)) < 1e-5


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("budget", [1, 3, 8])
@pytest.mark.parametrize(
    "source", [RandomTrees(6), RandomTrees(6, shape="chain"), PromptLookup()], ids=lambda s: s.name
)
def test_any_drafter_gives_the_same_tokens_and_logprobs(settings, budget, source):
    for seed in range(5):
        request = replace(BASE, prompt=(0, 1, 0, 1, 2, 0, 1), sampling=settings)
        [[plain]] = run(toy_loop(seed=seed), request)
        [[drafted]] = run(toy_loop(seed=seed), replace(request, drafter=source, draft_budget=budget))
        assert drafted.tokens == plain.tokens and drafted.text == plain.text and drafted.reason == plain.reason
        np.testing.assert_allclose(drafted.logprobs, plain.logprobs, atol=1e-6)
        assert drafted.target_calls <= plain.target_calls
        assert len(drafted.tokens) <= drafted.accepted + drafted.target_calls


class Oracle:
    """A drafter that knows the greedy continuation."""

    name = "oracle"
    distributions, free = FIXED_ONLY, True

    def __init__(self, runtime):
        self.runtime = runtime

    def begin(self, prompt, context):
        outer = self

        class Drafter:
            def __init__(self, tokens):
                self.tokens = list(tokens)

            def propose(self, budget):
                path = list(self.tokens)
                for _ in range(budget):
                    path.append(int(outer.runtime._logits_of(tuple(path)).argmax()))
                return Draft.chain(path[len(self.tokens) :])

            def observe(self, tokens):
                self.tokens += tokens

            def fork(self, context):
                return Drafter(self.tokens)

            def rollback(self, n):
                del self.tokens[len(self.tokens) - n :]

            def end(self):
                pass

        return Drafter(prompt)


def test_a_perfect_drafter_keeps_every_token():
    runtime = ToyRuntime.random(6, seed=5, context_length=64)
    request = replace(BASE, max_tokens=20, drafter=Oracle(runtime), draft_budget=4, min_tokens=0)
    loop = toy_loop(runtime)
    loop.end_ids = frozenset()
    [[done]] = run(loop, request)
    # the first call sees the prompt, then 19 tokens in fours plus the target's own: 4 calls of 5, the last cut short
    assert done.target_calls == 5 and len(done.tokens) == 20 and done.accepted == done.proposed == 15


def test_requests_in_a_batch_equal_the_same_alone():
    requests = [
        replace(BASE, prompt=tuple(np.random.default_rng(i).integers(0, 3, 1 + 3 * i).tolist()), sampling=s)
        for i, s in enumerate([*SETTINGS.values(), Sampling(seed=1), Sampling(seed=2)])
    ]
    requests[2] = replace(requests[2], drafter=RandomTrees(6))
    alone = [run(toy_loop(), r)[0] for r in requests]
    together = run(toy_loop(), *requests)
    small_steps = run(toy_loop(step_tokens=3), *requests)
    for a, b, c in zip(alone, together, small_steps, strict=True):
        assert a[0].tokens == b[0].tokens == c[0].tokens
        np.testing.assert_allclose(a[0].logprobs, b[0].logprobs, atol=1e-6)


def test_samples_share_one_prefill_and_are_keyed_by_their_number():
    request = replace(BASE, prompt=(0, 1, 2, 0, 1), sampling=Sampling(seed=3), samples=4)
    loop = toy_loop()
    [four] = run(loop, request)
    assert loop.runtime.calls <= 12
    for number, done in enumerate(four):
        [[single]] = run(toy_loop(), replace(request, samples=1, first_sample=number))
        assert single.tokens == done.tokens
    assert len({tuple(d.tokens) for d in four}) > 1


def test_emitted_sequences_follow_the_distribution_of_the_model():
    """V=4, T<=4: every whole text against its exact probability, with and without drafts."""
    runtime = ToyRuntime.random(4, seed=2, order=3, scale=1.0)
    law = {}
    stack = [()]
    while stack:
        prefix = stack.pop()
        logprobs = log_softmax(runtime._logits_of((0, *prefix))[None])[0]
        for token in range(4):
            text = (*prefix, token)
            if token == END or len(text) == 4:
                law[text] = float(np.exp(exact_logprob(runtime, text, given=(0,))))
            else:
                stack.append(text)
        assert abs(np.exp(logprobs).sum() - 1) < 1e-5
    assert abs(sum(law.values()) - 1) < 1e-9
    for drafter in (None, RandomTrees(4)):
        draws = []
        for seed in range(2):
            request = Request((0,), Sampling(seed=seed), max_tokens=4, samples=2000, drafter=drafter, draft_budget=4)
            loop = toy_loop(ToyRuntime(runtime._logits_of, vocab_size=4, tokens_held=10**6, sequences=4096))
            draws += [tuple(d.tokens) for d in run(loop, request)[0]]
        assert chi_square_p(draws, law) > 1e-6


def test_an_independent_draw_per_path_would_be_caught():
    """Negative control: keeping a drafted token whenever a second, independent draw agrees biases the text."""
    runtime = ToyRuntime.random(4, seed=2, order=3, scale=1.0)
    row = runtime._logits_of((0,))
    law = dict(enumerate(np.exp(log_softmax(row[None])[0].astype(np.float64))))
    rng = np.random.default_rng(0)
    p = np.array(list(law.values())) / sum(law.values())
    draws = []
    for _ in range(6000):
        path_draws = [int(rng.choice(4, p=p)) for _ in (0, 1)]  # one draw per path of a two-path draft {0, 1}
        kept = [c for c, y in zip((0, 1), path_draws, strict=True) if c == y]
        draws.append(kept[0] if kept else path_draws[0])
    assert chi_square_p(draws, law) < 1e-6


def test_a_full_cache_preempts_and_changes_nothing():
    requests = [replace(BASE, prompt=(0, 1, i % 3), sampling=Sampling(seed=i), min_tokens=12) for i in range(6)]
    alone = [run(toy_loop(), r)[0][0].tokens for r in requests]
    runtime = ToyRuntime.random(6, seed=1, context_length=64, tokens_held=40)
    assert [done[0].tokens for done in run(toy_loop(runtime), *requests)] == alone
    assert runtime.free_tokens() == 40


@pytest.mark.parametrize("held", [8, 9, 40])
def test_a_text_that_fills_the_cache_ends_with_what_it_has(held):
    request = replace(BASE, max_tokens=60, min_tokens=60, sampling=Sampling(seed=4))
    [[whole]] = run(toy_loop(context_length=64), request)
    drafters = (None, Oracle(toy_loop(context_length=64).runtime), RandomTrees(6), RandomTrees(6, shape="chain"))
    for drafter in drafters:
        runtime = ToyRuntime.random(6, seed=1, context_length=64, tokens_held=held)
        loop = toy_loop(runtime)
        [[cut]] = run(loop, replace(request, drafter=drafter, draft_budget=8))
        assert cut.reason == "context" and cut.tokens == whole.tokens[: held - 2] and whole.text.startswith(cut.text)
        assert runtime.free_tokens() == held
        [[after]] = run(loop, replace(BASE, max_tokens=2, min_tokens=2))
        assert after.reason == "length"


@pytest.mark.parametrize("held", [16, 24, 33, 50])
def test_samples_that_do_not_fit_beside_each_other_take_turns(held):
    request = replace(BASE, samples=5, max_tokens=13, min_tokens=13, sampling=Sampling(seed=4))
    [wide] = run(toy_loop(), request)
    for drafter in (None, RandomTrees(6)):
        runtime = ToyRuntime.random(6, seed=1, context_length=64, tokens_held=held)
        [tight] = run(toy_loop(runtime), replace(request, drafter=drafter, draft_budget=4))
        assert [f.tokens for f in tight] == [f.tokens for f in wide] and {f.reason for f in tight} == {"length"}
        assert runtime.free_tokens() == held


def test_a_prompt_that_does_not_fit_is_refused():
    runtime = ToyRuntime.random(6, seed=1, context_length=64, tokens_held=8)
    with pytest.raises(ModelError, match="the prompt has 8 tokens; this model's context is 8"):
        toy_loop(runtime).add(replace(BASE, prompt=(0,) * 8))


def test_stop_strings_stop_tokens_and_limits():
    loop = toy_loop(seed=7)
    loop.end_ids = frozenset()
    [[free]] = run(loop, replace(BASE, max_tokens=30))
    stop = free.text[4:6]
    for drafter in (None, RandomTrees(6), Oracle(loop.runtime)):
        [[done]] = run(loop, replace(BASE, max_tokens=30, stop=(stop,), drafter=drafter))
        assert done.reason == "stop" and done.text == free.text[: free.text.index(stop)]
        assert done.tokens == free.tokens[: len(done.tokens)]
    [[done]] = run(loop, replace(BASE, max_tokens=30, stop_tokens=frozenset({free.tokens[3]})))
    assert done.tokens == free.tokens[: free.tokens.index(free.tokens[3]) + 1] and done.reason == "stop"
    for limit in (1, 2, 7):
        [[done]] = run(loop, replace(BASE, max_tokens=limit, drafter=Oracle(loop.runtime)))
        assert done.tokens == free.tokens[:limit] and done.reason == "length"


def test_the_context_ends_a_text_without_error():
    loop = toy_loop(context_length=16)
    loop.end_ids = frozenset()
    for drafter in (None, Oracle(loop.runtime), RandomTrees(6, shape="chain")):
        [[done]] = run(loop, replace(BASE, max_tokens=100, drafter=drafter))
        assert done.reason == "context" and len(done.tokens) + 2 == 16


def test_min_tokens_forbids_the_end():
    for seed in range(6):
        [[done]] = run(toy_loop(seed=seed), replace(BASE, sampling=Sampling(seed=seed), min_tokens=8))
        assert END not in done.tokens[:8]


def test_top_and_processed_logprobs():
    settings = Sampling(temperature=0.7, top_k=3, seed=8)
    loop = toy_loop()
    [[done]] = run(loop, replace(BASE, sampling=settings, top_logprobs=2, processed=True))
    prefix = list(BASE.prompt)
    for token, top, processed in zip(done.tokens, done.tops, done.processed, strict=True):
        row = loop.runtime._logits_of(tuple(prefix))
        logprobs = log_softmax(row[None])[0]
        assert [i for i, _ in top] == np.argsort(-logprobs, kind="stable")[:2].tolist()
        np.testing.assert_allclose([lp for _, lp in top], np.sort(logprobs)[::-1][:2], atol=1e-6)
        np.testing.assert_allclose(processed, processed_logprobs(row, settings)[token], atol=1e-6)
        prefix.append(token)
    [[greedy]] = run(loop, replace(BASE, top_logprobs=2))
    assert all(len(top) == 2 and top[0][1] == lp for top, lp in zip(greedy.tops, greedy.logprobs, strict=True))


def test_cancel_ends_with_the_text_so_far_and_frees_the_room():
    loop = toy_loop()
    loop.end_ids = frozenset()
    free = loop.runtime.free_tokens()
    keep, drop = loop.add(replace(BASE, max_tokens=6)), loop.add(replace(BASE, max_tokens=40, samples=2))
    for _ in range(3):
        loop.step()
    loop.cancel(drop)
    loop.cancel(drop)
    loop.cancel(12345)
    finished = {}
    while not loop.idle:
        for event in loop.step():
            if event.finish:
                finished[event.request, event.sample] = event.finish
    assert finished[drop, 0].reason == finished[drop, 1].reason == "cancelled"
    assert len(finished[drop, 0].tokens) == 3 and finished[keep, 0].reason == "length"
    assert loop.runtime.free_tokens() == free


def test_cancel_before_the_first_step_accounts_for_every_sample():
    loop = toy_loop()
    number = loop.add(replace(BASE, sampling=Sampling(), samples=3))
    loop.cancel(number)
    assert [e.finish.reason for e in loop.step()] == ["cancelled"] * 3 and loop.idle


def test_close_gives_all_room_back():
    loop = toy_loop()
    free = loop.runtime.free_tokens()
    loop.add(replace(BASE, samples=2, sampling=Sampling(), drafter=PromptLookup()))
    loop.step()
    loop.close()
    assert loop.idle and loop.runtime.free_tokens() == free


@pytest.mark.parametrize(
    ("tokens", "parents"),
    [([99], [-1]), ([0] * 50, list(range(-1, 49))), ([0, 1], [1, -1]), ([0, 0], [-1, -1]), ([0], [-1, 0])],
)
def test_a_broken_drafter_is_named(tokens, parents):
    class Broken(RandomTrees):
        name = "broken"

        def begin(self, prompt, context):
            drafter = super().begin(prompt, context)
            drafter.propose = lambda budget: Draft(np.array(tokens), np.array(parents))
            return drafter

    with pytest.raises(ValueError, match="broken"):
        run(toy_loop(), replace(BASE, drafter=Broken(6)))


def test_pieces_of_a_prompt_are_counted_apart_from_calls_that_gave_tokens():
    request = replace(BASE, prompt=(0, 1, 2) * 10)
    for step_tokens, pieces in ((64, 0), (8, 3), (30, 0), (29, 1)):
        [[done]] = run(toy_loop(step_tokens=step_tokens), request)
        assert done.prefill_calls == pieces and done.target_calls == len(done.tokens)


def test_requests_that_can_never_run_are_refused_at_once():
    loop = toy_loop(context_length=8)
    with pytest.raises(ModelError, match="context"):
        loop.add(replace(BASE, prompt=(0,) * 8))
    with pytest.raises(ValueError, match="token id 6"):
        loop.add(replace(BASE, prompt=(6,)))
    with pytest.raises(ValueError, match="logit_bias"):
        loop.add(replace(BASE, sampling=Sampling(logit_bias={77: 1.0})))
    for bad in ({"prompt": ()}, {"max_tokens": 0}, {"samples": 0}, {"min_tokens": 99}, {"top_logprobs": -1}):
        with pytest.raises(ValueError):
            replace(BASE, **bad)
    with pytest.raises(CapabilityError):
        replace(BASE, beams=2, drafter=PromptLookup())
    with pytest.raises(CapabilityError):
        replace(BASE, beams=2, sampling=Sampling())
    assert loop.idle


def test_a_request_may_go_on_from_a_sequence_that_holds_its_beginning():
    loop = toy_loop()
    request = replace(BASE, prompt=(0, 1, 2, 0, 1), max_tokens=12)
    [[plain]] = run(loop, request)
    computed = loop.runtime.tokens_computed
    held = loop.runtime.open()
    loop.runtime.forward([Work(held, np.array([0, 1, 2]), want=Want.NONE)])
    for drafter in (None, RandomTrees(6)):
        before = loop.runtime.tokens_computed
        loop.add(replace(request, drafter=drafter, draft_budget=0), held=loop.runtime.fork(held))
        events = []
        while not loop.idle:
            events += loop.step()
        assert events[-1].finish.tokens == plain.tokens
        assert loop.runtime.tokens_computed - before == computed - 3
    loop.runtime.close(held)
    assert not loop.runtime._open
    with pytest.raises(ValueError, match="held"):
        full = loop.runtime.open()
        loop.runtime.forward([Work(full, np.array([0, 1, 2, 0, 1]), want=Want.NONE)])
        loop.add(request, held=full)
