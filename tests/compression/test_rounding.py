"""Schemes by name, grids, codes, packing: closed forms, a slow form beside the fast one, GGUF's own decoder."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.compression import QuantScheme, parse_scheme, round_to_nearest
from likely.compression.export import TYPES, blocks_of, gguf_type
from likely.compression.quantized import fit_grid, pack_codes, round_to_grid, unpack_codes
from likely.errors import CapabilityError


def matrix(rows=6, width=128, seed=0, scale=0.1):
    return (scale * np.random.default_rng(seed).standard_normal((rows, width))).astype(np.float32)


@pytest.mark.parametrize(
    "name", ["w4g64", "w4g32-sym", "w8", "w8-asym", "w3g64", "w8a8", "w8a8-static", "w4a8g64", "w2"]
)
def test_names_are_read_and_written(name):
    assert parse_scheme(name).name == name
    assert parse_scheme(parse_scheme(name)) == parse_scheme(name)


@pytest.mark.parametrize(
    "name", ["", "4", "w4k", "w9", "w1", "w4g0", "w4-big", "w4-static", "w4-sym-asym", "w8a8-asym"]
)
def test_a_wrong_name_says_what_is_allowed(name):
    with pytest.raises(ValueError, match=r"scheme|bits|group_size"):
        parse_scheme(name)


def test_defaults_of_names():
    assert not parse_scheme("w4g64").symmetric and parse_scheme("w8").symmetric and parse_scheme("w4a8").symmetric
    assert parse_scheme("w4").group_size is None
    assert parse_scheme("w4g64").bits_per_weight(128) == 4.5 and parse_scheme("w4g32-sym").bits_per_weight(128) == 4.5


def test_known_answers():
    symmetric = round_to_nearest(np.array([[0.7, -0.26, 0.06, 0]], np.float32), QuantScheme(4, None, True))
    assert symmetric.codes.tolist() == [[7, -3, 1, 0]]
    assert symmetric.grid.scales[0, 0] == np.float32(np.float16(0.1))
    minimum = round_to_nearest(np.array([[-1, 0.5, 2, 0.04]], np.float32), QuantScheme(2, None))
    assert minimum.codes.tolist() == [[0, 2, 3, 1]] and minimum.dequantize().tolist() == [[-1, 1, 2, 0]]
    whole = round_to_nearest(np.array([[1, 2, 3, 4]], np.float32), QuantScheme(4, None, zero_point="int"))
    assert whole.grid.minimums[0, 0] == 0  # the range is extended to 0


def slowly(weights, scheme):
    """One weight after the other, from the definitions."""
    out = np.empty_like(weights)
    size = scheme.group_size or weights.shape[1]
    for row in range(weights.shape[0]):
        for start in range(0, weights.shape[1], size):
            group = weights[row, start : start + size]
            if scheme.symmetric:
                scale, low = float(np.float16(np.float32(max(abs(group)) / np.float32(scheme.highest)))), 0.0
            else:
                scale = float(np.float16((max(group) - min(group)) / np.float32(scheme.highest)))
                low = float(np.float16(min(group)))
            for i, w in enumerate(group):
                code = min(max(round((float(w) - low) / scale), scheme.lowest), scheme.highest)
                out[row, start + i] = scale * code + low
    return out


@pytest.mark.parametrize("name", ["w4g32", "w4g64-sym", "w8", "w3", "w2g32"])
def test_agrees_with_the_slow_form(name):
    weights, scheme = matrix(), parse_scheme(name)
    assert np.allclose(round_to_nearest(weights, scheme).dequantize(), slowly(weights, scheme), atol=1e-6)


@given(st.integers(0, 10**6), st.sampled_from(["w4g32", "w4g32-sym", "w8g64", "w5", "w2g64-sym"]), st.floats(1e-4, 10))
def test_nothing_is_further_than_half_a_step(seed, name, scale):
    weights, scheme = matrix(seed=seed, scale=scale), parse_scheme(name)
    tensor = round_to_nearest(weights, scheme)
    step = np.repeat(tensor.grid.scales, weights.shape[1] // tensor.grid.scales.shape[1], axis=1)
    ends = 1e-3 * np.abs(weights).max() * (1 << scheme.bits)  # scale and minimum are fp16 numbers
    assert (np.abs(tensor.dequantize() - weights) <= step / 2 + ends).all()
    assert tensor.codes.min() >= scheme.lowest and tensor.codes.max() <= scheme.highest


@pytest.mark.parametrize("name", ["w4g32", "w4g32-sym", "w8", "w5g64"])
def test_rounding_what_is_rounded_changes_nothing(name):
    """On its own grid; found anew, the grid is the same where a group uses both of its ends."""
    once = round_to_nearest(matrix(), parse_scheme(name))
    again = round_to_grid(once.dequantize(), once.grid, once.scheme)
    assert (again.codes == once.codes).all()


def test_groups_without_extent():
    weights = np.zeros((2, 64), np.float32)
    weights[1] = 0.25
    for name in ("w4g32", "w4g32-sym", "w8"):
        tensor = round_to_nearest(weights, parse_scheme(name))
        assert np.isfinite(tensor.dequantize()).all() and (tensor.dequantize()[0] == 0).all()
    assert (round_to_nearest(weights, parse_scheme("w4g32")).dequantize()[1] == 0.25).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(bad):
    weights = matrix()
    weights[1, 3] = bad
    with pytest.raises(ValueError, match=r"blk\.3.*not a finite"):
        round_to_nearest(weights, parse_scheme("w4g32"), name="blk.3")


def test_groups_must_divide_rows():
    with pytest.raises(ValueError, match=r"groups of 128 do not divide rows of 576 weights \(allowed here: 32, 64, 96"):
        round_to_nearest(matrix(width=576), parse_scheme("w4g128"))


def test_clipping_shrinks_the_grid():
    weights = matrix()
    for scheme in (parse_scheme("w4g32"), parse_scheme("w4g32-sym")):
        assert (fit_grid(weights, scheme, clip=0.5).scales < 0.51 * fit_grid(weights, scheme).scales).all()


@given(st.integers(2, 8), st.booleans(), st.integers(0, 1000))
def test_packed_codes_come_back(bits, symmetric, seed):
    scheme = QuantScheme(bits, None, symmetric)
    codes = np.random.default_rng(seed).integers(scheme.lowest, scheme.highest + 1, (3, 40)).astype(np.int16)
    packed = pack_codes(codes, bits, scheme.lowest)
    assert packed.nbytes == 3 * 40 * bits // 8
    assert (unpack_codes(packed, bits, scheme.lowest, codes.shape) == codes).all()


@pytest.mark.parametrize("bits,symmetric", TYPES)
@pytest.mark.parametrize("group", [32, 64, None])
def test_blocks_are_what_gguf_reads(bits, symmetric, group):
    tensor = round_to_nearest(matrix(seed=bits), QuantScheme(bits, group, symmetric))
    kind, _ = gguf_type(tensor.scheme)
    decoded = gguf.quants.dequantize(blocks_of(tensor), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(decoded, tensor.dequantize())


@pytest.mark.parametrize("name", ["w3g64", "w8-asym", "w4g48", "w6"])
def test_what_no_block_holds_is_refused_with_those_that_exist(name):
    with pytest.raises(CapabilityError, match=r"w4-sym, w4, w5-sym, w5, w8 with groups of a multiple of 32"):
        gguf_type(parse_scheme(name))


def test_bytes_are_counted_packed():
    tensor = round_to_nearest(matrix(8, 128), parse_scheme("w4g64"))
    assert tensor.nbytes == 8 * 128 // 2 + 4 * 16 and tensor.bits_per_weight == 4.5
