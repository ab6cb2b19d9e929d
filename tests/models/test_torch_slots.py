"""The slot pool: counts, runs and growth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.errors import KvFull
from likely.models.slots import FIRST_CAPACITY
from likely.models.torch_slots import SlotPool


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "share", "drop"]), st.integers(1, 90)), max_size=40))
def test_a_slot_is_free_exactly_when_nobody_holds_it(steps):
    pool, held = SlotPool(600), []
    for verb, n in steps:
        if verb == "take" and n <= pool.free:
            held.append(pool.allocate(n, after=int(held[-1][-1]) if held else -1))
        elif verb == "share" and held:
            held.append(held[n % len(held)].copy())
            pool.retain(held[-1])
        elif verb == "drop" and held:
            pool.release(held.pop(n % len(held)))
        assert pool.used == len({int(s) for slots in held for s in slots})
    for slots in held:
        pool.release(slots)
    assert pool.free == pool.limit == 600


def test_new_slots_are_nobody_elses():
    pool = SlotPool(1000)
    taken = np.concatenate([pool.allocate(n) for n in (3, 200, 90, 400)])
    assert len(set(taken.tolist())) == len(taken)


def test_a_growing_sequence_stays_one_run():
    pool = SlotPool(4 * FIRST_CAPACITY)
    slots = pool.allocate(FIRST_CAPACITY - 1)
    for _ in range(3):
        slots = np.concatenate([slots, pool.allocate(5, after=int(slots[-1]))])
    np.testing.assert_array_equal(slots, np.arange(len(slots)))


def test_scattered_slots_are_used_when_no_run_is_left():
    pool = SlotPool(8)
    one_by_one = [pool.allocate(1) for _ in range(8)]
    for i in (1, 3, 6):
        pool.release(one_by_one[i])
    np.testing.assert_array_equal(pool.allocate(3), [1, 3, 6])


def test_a_full_pool_says_what_is_missing_and_changes_nothing():
    pool = SlotPool(10)
    pool.allocate(7)
    with pytest.raises(KvFull) as error:
        pool.allocate(4)
    assert (error.value.needed, error.value.available, pool.free) == (4, 3, 3)


def test_growth_keeps_what_was_written():
    pool = SlotPool(8 * FIRST_CAPACITY)
    slots = pool.allocate(10)
    keys, values = torch.randn(10, 2, 4), torch.randn(10, 2, 3)
    pool.write(0, keys, values, torch.from_numpy(slots))
    pool.allocate(3 * FIRST_CAPACITY)
    more = torch.zeros(1, 2, 4), torch.zeros(1, 2, 3)
    pool_keys, pool_values = pool.write(0, *more, torch.from_numpy(pool.allocate(1)))
    assert torch.equal(pool_keys[slots], keys) and torch.equal(pool_values[slots], values)
    assert pool.bytes_per_token == 4 * (2 * 4 + 2 * 3)
