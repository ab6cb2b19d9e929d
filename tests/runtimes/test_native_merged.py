"""Products of MergeQuant's codes: every bit against numpy's whole sums, at the ends of the ranges too."""

from __future__ import annotations

import numpy as np
import pytest

from likely.compression.packed_folder import merged_rows
from likely.runtimes.native.library import CODES

KINDS = {"MQ4": 7, "MQ8": 127}  # the largest code of a weight


def made(kind, outputs, columns, seed=0):
    """Codes, scales and rows of bytes."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-KINDS[kind], KINDS[kind] + 1, (outputs, columns)).astype(np.int16)
    scales = rng.uniform(0.01, 0.1, outputs).astype(np.float32)
    return codes, scales, merged_rows(codes, scales, int(kind[2]))


def activations(x, bits, per_token):
    """(n, columns) codes and (n,) scales, as QuantLinear and QuantRMSNorm of the simulated model make them."""
    most = np.float32(2 ** (bits - 1) - 1)
    scale = np.maximum(np.abs(x).max(1) / most, np.float32(1e-12)) if per_token else np.ones(len(x), np.float32)
    return np.clip(np.rint(x / scale[:, None]), -most - 1, most).astype(np.int64), scale


def product(codes, scales, x, bits, per_token):
    given, own = activations(x, bits, per_token)
    return (given @ codes.T.astype(np.int64)).astype(np.float32) * scales * own[:, None]


def multiplied(library, kind, rows, x, bits, outputs, per_token, threads=1):
    width = (rows.shape[1] - 4) * 8 // int(kind[2])
    panels = library.pack_rows(kind, rows, width)
    with library.team(threads) as team:
        found = team.multiply(CODES, x, panels, outputs, type_name=kind, merged_bits=-bits if per_token else bits)
    assert not found[:, outputs:].any()
    return found[:, :outputs]


def inputs_for(n, columns, bits):
    """Numbers about the range of codes and beyond it, halves between two codes among them."""
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((n, columns)) * 2 ** (bits - 2)).astype(np.float32)
    x[:, ::7] = np.rint(x[:, ::7]) + np.float32(0.5)
    x[0, :8] = 1e6
    return x


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 4, 13])
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_numpys_to_the_bit(native_library, kind, rows, bits, per_token):
    codes, scales, raw = made(kind, 70, 160, rows)
    x = inputs_for(rows, 160, bits)
    found = multiplied(native_library, kind, raw, x, bits, 70, per_token, threads=2)
    np.testing.assert_array_equal(found, product(codes, scales, x, bits, per_token))
    shifted = product(np.roll(codes, 32, axis=1), scales, x, bits, per_token)
    assert np.abs(found - shifted).max() > 0.1 * found.std()  # a negative control


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_codes_fit_their_sums(native_library, kind):
    """All weights at an end and all activations at -128 or 127: whatever is summed in 16 bits must hold it."""
    for weight in (KINDS[kind], -KINDS[kind]):
        codes, scales = np.full((32, 4096), weight, np.int16), np.ones(32, np.float32)
        for value in (200.0, -200.0):
            x = np.full((5, 4096), value, np.float32)
            found = multiplied(native_library, kind, merged_rows(codes, scales, int(kind[2])), x, 8, 32, False)
            np.testing.assert_array_equal(found, np.float32(4096 * weight * (127 if value > 0 else -128)))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_codes_are_the_codes(native_library, kind):
    codes, scales, raw = made(kind, 35, 100)
    assert native_library.panels_bytes(kind, 64, 128) == 64 * (4 + 128 * int(kind[2]) // 8)
    panels = native_library.pack_rows(kind, raw, 128)
    found = np.stack([native_library.unpack_row(kind, panels, 100, row) for row in range(35)])
    np.testing.assert_array_equal(found, codes * scales[:, None])
    for bad in (np.array([np.inf], "<f4").view(np.uint8), np.array([0, 0, 0, 0, 0x80], np.uint8)):
        other = raw.copy()
        other[3, : len(bad)] = bad
        allowed = kind == "MQ4" and len(bad) == 5  # half a byte holds no -128
        assert (native_library.pack_rows(kind, other, 128) is not None) == allowed


@pytest.mark.parametrize("per_token", [False, True])
def test_a_number_that_is_none_does_not_become_a_code(native_library, per_token):
    _, _, raw = made("MQ4", 32, 128)
    x = np.ones((2, 128), np.float32)
    for bad in (np.nan, np.inf):
        x[1, 70] = bad
        found = multiplied(native_library, "MQ4", raw, x, 8, 32, per_token)
        assert np.isfinite(found[0]).all() and not np.isfinite(found[1]).any()


def test_rows_do_not_depend_on_rows_beside_them(native_library):
    _, _, raw = made("MQ4", 96, 256)
    x = inputs_for(150, 256, 8)
    whole = multiplied(native_library, "MQ4", raw, x, 8, 96, True, threads=2)
    for n in (1, 7, 65):
        found = [multiplied(native_library, "MQ4", raw, x[i : i + n], 8, 96, True) for i in range(0, 150, n)]
        np.testing.assert_array_equal(np.concatenate(found), whole)
