from __future__ import annotations

import numpy as np
import pytest
from helpers_for_loops import run, toy_loop
from statistics_of_draws import chi_square_p

from likely.decoding.accept import matched_walk, sample_from, sampled_walk
from likely.decoding.drafting.composite import FirstOf
from likely.decoding.drafting.lookup import CopySource, PromptLookup
from likely.decoding.drafting.ngram.drafter import NgramModel
from likely.decoding.drafting.protocol import (
    NO_DRAFT,
    Draft,
    DraftDistribution,
    DraftsTogether,
    SamplingContext,
    UsesTarget,
)
from likely.decoding.drafting.trees.shapes import ConstantBranching
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError

DRAWN = Draft(
    np.array([1]), np.array([-1]), DraftDistribution.IID, {-1: np.log(np.full(4, 0.25, np.float32))}, {-1: (0,)}
)  # one draw from a uniform q


class Says:
    """A source that proposes a given draft and notes what it is told."""

    def __init__(self, name, draft=NO_DRAFT, *, free=True, distributions=frozenset({DraftDistribution.FIXED})):
        self.name, self.draft, self.free, self.distributions = name, draft, free, distributions
        self.log: list[object] = []

    def begin(self, prompt, context):
        self.log.append(("begin", tuple(prompt)))
        return Saying(self)


class Saying:
    def __init__(self, source):
        self.source, self.seen = source, []

    def propose(self, budget):
        self.source.log.append(("propose", budget))
        return self.source.draft

    def observe(self, tokens):
        self.seen += tokens

    def rollback(self, n):
        del self.seen[-n:]

    def fork(self, context):
        twin = Saying(self.source)
        twin.seen = self.seen.copy()
        return twin

    def end(self):
        self.source.log.append("end")


class SaysTogether(Says):
    def propose_many(self, drafters, budgets):
        self.log.append(("together", len(drafters), tuple(budgets)))
        return [self.draft] * len(drafters)


class Attached(Saying):
    def attach(self, runtime, held, root):
        self.source.log.append(("attach", root))

    def fork(self, context):
        return Attached(self.source)


class SaysAttached(Says):
    def begin(self, prompt, context):
        return Attached(self)


def one(*tokens, **known):
    return Draft.chain(tokens, **known)


def test_the_first_that_has_a_guess_and_no_later_one_is_asked():
    a, b, c = Says("a"), Says("b", one(1, 2)), Says("c", one(3))
    source = FirstOf(a, b, c)
    assert source.name == "a+b+c"
    assert source.begin([5], SamplingContext()).propose(4).tokens.tolist() == [1, 2]
    assert ("propose", 4) in a.log and ("propose", 4) in b.log and ("propose", 4) not in c.log
    assert len(FirstOf(a, Says("d")).begin([5], SamplingContext()).propose(4)) == 0


def test_a_drawn_draft_is_taken_where_it_comes_first():
    drawn = Says("drawn", DRAWN, distributions=frozenset({DraftDistribution.IID}))
    assert FirstOf(drawn, Says("high", one(3, expected=2.0))).begin([5], SamplingContext()).propose(4) is DRAWN


def test_sequences_that_still_lack_a_guess_are_drafted_together():
    together = SaysTogether("m", one(9), free=False)
    source = FirstOf(CopySource(gram=1), together)
    assert isinstance(source, DraftsTogether) and not source.free and FirstOf(Says("a"), Says("b")).free
    drafters = [source.begin(prompt, SamplingContext()) for prompt in ([1, 2], [1, 2, 1], [3, 4])]
    drafts = source.propose_many(drafters, [4, 5, 6])
    assert [d.tokens.tolist() for d in drafts] == [[9], [2, 1], [9]]
    assert together.log.count(("together", 2, (4, 6))) == 1
    nested = FirstOf(FirstOf(Says("a"), together), Says("b"))
    assert nested.begin([1], SamplingContext()).propose(3).tokens.tolist() == [9] and nested.name == "a+m+b"


def test_every_part_sees_the_text_its_forks_and_its_end():
    a, b = Says("a"), Says("b")
    drafter = FirstOf(a, b).begin([1, 2], SamplingContext())
    drafter.observe([3, 4])
    fork = drafter.fork(SamplingContext())
    drafter.rollback(1)
    fork.observe([5])
    assert [p.seen for p in drafter.parts] == [[3], [3]] and [p.seen for p in fork.parts] == [[3, 4, 5]] * 2
    drafter.end()
    assert "end" in a.log and "end" in b.log


def test_the_target_is_passed_on_to_parts_that_use_it():
    user = SaysAttached("user")
    drafter = FirstOf(Says("plain"), user).begin([1], SamplingContext())
    assert isinstance(drafter, UsesTarget) and isinstance(drafter.fork(SamplingContext()), UsesTarget)
    drafter.attach(None, None, 7)
    assert user.log[-1] == ("attach", 7)
    assert not isinstance(FirstOf(Says("a"), Says("b")).begin([1], SamplingContext()), UsesTarget)


def test_laws_are_the_union_and_spectr_takes_independent_draws_only():
    without = NgramModel(4, shape=ConstantBranching((2,)))
    source = FirstOf(CopySource(), without)
    assert source.distributions == {DraftDistribution.FIXED, DraftDistribution.WITHOUT_REPLACEMENT}
    FirstOf(CopySource(), NgramModel(4)).begin([1], SamplingContext(verification="spectr"))
    with pytest.raises(CapabilityError, match="ngram draws without replacement"):
        source.begin([1], SamplingContext(verification="spectr"))


def test_bad_input():
    with pytest.raises(ValueError, match="two or more"):
        FirstOf(CopySource())


SAMPLED = Sampling(temperature=0.8, seed=3)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), SAMPLED], ids=["greedy", "sampled"])
def test_the_text_is_the_same_with_and_without(sampling):
    source = FirstOf(CopySource(gram=1), NgramModel(6), PromptLookup())
    requests = [Request((0, i), sampling, max_tokens=25, drafter=source, draft_budget=6) for i in range(3)]
    plain = [Request((0, i), sampling, max_tokens=25) for i in range(3)]
    drafted = run(toy_loop(), *requests)
    assert [d[0].tokens for d in drafted] == [p[0].tokens for p in run(toy_loop(), *plain)]
    assert sum(d[0].proposed for d in drafted)


P = {(): np.array([0.4, 0.1, 0.2, 0.3])} | {(t,): np.random.default_rng(t).dirichlet(np.ones(4)) for t in range(4)}
PAIRS = {(a, b): P[()][a] * P[(a,)][b] for a in range(4) for b in range(4)}


def mixed_pairs(source, prompt, n=1500):
    """Two tokens of a target of distribution P, as a loop emits them: fixed drafts are walked, drawn ones judged."""
    rng = np.random.default_rng(2)
    drafter = source.begin(prompt, SamplingContext(SAMPLED, 0, "rejection"))
    for sample in range(n):
        draft = drafter.fork(SamplingContext(SAMPLED, sample, "rejection")).propose(2).cut(1)
        if draft.distribution is DraftDistribution.FIXED:
            _, tokens = matched_walk(draft, lambda node, path: sample_from(P[path], rng.random()))
        else:
            _, tokens = sampled_walk(draft, lambda node, path: P[path], rng.random)
        yield (*tokens, *(sample_from(P[tuple(tokens)], rng.random()) for _ in range(2 - len(tokens))))


@pytest.mark.parametrize("prompt", [[0, 1, 2, 3], [0, 1, 2, 0]], ids=["drawn", "copied"])
def test_mixed_laws_emit_the_target_s_law_under_rejection(prompt):
    source = FirstOf(CopySource(gram=1), NgramModel(4))
    law = source.begin(prompt, SamplingContext(SAMPLED, 0, "rejection")).propose(2).distribution
    assert law is (DraftDistribution.IID if prompt[-1] == 3 else DraftDistribution.FIXED)
    assert chi_square_p(mixed_pairs(source, prompt), PAIRS) > 1e-6


def test_choosing_by_what_was_drawn_is_noticed():
    """The control: a drawn draft that is dropped when it drew the wrong token biases the text."""

    class Picky(FirstOf):
        def _passes(self, draft):
            return draft.distribution is DraftDistribution.FIXED or int(draft.tokens[0]) != 0

    source = Picky(NgramModel(4), Says("none"))
    assert chi_square_p(mixed_pairs(source, [0, 1, 2, 3]), PAIRS) < 1e-6
