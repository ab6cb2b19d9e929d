"""The simulated server: closed forms, conservation, and the promise that automatic lengths never make things worse."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace

import numpy as np
import pytest

from likely.decoding.drafting.budget import Controller
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.decoding.scheduling import PrefillPace
from likely.runtimes.step_cost import StepCost
from likely.serving.simulator import Arrival, SimulatedRuntime, SimulatedServer, VirtualClock, poisson_arrivals

COST = StepCost(3.5e-7, 9e-5, 2e-5, 1.05e-2)
DRAFT = StepCost(1e-8, 2e-6, 2e-6, 1.5e-3)
PLAIN = SimulatedServer(COST, max_running=32)


def test_a_lone_request_takes_what_its_calls_cost():
    [one] = PLAIN.serve([Arrival(2.0, 100, 5)]).requests
    first = float(COST.seconds(1, 100, 0))
    rest = sum(float(COST.seconds(1, 1, 100 + i)) for i in range(4))
    assert one.time_to_first_token_s == pytest.approx(first) and one.waiting_s == 0
    assert one.latency_s == pytest.approx(first + rest)


def test_sure_drafts_divide_the_calls_and_wrong_ones_only_cost():
    load = [Arrival(0.0, 10, 61)]
    sure = replace(PLAIN, draft_alpha=1.0, draft_budget=5).serve(load)
    assert sure.calls == 1 + 10 and sure.accepted == sure.drafted == 50
    wrong = replace(PLAIN, draft_alpha=0.0, draft_budget=5).serve(load)
    assert wrong.calls == 61 and wrong.accepted == 0 and wrong.drafted > 200
    assert wrong.seconds > PLAIN.serve(load).seconds > sure.seconds


def test_accepted_tokens_per_call_are_the_expected_ones():
    load = [Arrival(0.0, 4, 4000)]
    found = replace(PLAIN, draft_alpha=0.7, draft_budget=3).serve(load)
    assert 3999 / (found.calls - 1) == pytest.approx(1 + 0.7 + 0.49 + 0.343, rel=0.04)


def test_nobody_is_lost_and_the_first_come_begins_first():
    load = poisson_arrivals(50, 60, lengths=[(40, 5), (10, 9)], seed=1)
    found = replace(PLAIN, max_running=4, draft_alpha=0.6, draft_cost=DRAFT).serve(load)
    assert [each.arrival for each in found.requests] == load
    begun = [each.begun_s for each in found.requests]
    assert begun == sorted(begun) and found.most_running <= 8 and found.most_waiting >= 3
    assert all(each.arrival.at_s <= each.begun_s <= each.first_token_s <= each.end_s for each in found.requests)
    assert found.summary()["tokens_per_s"] == pytest.approx(sum(each.output_tokens for each in load) / found.seconds)
    assert found == replace(PLAIN, max_running=4, draft_alpha=0.6, draft_cost=DRAFT).serve(load)


def test_little_room_puts_texts_off_and_all_are_served():
    load = [Arrival(0.0, 30, 20) for _ in range(6)]
    found = replace(PLAIN, tokens_held=120, draft_alpha=0.6).serve(load)
    assert len(found.requests) == 6 and found.most_running < 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "rate", "draft"), [(0.3, 60, DRAFT), (0.9, 60, DRAFT), (0.9, 5, None), (0.1, 200, None)]
)
def test_automatic_lengths_are_never_worse_than_none_or_the_most(alpha, rate, draft):
    """Within 3 % of the better of 0 and 5 tokens, once costs and acceptance are known."""
    load = poisson_arrivals(rate, 60, lengths=[(60, 30), (120, 50)], seed=2)
    drafting = replace(PLAIN, draft_alpha=alpha, draft_cost=draft)
    known = Controller(step=COST)
    drafting.serve(load[:20], controller=known)
    auto = drafting.serve(load, controller=known).latencies().mean()
    most = replace(drafting, draft_budget=5).serve(load).latencies().mean()
    assert auto <= 1.03 * min(PLAIN.serve(load).latencies().mean(), most)


@pytest.mark.slow
def test_texts_of_different_acceptance_get_different_lengths():
    load = poisson_arrivals(40, 60, lengths=[(60, 40)], seed=3)
    server = replace(PLAIN, draft_alpha=0.6, draft_spread=0.3, draft_cost=DRAFT)
    each, together = (replace(server, granularity=g).serve(load) for g in ("request", "batch"))
    assert each.latencies().mean() < 1.02 * together.latencies().mean()
    assert each.accepted / each.drafted > together.accepted / together.drafted


class GrowingPrompts(SimulatedRuntime):
    """A prompt's token also takes time for each token before it, which `StepCost` does not know."""

    def forward(self, work):
        self.clock.spend(sum(3e-7 * item.sequence.length * len(item.tokens) for item in work if len(item.tokens) > 1))
        return super().forward(work)


@pytest.mark.parametrize("known", [True, False])
def test_a_long_prompt_slows_others_down_by_no_more_than_was_allowed(known):
    """Steps beside a prompt of 3,000 tokens, in steps without it: 2.5 allowed, far more where 128 tokens are read."""

    def slowest(slowdown):
        clock = VirtualClock()
        runtime = GrowingPrompts(StepCost(1e-7, 1e-3, 1e-4, 6e-3), clock)
        controller = Controller(step=runtime.cost if known else None)
        loop = Loop(
            runtime, lambda token: b"", frozenset(), controller=controller, prefill_tokens=128,
            prefill_slowdown=slowdown, clock=clock,
        )  # fmt: skip
        for _ in range(4):
            loop.add(Request(prompt=(0,), max_tokens=4000, sampling=Sampling(temperature=0)))
        took, reads = [], []
        for step in range(2000):
            if step == 20:
                loop.add(Request(prompt=(0,) * 3000, max_tokens=1, sampling=Sampling(temperature=0)))
            begun = clock()
            loop.step()
            took.append(clock() - begun)
            reads.append(loop.last_call.tokens - loop.last_call.decoding)
            if step > 20 and not reads[-1] and sum(reads[20:]) == 3000:
                break
        assert sum(reads[20:]) == 3000
        return max(took[20:]) / np.median(took[10:20])

    assert 2 < slowest(2.5) < 2.8
    assert slowest(0) > 10


def test_a_pace_below_that_of_no_prompt_at_all_is_refused():
    with pytest.raises(ValueError, match="prefill_slowdown must be > 1"):
        PrefillPace(32, 0.5)


@pytest.mark.slow
def test_a_thousand_requests_per_second():
    load = poisson_arrivals(1000, 1500, lengths=[(20, 4), (60, 8)], seed=4)
    large = StepCost(1e-8, 2e-6, 2e-6, 5e-3)
    found = SimulatedServer(large, max_running=512, draft_alpha=0.8).serve(load)
    assert len(found.requests) == 1500 and found.seconds < 3


@pytest.mark.slow
def test_a_day_of_load_starves_nobody():
    """24 hours at nine tenths of what the server can do: nobody waits longer than an hour, and the queue empties."""
    slow = StepCost(0, 2.0, 0, 6.0)
    load = poisson_arrivals(0.0045, 390, lengths=[(20, 12), (60, 20), (10, 40)], seed=5)
    assert load[-1].at_s > 0.95 * 86_400
    found = SimulatedServer(slow, max_running=8, prefill_tokens=16, draft_alpha=0.5).serve(load)
    waiting = [each.waiting_s for each in found.requests]
    assert len(found.requests) == 390 and max(waiting) < 3600 and np.median(waiting) < 300
    assert found.most_waiting < 100


@pytest.mark.slow
def test_a_day_of_a_real_trace_starves_nobody(data_dir):
    """Every twelfth of Azure's conversations, stretched to 24 hours, in their bursts and order, with the pace of
    the server; lengths are a sixteenth, and the machine as slow as makes that seven tenths of its capacity."""
    with gzip.open(data_dir / "llm_traces" / "azure2023_conv.csv.gz", "rt", newline="") as file:
        rows = [[float(value) for value in row.values()] for row in csv.DictReader(file)][::12]
    stretch = 86_400 / rows[-1][0]
    load = [Arrival(at * stretch, max(1, int(p) // 16), max(1, int(n) // 16)) for at, p, n in rows]
    rows_of_work = sum(each.prompt_tokens + each.output_tokens for each in load)
    server = SimulatedServer(
        StepCost(0, 0.7 * 86_400 / rows_of_work, 0, 0.5), max_running=8, prefill_tokens=128, prefill_slowdown=2.0,
        draft_alpha=0.5,
    )  # fmt: skip
    found = server.serve(load)
    waiting = np.array([each.waiting_s for each in found.requests])
    assert len(found.requests) == len(load) > 1200 and found.seconds > 86_000
    assert waiting.max() < 1800 and np.median(waiting) < 60 and found.most_waiting < 100
    begun = [each.begun_s for each in found.requests]
    assert begun == sorted(begun)  # nobody is overtaken
    overloaded = replace(server, cost=StepCost(0, 1.3 * 86_400 / rows_of_work, 0, 0.5)).serve(load[:300])
    assert max(each.waiting_s for each in overloaded.requests) > 1800  # which the bound does not allow


def test_impossible_loads_are_refused():
    with pytest.raises(ValueError, match="at least one request"):
        PLAIN.serve([])
    with pytest.raises(ValueError, match="arrival"):
        Arrival(-1.0, 1, 1)
    with pytest.raises(ValueError, match="alpha"):
        replace(PLAIN, draft_alpha=1.5).serve([Arrival(0, 1, 1)])
    with pytest.raises(ValueError, match="rate"):
        poisson_arrivals(0, 1, lengths=[(1, 1)])
