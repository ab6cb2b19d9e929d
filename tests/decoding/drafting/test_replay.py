from __future__ import annotations

import numpy as np
import pytest
from helpers_for_loops import RandomTrees, run, toy_loop
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.decoding.drafting.lookup import CopySource, PromptLookup
from likely.decoding.drafting.ngram.drafter import NgramModel
from likely.decoding.drafting.protocol import DraftDistribution
from likely.decoding.drafting.replay import RecordedAnswer, Rounds, replay, replay_all
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError
from likely.metrics.bootstrap import bootstrap_ratio

SOURCES = {
    "lookup": PromptLookup,
    "copy": lambda: CopySource(gram=1, copy=6),
    "ngram": lambda: NgramModel(6),
    "random trees": lambda: RandomTrees(6),
    "random chains": lambda: RandomTrees(6, shape="chain"),
}


@pytest.mark.parametrize("name", SOURCES)
@given(seed=st.integers(0, 50), prompt=st.lists(st.integers(0, 2), min_size=1, max_size=5), budget=st.integers(0, 7))
@settings(deadline=None, max_examples=25)
def test_a_live_greedy_run_and_the_replay_of_its_text_have_the_same_rounds(name, seed, prompt, budget):
    request = Request(
        tuple(prompt), Sampling(temperature=0.0), max_tokens=30, drafter=SOURCES[name](), draft_budget=budget
    )
    live = run(toy_loop(seed=seed), request)[0][0]
    ended = live.reason == "stop"
    again = replay(SOURCES[name](), prompt, live.tokens, budget=budget, ended=ended)
    if not ended:
        assert (again.accepted, sum(again.proposed)) == (live.rounds, live.proposed)
    else:  # near its limit of tokens the live run drafts less, and the replay does not know the limit
        assert len(again.accepted) == len(live.rounds)
        if len(live.tokens) + budget < 30:
            assert (again.accepted, sum(again.proposed)) == (live.rounds, live.proposed)


def test_known_rounds():
    """a b c d, then a b c d again: after "a" nothing is known, then one draft holds the rest."""
    rounds = replay(CopySource(gram=1), [0, 1, 2, 3, 4], [0, 1, 2, 3], budget=10)
    assert rounds.accepted == [0, 2] and rounds.tokens_per_call == 2.0
    assert rounds.proposed == [0, 2] and rounds.acceptance_rate == 1.0
    beyond = replay(CopySource(gram=1), [0, 1, 2, 3, 4], [0, 1, 2, 3], budget=10, ended=True)
    assert beyond.accepted == [0, 3] and beyond.proposed == [0, 5]
    assert replay(CopySource(gram=1), [5], [1, 2, 3], budget=10).acceptance_rate is None


def test_only_drafts_that_depend_on_the_text_alone_are_replayed():
    class Drawn:
        name, distributions, free = "drawn", frozenset({DraftDistribution.IID}), True

    class Costly:
        name, distributions, free = "costly", frozenset({DraftDistribution.FIXED}), False

    for source in (Drawn(), Costly()):
        with pytest.raises(CapabilityError, match=source.name):
            replay(source, [1], [2])


def test_bad_input():
    with pytest.raises(ValueError, match="at least one token"):
        replay(PromptLookup(), [1], [])
    with pytest.raises(ValueError, match="budget"):
        replay(PromptLookup(), [1], [1], budget=-1)
    with pytest.raises(ValueError, match="at least one answer"):
        replay_all({"lookup": PromptLookup}, [])


class Remembers:
    """Proposes the last answer that it saw end."""

    name, distributions, free = "remembers", frozenset({DraftDistribution.FIXED}), True

    def __init__(self):
        self.last: list[int] = []

    def begin(self, prompt, context):
        return _Remembering(self)


class _Remembering:
    def __init__(self, source):
        self.source, self.seen = source, []

    def propose(self, budget):
        from likely.decoding.drafting.protocol import Draft

        return Draft.chain(self.source.last[len(self.seen) : len(self.seen) + budget])

    def observe(self, tokens):
        self.seen += tokens

    def end(self):
        self.source.last = self.seen


def test_memories_last_over_traces_but_not_over_budgets_and_drafters():
    traces = [
        RecordedAnswer([9], [1, 2, 3, 4, 5], "a"),
        RecordedAnswer([9], [1, 2, 3, 4, 5], "b"),
        RecordedAnswer([8], [6], "b"),
    ]
    ticks = []
    found = replay_all({"x": Remembers, "y": Remembers}, traces, budgets=(2, 10), progress=ticks.append)
    for name in "xy":
        assert [len(r.accepted) for r in found[name][0].rounds] == [5, 2, 1]
        assert [len(r.accepted) for r in found[name][1].rounds] == [5, 1, 1]
    assert sum(ticks) == 12
    whole = found["x"][1]
    assert (whole.tokens, whole.calls, whole.drafted, whole.accepted) == (11, 7, 4, 4)
    assert whole.tokens_per_call == 11 / 7 and whole.acceptance_rate == 1.0 and whole.drafted_per_call == 4 / 7
    low, high = whole.interval
    assert 1 <= low <= whole.tokens_per_call <= high <= 5
    part = whole.of(traces, "b")
    assert part.tokens_per_call == 3.0 and part.budget == 10
    assert whole.propose_us >= 0 and whole.draft_us >= 0


def test_the_interval_of_a_ratio_is_that_of_a_slow_bootstrap():
    rng = np.random.default_rng(1)
    calls = rng.integers(1, 50, 40)
    tokens = calls * rng.integers(1, 4, 40)
    low, high = bootstrap_ratio(tokens, calls)
    draws = []
    for _ in range(2000):
        chosen = rng.integers(0, 40, 40)
        draws.append(sum(tokens[i] for i in chosen) / sum(calls[i] for i in chosen))
    assert abs(low - np.quantile(draws, 0.025)) < 0.1 and abs(high - np.quantile(draws, 0.975)) < 0.1
    assert bootstrap_ratio([6.0], [3.0]) == (2.0, 2.0)
    assert bootstrap_ratio([0.0, 2.0], [0.0, 1.0]) == (2.0, 2.0)
    for bad in ([], [0.0]):
        with pytest.raises(ValueError, match="ratio"):
            bootstrap_ratio([1.0], bad)


def test_rates_of_one_answer():
    rounds = Rounds([0, 4], [0, 2], 4, 0.0)
    assert rounds.tokens_per_call == 2.0 and rounds.acceptance_rate == 0.5
