"""Goodput: expected tokens, acceptance from censored runs, and lengths against a slow search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.decoding.drafting.budget import (
    AcceptanceEstimate,
    Controller,
    PlannedCall,
    choose_length,
    draft_lengths,
    expected_tokens,
    schedule_by_batch,
)
from likely.decoding.drafting.budget.goodput import SPARE, StepShape
from likely.decoding.drafting.protocol import Draft
from likely.runtimes.step_cost import StepCost

GPU = StepCost(2e-8, 4e-5, 2e-5, 0.02)
DRAFT = StepCost(1e-9, 1e-6, 1e-6, 8e-4)


def runs(alpha, k, count, seed=0):
    """Accepted tokens of `count` drafts of k tokens that are right with probability alpha each."""
    right = np.random.default_rng(seed).random((count, k)) < alpha
    return np.cumprod(right, axis=1).sum(axis=1)


def test_expected_tokens_are_the_closed_form_and_the_simulation():
    assert expected_tokens(0.8, 4) == pytest.approx(3.3616) and expected_tokens(1.0, 5) == 6
    assert expected_tokens(0.0, 3) == expected_tokens(0.9, 0) == 1
    assert expected_tokens([0.5, 0.2], 2) == pytest.approx(1.6)
    table = np.array([[expected_tokens(a, k) for k in range(6)] for a in np.linspace(0.05, 1, 8)])
    assert (np.diff(table, axis=0)[:, 1:] > 0).all() and (np.diff(table, axis=1) > 0).all()
    found = 1 + runs(0.7, 5, 100_000)
    assert abs(found.mean() - expected_tokens(0.7, 5)) < 3 * found.std() / np.sqrt(len(found))


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_no_rate_outside_of_a_probability(wrong):
    with pytest.raises(ValueError, match="acceptance rate"):
        expected_tokens(wrong, 2)
    with pytest.raises(ValueError, match="acceptance rate"):
        AcceptanceEstimate(wrong)
    with pytest.raises(ValueError, match=">= 0"):
        expected_tokens(0.5, -1)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_the_estimate_of_censored_runs_is_unbiased_and_the_naive_ratio_is_not(k):
    alpha, estimate, accepted = 0.7, AcceptanceEstimate(weight=0, shrink=0, forget=1), runs(0.7, k, 4000, seed=k)
    for a in accepted.tolist():
        estimate.update(k, a)
    seen = accepted.sum() + (accepted < k).sum()
    error = 3 * np.sqrt(alpha * (1 - alpha) / seen)
    assert abs(estimate.alpha - alpha) < error
    naive = accepted.sum() / (k * len(accepted))
    assert naive == pytest.approx((expected_tokens(alpha, k) - 1) / k, abs=0.02)
    assert bool(abs(naive - alpha) < error) is (k == 1)  # the trap: accepted per proposed token is no acceptance rate


def test_positions_are_estimated_apart_and_drawn_to_all_of_them():
    rates, estimate = np.array([0.9, 0.5, 0.2]), AcceptanceEstimate(forget=1)
    rng = np.random.default_rng(0)
    for _ in range(3000):
        estimate.update(3, int(np.cumprod(rng.random(3) < rates).sum()))
    np.testing.assert_allclose(estimate.by_position[:3], rates, atol=0.05)
    assert estimate.by_position[10] == pytest.approx(estimate.alpha)  # never seen
    own = AcceptanceEstimate(estimate, weight=30)
    np.testing.assert_allclose(own.gains, estimate.gains)  # nothing known of this text
    for _ in range(60):
        own.update(3, 0)
    assert own.alpha < 0.5 * estimate.alpha and own.by_position[0] < 0.5 * estimate.by_position[0]
    with pytest.raises(ValueError, match="accepted"):
        own.update(2, 3)


numbers = st.floats(1e-7, 1e-2)


@given(numbers, numbers, numbers, numbers, st.floats(0, 1), st.integers(1, 64), st.integers(0, 12))
def test_the_length_is_that_of_a_slow_search(context_s, token_s, sequence_s, constant_s, alpha, batch, k_max):
    cost = StepCost(context_s / 1e3, token_s, sequence_s, constant_s)
    found = choose_length(alpha, cost, sequences=batch, context=300 * batch, k_max=k_max, draft=DRAFT)

    def goodput(k):
        drafting = k * float(DRAFT.seconds(batch, batch, 300 * batch))
        return batch * expected_tokens(alpha, k) / (float(cost.seconds(batch, batch * (k + 1), 300 * batch)) + drafting)

    assert goodput(found) >= max(map(goodput, range(k_max + 1))) * (1 - 1e-12)


def test_lengths_fall_with_the_batch_and_rise_with_acceptance():
    by_batch = [
        choose_length(0.8, GPU, sequences=b, context=500 * b, k_max=8, draft=DRAFT) for b in (1, 8, 32, 128, 512)
    ]
    assert by_batch == sorted(by_batch, reverse=True) and by_batch[0] > by_batch[-1]
    by_alpha = [
        choose_length(a, GPU, sequences=16, context=8000, k_max=8, draft=DRAFT) for a in (0, 0.2, 0.5, 0.8, 0.95)
    ]
    assert by_alpha == sorted(by_alpha) and by_alpha[0] == 0
    slow = StepCost(0, 0, 0, 1.0)
    assert (
        choose_length(0.9, GPU, sequences=1, context=100, k_max=8, draft=slow) == 0
    )  # drafting costs more than it gains
    assert choose_length(0.9, GPU, sequences=8, matched=0, context=100, k_max=8) == 0
    few = [choose_length(0.9, StepCost(0, 1, 0, 10), sequences=8, matched=m, context=0, k_max=8) for m in (1, 8)]
    assert few[0] >= few[1] >= 0
    with pytest.raises(ValueError, match="k_max"):
        choose_length(0.9, GPU, sequences=1, context=0, k_max=-1)


def test_a_schedule_covers_all_batches_in_the_form_of_vllm():
    rows = schedule_by_batch(0.75, GPU, context=512, k_max=5, batch_max=256, draft=DRAFT, margin=1.1)
    assert rows[0][0] == 1 and rows[-1][1] == 256
    assert all(one[1] + 1 == two[0] and one[2] > two[2] for one, two in itertools.pairwise(rows))
    for first, last, k in rows:
        for size in {first, last}:
            assert k == choose_length(0.75, GPU, sequences=size, context=512 * size, k_max=5, draft=DRAFT, margin=1.1)


def shape(cost=GPU, sequences=3):
    return StepShape(lambda n: cost.seconds(sequences, sequences + n, 300 * sequences), float(sequences))


def slow_best(gains, cost, level):
    """The largest goodput of all combinations of lengths."""
    best = 0.0
    for lengths in itertools.product(*(range(len(g) + 1) for g in gains)):
        kept = sum(float(g[:n].sum()) for g, n in zip(gains, lengths, strict=True))
        drafting = sum(level(sum(n > i for n in lengths)) for i in range(max(lengths)))
        step = float(cost.seconds(len(gains), len(gains) + sum(lengths), 300 * len(gains)))
        best = max(best, (len(gains) + kept) / (step + drafting))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_water_filling_finds_the_best_lengths_of_all_requests(seed):
    rng = np.random.default_rng(seed)
    gains = [np.cumprod(np.full(4, alpha)) for alpha in rng.uniform(0.1, 0.95, 3)]
    cost = StepCost(0, 10 ** rng.uniform(-4, -2), 0, 0.02)
    lengths, kept = draft_lengths(gains, shape(cost), room=100)
    total = (3 + kept) / float(shape(cost).seconds(np.array([sum(lengths)]))[0])
    assert total == pytest.approx(slow_best(gains, cost, lambda m: 0.0))
    alphas = [g[0] for g in gains]
    assert [lengths[i] for i in np.argsort(alphas)] == sorted(lengths)


def test_equal_requests_get_equal_lengths_with_the_cost_of_drafting_counted():
    gains = [np.cumprod(np.full(8, 0.7))] * 3
    level = StepCost(0, 0, 1e-3, 2e-3)

    def level_seconds(m):
        return level.seconds(m, 0, 0)

    lengths, _ = draft_lengths(gains, shape(), room=100, level_seconds=level_seconds)
    assert len(set(lengths)) == 1 and 0 < lengths[0] < 8
    uniform, _ = draft_lengths(gains, shape(), room=100, level_seconds=level_seconds, uniform=True)
    assert uniform == lengths
    mixed = [*gains[:2], np.cumprod(np.full(8, 0.1))]
    apart, _ = draft_lengths(mixed, shape(), room=100, level_seconds=level_seconds)
    together, _ = draft_lengths(mixed, shape(), room=100, level_seconds=level_seconds, uniform=True)
    assert apart[2] < apart[0] and len(set(together)) == 1
    assert sum(draft_lengths(gains, shape(), room=5)[0]) == 5 and draft_lengths(gains, shape(), room=0)[0] == [0] * 3
    assert draft_lengths([], shape(), room=5) == ([], 0.0)


def test_prompts_beside_make_drafts_worth_more_but_not_at_the_price_of_throughput():
    def lengths(token_s, gain):
        def alone(n):
            return 0.004 + token_s * (4 + n)

        step = StepShape(alone, 4.0, lambda n: alone(n) + 0.15, others=1)
        return sum(draft_lengths([np.array([gain])] * 4, step, room=100)[0]), sum(
            draft_lengths([np.array([gain])] * 4, StepShape(alone, 4.0), room=100)[0]
        )

    beside, alone = lengths(0.004, 0.78)
    assert beside == 4 and alone == 0  # loses 1.1 % of decoding, within SPARE, and saves long steps
    assert lengths(0.004, 0.5) == (0, 0) and SPARE < 0.1
    assert lengths(0.001, 0.9) == (4, 4)


def test_trials_of_a_source_that_does_not_pay_take_a_bounded_share_of_the_time():
    controller, spent, total = Controller(step=GPU), 0.0, 0.0
    record = controller.of("slow")
    record.together = True
    for step in range(500):
        call = PlannedCall(8, 8.0, room=1000, leaves=1000, sequences=8, context=2000)
        lengths, _ = controller.draft("slow", [20] * 8, call)
        drafting = max(lengths) * 0.05
        for n in lengths:
            if n:
                record.time(n, n, drafting)
                record.judge(Draft.chain([1] * n), [], n, None)
        seconds = float(GPU.seconds(8, 8 + sum(lengths), 2000)) + drafting
        total += seconds
        if step >= 50:
            spent += seconds - float(GPU.seconds(8, 8, 2000))
    assert 0 < spent < 0.025 * total


def test_granularity_is_one_of_two():
    with pytest.raises(ValueError, match="granularity"):
        Controller(granularity="token")
