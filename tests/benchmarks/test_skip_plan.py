"""The search for layers that a model can miss when it drafts for itself."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script
from tiny_torch import VOCAB, idle_layers

from likely.decoding.drafting.trees.shapes import Chain
from likely.runtimes.protocol import LayerPlan

PLAN = script("skip_plan", folder="benchmarks")
FoundPlan, relative_cost, search, speed_on = PLAN.FoundPlan, PLAN.relative_cost, PLAN.search, PLAN.speed_on


@pytest.fixture(scope="module")
def runtime():
    return idle_layers()


def test_cost_is_the_kept_share_of_the_weights():
    sizes = {"attention": 1.0, "mlp": 3.0, "head": 8.0}
    assert relative_cost(LayerPlan(), 4, **sizes) == 1
    assert relative_cost(LayerPlan.exit_after(1, 4), 4, **sizes) == 0.5
    assert relative_cost(LayerPlan(frozenset({2})), 4, **sizes) == pytest.approx(23 / 24)


def test_a_plan_is_measured_and_improved(runtime):
    """Layers that do nothing are found to be free; a search ends above where it began, and says what it measured."""
    prompts = [np.random.default_rng(i).integers(0, VOCAB, 6).tolist() for i in range(2)]
    speed = speed_on(
        runtime, prompts, max_tokens=9, shape=Chain(3, 0.0),
        cost=lambda plan: relative_cost(plan, 6, attention=1.0, mlp=2.0, head=1.0),
    )  # fmt: skip
    nothing, idle = speed(LayerPlan()), speed(LayerPlan(frozenset({2, 3}), frozenset({2, 3})))
    assert idle.tokens_per_call == nothing.tokens_per_call == 3  # 9 tokens: 1, 4, 4
    assert (nothing.draft_calls_per_call, nothing.cost, nothing.speedup) == (2, 1, 1)
    assert idle.cost == pytest.approx(13 / 19) and idle.speedup == pytest.approx(3 / (1 + 2 * 13 / 19))
    begun = speed(LayerPlan(frozenset({1, 3}), frozenset({1, 3})))
    found = search(speed, 6, np.random.default_rng(0), trials=6)
    assert found.speedup > begun.speedup and found.speedup == speed(found.plan).speedup
    assert not (found.plan.skip_attention | found.plan.skip_mlp) & {0, 5}


def test_the_search_climbs():
    """On a known landscape, each sublayer's worth its own, the best mask is found."""
    worth = np.random.default_rng(1).normal(size=(2, 5))
    worth[:, [0, 4]] = -9

    def speed(plan):
        total = sum(worth[0][n] for n in plan.skip_attention) + sum(worth[1][n] for n in plan.skip_mlp)
        return FoundPlan(plan, float(total), 1, 1, 1)

    found = search(speed, 5, np.random.default_rng(0), trials=200)
    assert found.plan == LayerPlan(*(frozenset(np.flatnonzero(row > 0).tolist()) for row in worth))
