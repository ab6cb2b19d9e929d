"""What every drafter promises, checked on every drafter."""

from __future__ import annotations

import numpy as np
import pytest
from drafter_factories import MADE
from factories import FACTORIES

from likely.decoding.drafting.protocol import DraftDistribution, SamplingContext, UsesTarget
from likely.decoding.sampling import Sampling
from likely.runtimes.protocol import Want, Work

CONTEXTS = {
    "greedy": SamplingContext(),
    "keyed": SamplingContext(Sampling(temperature=0.8, top_p=0.9, seed=5)),
    "rejection": SamplingContext(Sampling(temperature=0.8, seed=5), verification="rejection"),
}


@pytest.fixture(scope="module", params=list(MADE))
def made(request):
    entry = MADE[request.param]
    runtime = FACTORIES["toy" if "toy" in entry.runtimes else "torch"][0]()
    yield request.param, entry, runtime
    runtime.shutdown()


@pytest.fixture(params=list(CONTEXTS))
def context(request, made):
    context = CONTEXTS[request.param]
    if context.verification != "keyed" and made[1].build(made[2]).distributions == {DraftDistribution.FIXED}:
        pytest.skip("drafts of this source have no q")
    return context


class Watched:
    """A drafter that is given the target's sequence where it needs it."""

    def __init__(self, runtime, drafter, prompt):
        self.runtime, self.drafter, self.tokens = runtime, drafter, list(prompt)

    def propose(self, budget):
        if not isinstance(self.drafter, UsesTarget):
            return self.drafter.propose(budget)
        held = self.runtime.open()
        if self.tokens[:-1]:
            self.runtime.forward([Work(held, np.array(self.tokens[:-1]), want=Want.NONE)])
        self.drafter.attach(self.runtime, held, self.tokens[-1])
        try:
            return self.drafter.propose(budget)
        finally:
            assert held.pending == 0 and held.length == len(self.tokens) - 1
            self.runtime.close(held)

    def observe(self, tokens):
        self.tokens += tokens
        self.drafter.observe(tokens)

    def rollback(self, n):
        del self.tokens[len(self.tokens) - n :]
        self.drafter.rollback(n)


def begin(made, prompt, context):
    _, entry, runtime = made
    return Watched(runtime, entry.build(runtime).begin(list(prompt), context), prompt)


def same(one, other):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.parents, other.parents)
    assert one.distribution is other.distribution and dict(one.draws) == dict(other.draws)


TEXT = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 4, 1, 2]


@pytest.mark.parametrize("budget", [0, 1, 2, 5, 16])
def test_drafts_are_trees_within_budget_and_vocabulary(made, context, budget):
    drafter = begin(made, TEXT, context)
    source = made[1].build(made[2])
    for token in [3, 4, 1, 2, 3, 3, 3, 0]:
        draft = drafter.propose(budget)
        draft.check(budget=budget, vocab_size=made[2].vocab_size, name=made[0])
        assert draft.distribution in source.distributions
        assert draft.distribution is DraftDistribution.FIXED or context.verification != "keyed"
        draft.cut(1).check(budget=budget, vocab_size=made[2].vocab_size, name=made[0])
        drafter.observe([token])
    drafter.drafter.end()
    drafter.drafter.end()


def test_same_text_same_draft(made, context):
    whole, pieces = begin(made, TEXT, context), begin(made, TEXT[:5], context)
    pieces.observe([])
    pieces.observe(TEXT[5:6])
    pieces.observe(TEXT[6:])
    # what a source learned from the text itself may differ in order, so only drafts of the same history are compared
    same(whole.propose(6), begin(made, TEXT, context).propose(6))
    assert len(pieces.propose(6)) <= 6


def test_a_prompt_of_one_token_and_a_long_one(made, context):
    own_model = "toy" in made[1].runtimes  # else the target itself drafts, whose context is shorter
    longest = 10_000 if own_model else made[2].context_length - 20
    for prompt in ([1], (TEXT * 1000)[:longest]):
        drafter = begin(made, prompt, context)
        drafter.propose(4).check(budget=4, vocab_size=made[2].vocab_size, name=made[0])
        drafter.observe([2, 3])
        drafter.propose(4)
        drafter.drafter.end()


def test_rollback_is_as_if_never_seen(made, context):
    drafter, other = begin(made, TEXT, context), begin(made, TEXT, context)
    drafter.propose(4)
    drafter.observe([3, 4, 1])
    drafter.propose(4)
    drafter.rollback(3)
    assert drafter.tokens == other.tokens
    if made[0] == "trigram":  # its table has learned from what was seen; the context is the old one
        assert len(drafter.propose(6)) <= 6
    else:
        same(drafter.propose(6), other.propose(6))


def test_a_fork_goes_its_own_way(made, context):
    first = begin(made, TEXT, context)
    first.propose(3)
    second = Watched(first.runtime, first.drafter.fork(context), first.tokens)
    first.observe([0, 0, 0])
    second.observe([3])
    oracle = begin(made, [*TEXT, 3], context)
    if made[0] not in ("trigram", "suffix", "suffix, trees"):  # these share what any of their texts taught them
        same(second.propose(5), oracle.propose(5))
    first.drafter.end()
    second.propose(2)
    second.drafter.end()
