"""The slot pool of the torch runtime: a table of slots and the tensors that lie in them."""

from __future__ import annotations

import torch

from likely.runtimes.slots.table import FIRST_CAPACITY
from likely.runtimes.torch.slots import SlotPool


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


def test_a_cleared_pool_holds_no_memory():
    pool = SlotPool(4 * FIRST_CAPACITY)
    pool.allocate(3 * FIRST_CAPACITY)
    pool.write(0, torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), slice(0, 1))
    pool.clear()
    assert pool.bytes_per_token == 0 and pool.capacity == FIRST_CAPACITY and pool.free == pool.limit
    keys, _ = pool.write(0, torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), slice(0, 1))
    assert len(keys) == pool.capacity
