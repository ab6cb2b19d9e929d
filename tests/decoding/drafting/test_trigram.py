"""The trigram memory: counts, what it learns, files, and that its drafts change no text."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers_for_loops import run, toy_loop
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.decoding.accept import matched_walk
from likely.decoding.drafting.protocol import Draft, SamplingContext
from likely.decoding.drafting.trigram.drafter import Adaptation, TrigramMemory
from likely.decoding.drafting.trigram.table import count_trigrams, next_pair, pair_of, table_of
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import DataError

A, B, C, D = range(4)
ABC = [A, B, C, A, B, C, A, B, D]
texts = st.lists(st.lists(st.integers(0, 4), max_size=30), max_size=6)


def known(memory, a, b):
    return dict(zip(*memory._shared.successors(pair_of(a, b)), strict=True))


def by_hand(corpus, top):
    """{(a, b): {c: weight}} the slow obvious way; ties go to the smaller token."""
    counts: dict[tuple[int, int], Counter] = {}
    for text in corpus:
        for a, b, c in zip(text, text[1:], text[2:], strict=False):
            counts.setdefault((a, b), Counter())[c] += 1
    return {
        pair: {c: n / sum(found.values()) for c, n in sorted(found.items(), key=lambda e: (-e[1], e[0]))[:top]}
        for pair, found in counts.items()
    }


def learning(texts, *, top=12, min_count=1, **settings):
    """A memory counted from texts, with settings of its own."""
    return TrigramMemory(TrigramMemory.from_texts(texts, top=top, min_count=min_count).table, **settings)


# --- counting ---------------------------------------------------------------------------------------------------------


def test_counts_of_the_known_example():
    assert known(TrigramMemory.from_texts([ABC]), A, B) == pytest.approx({C: 2 / 3, D: 1 / 3}, rel=1e-3)
    assert list(known(TrigramMemory.from_texts([ABC], top=1), A, B)) == [C]
    rare = TrigramMemory.from_texts([ABC], min_count=2)
    assert known(rare, A, B) and known(rare, C, A) and not known(TrigramMemory.from_texts([ABC], min_count=3), C, A)


@given(corpus=texts, top=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_counting_by_hand_gives_the_same(corpus, top):
    memory = TrigramMemory.from_texts(corpus, top=top)
    expected = by_hand(corpus, top)
    assert len(memory.table) == len(expected)
    for a, b in itertools.product(range(5), repeat=2):
        found = known(memory, a, b)
        assert list(found) == list(expected.get((a, b), {}))
        assert found == pytest.approx(expected.get((a, b), {}), rel=1e-3)


def test_a_large_corpus_is_counted_in_pieces(monkeypatch):
    import likely.decoding.drafting.trigram.table as module

    corpus = np.random.default_rng(0).integers(0, 6, (20, 50)).tolist()
    whole = count_trigrams(corpus)
    monkeypatch.setattr(module, "_CHUNK", 70)
    for one, other in zip(count_trigrams(corpus), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_trigram_crosses_two_texts():
    assert len(TrigramMemory.from_texts([[1, 2], [3, 4], []]).table) == 0


# --- adaptation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 9, 12])
def test_k_observations_raise_a_weight_by_k_rates_up_to_the_cap(k):
    memory = learning([ABC], rate=0.3, cap=3.0)
    for _ in range(k):
        memory.observe([A, B, D])
        memory.observe([C, C, C])  # an unknown pair becomes known
    assert known(memory, A, B)[D] == pytest.approx(min(1 / 3 + 0.3 * k, 3.0), rel=1e-3)
    assert known(memory, A, B)[C] == pytest.approx(2 / 3, rel=1e-3)
    assert known(memory, C, C) == pytest.approx({C: min(0.3 * k, 3.0)})


def test_rate_zero_learns_nothing_and_the_cap_lowers_nothing():
    still = learning([ABC], rate=0.0)
    still.observe([A, B, D, D, D])
    assert known(still, B, D) == {} and known(still, A, B)[D] == pytest.approx(1 / 3, rel=1e-3)
    low = learning([ABC], cap=0.5)
    low.observe([A, B, C])
    assert known(low, A, B)[C] == pytest.approx(2 / 3, rel=1e-3)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_order_of_texts_does_not_matter_below_the_cap(seed):
    rng = np.random.default_rng(seed)
    corpus = [rng.integers(0, 4, 12).tolist() for _ in range(4)]
    one, other = (learning([ABC], cap=100.0) for _ in range(2))
    for text in corpus:
        one.observe(text)
    for i in rng.permutation(4):
        other.observe(corpus[i])
    for a, b in itertools.product(range(4), repeat=2):
        assert known(one, a, b) == pytest.approx(known(other, a, b))


def test_adaptation_is_bounded_and_forgets_the_oldest_pair():
    learned = Adaptation(lambda pair: ((), ()), rate=0.1, cap=1.0, most=3)
    for pair in (1, 2, 3, 1, 4):
        learned.reinforce(pair, 7)
    assert set(learned.learned()) == {3, 1, 4}
    for token in range(40):
        learned.reinforce(9, token)
    assert len(learned.successors(9)[0]) == 24 and 39 in learned.successors(9)[0]


def test_requests_share_what_they_learn_or_keep_it_to_themselves():
    together, apart = (learning([ABC], scope=scope) for scope in ("all", "request"))
    for memory in (together, apart):
        memory.begin([A, A], SamplingContext()).observe([D, D])
    assert together.begin([A, D], SamplingContext()).propose(4).tokens.tolist()[:1] == [D]
    assert len(apart.begin([A, D], SamplingContext()).propose(4)) == 0 and not apart._shared.learned()


@given(steps=st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 3), max_size=5)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_rollback_and_fork_in_scope_request_are_exact(steps):
    memory = learning([ABC], scope="request")
    drafter = memory.begin([A], SamplingContext())
    tokens = [A]
    for back, new in steps:
        back = min(back, len(tokens) - 1)
        fork = drafter.fork(SamplingContext())
        drafter.rollback(back)
        drafter.observe(new)
        tokens = [*tokens[: len(tokens) - back], *new]
        fresh = memory.begin(tokens, SamplingContext())
        for a, b in itertools.product(range(4), repeat=2):
            assert drafter._learned.successors(pair_of(a, b)) == fresh._learned.successors(pair_of(a, b))
        before = fresh.propose(5)
        fork.observe([D, D, D])
        after = drafter.propose(5)
        assert before.tokens.tolist() == after.tokens.tolist() and before.parents.tolist() == after.parents.tolist()


def test_many_threads_teach_one_memory():
    memory = TrigramMemory(rate=1.0, cap=1e9)

    def work():
        drafter = memory.begin([1, 2], SamplingContext())
        for _ in range(200):
            drafter.observe([3, 1, 2])
            drafter.propose(8)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert known(memory, 1, 2) == {3: 800.0}


# --- drafts -----------------------------------------------------------------------------------------------------------


def test_a_table_with_one_successor_each_gives_its_chain():
    memory = learning([list(range(10))], rate=0.0)
    draft = memory.begin([0, 1], SamplingContext()).propose(20)
    assert draft.is_chain and draft.tokens.tolist() == [2, 3, 4, 5, 6] and draft.match == 2
    assert memory.begin([0, 1], SamplingContext()).propose(3).tokens.tolist() == [2, 3, 4]
    assert 0 < draft.expected < len(draft)


def test_the_same_text_gives_the_same_draft_whatever_the_request_samples():
    corpus = np.random.default_rng(0).integers(0, 6, (10, 40)).tolist()
    prompt = [1, 2, 3, 1, 2]
    drafts = [
        TrigramMemory.from_texts(corpus).begin(prompt, draw).propose(12)
        for draw in (SamplingContext(), SamplingContext(), SamplingContext(Sampling(temperature=1.0, seed=9), sample=3))
    ]
    assert len({(tuple(d.tokens.tolist()), tuple(d.parents.tolist())) for d in drafts}) == 1


def test_short_contexts_and_ended_drafters_have_no_draft():
    memory = TrigramMemory.from_texts([ABC])
    drafter = memory.begin([A], SamplingContext())
    assert len(drafter.propose(5)) == 0
    drafter.observe([])
    drafter.observe([B])
    assert len(drafter.propose(0)) == 0 and drafter.propose(1).tokens.tolist() == [C]
    drafter.end()
    drafter.end()


@pytest.mark.parametrize("scope", ["all", "request"])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(temperature=1.0, top_p=0.9, seed=3)])
def test_the_text_is_the_same_with_and_without(sampling, scope):
    corpus = np.random.default_rng(1).integers(0, 6, (10, 40)).tolist()
    memory = learning(corpus, scope=scope)
    requests = [
        Request(
            (1, 2, 4, 1), max_tokens=30, sampling=sampling, samples=3 if sampling.temperature else 1, draft_budget=8
        ),
        Request((4, 5), max_tokens=20, sampling=sampling, draft_budget=8),
    ]
    plain = run(toy_loop(), *requests)
    drafted = run(toy_loop(), *(replace(r, drafter=memory) for r in requests))
    for one, other in zip(itertools.chain(*plain), itertools.chain(*drafted), strict=True):
        assert one.tokens == other.tokens and one.logprobs == pytest.approx(other.logprobs)


def laws_of_two_children(p):
    """Exact laws of the first token, two drafted children 0 and 1: (rule M, the rule of the official code).

    That rule draws a token for each root-to-leaf path by itself and keeps the path with the longest match.
    """
    draft = Draft(np.array([0, 1]), np.array([-1, -1]))
    ours, official = np.zeros(len(p)), np.zeros(len(p))
    for token in range(len(p)):
        ours[matched_walk(draft, lambda node, path, t=token: t)[1][0]] += p[token]
    for first, second in itertools.product(range(len(p)), repeat=2):
        emitted = 0 if first == 0 else 1 if second == 1 else first
        official[emitted] += p[first] * p[second]
    return ours, official


def test_the_official_rule_for_sampling_is_biased_and_ours_is_not():
    p = np.array([0.3, 0.3, 0.4])
    ours, official = laws_of_two_children(p)
    np.testing.assert_allclose(ours, p, atol=1e-12)
    assert official.sum() == pytest.approx(1) and abs(official - p).sum() / 2 > 0.1


# --- files and bad input ----------------------------------------------------------------------------------------------


@given(corpus=texts, more=texts)
@settings(max_examples=30, deadline=None)
def test_a_saved_memory_holds_table_and_what_was_learned(corpus, more, tmp_path_factory):
    memory = TrigramMemory.from_texts(corpus)
    for text in more:
        memory.observe(text)
    path = tmp_path_factory.mktemp("memory") / "m.safetensors"
    memory.save(path, tokenizer="t")
    loaded = TrigramMemory.load(path, tokenizer="t", vocab_size=5)
    for a, b in itertools.product(range(5), repeat=2):
        assert known(loaded, a, b) == pytest.approx(known(memory, a, b), rel=1e-3)
    loaded.save(path, tokenizer="t")  # over the file that it is mapped from
    again = TrigramMemory.load(path, tokenizer="t", vocab_size=5)
    for name in ("pairs", "offsets", "tokens", "weights"):
        np.testing.assert_array_equal(getattr(again.table, name), getattr(loaded.table, name))


def test_a_memory_takes_few_bytes():
    memory = TrigramMemory.from_texts(np.random.default_rng(0).integers(0, 50, (20, 500)).tolist())
    assert memory.table.nbytes == 12 * len(memory.table) + 4 + 6 * len(memory.table.tokens)
    assert not TrigramMemory.from_texts([]).table.nbytes > 4


def test_a_token_named_twice_is_one_child():
    table = table_of(*count_trigrams([ABC]))
    table.tokens = np.full_like(table.tokens, 2)
    TrigramMemory(table).begin([A, B], SamplingContext()).propose(9).check(budget=9, vocab_size=4, name="trigram")


def test_bad_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    TrigramMemory.from_texts([ABC]).save(path, tokenizer="mine")
    with pytest.raises(DataError, match="another tokenizer"):
        TrigramMemory.load(path, tokenizer="yours", vocab_size=4)
    with pytest.raises(DataError, match=r"outside 0\.\.2"):
        TrigramMemory.load(path, tokenizer="mine", vocab_size=3)
    table = table_of(*count_trigrams([ABC]))
    table.offsets = table.offsets[:-1]
    TrigramMemory(table).save(path, tokenizer="mine")
    with pytest.raises(DataError, match="offsets"):
        TrigramMemory.load(path, tokenizer="mine", vocab_size=4)
    table = table_of(*count_trigrams([ABC]))
    table.weights = np.full_like(table.weights, np.nan)
    TrigramMemory(table).save(path, tokenizer="mine")
    with pytest.raises(DataError, match="weights"):
        TrigramMemory.load(path, tokenizer="mine", vocab_size=4)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a draft memory"):
        TrigramMemory.load(path, tokenizer="mine", vocab_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"depth": 0}, "depth"), ({"rate": -0.1}, "rate"), ({"cap": 0}, "cap"),
     ({"scope": "user"}, "all, request"), ({"top": 0}, "top")],
)  # fmt: skip
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        learning([ABC], **options)


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"token 3, allowed are 0\.\.2"):
        TrigramMemory.from_texts([ABC], vocab_size=3)
    with pytest.raises(ValueError, match="-1"):
        TrigramMemory.from_texts([[1, -1, 2]])


def test_pairs_slide():
    assert next_pair(pair_of(5, 6), 7) == pair_of(6, 7)
    assert next_pair(pair_of(2**21 - 1, 2**21 - 2), 2**21 - 3) == pair_of(2**21 - 2, 2**21 - 3)
