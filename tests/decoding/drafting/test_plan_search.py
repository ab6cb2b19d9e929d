"""Agreement of layer plans with the whole model, their predicted speed, and the search over them."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_torch import VOCAB, idle_layers

from likely.decoding.drafting.layers import DraftCost, PlanComparison, fuzzy_agreement, search_plan
from likely.decoding.drafting.layers.search import joined_plan
from likely.errors import CapabilityError, DataError
from likely.runtimes.protocol import LayerPlan, Want, Work
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import ToyRuntime

LAYERS = 6
TEXT = np.random.default_rng(1).integers(0, VOCAB, 22).tolist()
FAR = LayerPlan(parallel=((0, 1), (4, 5)))


@pytest.fixture(scope="module")
def runtime():
    """Layers 2 and 3 add nothing, so that 1 to 3 and 2 to 4 may stand together."""
    return idle_layers(LAYERS, idle=(2, 3))


def by_hand(runtime, plan, length):
    """One window at a time, each behind its own exact prefill."""
    exact, same, overlap = np.exp(log_softmax(_rows(runtime, TEXT, None, []))), [], []
    for start in range(0, len(TEXT), length):
        q = np.exp(log_softmax(_rows(runtime, TEXT[start : start + length], plan, TEXT[:start])))
        p = exact[start : start + length]
        same += (p.argmax(1) == q.argmax(1)).tolist()
        overlap += [sum(min(a, b) for a, b in zip(*two, strict=True)) for two in zip(p, q, strict=True)]
    return same, overlap


def _rows(runtime, tokens, plan, kept):
    sequence = runtime.open()
    if kept:
        runtime.forward([Work(sequence, np.array(kept), want=Want.NONE)])
    work = Work(sequence, np.array(tokens), np.arange(-1, len(tokens) - 1), want=Want.ALL, layers=plan)
    found = runtime.forward([work])[0].logits
    runtime.close(sequence)
    return found


@pytest.mark.parametrize("length", [1, 4, None])
def test_agreement_is_that_of_each_window_by_itself(runtime, length, monkeypatch):
    expected = by_hand(runtime, FAR, length or len(TEXT))
    for rows_at_a_time in (5, 1000):
        monkeypatch.setattr("likely.decoding.drafting.layers.agreement.ROWS_BYTES", 4 * VOCAB * rows_at_a_time)
        with PlanComparison(runtime, TEXT, draft_length=length) as comparison:
            same, overlap = comparison.rows(FAR)
        assert same.tolist() == expected[0]
        np.testing.assert_allclose(overlap, expected[1], atol=1e-4)
        with PlanComparison(runtime, TEXT, draft_length=length, start=8) as comparison:
            found = comparison.rows(FAR)[1]
        if length == 4:
            np.testing.assert_allclose(found, expected[1][8:], atol=1e-4)
        assert len(found) == len(TEXT) - 8
    assert not runtime._open and 0 < np.mean(overlap) < 0.99


def test_the_whole_model_agrees_with_itself(runtime):
    for plan in (LayerPlan(), LayerPlan(parallel=((2, 3), (0,)))):
        found = fuzzy_agreement(runtime, TEXT, plan)
        assert found.top1 == 1.0 and found.overlap == pytest.approx(1.0, abs=1e-5) and found.positions == len(TEXT)


def test_the_search_merges_what_costs_nothing_first(runtime):
    found = search_plan(runtime, TEXT, draft_length=4, max_group=3, cost=DraftCost(attention=0.5, draft=0.5))
    harmless = [n for n, pair in enumerate(found.pairs) if pair.overlap > 0.9999]
    assert harmless == [1, 2, 3] and max(found.pairs[n].overlap for n in (0, 4)) < 0.99
    merged = found.steps[2]
    assert merged.plan.parallel in (((1, 2, 3),), ((2, 3, 4),), ((1, 2), (3, 4))) and merged.agreement.overlap > 0.9999
    assert [step.attention_depth for step in found.steps] == list(range(LAYERS, LAYERS - len(found.steps), -1))
    speeds = [step.speed for step in found.steps]
    assert found.best.speed == max(speeds) and found.steps.index(found.best) >= 2
    assert max(len(group) for step in found.steps for group in step.plan.parallel) <= 3


def test_the_search_stops_where_merging_does_not_pay(runtime):
    counted = []
    found = search_plan(runtime, TEXT, cost=DraftCost(attention=0.0, draft=0.1), progress=counted.append)
    assert found.best.plan == LayerPlan() and len(found.steps) == 4  # nothing is saved, so nothing is merged
    assert sum(counted) >= 1 + (LAYERS - 1) + 3
    impatient = search_plan(runtime, TEXT, cost=DraftCost(attention=0.0, draft=0.1), patience=1)
    assert len(impatient.steps) == 2 and impatient.steps == found.steps[:2]
    costly = search_plan(runtime, TEXT, cost=DraftCost(attention=0.5, draft=1.0, communication=0.2))
    assert costly.best.plan == LayerPlan()


def test_speed_is_tokens_over_time():
    cost, plan = DraftCost(attention=0.4, draft=0.1, communication=0.01), LayerPlan(parallel=((1, 2, 3, 4), (5, 6)))
    step = 1 - 0.4 * 4 / 8 + 0.02
    assert cost.step(plan, 8) == pytest.approx(step)
    assert cost.speed(0.5, plan, 8, 3) == pytest.approx((1 + 1 + 0.5 + 0.25) / (1 + 0.1 * (1 + 2 * step)))
    assert DraftCost(draft=0.0).speed(1.0, LayerPlan(), 8, 3) == 4
    assert joined_plan(frozenset({0, 1, 4}), 7).parallel == ((0, 1, 2), (4, 5))


def test_wrong_input_is_refused(runtime):
    with pytest.raises(ValueError, match=r"attention must lie in 0\.\.1"):
        DraftCost(attention=1.5)
    with pytest.raises(ValueError, match="max_group must be >= 2 and patience >= 1, got 1 and 3"):
        search_plan(runtime, TEXT, max_group=1)
    with pytest.raises(ValueError, match="draft_length must be >= 1"):
        fuzzy_agreement(runtime, TEXT, FAR, draft_length=0)
    with pytest.raises(DataError, match="no tokens"):
        fuzzy_agreement(runtime, [], FAR)
    with pytest.raises(CapabilityError, match="leave out layers: torch, native"):
        fuzzy_agreement(ToyRuntime.random(6, seed=0), [1, 2], FAR)
    assert not runtime._open
