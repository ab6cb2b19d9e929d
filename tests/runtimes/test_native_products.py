"""One product of the native runtime against the same arithmetic, slowly: packing, codes, scales and sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from likely.runtimes.native.library import DTYPES


def sylvester(order):
    """The Hadamard matrix by its definition: H(2n) = [[H, H], [H, -H]]."""
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def in_groups(values):
    """(n, width) -> (n, groups, 64), zeros beyond the width."""
    n, width = values.shape
    return np.pad(values, ((0, 0), (0, -width % 64))).reshape(n, -1, 64)


def rotated(values):
    """Each group times the Hadamard matrix; exact for values on a coarse grid."""
    return (in_groups(values).astype(np.float64) @ sylvester(64)).astype(np.float32)


def bf16_upwards(values):
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0xFFFF) & np.uint32(0xFFFF0000)).view(np.float32)


def codes_of_weights(weights):
    """(o, groups, 64) codes and (o, groups) scales of weights in the rotated basis, divided by 8."""
    turned = rotated(weights) / np.float32(8)
    scale = bf16_upwards(np.abs(turned).max(2) / np.float32(127))
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.rint(turned / safe[..., None]).astype(np.int64), scale


def codes_of_rows(x):
    """(n, groups, 64) codes and (n, groups) scales of activations; the other 8 of the rotation is in the scale."""
    turned = rotated(x)
    most = np.abs(turned).max(2)
    inverse = np.where(most > 0, np.float32(127) / np.where(most > 0, most, 1), np.float32(0)).astype(np.float32)
    return np.rint(turned * inverse[..., None]).astype(np.int64), most / np.float32(8 * 127)


def product(x, weights):
    """The arithmetic of int8, slowly: whole numbers per group, then two scales."""
    (a, scale_a), (w, scale_w) = codes_of_rows(x), codes_of_weights(weights)
    assert np.abs(a).max() <= 127 and np.abs(w).max() <= 127
    sums = np.einsum("ngk,ogk->nog", a, w)
    return (sums * scale_a.astype(np.float64)[:, None, :] * scale_w.astype(np.float64)[None]).sum(2)


def on_a_grid(rng, shape):
    """Random numbers whose sums of 64 are exact in fp32, with an outlier in one group and a group of zeros."""
    values = rng.integers(-1000, 1001, shape).astype(np.float32) / 256
    values[-1, 3] *= 64
    if len(values) > 1:
        values[0, :64] = 0
    return values


def unpacked(panels, outputs, inputs):
    """(outputs, groups, 64) codes and scales from the bytes, by the layout that native/linear.h describes."""
    groups = -(-inputs // 64)
    blocks = panels.reshape(-1, groups, 2112)
    codes = blocks[..., :2048].reshape(-1, groups, 16, 2, 16, 4).astype(np.int64) - 128  # step, tile, output, input
    codes = codes.transpose(0, 3, 4, 1, 2, 5).reshape(-1, groups, 64)[:outputs]
    bits = np.ascontiguousarray(blocks[..., 2048:]).view(np.uint16).astype(np.uint32) << 16
    scales = bits.view(np.float32).transpose(0, 2, 1).reshape(-1, groups)[:outputs]
    return codes, scales


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (31, 64), (40, 130), (96, 192), (33, 576)])
def test_packed_weights_are_the_codes_of_the_reference(native_library, outputs, inputs):
    weights = on_a_grid(np.random.default_rng(outputs), (max(outputs, 1), max(inputs, 4)))
    codes, scales = unpacked(native_library.pack(DTYPES.index("int8"), weights), *weights.shape)
    expected, expected_scales = codes_of_weights(weights)
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(codes, expected)
    back = (codes * scales[..., None].astype(np.float64)) @ sylvester(64) / 8
    np.testing.assert_allclose(back, in_groups(weights), rtol=0, atol=8 * 0.51 * float(scales.max()))


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13, 64])
@pytest.mark.parametrize("inputs", [64, 130, 576])
def test_an_int8_product_is_the_slow_one(native_library, rows, inputs):
    rng = np.random.default_rng(rows)
    x, weights = on_a_grid(rng, (rows, inputs)), on_a_grid(rng, (70, inputs))
    kind = DTYPES.index("int8")
    with native_library.team(2) as team:
        found = team.multiply(kind, x, native_library.pack(kind, weights), 70)[:, :70]
    expected = product(x, weights)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found - x.astype(np.float64) @ weights.T).max() > 1e-4 * np.abs(expected).max()


def test_codes_of_activations_are_those_of_the_reference(native_library):
    """Weights that are a single code after the rotation let a product show one code of a row."""
    x = on_a_grid(np.random.default_rng(1), (9, 192))
    codes, scales = codes_of_rows(x)
    kind = DTYPES.index("int8")
    with native_library.team(1) as team:
        for group in range(3):
            weights = np.zeros((64, 192), np.float32)
            weights[:, 64 * group : 64 * group + 64] = sylvester(64) / 8
            own, own_scale = codes_of_weights(weights)
            one = own[0, group, 0]
            assert one > 100 and (own[:, group] == one * np.eye(64)).all()
            found = team.multiply(kind, x, native_library.pack(kind, weights), 64)
            unit = float(one) * own_scale[:, group] * scales[:, group, None].astype(np.float64)
            np.testing.assert_array_equal(np.rint(found / np.where(unit > 0, unit, 1)), codes[:, group])


def test_weights_that_are_not_rotated_would_be_seen(native_library):
    """Negative control: the same codes in the plain basis give another product altogether."""
    rng = np.random.default_rng(2)
    x, weights = on_a_grid(rng, (4, 128)), on_a_grid(rng, (40, 128))
    kind = DTYPES.index("int8")
    turned = (rotated(weights) / 8).reshape(40, 128)  # packing rotates back
    with native_library.team(1) as team:
        found = team.multiply(kind, x, native_library.pack(kind, turned), 40)[:, :40]
    expected = product(x, weights)
    assert np.abs(found - expected).max() > 0.1 * np.abs(expected).max()


def test_a_rotation_keeps_an_outlier_from_spoiling_its_group(native_library):
    """One number 100 times the others: without the rotation, codes of the others would be 0 or 1."""
    rng = np.random.default_rng(3)
    x, weights = rng.standard_normal((6, 64)).astype(np.float32), rng.standard_normal((32, 64)).astype(np.float32)
    x[:, 5] *= 100
    kind = DTYPES.index("int8")
    with native_library.team(1) as team:
        found = team.multiply(kind, x, native_library.pack(kind, weights), 32)
    scale = np.abs(x).max(1, keepdims=True) / 127
    simple = (np.rint(x / scale) * scale) @ weights.T
    exact = x.astype(np.float64) @ weights.T
    assert np.abs(found - exact).mean() < 0.8 * np.abs(simple - exact).mean()


@pytest.mark.parametrize(("kind", "allowed"), [("float32", 1e-6), ("bfloat16", 1e-6)])
def test_products_in_floats_equal_numpy(native_library, kind, allowed):
    """bf16: of the rounded factors; their products are exact in fp32."""
    rng = np.random.default_rng(4)
    x, weights = (rng.standard_normal((n, 200)).astype(np.float32) for n in (9, 75))
    if kind == "bfloat16":
        x, weights = (torch.tensor(v).bfloat16().float().numpy() for v in (x, weights))
    number = DTYPES.index(kind)
    with native_library.team(2) as team:
        found = team.multiply(number, x, native_library.pack(number, weights), 75)[:, :75]
    size = np.abs(x).astype(np.float64) @ np.abs(weights).T
    assert (np.abs(found - x.astype(np.float64) @ weights.T) / size).max() < allowed


def test_a_number_that_is_none_does_not_become_a_code(native_library):
    x, weights = np.ones((2, 128), np.float32), np.ones((32, 128), np.float32)
    x[1, 70] = np.nan
    with native_library.team(1) as team:
        for kind in range(3):
            found = team.multiply(kind, x, native_library.pack(kind, weights), 32)
            assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
