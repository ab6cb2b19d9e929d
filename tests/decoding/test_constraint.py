from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.decoding.constraint import contains, count, log_mass, mask_of, members, no_tokens, only, pack, unpack
from likely.runtimes.rows import logsumexp

SIZES = st.integers(1, 200)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_packed_sets_are_sets(data):
    size = data.draw(SIZES)
    one, other = (data.draw(st.sets(st.integers(0, size - 1))) for _ in range(2))
    mask = mask_of(one, size)
    assert mask.dtype == np.uint32 and len(mask) == -(-size // 32)
    assert set(members(mask).tolist()) == one and count(mask) == len(one)
    assert [contains(mask, i) for i in range(size)] == [i in one for i in range(size)]
    np.testing.assert_array_equal(pack(unpack(mask, size)), mask)
    assert set(members(mask & mask_of(other, size)).tolist()) == one & other
    assert set(members(mask | mask_of(other, size)).tolist()) == one | other
    assert set(members(mask & ~mask_of(other, size)).tolist()) == one - other


def test_bits_past_the_vocabulary_are_zero():
    assert count(pack(np.ones(33, np.bool_))) == 33 and pack(np.ones(33, np.bool_))[1] == 1
    assert count(no_tokens(33)) == 0 and len(no_tokens(33)) == 2 and len(no_tokens(64)) == 2


def test_only_leaves_the_logits_alone():
    logits = np.array([1.0, -np.inf, 3.0], np.float32)
    out = only(logits, np.array([True, True, False]))
    np.testing.assert_array_equal(out, np.array([1, -np.inf, -np.inf], np.float32))
    assert out.dtype == np.float32 and logits[2] == 3


def slow_log_mass(logits, allowed):
    """Sums of exact exponentials, in Python's fractions of a float: the slow obvious way."""
    finite = [float(x) for x in logits if x > -np.inf]
    peak = max(finite)
    total = math.fsum(math.exp(x - peak) for x in finite)
    inside = [float(x) for x, a in zip(logits, allowed, strict=True) if a and x > -np.inf]
    if not inside:
        return -math.inf
    high = max(inside)
    return high - peak + math.log(math.fsum(math.exp(x - high) for x in inside)) - math.log(total)


def slow_complement(logits, allowed):
    """log(1 - mass outside), which keeps digits where nearly everything is allowed."""
    finite = [float(x) for x in logits if x > -np.inf]
    peak = max(finite)
    total = math.fsum(math.exp(x - peak) for x in finite)
    outside = math.fsum(
        math.exp(float(x) - peak) for x, a in zip(logits, allowed, strict=True) if not a and x > -np.inf
    )
    return math.log1p(-outside / total)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.51, 0.9, 0.999, 1.0])
def test_log_mass_is_the_logarithm_of_the_allowed_probability(scale, share):
    rng = np.random.default_rng(int(scale * 10 + share * 1000))
    for _ in range(20):
        logits = (scale * rng.standard_normal(300)).astype(np.float32)
        logits[rng.random(300) < 0.1] = -np.inf
        allowed = rng.random(300) < share
        found = log_mass(logits, allowed, logsumexp(logits))
        expected = slow_log_mass(logits, allowed)
        assert found == expected == -math.inf or abs(found - expected) < 1e-5 * max(1, abs(expected)), (found, expected)
        assert found <= 0


def test_log_mass_keeps_its_digits_where_hardly_anything_is_forbidden():
    rng = np.random.default_rng(0)
    for gap in (5, 20, 50, 80):
        logits = rng.standard_normal(1000).astype(np.float32)
        allowed = np.ones(1000, np.bool_)
        allowed[7], logits[7] = False, -gap
        found, expected = log_mass(logits, allowed, logsumexp(logits)), slow_complement(logits, allowed)
        assert expected < 0 and abs(found - expected) < 1e-4 * abs(expected)


def test_log_mass_at_the_edges():
    logits = np.array([0.0, -np.inf, 5e3, -5e3], np.float32)
    norm = logsumexp(logits)
    assert log_mass(logits, np.zeros(4, np.bool_), norm) == -math.inf
    assert log_mass(logits, np.ones(4, np.bool_), norm) == 0
    assert log_mass(logits, np.array([False, True, False, False]), norm) == -math.inf
    assert abs(log_mass(logits, np.array([True, False, False, False]), norm) + 5e3) < 1e-2
    assert abs(log_mass(logits, np.array([False, False, False, True]), norm) + 1e4) < 1e-2
    assert log_mass(logits, np.array([False, False, True, False]), norm) == 0
