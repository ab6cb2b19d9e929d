from __future__ import annotations

import threading
from array import array

import numpy as np
import pytest
import slow_suffixes
from helpers_for_loops import run, toy_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_suffixes import ngrams
from test_suffix import grams_of

from likely.decoding.drafting.memory_file import save_memory
from likely.decoding.drafting.protocol import Draft, SamplingContext
from likely.decoding.drafting.replay import replay
from likely.decoding.drafting.suffix.drafter import SuffixMemory
from likely.decoding.drafting.suffix.guess import DraftLimits, grow_path, grow_tree
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import DataError

A, B, C, D = 10, 11, 12, 13


def memory_of(*answers, **options) -> SuffixMemory:
    memory = SuffixMemory(**options)
    for answer in answers:
        memory.remember(answer)
    return memory


def shown(draft):
    return draft.tokens.tolist(), draft.parents.tolist(), draft.expected or 0.0, draft.match


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=25)
rules = st.builds(
    DraftLimits,
    factor=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    offset=st.sampled_from([0.0, 1.0, -1.0]),
    min_prob=st.sampled_from([0.0, 0.1, 0.3, 0.5]),
    tree=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(tokens, max_size=4), st.lists(tokens, min_size=1, max_size=3), rules, st.integers(2, 8), st.integers(1, 9)
)
def test_proposals_equal_the_slow_form(answers, rounds, how, depth, budget):
    """Tokens, parents, expectation and match, after each round of a text beside other answers."""
    memory = memory_of(*answers, max_depth=depth)
    memory.limits = how
    drafter, context = memory.begin(rounds[0], SamplingContext()), list(rounds[0])
    for more in [[], *rounds[1:]]:
        drafter.observe(more)
        context += more
        wanted = slow_suffixes.proposal(answers, context, budget, how, depth)
        assert shown(drafter.propose(budget)) == wanted
        for smaller in range(1, budget):  # asked again, with any budget
            assert shown(drafter.propose(smaller)) == slow_suffixes.proposal(answers, context, smaller, how, depth)


@settings(max_examples=150, deadline=None)
@given(st.lists(tokens, max_size=3), tokens, tokens, tokens, st.booleans())
def test_rollback_and_fork_are_as_if_it_had_been_otherwise(answers, prompt, dropped, kept, tree):
    memory = memory_of(*answers, max_depth=6, tree=tree)
    drafter = memory.begin(prompt, SamplingContext())
    fork = drafter.fork(SamplingContext())
    drafter.observe(dropped)
    drafter.propose(5)
    fork_of_longer = drafter.fork(SamplingContext())
    drafter.rollback(len(dropped))
    drafter.observe(kept)
    fresh = memory.begin(prompt, SamplingContext())
    fresh.observe(kept)
    assert shown(drafter.propose(5)) == shown(fresh.propose(5))
    assert grams_of(drafter._own.tree) == grams_of(fresh._own.tree)
    assert shown(fork.propose(5)) == shown(memory.begin(prompt, SamplingContext()).propose(5))
    assert shown(fork_of_longer.propose(5)) == shown(memory.begin(prompt + dropped, SamplingContext()).propose(5))


def test_what_followed_is_proposed_by_frequency():
    memory = memory_of([A, B, C], [A, B, C], [A, B, C], [A, B, D])
    drafter = memory.begin([7, A, B], SamplingContext())
    assert shown(drafter.propose(5)) == ([C], [-1], 0.75, 2)
    memory.limits = DraftLimits(tree=True)
    assert shown(drafter.propose(5)) == ([C, D], [-1, -1], 1.0, 2)
    memory.limits = DraftLimits(tree=True, min_prob=0.3)
    assert shown(drafter.propose(5)) == ([C], [-1], 0.75, 2)
    memory.limits = DraftLimits(min_prob=0.8)
    assert len(drafter.propose(5)) == 0


def test_a_span_seen_once_is_continued_for_as_long_as_it_matched():
    span, rest = list(range(20, 30)), list(range(40, 60))
    drafter = SuffixMemory().begin([1, *span, *rest, 2, *span], SamplingContext())
    draft = drafter.propose(64)
    # one of the two occurrences is the end of the text itself
    assert shown(draft) == (rest[:10], list(range(-1, 9)), 5.0, 10)
    assert drafter.propose(4).tokens.tolist() == rest[:4]
    draft = memory_of([*span, *rest]).begin([2, *span], SamplingContext()).propose(64)
    assert shown(draft) == (rest[:10], list(range(-1, 9)), 10.0, 10)


@settings(max_examples=100, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=4), st.integers(1, 12), st.data())
def test_the_first_nodes_of_a_draft_are_the_draft_of_so_many_nodes(answers, most, data):
    tree, context = memory_of(*answers, max_depth=7)._tree, array("i", data.draw(st.sampled_from(answers))[:1])
    place = tree.find(context, 0, 1)
    whole, parents, _ = grow_tree(tree, *place, [], context, most, 6, 0.0)
    Draft(np.array(whole, np.int64), np.array(parents, np.int64)).check(budget=most, vocab_size=3, name="suffix")
    sums = [0.0]
    for n in range(1, most + 1):
        tokens, above, total = grow_tree(tree, *place, [], context, n, 6, 0.0)
        assert tokens == whole[:n] and above == parents[:n]
        sums.append(total)
    assert (np.diff(sums, n=2) <= 1e-12).all()  # D does not increase
    path, _ = grow_path(tree, *place, [], context, min(most, 6), 0.0, 0.0)
    grown, _, _ = grow_tree(tree, *place, [], context, 500, 6, 0.0)  # everything
    assert all(token in grown for token in path) and (not path or grown[0] == path[0])


def test_a_request_repeated_takes_few_calls():
    """Matches double until their length reaches half the depth."""
    answer = np.random.default_rng(0).permutation(400).tolist()
    memory = SuffixMemory()
    first = replay(memory, [500, 501], answer, budget=64)
    second = replay(memory, [500, 501], answer, budget=64)
    assert first.tokens_per_call == 1.0 and memory.requests == 2
    assert len(second.accepted) < 5 + 1 + 400 / 32 + 1 and second.acceptance_rate == 1.0


def test_its_own_answer_is_never_counted_twice():
    memory = SuffixMemory()
    drafter = memory.begin([1, 2], SamplingContext())
    drafter.observe([3, 4])
    assert memory.tokens == 0
    drafter.end()
    drafter.end()
    assert memory.requests == 1 and grams_of(memory._tree) == ngrams([[3, 4]], 64)


def test_only_answers_are_remembered_of_each_fork_its_own():
    memory = SuffixMemory()
    drafter = memory.begin([1, 2], SamplingContext())
    other = drafter.fork(SamplingContext())
    drafter.observe([3])
    drafter.rollback(1)
    drafter.observe([4, 5])
    other.observe([6])
    other.rollback(2)  # into the prompt
    other.observe([7])
    memory.begin([8], SamplingContext()).end()  # without an answer
    drafter.end()
    other.end()
    assert grams_of(memory._tree) == ngrams([[4, 5], [7]], 64) and memory.requests == 2


def test_scope_request_keeps_nothing():
    memory = SuffixMemory(scope="request")
    replay(memory, [1, 2], [3, 4, 5])
    assert memory.tokens == memory.requests == 0
    with pytest.raises(ValueError, match="keeps no answers"):
        memory.remember([1])


@settings(max_examples=60, deadline=None)
@given(st.lists(tokens, max_size=20), st.integers(1, 5), st.integers(1, 40))
def test_limits_hold_and_the_oldest_go_first(answers, requests, most):
    memory = SuffixMemory(max_depth=5, max_requests=requests, max_tokens=most)
    kept: list[list[int]] = []
    for answer in answers:
        memory.remember(answer)
        kept.append(answer[-most:])
        while len(kept) > requests or sum(map(len, kept)) > most:
            kept.pop(0)
        assert memory.tokens == sum(map(len, kept)) <= most and memory.requests == len(kept) <= requests
        assert len(memory._tree.text) <= 4 * (most + requests) / 3 + 1
    assert grams_of(memory._tree) == ngrams(kept, 5)


def test_forget():
    memory = SuffixMemory()
    drafter = memory.begin([1], SamplingContext())
    memory.remember([4, 5])
    memory.forget()
    assert memory.tokens == memory.requests == 0 and shown(memory.begin([4], SamplingContext()).propose(3))[0] == []
    drafter.observe([2, 3])
    drafter.end()
    assert grams_of(memory._tree) == ngrams([[2, 3]], 64)


def test_a_memory_that_forgot_is_looked_at_anew():
    memory = memory_of([1, 2, 3, 4])
    drafter = memory.begin([0, 1, 2], SamplingContext())
    assert drafter.propose(5).tokens.tolist() == [3, 4]
    memory.forget()
    assert len(drafter.propose(5)) == 0
    memory.remember([1, 2, 5])
    assert drafter.propose(5).tokens.tolist() == [5]


def test_saved_and_loaded_it_proposes_alike(tmp_path):
    rng = np.random.default_rng(4)
    memory = memory_of(*(rng.integers(0, 5, 30).tolist() for _ in range(6)), max_requests=4)
    path = tmp_path / "memory.safetensors"
    memory.save(path, tokenizer="ab" * 32)
    loaded = SuffixMemory(tree=True, max_depth=9).load(path, tokenizer="ab" * 32, vocab_size=5)
    assert loaded.requests == 4 and loaded.tokens == 120 and loaded.limits.tree and loaded.max_depth == 9
    assert grams_of(loaded._tree) == {g: n for g, n in grams_of(memory._tree).items() if len(g) <= 9}
    with pytest.raises(DataError, match="another tokenizer"):
        SuffixMemory().load(path, tokenizer="cd" * 32, vocab_size=5)
    with pytest.raises(DataError, match=r"outside 0\.\.3"):
        SuffixMemory().load(path, tokenizer="ab" * 32, vocab_size=4)
    SuffixMemory().save(path, tokenizer="ab" * 32)
    assert SuffixMemory().load(path, tokenizer="ab" * 32, vocab_size=5).requests == 0
    for tokens, lengths in (([1, 2], [1]), ([1, 2], [2, 0]), ([1, 2], [3, -1]), ([1.0, 2.0], [2])):
        arrays = {"tokens": np.array(tokens), "lengths": np.array(lengths)}
        save_memory(path, "suffix", arrays, tokenizer="ab" * 32, settings={})
        with pytest.raises(DataError, match="do not divide"):
            SuffixMemory().load(path, tokenizer="ab" * 32, vocab_size=5)


def test_threads_share_a_memory():
    memory = SuffixMemory(max_depth=8, max_requests=5)
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(20):
                replay(memory, rng.integers(0, 3, 5).tolist(), rng.integers(0, 3, 20).tolist(), budget=6)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and memory.requests == 5
    assert grams_of(memory._tree) == ngrams([answer.tolist() for answer in memory._answers()], 8)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_text_is_the_same_and_replay_gives_the_live_rounds(tree, temperature):
    plain_loop, loop = toy_loop(), toy_loop()
    memory, twin = SuffixMemory(tree=tree, spec_offset=2.0), SuffixMemory(tree=tree, spec_offset=2.0)
    for prompt in ([1, 2], [2, 1, 2], [1, 2]):
        request = Request(prompt, Sampling(temperature=temperature, seed=5), max_tokens=30)
        [[plain]] = run(plain_loop, request)
        [[drafted]] = run(
            loop,
            Request(prompt, Sampling(temperature=temperature, seed=5), max_tokens=30, drafter=memory, draft_budget=6),
        )
        assert drafted.tokens == plain.tokens
        rounds = replay(twin, prompt, plain.tokens, budget=6, ended=plain.reason == "stop")
        assert drafted.rounds == rounds.accepted
    assert memory.requests == 3


def test_cancelled_answers_are_remembered():
    loop, memory = toy_loop(), SuffixMemory()
    number = loop.add(Request([1, 2], Sampling(temperature=1.0, seed=3), max_tokens=40, drafter=memory, draft_budget=4))
    emitted = [t for _ in range(3) for event in loop.step() for t in event.tokens]
    loop.cancel(number)
    emitted += [t for event in loop.step() for t in event.tokens]
    assert memory.requests == 1 and memory._answers()[0].tolist() == emitted


def test_edges():
    drafter = SuffixMemory().begin([5], SamplingContext())
    assert len(drafter.propose(4)) == 0
    drafter.observe([])
    drafter.observe([5])
    assert len(drafter.propose(0)) == 0
    assert len(SuffixMemory().begin([], SamplingContext()).propose(3)) == 0
    long = SuffixMemory().begin([1, 2, 3] * 3400, SamplingContext())
    assert long.propose(40).tokens.tolist() == ([1, 2, 3] * 11)[:32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_depth": 1}, "max_depth must be >= 2, got 1"),
        ({"spec_factor": 0.0}, "spec_factor must be > 0, got 0"),
        ({"spec_offset": float("nan")}, "spec_offset"),
        ({"min_prob": 1.5}, "min_prob must lie in"),
        ({"max_requests": 0}, "max_requests must be >= 1"),
        ({"max_tokens": 0}, "max_tokens must be >= 1"),
        ({"scope": "user"}, "scope must be"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        SuffixMemory(**options)


def test_ids_that_cannot_be_tokens_are_refused():
    memory = SuffixMemory()
    for bad in (-1, 2**31):
        with pytest.raises(ValueError, match="token id"):
            memory.begin([1, bad], SamplingContext())
        with pytest.raises(ValueError, match="token id"):
            memory.remember([bad])
        with pytest.raises(ValueError, match="token id"):
            memory.begin([1], SamplingContext()).observe([bad])
    assert memory.tokens == 0
