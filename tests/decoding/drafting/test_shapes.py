"""Shapes: size, order, budgets, laws of their draws, and what they are when the target's own pick decides."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_of_draws import chi_square_p
from table_drafts import grow

from likely.decoding.drafting.protocol import NO_DRAFT, DraftDistribution, SamplingContext
from likely.decoding.drafting.trees.shapes import (
    Chain,
    ConstantBranching,
    IidPaths,
    StochasticBeam,
    children_per_node,
    level_widths,
)
from likely.decoding.sampling import Sampling, gumbel, pick

Q = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.02, 0.9, 0.05, 0.03]])
GREEDY = SamplingContext(Sampling(temperature=0))


def keyed(sample: int = 0) -> SamplingContext:
    return SamplingContext(Sampling(seed=3), sample)


def drawn(sample: int = 0, verification="rejection") -> SamplingContext:
    return SamplingContext(Sampling(seed=3), sample, verification)


SHAPES = [
    Chain(4),
    ConstantBranching((2, 2)),
    ConstantBranching((3, 1, 1)),
    StochasticBeam(3, 3),
    ConstantBranching((3, 2), independent=True),
    IidPaths(3, 3),
]


def size(shape) -> int:
    if isinstance(shape, Chain):
        return shape.length
    if isinstance(shape, (ConstantBranching)):
        return int(np.cumprod(shape.branching).sum())
    return getattr(shape, "width", getattr(shape, "paths", 0)) * shape.depth


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from(["greedy", "keyed", "rejection"]),
    st.integers(0, 16),
    st.integers(0, 10**6),
    st.integers(0, 3),
)
def test_every_draft_is_a_legal_tree_within_its_budget(shape, mode, budget, sample, last):
    draw = {"greedy": GREEDY, "keyed": keyed(sample), "rejection": drawn(sample)}[mode]
    draft = grow(shape, Q, last, draw, 7, budget)
    draft.check(budget=budget, vocab_size=4, name="shape")
    assert len(draft) <= size(shape)
    if not len(draft):
        assert budget == 0
        return
    assert draft.distribution in shape.distributions
    assert (draft.distribution is DraftDistribution.FIXED) == (mode != "rejection")
    again = grow(shape, Q, last, draw, 7, budget)
    assert again.tokens.tolist() == draft.tokens.tolist() and again.parents.tolist() == draft.parents.tolist()
    if draft.distribution is not DraftDistribution.FIXED:
        for node, children in draft.draws.items():
            token = last if node < 0 else draft.tokens[node]
            assert np.allclose(np.exp(draft.log_q[node]), Q[token]) and len(children) >= 1
        assert set(draft.log_q) == set(draft.draws) == set(draft.parents.tolist())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", [GREEDY, keyed(), drawn()], ids=["greedy", "keyed", "rejection"])
def test_a_full_budget_gives_the_whole_shape(shape, draw):
    draft = grow(shape, Q, 0, draw, 7, 100)
    if draft.distribution is DraftDistribution.IID:
        assert sum(map(len, draft.draws.values())) >= len(draft)
        return
    assert len(draft) == size(shape)
    by_level = Counter(draft.depths().tolist())
    expected = [shape.width] * shape.depth if isinstance(shape, StochasticBeam) else None
    if isinstance(shape, ConstantBranching):
        expected = np.cumprod(shape.branching).tolist()
    if expected:
        assert [by_level[d + 1] for d in range(len(expected))] == expected


def test_tokens_outside_q_are_not_drafted():
    q = np.array([[0.0, 1.0], [0.0, 1.0]])
    for draw, shape in itertools.product((GREEDY, keyed(), drawn()), SHAPES):
        draft = grow(shape, q, 0, draw, 3, 100)
        assert set(draft.tokens.tolist()) == {1} and draft.is_chain


def test_a_draft_of_greedy_decoding_holds_the_likeliest_children():
    draft = grow(ConstantBranching((2, 1)), Q, 0, GREEDY, 7, 10)
    children = draft.children()
    assert set(children[-1]) == {3, 2}
    assert set(children[children[-1][3]]) == {1}
    beam = grow(StochasticBeam(2, 2), Q, 0, GREEDY, 7, 10)
    paths = {(int(beam.tokens[beam.parents[i]]), int(beam.tokens[i])) for i in range(4) if beam.parents[i] >= 0}
    # .4 * .9 through 3, .3 * .25 through 2: ties between the children of 2 go to the smaller id
    assert paths == {(3, 1), (2, 0)}


def test_nodes_of_a_fixed_draft_come_most_confident_first():
    """Under greedy decoding: by the probability of their path under q; so a budget is spent on the likeliest."""
    for shape in (ConstantBranching((3, 2)), StochasticBeam(3, 3)):
        draft = grow(shape, Q, 0, GREEDY, 7, 50)
        chance = []
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            above, last = (1.0, 0) if parent < 0 else (chance[parent], draft.tokens[parent])
            chance.append(above * Q[last, token])
        assert all(a >= b - 1e-6 for a, b in itertools.pairwise(chance))


def test_a_keyed_draft_ranks_by_the_targets_own_noise():
    """Where q = p, the first child is what the target will pick, at every node."""
    settings_ = Sampling(seed=3)
    with np.errstate(divide="ignore"):
        log_q = np.log(Q).astype(np.float32)
    for sample, shape in itertools.product(range(20), (ConstantBranching((2, 2)), StochasticBeam(2, 3), Chain(3))):
        draft = grow(shape, Q, 1, keyed(sample), 5, 20)
        children, node, last = draft.children(), -1, 1
        for depth in range(int(draft.depths().max())):
            token = pick(log_q[last], settings_, noise=0, sample=sample, position=5 + depth)
            assert token in children[node]
            node, last = children[node][token], token
    draft = grow(ConstantBranching((3,)), Q, 0, keyed(4), 5, 20)
    noisy = log_q[0] + gumbel(0, 4, 5, np.arange(4))
    assert set(draft.tokens.tolist()) == set(np.argsort(-noisy)[:3].tolist())


def test_children_are_listed_in_the_order_of_drawing():
    draws = []
    for sample in range(8_000):
        draft = grow(ConstantBranching((2,)), Q, 0, drawn(sample), 5, 20)
        draws.append(tuple(int(draft.tokens[c]) for c in draft.draws[-1]))
    law = {(a, b): Q[0, a] * Q[0, b] / (1 - Q[0, a]) for a, b in itertools.permutations(range(4), 2)}
    assert chi_square_p(draws, law) > 1e-6


def test_independent_draws_are_kept_with_their_repeats():
    draws = []
    for sample in range(6_000):
        draft = grow(ConstantBranching((2,), independent=True), Q, 0, drawn(sample), 5, 20)
        draws.append(tuple(int(draft.tokens[c]) for c in draft.draws[-1]))
    assert chi_square_p(draws, {(a, b): Q[0, a] * Q[0, b] for a in range(4) for b in range(4)}) > 1e-6


def test_a_node_has_as_many_draws_as_paths_that_pass_it():
    for sample in range(50):
        draft = grow(IidPaths(4, 3), Q, 0, drawn(sample, "spectr"), 5, 20)
        through: Counter = Counter()
        assert len(draft.draws[-1]) == 4
        for node, children in sorted(draft.draws.items()):
            if node >= 0:
                assert len(children) == through[node]
            through += Counter(children)


def test_branching_of_ones_is_a_chain_of_the_same_draws():
    for sample in range(50):
        a = grow(ConstantBranching((1, 1, 1)), Q, 2, drawn(sample), 5, 20)
        for other in (Chain(3), ConstantBranching((1, 1, 1), independent=True), IidPaths(1, 3)):
            b = grow(other, Q, 2, drawn(sample), 5, 20)
            assert a.tokens.tolist() == b.tokens.tolist() and a.is_chain and b.is_chain
            assert (
                a.draws == b.draws
                and a.distribution is DraftDistribution.WITHOUT_REPLACEMENT
                and b.distribution is DraftDistribution.IID
            )


def test_drawn_drafts_do_not_use_the_targets_noise():
    """The first draws over many samples are independent of the picks that rule G would make."""
    pairs = []
    log_q = np.log(Q[2])
    for sample in range(6_000):
        draft = grow(Chain(1), Q, 2, drawn(sample), 5, 20)
        pairs.append((int(draft.tokens[0]), int((log_q + gumbel(0, sample, 5, np.arange(4))).argmax())))
    assert chi_square_p(pairs, dict.fromkeys(itertools.product(range(4), repeat=2), 1 / 16)) > 1e-6


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 40))
def test_level_widths_use_the_budget(width, depth, budget):
    widths = level_widths(width, depth, budget)
    assert sum(widths) == min(budget, width * depth)
    assert all(1 <= w <= width for w in widths) and len(widths) <= depth
    assert widths == sorted(widths, reverse=True)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 40))
def test_children_use_the_budget(most, nodes, left):
    counts = children_per_node(most, nodes, left)
    assert sum(counts) == min(left, most * nodes) and counts == sorted(counts, reverse=True)
    assert max(counts) <= most and len(counts) == nodes


def test_bad_shapes_are_refused():
    for make, message in (
        (lambda: StochasticBeam(0, 3), "width must be >= 1, got 0"),
        (lambda: StochasticBeam(2, 0), "depth must be >= 1"),
        (lambda: ConstantBranching((2, 0)), r"numbers >= 1, got \(2, 0\)"),
        (lambda: ConstantBranching(()), "at least one level"),
        (lambda: ConstantBranching((0,), independent=True), "numbers >= 1"),
        (lambda: IidPaths(0, 1), "paths must be >= 1"),
        (lambda: Chain(0), "length must be >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert next_or_none(Chain(3), budget=0) is NO_DRAFT


def next_or_none(shape, *, budget):
    try:
        next(shape.grow(drawn(), 3, budget))
    except StopIteration as end:
        return end.value
