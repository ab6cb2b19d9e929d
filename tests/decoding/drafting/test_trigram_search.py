"""The search in a trigram table, against slow obvious forms of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trigrams import START, check_drafts, every_path, paths_of, table

from likely.decoding.drafting.trigram.drafter import best_first


@pytest.mark.parametrize("seed", range(20))
def test_best_first_finds_the_largest_shares(seed):
    look = table(seed)
    shares = every_path(look, 4)
    found = best_first(look, START, budget=17, depth=3)
    got = [shares[path] for path in paths_of(found)]
    np.testing.assert_allclose(got, sorted(shares.values(), reverse=True)[:17], rtol=1e-12)
    np.testing.assert_allclose(found[2], got, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.integers(1, 40), depth=st.integers(1, 5))
def test_every_node_is_a_trigram_and_every_prefix_a_draft(seed, budget, depth):
    check_drafts(best_first, seed, budget, depth)


def test_an_unknown_pair_gives_no_draft():
    assert best_first(lambda pair: ((), ()), START, budget=5, depth=4) == ([], [], [])


def test_two_successors_both_appear_the_likelier_first():
    def look(pair):
        return ((2, 3), (0.9, 0.1)) if pair == START else ((), ())

    assert best_first(look, START, budget=2, depth=4)[0] == [2, 3]
