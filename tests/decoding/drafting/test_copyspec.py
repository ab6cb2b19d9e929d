from __future__ import annotations

import numpy as np
import pytest
from helpers_for_loops import run, toy_loop
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.decoding.drafting.lookup import CopySource, PromptLookup, agreement
from likely.decoding.drafting.protocol import SamplingContext
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling

LETTERS = st.lists(st.integers(0, 3), min_size=1, max_size=60)
OCCURRENCES = ["first", "last"]


def by_scan(tokens, gram, copy, occurrence):
    """The slow obvious form."""
    places = [i + gram for i in range(len(tokens) - gram) if tokens[i : i + gram] == tokens[len(tokens) - gram :]]
    if len(tokens) < gram or not places:
        return []
    start = places[0 if occurrence == "first" else -1]
    return tokens[start : start + copy]


@pytest.mark.parametrize("occurrence", OCCURRENCES)
@given(tokens=LETTERS, cut=st.integers(1, 60), gram=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_equals_a_scan_of_the_text(occurrence, tokens, cut, gram):
    drafter = CopySource(gram, 6, occurrence=occurrence).begin(tokens[:cut], SamplingContext())
    drafter.observe(tokens[cut:])
    draft = drafter.propose(10)
    assert draft.tokens.tolist() == by_scan(tokens, gram, 6, occurrence)
    if len(draft):
        assert gram <= draft.match or draft.match == len(tokens) - gram


@given(tokens=LETTERS, gram=st.integers(1, 4), budget=st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_equals_prompt_lookup_of_that_length_only(tokens, gram, budget):
    """Lookup backs off; where its guess rests on at least `gram` tokens and `gram` is its longest, it is the copy."""
    lookup = PromptLookup(ngram=gram).begin(tokens, SamplingContext())
    longest = lookup._follows.get(tuple(tokens[len(tokens) - gram :])) if len(tokens) >= gram else None
    expected = lookup.propose(budget).tokens.tolist() if longest else []
    assert CopySource(gram, 12).begin(tokens, SamplingContext()).propose(budget).tokens.tolist() == expected


@pytest.mark.parametrize("occurrence", OCCURRENCES)
@given(tokens=LETTERS, more=LETTERS, other=LETTERS)
@settings(deadline=None, max_examples=60)
def test_rollback_undoes_observe_and_forks_are_apart(occurrence, tokens, more, other):
    drafter = CopySource(2, occurrence=occurrence).begin(tokens, SamplingContext())
    fork = drafter.fork(SamplingContext())
    drafter.observe(more)
    drafter.rollback(len(more))
    assert vars(drafter) == vars(fork)
    fork.observe(other)
    assert vars(drafter) == vars(CopySource(2, occurrence=occurrence).begin(tokens, SamplingContext()))


def test_the_paper_s_example():
    a, b, c, d, e = range(5)
    text = [a, b, c, d, e, a, b, c]
    draft = CopySource(gram=3).begin(text, SamplingContext()).propose(5)
    assert draft.tokens.tolist() == [d, e, a, b, c] and draft.is_chain and draft.match == 3
    assert CopySource(gram=3, copy=2).begin(text, SamplingContext()).propose(5).tokens.tolist() == [d, e]
    assert len(CopySource(gram=4).begin(text, SamplingContext()).propose(5)) == 0


def test_a_constant_text_proposes_itself_and_never_goes_beyond_the_end():
    drafter = CopySource(gram=3).begin([7] * 6, SamplingContext())
    assert drafter.propose(10).tokens.tolist() == [7, 7, 7]
    assert len(CopySource(gram=3).begin([7, 7, 7], SamplingContext()).propose(10)) == 0


def test_edges():
    drafter = CopySource().begin([7], SamplingContext())
    assert len(drafter.propose(5)) == 0
    drafter.observe([])
    drafter.end()
    drafter.end()
    assert len(drafter.propose(5)) == 0
    assert CopySource(gram=1).begin([7, 8, 7], SamplingContext()).propose(5).tokens.tolist() == [8, 7]
    for bad, word in (({"gram": 0}, "gram"), ({"copy": 0}, "copy"), ({"occurrence": "middle"}, "occurrence")):
        with pytest.raises(ValueError, match=word):
            CopySource(**bad)


def test_agreement_counts_backwards_from_both_ends():
    assert agreement([1, 2, 3, 9, 2, 3], 3) == 2
    assert agreement([3, 9, 3], 1) == 1
    assert agreement([5] * 100, 50) == 32


def test_the_index_holds_one_place_per_gram():
    tokens = np.random.default_rng(0).integers(0, 5, 10_000).tolist()
    drafter = CopySource(gram=3).begin(tokens, SamplingContext())
    assert len(drafter._follows) == 5**3 and len(drafter._replaced) == len(tokens) - 3


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(temperature=0.7, seed=3)])
@pytest.mark.parametrize("occurrence", OCCURRENCES)
def test_the_text_is_the_same_with_and_without(sampling, occurrence):
    plain, drafted = (
        run(toy_loop(), Request((0, 1), sampling, max_tokens=40, drafter=drafter, draft_budget=8))[0][0]
        for drafter in (None, CopySource(gram=1, occurrence=occurrence))
    )
    assert plain.tokens == drafted.tokens and drafted.proposed
