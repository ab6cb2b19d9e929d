"""The budget controller: what it predicts, what it chooses, and that it stops when drafts do not pay."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_for_loops import RandomTrees, run, toy_loop

from likely.decoding.accept import matched_walk
from likely.decoding.constraint import mask_of
from likely.decoding.drafting.budget import (
    AcceptanceTracker,
    CallCosts,
    Candidate,
    Controller,
    PlannedCall,
    SourceRecord,
    match_class,
)
from likely.decoding.drafting.budget.acceptance import LIMIT
from likely.decoding.drafting.lookup import PromptLookup
from likely.decoding.drafting.protocol import NO_DRAFT, Draft, SamplingContext
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling


def learned(costs: dict[int, float], **by_source) -> Controller:
    """A controller that has seen these costs, and drafts of match 8 kept to the given length."""
    controller = Controller()
    for n, seconds in costs.items():
        for _ in range(5):
            controller.costs.record(n, seconds)
    for name, kept in by_source.items():
        for _ in range(100):
            controller.of(name).record(match_class(chain(16)), range(kept), 16)
    return controller


def verify(
    controller: Controller, name: str, draft: Draft, *, positions: int = 1, emitted: float = 1, trust: float = 1.0
):
    [n], kept = controller.verify(
        [Candidate(name, draft, LIMIT, trust)], PlannedCall(positions, emitted, room=LIMIT, leaves=LIMIT)
    )
    return n, kept


def draft_of(controller: Controller, name: str, limit: int) -> int:
    [n], _ = controller.draft(name, [limit], PlannedCall(1, 1.0, room=LIMIT, leaves=LIMIT))
    return n


def chain(n: int, match: int = 8) -> Draft:
    return Draft.chain([1] * n, match=match)


SIZES = (1, 2, 4, 8, 12, 17, 24, 32, 64)
FLAT = {n: 1.0 + n / 1000 for n in SIZES}
LINEAR = {n: float(n) for n in SIZES}


def test_costs_are_interpolated_and_outliers_ignored():
    costs = CallCosts()
    for n, seconds in ((1, 1.0), (9, 5.0)):
        for _ in range(9):
            costs.record(n, seconds)
    costs.record(1, 50.0)
    np.testing.assert_allclose(costs.seconds(np.array([1, 3, 5, 9])), [1, 2, 3, 5])
    costs.record(4, 30.0)  # one slow call in the middle cannot cost more than a larger one
    assert costs.seconds(np.array([4]))[0] <= 5


def test_flat_costs_verify_all_that_may_be_kept_and_linear_costs_nothing():
    assert verify(learned(FLAT, good=16), "good", chain(16), positions=1, emitted=1)[0] == 16
    assert verify(learned(LINEAR, good=16), "good", chain(16), positions=1, emitted=1)[0] == 0
    rising = {n: 1 + n / 20 for n in SIZES}
    assert verify(learned(rising, bad=0), "bad", chain(16), positions=1, emitted=1)[0] == 0


def test_a_promising_size_of_unknown_cost_is_tried_and_then_judged():
    controller = learned({1: 1.0, 64: 64.0}, good=16)
    assert verify(controller, "good", chain(16), positions=1, emitted=1)[0] == 16
    for _ in range(3):
        controller.costs.record(17, 17.0)
    assert verify(controller, "good", chain(16), positions=1, emitted=1)[0] == 0


def test_the_choice_is_the_maximum_of_predicted_goodput():
    controller = learned({1: 1.0, 4: 1.6, 8: 2.2, 16: 6.0}, some=5)
    n, kept = verify(controller, "some", chain(16), positions=1, emitted=1)
    expected = controller.of("some").expected(match_class(chain(16)))
    rates = [(1 + expected[i]) / controller.costs.seconds(np.array([1 + i]))[0] for i in range(17)]
    assert n == int(np.argmax(rates)) and kept == expected[n]
    assert 4 <= n <= 7


def test_a_full_batch_drafts_less_than_a_lone_request():
    controller = learned({1: 1.0, 8: 1.2, 16: 2.4, 20: 5.0, 24: 8.0, 28: 11.0, 32: 14.0}, some=8)
    alone, _ = verify(controller, "some", chain(16), positions=1, emitted=1)
    among, _ = verify(controller, "some", chain(16), positions=16, emitted=16)
    assert alone >= 7 and among == 0


def test_nothing_is_drafted_before_costs_are_known():
    assert verify(Controller(), "x", chain(16), positions=1, emitted=1) == (0, 0.0)
    assert draft_of(Controller(), "x", 5) == 0


def test_a_drafter_that_costs_is_tried_a_few_times_then_judged():
    controller = learned(FLAT)
    tries = [draft_of(controller, "slow", 8) for _ in range(4)]
    assert all(tries)
    for _ in range(10):
        controller.of("slow").time(4, 4, 40.0)  # ten seconds per token
        controller.of("slow").judge(chain(4), [], 4, None)
    later = [draft_of(controller, "slow", 8) for _ in range(200)]
    assert 1 <= sum(n > 0 for n in later) <= 8


@pytest.mark.parametrize("verified", [0, 3])
def test_a_shadow_learns_what_full_verification_would_have_kept(verified):
    record = SourceRecord()
    shadow = AcceptanceTracker(record)
    draft = Draft.chain([5, 6, 7, 8], match=3)
    shadow.propose(draft)
    shadow.propose(Draft.chain([9, 9, 9]))  # one at a time
    for token in (5, 6, 1):
        shadow.observe([token])
    rate = record.expected(match_class(draft))
    fresh = SourceRecord().expected(match_class(draft))
    assert rate[2] > fresh[2] and rate[4] - rate[2] < fresh[4] - fresh[2]


def test_expected_counts_are_exact_for_many_records():
    record = SourceRecord()
    draft = Draft.chain([1] * 6, match=4)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        record.record(match_class(draft), range(int(rng.integers(0, 7))), 6)
    # P(node i kept) = (6 - i) / 7; forgetting keeps some noise
    np.testing.assert_allclose(record.expected(match_class(draft))[6], sum((6 - i) / 7 for i in range(6)), atol=0.8)


def test_auto_budget_gives_the_plain_text_and_useless_drafts_are_given_up():
    base = Request((1, 2, 0), Sampling(seed=3), max_tokens=60)
    [[plain]] = run(toy_loop(), base)
    for source in (PromptLookup(), RandomTrees(6)):
        request = Request((1, 2, 0), Sampling(seed=3), max_tokens=60, drafter=source, draft_budget="auto")
        [[drafted]] = run(toy_loop(), request)
        assert drafted.tokens == plain.tokens
    loop = toy_loop()
    loop.controller = learned(LINEAR)
    greedy = Request((1, 2, 0), Sampling(temperature=0), max_tokens=60, drafter=RandomTrees(6, shape="chain"))
    [[drafted]] = run(loop, greedy)
    assert drafted.proposed <= 0.2 * LIMIT


@pytest.mark.parametrize("budget", [-1, 2000, "many", 1.5])
def test_a_bad_budget_is_refused(budget):
    with pytest.raises(ValueError, match="draft_budget"):
        Request((1,), draft_budget=budget)


# milliseconds per call on n positions, as measured on two cores: a 4-bit file in llama.cpp, and fp32 in torch
CURVES = {
    "steep": {1: 5.9, 2: 11.5, 3: 13.5, 4: 15.7, 8: 26, 16: 42, 32: 85, 64: 170},
    "flat": {1: 41, 2: 56, 4: 57, 8: 60, 16: 70, 32: 110, 64: 185},
}


def simulated(curve: dict[int, float], texts: list[list[int]], source) -> float:
    """How many times as fast as plain decoding the texts would come, by these call costs; the clock is simulated."""
    sizes, costs = list(curve), list(curve.values())
    controller, rng = Controller(), np.random.default_rng(0)
    spent = plain = 0.0
    for text in texts:
        prompt, answer = text[: len(text) // 2], text[len(text) // 2 :]
        drafter, shadow, done = (
            source.begin(prompt, SamplingContext()),
            AcceptanceTracker(controller.of(source.name)),
            0,
        )
        while done < len(answer):
            limit = len(answer) - done - 1
            wish = min(shadow.wish(), limit)
            draft = NO_DRAFT
            if wish:
                draft = drafter.propose(wish)
                shadow.propose(draft)
                n, _ = verify(controller, source.name, draft.first(limit), trust=shadow.trust)
                shadow.verified(n)
                draft = draft.first(n)
            _, emitted = matched_walk(draft, lambda node, path, rest=answer[done:]: rest[len(path)])
            seconds = float(np.interp(1 + len(draft), sizes, costs)) * (1 + 0.05 * abs(rng.normal()))
            controller.costs.record(1 + len(draft), seconds)
            spent += seconds
            drafter.observe(emitted)
            shadow.observe(emitted)
            done += len(emitted)
        plain += costs[0] * 1.04 * len(answer)
    return plain / spent


@pytest.mark.parametrize("curve", list(CURVES))
def test_auto_does_not_lose_on_text_without_repetition_and_wins_on_copies(curve):
    rng = np.random.default_rng(1)
    fresh = [rng.integers(0, 40, 300).tolist() for _ in range(8)]  # short repeats by chance mislead a copying drafter
    copies = [[*(part := rng.integers(0, 1000, 150).tolist()), *part] for _ in range(8)]
    mixed = [[*one, *two] for one, two in zip(fresh, copies, strict=True)]
    assert simulated(CURVES[curve], fresh, PromptLookup()) > 0.98
    assert simulated(CURVES[curve], copies, PromptLookup()) > {"steep": 1.7, "flat": 5}[curve]
    assert simulated(CURVES[curve], mixed, PromptLookup()) > 1.0


class Forcing:
    """A constraint that forces one token for ever."""

    vocab_size, accepting, finished, approximate = 8, False, False, False

    def allowed(self, remaining=None):
        return mask_of([1], 8)

    def permits(self, token):
        return token == 1

    def advance(self, token):
        pass

    def forced(self):
        return [1] * 8

    def fork(self):
        return self

    def rollback(self, n):
        pass

    def ready(self, wait=False):
        return True


@pytest.mark.parametrize(
    ("costs", "budget", "calls"), [(FLAT, 0, 20), (FLAT, "auto", 3), (LINEAR, "auto", 20), (LINEAR, 4, 4)]
)
def test_what_a_constraint_forces_is_drafted_where_longer_calls_are_cheap(costs, budget, calls):
    controller = learned(costs)
    controller.costs.record = lambda positions, seconds, **batch: None  # these costs stay
    request = Request((2,), Sampling(), max_tokens=20, constraint=Forcing(), draft_budget=budget)
    (finished,), *_ = run(toy_loop(vocab=8, controller=controller), request)
    assert finished.tokens == [1] * 20 and finished.target_calls == calls
