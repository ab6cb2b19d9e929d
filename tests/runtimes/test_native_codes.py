"""Products of a file's own codes: what packed codes stand for, and every bit of a product against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from coded_rows import CODED, numbers, random_rows, size_of, with_extreme_scales
from native_models import fma32

from likely.formats.gguf import TENSOR_TYPES
from likely.runtimes.native.codes import int4_rows, rotated
from likely.runtimes.native.library import CODES, TYPES

FLOATS = ("F32", "F16", "BF16")
SUPER = ("Q4_K", "Q5_K", "Q6_K")


def width_of(kind, width):
    return -(-width // 256) * 256 if kind in SUPER else width


def float_rows(kind, shape, rng):
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == "F16":
        return values.astype(np.float16).view(np.uint8)
    if kind == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.view(np.uint8)


def rows_for(kind, shape, seed):
    rng = np.random.default_rng(seed)
    return float_rows(kind, shape, rng) if kind in FLOATS else random_rows(kind, shape, rng)


def unpacked(library, kind, raw, width, **options):
    panels = library.pack_rows(kind, raw, width)
    return np.stack([library.unpack_row(kind, panels, width, row, **options) for row in range(len(raw))])


# --- the arithmetic, slowly -------------------------------------------------------------------------------------------


def parts_of(kind, raw):
    """(o, inputs) factors; of each sub-group its inputs, (o, s) scales; minima (o, inputs / 32) or None."""
    _, nbytes = size_of(kind)
    blocks = raw.reshape(len(raw), -1, nbytes)

    def half(at):
        return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)

    def spread(x, n):
        return np.repeat(x, n, axis=1)

    if kind == "Q6_K":
        own = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).astype(np.float32).reshape(len(raw), -1)
        scales, minima, per = spread(half(208), 16) * own, None, 16
    elif kind in SUPER:
        s = blocks[..., 4:16].astype(int)
        sc = np.concatenate([s[..., :4] & 63, (s[..., 8:] & 15) | (s[..., :4] >> 6) << 4], -1)
        m = np.concatenate([s[..., 4:8] & 63, s[..., 8:] >> 4 | (s[..., 4:8] >> 6) << 4], -1)
        scales = spread(half(0), 8) * sc.reshape(len(raw), -1).astype(np.float32)
        minima, per = -(spread(half(2), 8) * m.reshape(len(raw), -1).astype(np.float32)), 32
    else:
        scales, minima, per = half(0), half(2) if kind in ("Q4_1", "Q5_1") else None, 32
    plain = numbers(kind, raw).astype(np.float64)
    wide = spread(scales.astype(np.float64), per)
    off = 0.0 if minima is None else spread(minima.astype(np.float64), 32)
    factors = np.rint((plain - off) / np.where(wide == 0, 1, wide)).astype(np.int64)
    return factors, per, scales, minima


def activations(x, rotate=False):
    """(n, inputs) codes, and scales and scale x sum per 32."""
    groups = (rotated(x) * np.float32(8) if rotate else x).reshape(len(x), -1, 32)
    most = np.abs(groups).max(2)
    inverse = np.where(most > 0, np.float32(127) / np.where(most > 0, most, 1), np.float32(0)).astype(np.float32)
    codes = np.rint(groups * inverse[..., None]).astype(np.int64)
    scale = most / np.float32(8 * 127 if rotate else 127)
    return codes.reshape(len(x), -1), scale, scale * codes.sum(2).astype(np.float32)


def product(kind, raw, x, rotate=False):
    """(n, o): whole sums of groups, each added by one fused operation, in the order of the inputs."""
    factors, per, scales, minima = parts_of(kind, raw)
    codes, own, summed = activations(x, rotate)
    found = np.zeros((len(x), len(raw)), np.float32)
    for g in range(x.shape[1] // 32):
        for k in range(32 * g // per, 32 * (g + 1) // per):
            at = slice(k * per, (k + 1) * per)
            whole = (codes[:, None, at] * factors[None, :, at]).sum(2).astype(np.float32)
            found = fma32(whole, scales[None, :, k] * own[:, g, None], found)
        if minima is not None:
            found = fma32(np.broadcast_to(minima[None, :, g], found.shape), summed[:, g, None], found)
    return found


# --- what codes stand for ---------------------------------------------------------------------------------------------


def test_types_are_those_of_the_format():
    assert {name for name, _, _ in TENSOR_TYPES.values()} >= {*CODED, *FLOATS}
    assert set(TYPES) == {*CODED, *FLOATS, "MQ4", "MQ8"}  # the last two: test_native_merged.py
    for name, values, nbytes in TENSOR_TYPES.values():
        if name in CODED:
            assert (values, nbytes) == size_of(name)


@pytest.mark.parametrize("kind", (*CODED, *FLOATS))
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (33, 96), (70, 576)])
def test_packed_codes_are_the_numbers_of_the_gguf_package(native_library, kind, outputs, inputs):
    width = width_of(kind, inputs)
    raw = rows_for(kind, (outputs, width), outputs)
    np.testing.assert_array_equal(unpacked(native_library, kind, raw, width), numbers(kind, raw))
    panels = native_library.pack_rows(kind, raw, width)
    more = native_library.panels_bytes(kind, outputs, width) / (-(-outputs // 32) * 32 * raw.shape[1])
    assert len(panels) == native_library.panels_bytes(kind, outputs, width)
    assert width % 64 or more < 1.03  # the file's bytes, but for rows that fill a panel


@pytest.mark.parametrize("kind", CODED)
def test_extreme_scales_are_kept(native_library, kind):
    raw = with_extreme_scales(kind, random_rows(kind, (35, 512), np.random.default_rng(1)))
    np.testing.assert_array_equal(unpacked(native_library, kind, raw, 512), numbers(kind, raw))


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
def test_scales_that_are_not_finite_are_refused(native_library, kind, bits):
    raw, at = rows_for(kind, (3, 256), 0), 208 if kind == "Q6_K" else 0
    assert native_library.pack_rows(kind, raw, 256) is not None
    raw[1, at : at + 2] = np.array([bits], np.uint16).view(np.uint8)
    assert native_library.pack_rows(kind, raw, 256) is None


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_floats_that_are_not_finite_are_refused(native_library, kind, value):
    bits = np.array([value], np.float16 if kind == "F16" else np.float32).view(np.uint8)
    raw = rows_for(kind, (3, 64), 0)
    size = raw.shape[1] // 64
    raw[2, 5 * size : 6 * size] = bits[-size:]
    assert native_library.pack_rows(kind, raw, 64) is None


# --- products ---------------------------------------------------------------------------------------------------------


def inputs_for(n, width, seed=0):
    """Rows with an outlier, a group of zeros and one that is constant."""
    x = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    x[-1, 3] *= 300
    x[0, :32] = 0
    x[0, -32:] = -1
    return x


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 13])
def test_a_product_is_numpys_to_the_bit(native_library, kind, rows):
    width = width_of(kind, 160)
    raw, x = rows_for(kind, (70, width), rows), inputs_for(rows, width)
    with native_library.team(2) as team:
        found = team.multiply(CODES, x, native_library.pack_rows(kind, raw, width), 70, type_name=kind)
    np.testing.assert_array_equal(found[:, :70], product(kind, raw, x))
    assert not found[:, 70:].any()


@pytest.mark.parametrize("kind", CODED)
def test_the_largest_codes_fit_their_sums(native_library, kind):
    """All codes at an end and all activations at 127: whatever is summed in 16 bits must hold it."""
    width = width_of(kind, 64)
    for byte in (0x00, 0xFF):
        raw = rows_for(kind, (32, width), 0)
        values, nbytes = size_of(kind)
        blocks = raw.reshape(32, -1, nbytes)
        if kind == "Q6_K":
            blocks[..., :192] = byte
        else:
            blocks[..., 16 if kind in SUPER else nbytes - (values * {"4": 4, "5": 5, "8": 8}[kind[1]] // 8) :] = byte
        if kind == "Q8_0":
            blocks[..., 2:] = 0x80 if byte else 0x7F
        for sign in (1, -1):
            x = np.full((5, width), sign, np.float32)
            with native_library.team(1) as team:
                found = team.multiply(CODES, x, native_library.pack_rows(kind, raw, width), 32, type_name=kind)
            np.testing.assert_array_equal(found, product(kind, raw, x))


def test_half_a_product_would_be_seen(native_library):
    """Negative control: minima that are left out, and codes of another group, give other numbers."""
    raw, x = rows_for("Q4_K", (32, 256), 2), inputs_for(4, 256)
    expected = product("Q4_K", raw, x)
    without = raw.copy().reshape(32, 1, 144)
    without[..., 2:4] = 0
    assert np.abs(product("Q4_K", without.reshape(32, -1), x) - expected).max() > 0.1 * expected.std()
    assert np.abs(product("Q4_K", raw, np.roll(x, 32, axis=1)) - expected).max() > 0.1 * expected.std()


@pytest.mark.parametrize("kind", FLOATS)
def test_products_of_floats_are_exact_to_rounding(native_library, kind):
    raw, x = rows_for(kind, (40, 130), 3), inputs_for(7, 130)
    weights = numbers(kind, raw).astype(np.float64)
    with native_library.team(1) as team:
        found = team.multiply(CODES, x, native_library.pack_rows(kind, raw, 130), 40, type_name=kind)[:, :40]
    size = np.abs(x).astype(np.float64) @ np.abs(weights).T
    assert (np.abs(found - x.astype(np.float64) @ weights.T) / size).max() < 1e-6


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q6_K", "F16"])
def test_rows_do_not_depend_on_rows_beside_them(native_library, kind):
    raw, x = rows_for(kind, (96, 256), 4), inputs_for(150, 256)
    panels = native_library.pack_rows(kind, raw, 256)
    with native_library.team(1) as one, native_library.team(2) as two:
        whole = one.multiply(CODES, x, panels, 96, type_name=kind)
        np.testing.assert_array_equal(two.multiply(CODES, x, panels, 96, type_name=kind), whole)
        for n in (1, 2, 3, 7, 65):
            found = [one.multiply(CODES, x[i : i + n], panels, 96, type_name=kind) for i in range(0, 150, n)]
            np.testing.assert_array_equal(np.concatenate(found), whole)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F32"])
def test_a_number_that_is_none_does_not_become_a_code(native_library, kind):
    raw, x = rows_for(kind, (32, 128), 5), np.ones((2, 128), np.float32)
    for bad in (np.nan, np.inf):
        x[1, 70] = bad
        with native_library.team(1) as team:
            found = team.multiply(CODES, x, native_library.pack_rows(kind, raw, 128), 32, type_name=kind)
        assert np.isfinite(found[0]).all() and not np.isfinite(found[1]).any()


# --- 4 bits of our own ------------------------------------------------------------------------------------------------


def test_int4_is_the_nearest_code_in_the_rotated_basis(native_library):
    """Each group takes one scale; given it, codes are the nearest, and no other scale tried is much better."""
    weights = np.random.default_rng(0).standard_normal((40, 192)).astype(np.float32)
    raw = native_library.round_rotated(4, weights)
    turned, found = rotated(weights), numbers("Q4_0", raw)
    scale = np.repeat(np.ascontiguousarray(raw.reshape(40, -1, 18)[..., :2]).view(np.float16)[..., 0], 32, 1)
    codes = np.clip(np.rint(turned / scale.astype(np.float32)), -8, 7)
    assert np.mean(codes != np.rint(found / scale)) < 1e-3  # sums of a rotation go in another order
    error, groups = ((found - turned) ** 2).reshape(40, -1, 32).mean(2), turned.reshape(40, -1, 32)
    for divisor in (7.0, 7.5, 8.0, 9.0):
        d = np.abs(groups).max(2, keepdims=True) / divisor
        assert error.mean() <= ((np.clip(np.rint(groups / d), -8, 7) * d - groups) ** 2).mean() + 1e-6
    np.testing.assert_allclose(unpacked(native_library, "Q4_0", raw, 192, rotated=True), weights, atol=0.5)


def test_a_rotated_product_is_the_slow_one(native_library):
    """On a coarse grid the rotation of the rows is exact, and so is every bit of the product."""
    x = (np.random.default_rng(1).integers(-1000, 1001, (6, 192)) / 256).astype(np.float32)
    raw = native_library.round_rotated(4, np.random.default_rng(2).standard_normal((32, 192)).astype(np.float32))
    panels = native_library.pack_rows("Q4_0", raw, 192)
    with native_library.team(1) as team:
        found = team.multiply(CODES, x, panels, 32, type_name="Q4_0", rotated=True)
    np.testing.assert_array_equal(found, product("Q4_0", raw, x, rotate=True))


@pytest.mark.parametrize("group", [32, 64])
def test_codes_of_a_quantiser_are_taken_as_they_are(native_library, group):
    rng = np.random.default_rng(3)
    codes = rng.integers(-8, 8, (40, 128)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, (40, 128 // group)).astype(np.float16).astype(np.float32)
    raw = int4_rows(codes, scales, shape=(40, 128))
    np.testing.assert_array_equal(numbers("Q4_0", raw), codes * np.repeat(scales, group, axis=1))


@pytest.mark.parametrize(
    ("codes", "scales", "words"),
    [
        (np.zeros((4, 64), np.int8), np.ones((4, 3)), "per 32 or 64"),
        (np.zeros((4, 32), np.int8), np.ones((4, 2)), "do not fit"),
        (np.full((4, 64), 8, np.int8), np.ones((4, 2)), "-8..7"),
        (np.zeros((4, 64), np.int8), np.full((4, 2), 1e6), "finite"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, scales, words):
    with pytest.raises(ValueError, match=words):
        int4_rows(codes, scales, shape=(4, 64))
