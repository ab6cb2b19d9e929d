"""The search of ADED's paper in a trigram table, against a slow obvious form of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trigrams import START, check_drafts, paths_of, table
from scripts import script

from likely.decoding.drafting.protocol import SamplingContext
from likely.decoding.drafting.trigram.drafter import TrigramMemory
from likely.decoding.drafting.trigram.table import next_pair, pair_of
from likely.decoding.sampling import Sampling

SEARCH = script("aded_search")
_grown, mcts, puct = SEARCH._grown, SEARCH.mcts, SEARCH.puct


class Node:
    def __init__(self, pair, token, prior, above):
        self.pair, self.token, self.prior, self.above = pair, token, prior, above
        self.visits, self.total, self.children = 0, 0.0, None

    def path(self):
        return () if self.above is None else (*self.above.path(), self.token)

    def walk(self):
        yield self
        for child in self.children or ():
            yield from child.walk()

    def expand(self, look):
        if self.children is None:
            self.children = [Node(next_pair(self.pair, t), t, w, self) for t, w in zip(*look(self.pair), strict=True)]


def slow_mcts(look, depth, iterations, uniform):
    """The search with objects and the formula as it is written: {path: visits}."""
    root = Node(START, None, 1.0, None)
    for _ in range(iterations):
        node = root
        while node.children:
            node = max(node.children, key=lambda c, n=node: puct(c.total, c.visits, c.prior, n.visits))
        if len(node.path()) < depth and node.children is None:
            node.expand(look)
            node = (node.children or [node])[0]
        weights, above = [], node
        while above.above is not None:
            weights.append(above.prior)
            above = above.above
        pair = node.pair
        for _ in range(depth - len(node.path())):
            tokens, candidates = look(pair)
            if not tokens:
                break
            chosen = int(np.searchsorted(np.cumsum(candidates), next(uniform) * sum(candidates), side="right"))
            weights.append(candidates[chosen])
            pair = next_pair(pair, tokens[chosen])
        while node is not None:
            node.visits += 1
            node.total += 1 + sum(weights)
            node = node.above
    return {n.path(): n.visits for n in root.walk() if n.above is not None}


@pytest.mark.parametrize("seed", range(12))
def test_mcts_in_arrays_is_mcts_with_objects(seed):
    look = table(seed, known=1.0 if seed % 2 else 0.8)
    draws = np.random.default_rng(seed).random(100_000).tolist()
    slow = slow_mcts(look, 4, 150, iter(draws))
    tree = _grown(look, START, iter(draws), 4, 150)
    paths = paths_of((tree.tokens[1:], [parent - 1 for parent in tree.parents[1:]], None))
    assert dict(zip(paths, tree.visits[1:], strict=True)) == slow
    order = paths_of(mcts(look, START, budget=200, uniform=iter(draws), paths=1000))
    assert [slow[path] for path in order if len(path) == 1] == sorted(
        (n for path, n in slow.items() if len(path) == 1), reverse=True
    )


def test_mcts_takes_the_most_visited_and_continues_each():
    look = table(3, known=1.0)
    draws = np.random.default_rng(1).random(10_000).tolist()
    visits = slow_mcts(look, 4, 150, iter(draws))
    found = paths_of(mcts(look, START, budget=64, uniform=iter(draws), paths=6))
    best = sorted(visits.values(), reverse=True)[5]
    assert {path for path, n in visits.items() if n > best} <= set(found) and len(found) <= 12
    for path in found:
        if visits.get(path, 0) > best:
            tokens, _ = look(pair_of(*(0, 1, *path)[-2:]))
            assert (*path, tokens[0]) in found


def test_puct_closed_form():
    """Three children after 10 visits of their parent: 32 + ln(19/8), times sqrt(10)."""
    bonus = (32 + math.log(19 / 8)) * math.sqrt(10)
    got = [puct(t, n, p, 10) for t, n, p in ((9.0, 4, 0.5), (15.0, 5, 0.3), (1.2, 1, 0.2))]
    np.testing.assert_allclose(got, [2.25 + bonus * 0.1, 3.0 + bonus * 0.05, 1.2 + bonus * 0.1], rtol=1e-14)
    assert puct(0.0, 0, 0.01, 10) == math.inf
    assert puct(6.0, 3, 0.5, 9, c1=1.0, c2=2.0) == pytest.approx(2 + (1 + math.log(6)) * 0.5 * 3 / 4)


def test_many_visits_favour_high_value():
    """Equal priors, but one side leads to heavy sentences: it is visited more, and the more the longer."""

    def look(pair):
        return {pair_of(0, 1): ((2, 3), (0.5, 0.5)), pair_of(1, 2): ((4,), (3.0,)), pair_of(1, 3): ((4,), (0.01,)),
                pair_of(2, 4): ((4,), (3.0,)), pair_of(3, 4): ((4,), (0.01,)), pair_of(4, 4): ((4,), (0.01,))}.get(
            pair, ((), ()))  # fmt: skip

    shares = []
    for iterations in (50, 500, 5000):
        visits = slow_mcts(look, 3, iterations, itertools.cycle([0.5]))
        shares.append(visits[2,] / iterations)
    assert 0.5 < shares[0] < shares[1] < shares[2]


def run_mcts(look, pair, *, budget, depth):
    return mcts(look, pair, budget=budget, depth=depth, uniform=itertools.cycle([0.3, 0.9, 0.1]), iterations=40)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.integers(1, 40), depth=st.integers(1, 5))
def test_every_node_is_a_trigram_and_every_prefix_a_draft(seed, budget, depth):
    check_drafts(run_mcts, seed, budget, depth)


def test_an_unknown_pair_gives_no_draft():
    assert run_mcts(lambda pair: ((), ()), START, budget=5, depth=4) == ([], [], [])


def test_two_successors_both_appear_the_likelier_first():
    def look(pair):
        return ((2, 3), (0.9, 0.1)) if pair == START else ((), ())

    assert run_mcts(look, START, budget=2, depth=4)[0] == [2, 3]


def test_a_table_with_one_successor_each_gives_its_chain():
    table = TrigramMemory.from_texts([list(range(10))]).table
    draft = SEARCH.memory_of(table, "mcts", rate=0.0).begin([0, 1], SamplingContext()).propose(20)
    assert draft.is_chain and draft.tokens.tolist() == [2, 3, 4, 5, 6] and draft.match == 2


def test_the_same_text_gives_the_same_draft_whatever_the_request_samples():
    corpus = np.random.default_rng(0).integers(0, 6, (10, 40)).tolist()
    table = TrigramMemory.from_texts(corpus).table
    drafts = [
        SEARCH.memory_of(table, "mcts").begin([1, 2, 3, 1, 2], draw).propose(12)
        for draw in (SamplingContext(), SamplingContext(Sampling(temperature=1.0, seed=9), sample=3))
    ]
    assert len({(tuple(d.tokens.tolist()), tuple(d.parents.tolist())) for d in drafts}) == 1
