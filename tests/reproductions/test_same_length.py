"""The window of EXSPEC: equal lengths together, nobody left waiting, the same text as without it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_for_loops import RandomTrees, run, toy_loop
from hypothesis import given
from hypothesis import strategies as st
from scripts import script

from likely.decoding.drafting.lookup import PromptLookup
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.runtimes.toy import ToyRuntime

POLICY = script("same_length")
SameLength, by_prompt_length = POLICY.SameLength, POLICY.by_prompt_length

GREEDY = Sampling(temperature=0)


def members(*lengths):
    return [_Member(n) for n in lengths]


class _Member:
    """As much of a SequenceState as the policy looks at."""

    def __init__(self, length):
        self.sequence = SimpleNamespace(length=length)


def lengths(chosen):
    return [h.sequence.length for h in chosen]


def test_the_first_length_that_fills_a_batch_is_taken():
    policy = SameLength(batch_size=3, window=9)
    assert lengths(policy.choose(members(4, 7, 4, 7, 7, 4))) == [7, 7, 7]


def test_without_a_full_length_the_shortest_catch_up():
    policy = SameLength(batch_size=3, window=9)
    assert lengths(policy.choose(members(7, 4, 7, 4, 5))) == [4, 4, 5]
    assert lengths(policy.choose(members(7, 4))) == [4, 7]
    assert policy.choose([]) == []


def test_a_sequence_that_was_not_opened_has_length_zero():
    fresh = members(0, 0)
    fresh[0].sequence = None
    assert SameLength(batch_size=2, window=2).choose([*members(3), *fresh]) == fresh


def test_an_odd_length_is_not_left_waiting():
    """Eight members that stay in step would fill every batch; the ninth goes first once its patience ends."""
    policy = SameLength(batch_size=8, window=9, patience=4)
    odd, *others = members(3, *[10] * 8)
    steps = []
    for number in range(20):
        chosen = policy.choose([odd, *others])
        assert len(chosen) == 8
        steps += [number] if odd in chosen else []
        for member in chosen:
            member.sequence.length += 1
    assert steps[0] <= 4 and np.diff(steps).max() <= 5


@given(st.data())
def test_nobody_waits_longer_than_patience_and_one_round_of_the_window(data):
    batch = data.draw(st.integers(1, 5))
    window = data.draw(st.integers(batch, 12))
    policy = SameLength(batch_size=batch, window=window, patience=data.draw(st.integers(1, 6)))
    ready = members(*data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=window)))
    waited = dict.fromkeys(ready, 0)
    for _ in range(60):
        chosen = policy.choose(ready)
        assert len(set(chosen)) == len(chosen) and set(chosen) <= set(ready)
        full = len(ready) >= batch
        assert len(chosen) == (batch if full else len(ready))
        for h in ready:
            waited[h] = 0 if h in chosen else waited[h] + 1
        for h in chosen:
            h.sequence.length += data.draw(st.integers(1, 3))
        # overdue members go one batch at a time, the longest waiting first
        assert max(waited.values()) <= policy.patience + len(ready)


def requests(n, *, drafter=None, sampling=GREEDY):
    rng = np.random.default_rng(3)
    return [
        Request(tuple(int(t) for t in rng.integers(0, 3, rng.integers(1, 12))), replace(sampling, seed=i),
                max_tokens=int(rng.integers(1, 20)), drafter=drafter, draft_budget=4)
        for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0)], ids=["greedy", "keyed"])
@pytest.mark.parametrize("drafter", [None, PromptLookup(), RandomTrees(6)], ids=lambda d: getattr(d, "name", "none"))
@pytest.mark.parametrize(("batch", "window"), [(1, 1), (1, 5), (3, 3), (4, 9), (8, 40)])
def test_the_policy_changes_no_token(sampling, drafter, batch, window):
    plain = run(toy_loop(), *requests(25, sampling=sampling))
    pooled = run(
        toy_loop(policy=SameLength(batch_size=batch, window=window)),
        *requests(25, sampling=sampling, drafter=drafter),
    )
    for [a], [b] in zip(plain, pooled, strict=True):
        assert a.tokens == b.tokens and a.text == b.text and a.reason == b.reason
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-6)


class Watched(ToyRuntime):
    """Notes the lengths of each call's sequences, and how many sequences hold tokens at one time."""

    def forward(self, work):
        self.__dict__.setdefault("seen", []).append([item.sequence.length for item in work])
        return super().forward(work)


def test_steps_are_batches_of_one_length_where_the_window_has_them():
    runtime = Watched.random(6, seed=1, context_length=64)
    policy = SameLength(batch_size=4, window=12)
    same = [replace(r, prompt=(0, 1, 2), max_tokens=10) for r in requests(12)]
    run(toy_loop(runtime, policy=policy), *same)
    assert max(map(len, runtime.seen)) == 4
    full = [call for call in runtime.seen if len(call) == 4]
    assert np.mean([len(set(call)) == 1 for call in full]) > 0.8


def test_the_window_bounds_who_is_running():
    loop = toy_loop(policy=SameLength(batch_size=2, window=3))
    for request in requests(9):
        loop.add(request)
    most = 0
    while not loop.idle:
        loop.step()
        most = max(most, len(loop.scheduler.running))
    assert most == 3


def test_samples_and_beams_run_under_a_policy():
    base = Request((0, 1, 2), max_tokens=6)
    for request in (replace(base, samples=3), replace(base, sampling=GREEDY, beams=3, samples=2)):
        [plain] = run(toy_loop(), request)
        [pooled, _] = run(toy_loop(policy=SameLength(batch_size=2, window=2)), request, base)
        assert [d.tokens for d in plain] == [d.tokens for d in pooled]


def test_room_that_runs_out_ends_no_request():
    small = ToyRuntime.random(6, seed=1, context_length=64, tokens_held=60)
    plain = run(toy_loop(), *requests(12))
    pooled = run(toy_loop(small, policy=SameLength(batch_size=2, window=8)), *requests(12))
    assert [d.tokens for [d] in plain] == [d.tokens for [d] in pooled]


def test_by_prompt_length_is_a_stable_order():
    some = requests(10)
    found = by_prompt_length(some)
    assert [len(r.prompt) for r in found] == sorted(len(r.prompt) for r in some) and set(map(id, found)) == set(
        map(id, some)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": 8, "window": 7}, r"window must be >= batch_size \(8\), got 7"),
        ({"patience": 0}, "patience must be >= 1, got 0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SameLength(**settings)
