"""Block floating point: known answers, a slow obvious form beside the fast one, storage, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from likely.compression.block_float import BFPFormat, bfp_quantize  # noqa: E402
from likely.runtimes.kv_format import KvFormat, parse_kv_format  # noqa: E402
from likely.runtimes.torch.block_float import pack, unpack  # noqa: E402


def values(*shape, seed=0, spread=3.0):
    """Gaussian, with powers of two spread over channels."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.standard_normal(shape) * 2 ** rng.uniform(-spread, spread, shape)).astype(np.float32))


def slowly(block, p):
    """(codes, e) of a list of floats, one at a time."""
    largest = max(abs(x) for x in block)
    if largest == 0:
        return [0] * len(block), None
    _, e = math.frexp(largest)
    step = math.ldexp(1.0, e - (p - 1))
    return [min(max(round(x / step), -(2 ** (p - 1))), 2 ** (p - 1) - 1) for x in block], e


@pytest.mark.parametrize(
    ("block", "exponent", "codes", "back"),
    [
        ([1, 0.5, -0.25, 0.1], 1, [4, 2, -1, 0], [1, 0.5, -0.25, 0]),
        ([7, -8], 4, [4, -4], [8, -8]),  # 3.5 goes to the even 4
        ([0.99, 0], 0, [7, 0], [0.875, 0]),  # rounds up to 8 and is clamped
        ([-0.99, 0], 0, [-8, 0], [-1, 0]),
        ([0, 0], -126, [0, 0], [0, 0]),
    ],
)
def test_known_answers(block, exponent, codes, back):
    found = bfp_quantize(torch.tensor(block, dtype=torch.float32), BFPFormat(4, len(block)))
    assert found.codes().tolist() == codes and found.exponents.tolist() == [exponent]
    assert found.dequantize().tolist() == back


@pytest.mark.parametrize("p", range(2, 17))
def test_the_fast_form_is_the_obvious_one(p):
    x = values(3, 48, seed=p)
    found = bfp_quantize(x, BFPFormat(p, 16))
    for row, codes, exponents in zip(x.tolist(), found.codes().tolist(), found.exponents.tolist(), strict=True):
        for b in range(3):
            assert (codes[16 * b : 16 * b + 16], exponents[b]) == slowly(row[16 * b : 16 * b + 16], p)


@pytest.mark.parametrize("p", [2, 3, 4, 8, 16])
def test_the_error_is_half_a_step_but_for_the_clamped_maximum(p):
    x = values(64, 32, seed=1)
    found = bfp_quantize(x, BFPFormat(p, 32))
    step = 2.0 ** (found.exponents - (p - 1)).double()
    error = (found.dequantize() - x).abs() / step
    clamped = found.codes() == 2 ** (p - 1) - 1
    assert float(error[~clamped].max()) <= 0.5 and float(error.max()) <= 1
    bumped = bfp_quantize(x, BFPFormat(p, 32, overflow="bump"))
    assert (bumped.exponents >= found.exponents).all() and not (bumped.exponents > found.exponents + 1).any()
    assert float(((bumped.dequantize() - x).abs() / step).max()) <= 1


def test_powers_of_two_are_exact_and_scaling_by_them_commutes():
    powers = torch.tensor([2.0, 1, -0.5, 0.25])
    assert torch.equal(bfp_quantize(powers, BFPFormat(5, 4)).dequantize(), powers)
    x = values(8, 32)
    for k in (-60, -3, 1, 60):
        scaled = bfp_quantize(x * 2.0**k, BFPFormat()).dequantize()
        assert torch.equal(scaled, bfp_quantize(x, BFPFormat()).dequantize() * 2.0**k)


def test_rounding_again_changes_nothing_without_the_lowest_code():
    x = values(200, 16, seed=2)
    symmetric = BFPFormat(4, 16, symmetric=True)
    once = bfp_quantize(x, symmetric).dequantize()
    assert torch.equal(bfp_quantize(once, symmetric).dequantize(), once)
    lowest = bfp_quantize(torch.tensor([-0.99, 0.3]), BFPFormat(4, 2))
    again = bfp_quantize(lowest.dequantize(), BFPFormat(4, 2))
    assert lowest.codes().tolist() == [-8, 2] and again.codes().tolist() == [-4, 1]
    assert again.exponents.item() == lowest.exponents.item() + 1


def test_eight_bits_in_blocks_of_32_are_mxint8():
    """Element q 2^-6 times 2^floor(log2 m), as OCP's MX defines it."""
    x = values(50, 32, seed=3)
    scale = 2.0 ** torch.floor(torch.log2(x.abs().amax(-1, keepdim=True).double()))
    mx = (torch.round(x.double() / scale * 64).clamp(-128, 127) / 64 * scale).float()
    assert torch.equal(bfp_quantize(x, BFPFormat(8, 32)).dequantize(), mx)


@pytest.mark.parametrize("p", range(2, 17))
def test_packing_is_undone_and_counted(p):
    codes = torch.from_numpy(np.random.default_rng(p).integers(-(2 ** (p - 1)), 2 ** (p - 1), (3, 5, 24)))
    packed = pack(codes, p)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 5, 3 * p)
    assert torch.equal(unpack(packed, p, 24).long(), codes)
    if p == 4:
        assert packed[0, 0, 0] == (int(codes[0, 0, 0]) & 15) + 16 * (int(codes[0, 0, 1]) & 15)


@pytest.mark.parametrize(
    ("p", "n", "bits"), [(4, 32, 4.25), (4, 64, 4.125), (4, 128, 4.0625), (8, 32, 8.25), (3, 16, 3.5)]
)
def test_bits_are_those_that_are_stored(p, n, bits):
    found = bfp_quantize(values(7, 128), BFPFormat(p, n))
    assert found.bits_per_value == found.fmt.bits_per_value == bits == found.nbytes * 8 / (7 * 128)


def test_blocks_run_along_the_axis_that_is_named():
    x = values(32, 5)
    assert torch.equal(bfp_quantize(x, BFPFormat(), dim=0).dequantize(), bfp_quantize(x.T, BFPFormat()).dequantize())


def test_exponents_end_at_eight_bits():
    tiny = torch.tensor([1e-38 / 4, 0, 0, 0])
    assert bfp_quantize(tiny, BFPFormat(4, 4)).dequantize().tolist() == [0, 0, 0, 0]
    large = torch.tensor([2.0**126, -(2.0**125), 0, 0])
    assert torch.equal(bfp_quantize(large, BFPFormat(4, 4)).dequantize(), large)
    with pytest.raises(ValueError, match="too large"):
        bfp_quantize(torch.tensor([2.0**127, 0]), BFPFormat(4, 2))
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not a finite number"):
            bfp_quantize(torch.tensor([wrong, 1]), BFPFormat(4, 2))


def test_formats_are_read_by_name():
    assert parse_kv_format("bfp12") == KvFormat(BFPFormat(4, 32), BFPFormat(4, 32))
    assert parse_kv_format(" BFP12n16/bf16 ") == KvFormat(BFPFormat(4, 16), "bf16")
    for name in ("bfp12", "bfp16n64", "bfp12/bfp16", "f32", "bfp11n16/f16"):
        assert parse_kv_format(name).name == name
    assert parse_kv_format("bfp12/bfp12").name == "bfp12"
    for wrong, words in (
        ("bfp9", "mantissa_bits"), ("bfp25", "mantissa_bits"), ("bfp12n0", "at least 1"), ("q8_0", "bfp12"),
        ("bfp12/bfp16/f32", "keys/values"), ("", "bfp12"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            parse_kv_format(wrong)
    with pytest.raises(ValueError, match="allowed here: 16"):
        BFPFormat(4, 32).blocks_of(80)
    with pytest.raises(ValueError, match="overflow"):
        BFPFormat(4, 32, overflow="wrap")
