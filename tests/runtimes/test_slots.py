"""The table of slots: counts, runs and growth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.errors import KvFull
from likely.runtimes.slots.table import FIRST_CAPACITY, SlotTable, TokenCount


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "share", "drop"]), st.integers(1, 90)), max_size=40))
def test_a_slot_is_free_exactly_when_nobody_holds_it(steps):
    table, held = SlotTable(600), []
    for verb, n in steps:
        if verb == "take" and n <= table.free:
            held.append(table.allocate(n, after=int(held[-1][-1]) if held else -1))
        elif verb == "share" and held:
            held.append(held[n % len(held)].copy())
            table.retain(held[-1])
        elif verb == "drop" and held:
            table.release(held.pop(n % len(held)))
        assert table.used == len({int(s) for slots in held for s in slots})
    for slots in held:
        table.release(slots)
    assert table.free == table.limit == 600


def test_new_slots_are_nobody_elses():
    table = SlotTable(1000)
    taken = np.concatenate([table.allocate(n) for n in (3, 200, 90, 400)])
    assert len(set(taken.tolist())) == len(taken)


def test_a_growing_sequence_stays_one_run():
    table = SlotTable(4 * FIRST_CAPACITY)
    slots = table.allocate(FIRST_CAPACITY - 1)
    for _ in range(3):
        slots = np.concatenate([slots, table.allocate(5, after=int(slots[-1]))])
    np.testing.assert_array_equal(slots, np.arange(len(slots)))


def test_scattered_slots_are_used_when_no_run_is_left():
    table = SlotTable(8)
    one_by_one = [table.allocate(1) for _ in range(8)]
    for i in (1, 3, 6):
        table.release(one_by_one[i])
    np.testing.assert_array_equal(table.allocate(3), [1, 3, 6])


@pytest.mark.parametrize("kind", [SlotTable, TokenCount])
def test_a_full_table_says_what_is_missing_and_changes_nothing(kind):
    table = kind(10)
    table.allocate(7)
    with pytest.raises(KvFull) as error:
        table.allocate(4)
    assert (error.value.needed, error.value.available, table.free) == (4, 3, 3)


class Owner(SlotTable):
    """Notes how much memory it was asked for; has none beyond `most`."""

    def __init__(self, limit, most):
        super().__init__(limit)
        self.most, self.asked = most, []

    def _grow_memory(self, capacity):
        self.asked.append((self.capacity, capacity))
        if capacity > self.most:
            raise MemoryError


def test_memory_grows_by_doubling_before_slots_in_it_are_given():
    table = Owner(5 * FIRST_CAPACITY, most=5 * FIRST_CAPACITY)
    slots = table.allocate(FIRST_CAPACITY)
    assert not table.asked
    slots = np.concatenate([slots, table.allocate(4 * FIRST_CAPACITY)])
    assert table.asked == [(n * FIRST_CAPACITY, m * FIRST_CAPACITY) for n, m in ((1, 2), (2, 4), (4, 5))]
    assert slots.max() < table.capacity == table.limit
    table.clear()
    assert table.capacity == FIRST_CAPACITY and table.free == table.limit


def test_without_memory_to_grow_the_table_stays_as_it_is():
    table = Owner(8 * FIRST_CAPACITY, most=2 * FIRST_CAPACITY)
    first = table.allocate(FIRST_CAPACITY)
    with pytest.raises(MemoryError):
        table.allocate(3 * FIRST_CAPACITY)
    assert table.capacity == 2 * FIRST_CAPACITY and table.used == FIRST_CAPACITY
    assert not set(first.tolist()) & set(table.allocate(FIRST_CAPACITY).tolist())


def test_where_tokens_are_only_counted_each_copy_takes_room():
    count = TokenCount(10)
    taken = count.allocate(4)
    np.testing.assert_array_equal(taken, np.arange(4))
    count.retain(taken)
    assert count.free == 2
    with pytest.raises(KvFull):
        count.retain(taken)
    count.release(taken)
    assert count.free == 6
    count.clear()
    assert count.free == 10
