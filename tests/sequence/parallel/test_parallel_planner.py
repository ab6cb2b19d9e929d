"""Plans against every possible plan, against each other, and plans that are wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from likely.errors import DataError
from likely.sequence.parallel.planner.cost import CostModel, published_cost
from likely.sequence.parallel.planner.filling import size_choices
from likely.sequence.parallel.planner.integer_program import (
    SolverLimits,
    could_take,
    enough_buckets,
    surely_needed,
)
from likely.sequence.parallel.planner.plans import DeviceGroup, homogeneous_plans, plan

COST = published_cost("gpt-7b")
SMALL = CostModel(  # four devices of 100 tokens each; a slow link beyond two
    1e-3, 0.5, 10.0, 1e6, {2: 50.0, 4: 5.0}, token_mb=1.0, state_mb=0.0, memory_mb=100.0
)
EXACT = SolverLimits(nodes=100_000, gap=0.0, buckets=64)


def long_tailed(seed, n, longest=150_000):
    lengths = np.random.default_rng(seed).lognormal(6.0, 1.4, n).astype(int) + 1
    return np.minimum(-(-lengths // 128) * 128, longest)


def best_of_all(lengths, n_devices, cost):
    """The least time of one micro-batch over every choice of groups and every assignment."""
    best = np.inf
    for sizes in size_choices(n_devices, cost.degrees):
        for chosen in product(range(len(sizes)), repeat=len(lengths)):
            groups = [[s for s, c in zip(lengths, chosen, strict=True) if c == g] for g in range(len(sizes))]
            if all(sum(own) <= cost.capacity(d, n_devices) for own, d in zip(groups, sizes, strict=True)):
                best = min(best, max(cost.time(own, d) for own, d in zip(groups, sizes, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_integer_program_finds_the_best_of_all_plans(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 95, rng.integers(1, 7))
    while lengths.sum() > 390:
        lengths = lengths[1:]
    wide = replace(SMALL, memory_mb=400.0)  # one micro-batch holds all
    found = plan(lengths, 4, replace(wide, fixed_ms=1e4), limits=EXACT)
    if len(found.microbatches) == 1:
        assert found.predicted_ms == pytest.approx(best_of_all(lengths, 4, replace(wide, fixed_ms=1e4)), rel=1e-9)
    assert found.bound_ms <= found.predicted_ms


@pytest.mark.parametrize("seed", range(3))
def test_what_is_proven_to_be_needed_is_no_more_than_the_best_plan_takes(seed):
    lengths = np.random.default_rng(seed).integers(5, 65, 5)
    wide = replace(SMALL, memory_mb=400.0)
    best = best_of_all(lengths, 4, wide)
    needed = surely_needed(lengths, 4, wide.degrees, wide, 400, 2 * best)
    assert 0.5 * best < needed <= best * (1 + 1e-9)
    assert could_take(lengths, 4, wide.degrees, wide, 400, best)


@pytest.mark.parametrize("seed", range(4))
def test_the_integer_program_beats_filling_and_filling_beats_equal_groups(seed):
    lengths = long_tailed(seed, 60)
    limits = SolverLimits(nodes=20)
    milp, greedy = (plan(lengths, 16, COST, solver=s, limits=limits) for s in ("milp", "greedy"))
    alike = homogeneous_plans(lengths, 16, COST)
    for made in (milp, greedy, *alike.values()):
        made.validate(COST)
        assert made.bound_ms <= made.predicted_ms * (1 + 1e-12)
    assert milp.predicted_ms <= greedy.predicted_ms <= min(p.predicted_ms for p in alike.values()) * (1 + 1e-12)
    assert all(set(sizes) == {d} for d, p in alike.items() for sizes in p.degrees)


def test_a_long_tail_gets_one_large_group_and_many_small_ones():
    lengths = np.array([80_000, *[2_000] * 120])
    made = plan(lengths, 64, COST, solver="greedy")
    sizes = made.degrees[0]
    assert max(sizes) >= 16 and sum(d <= 8 for d in sizes) >= 4
    assert made.predicted_ms < 0.8 * min(p.predicted_ms for p in homogeneous_plans(lengths, 64, COST).values())


def test_equal_lengths_get_equal_groups():
    for length, n in ((4_096, 64), (50_000, 8)):
        made = plan([length] * n, 64, COST, solver="greedy")
        assert len({d for sizes in made.degrees for d in sizes}) == 1


def test_plans_do_not_depend_on_the_unit_of_time():
    lengths = long_tailed(7, 80)
    one, other = plan(lengths, 16, COST, solver="greedy"), plan(lengths, 16, COST.scaled(1024), solver="greedy")
    assert one.microbatches == other.microbatches
    assert other.predicted_ms == pytest.approx(1024 * one.predicted_ms)


def test_lengths_in_another_order_take_the_same_time():
    lengths = long_tailed(8, 80)
    shuffled = np.random.default_rng(0).permutation(lengths)
    assert plan(lengths, 16, COST, solver="greedy").predicted_ms == pytest.approx(
        plan(shuffled, 16, COST, solver="greedy").predicted_ms
    )


def test_a_sequence_that_no_group_holds_is_named():
    with pytest.raises(DataError, match="a sequence of 401 tokens does not fit 4 devices, which hold 400"):
        plan([3, 401], 4, SMALL)


@pytest.mark.parametrize("lengths", [[], [[3]], [0, 4], [1.5]])
def test_lengths_must_be_whole_and_positive(lengths):
    with pytest.raises(DataError, match="whole numbers >= 1"):
        plan(lengths, 4, SMALL)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="powers of two"):
        plan([5], 4, SMALL, degrees=[3])
    with pytest.raises(ValueError, match="n_devices"):
        plan([5], 0, SMALL)
    with pytest.raises(ValueError, match='"milp" or "greedy"'):
        plan([5], 4, SMALL, solver="scip")
    with pytest.raises(ValueError, match="nodes >= 1"):
        SolverLimits(nodes=0)


def test_no_room_for_all_at_once_takes_more_micro_batches():
    made = plan([60] * 20, 4, SMALL, solver="greedy")  # 1200 tokens, 400 at a time
    assert len(made.microbatches) >= 4
    one_each = plan([390, 390, 390], 4, SMALL)
    assert [sizes for sizes in one_each.degrees] == [(4,)] * 3


def test_devices_that_are_no_power_of_two_are_used():
    made = plan([90] * 12, 6, SMALL, degrees=[1, 2, 4], solver="greedy")
    made.validate(SMALL)
    assert all(sum(sizes) <= 6 for sizes in made.degrees)


def test_many_devices_leave_out_choices_but_not_plans():
    lengths = long_tailed(9, 50)
    made = plan(lengths, 128, COST, solver="greedy")
    assert made.predicted_ms <= min(p.predicted_ms for p in homogeneous_plans(lengths, 128, COST).values())


def test_more_buckets_where_rounding_would_fill_the_devices():
    lengths = np.arange(1, 101)
    loose, tight = enough_buckets(lengths, 2, 10**6), enough_buckets(lengths, 2, int(lengths.sum() * 1.02))
    assert len(loose) == 2 < len(tight)
    rounded = tight[np.searchsorted(tight, lengths)].sum()
    assert 2 * rounded <= lengths.sum() + int(lengths.sum() * 1.02)


def broken(kind):
    made = plan([90, 80, 30, 20, 10], 4, SMALL, solver="greedy")
    first, *others = made.microbatches[0]
    if kind == "lost":
        return replace(made, microbatches=((replace(first, sequences=first.sequences[:-1]), *others),))
    if kind == "doubled":
        return replace(made, microbatches=(*made.microbatches, made.microbatches[0]))
    if kind == "overfull":
        return replace(made, microbatches=((DeviceGroup((0,), (0, 1, 2, 3, 4)),),))
    if kind == "unaligned":
        return replace(made, microbatches=((DeviceGroup((1, 2), (0, 1)), DeviceGroup((0,), (2, 3, 4))),))
    if kind == "shared":
        return replace(made, microbatches=((DeviceGroup((0, 1), (0, 1)), DeviceGroup((0,), (2, 3, 4))),))
    return replace(made, predicted_ms=made.predicted_ms * 0.99)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("lost", "exactly one group"), ("doubled", "exactly one group"), ("overfull", "holds 100"),
     ("unaligned", "no aligned block"), ("shared", "must be different"), ("time", "the plan states")],
)  # fmt: skip
def test_a_wrong_plan_is_refused(kind, message):
    with pytest.raises(DataError, match=message):
        broken(kind).validate(SMALL)


def test_a_plan_as_json_names_every_sequence_once():
    made = plan([90, 80, 30, 20, 10], 4, SMALL, solver="greedy")
    record = made.record()
    assert sorted(i for groups in record["microbatches"] for g in groups for i in g["sequences"]) == list(range(5))
