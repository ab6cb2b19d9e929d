"""Keys and values of the native runtime in storage formats: rounded as numpy and torch round, and never depending on
how a text is cut."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from native_models import CONFIGS, forward, llama, rows_of, tokens_of
from tiny_gguf import write_tiny_llama
from tiny_torch import folder_of, module_of

from likely.compression.architecture import DecoderMap
from likely.compression.block_float import KSort, VSort, k_sort, v_sort
from likely.errors import CapabilityError, ModelError
from likely.models.load import load_local
from likely.runtimes.kv_format import BFPFormat, parse_kv_format
from likely.runtimes.native.model import KvOrders
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.protocol import Want
from likely.runtimes.torch.block_float import bfp_quantize
from likely.runtimes.torch.runtime import TorchRuntime

FORMATS = ("bf16", "f16", "q8_0", "bfp12", "bfp16", "bfp12n16", "bfp16n64")
TEXT = tokens_of(330, seed=4)  # longer than the first memory, which grows


def numbers(width, seed=0):
    """Rows with ties, zeros, large and tiny numbers, and every size in between."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((150, width)) * np.exp(rng.uniform(-12, 8, (150, 1)))
    x[:20] = np.round(x[:20] * 4) / 4
    x[20] = 0
    x[21, ::3] = 0
    x[22] = np.linspace(-127, 127, width)
    x[23] = np.arange(width) + 0.5
    x[24:30] *= 1e-30
    x[31:40] *= 1e4 / np.abs(x[31:40]).max()
    return x.astype(np.float32)


def rounded(x, name):
    """By the package gguf, by torch, or by numpy."""
    if name == "f16":
        return x.astype(np.float16).astype(np.float32)
    if name == "bf16":
        return torch.from_numpy(x).bfloat16().float().numpy()
    if name == "q8_0":
        kind = gguf.GGMLQuantizationType.Q8_0
        return gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    fmt = parse_kv_format(name).keys
    assert isinstance(fmt, BFPFormat)
    return bfp_quantize(torch.from_numpy(x), fmt).dequantize().numpy()


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_stored_rows_are_those_of_an_independent_form(native_library, name, keys):
    """To the bit; in runs of slots, which are read together, and in slots from anywhere."""
    stored = parse_kv_format(name, plain=("bf16", "f16", "q8_0")).keys
    for width in (64, 128, 192):
        x = numbers(width, seed=width)
        expected = rounded(x, name)
        for slots in (np.arange(150), np.random.default_rng(1).permutation(400)[:150]):
            found = native_library.stored(stored, x, half=False, keys=keys, slots=slots)
            np.testing.assert_array_equal(found, expected)
            if name != "f16":
                in_half = native_library.stored(stored, x, half=True, keys=keys, slots=slots)
                np.testing.assert_array_equal(in_half, rounded(expected, "bf16"))


def test_what_is_read_in_bf16_loses_nothing_of_block_floating_point():
    x = numbers(64)
    for name in ("bfp12", "bfp16"):
        usual = np.abs(x).max(1) > 1e-30  # a subnormal number of fp32 has fewer digits
        np.testing.assert_array_equal(rounded(rounded(x, name), "bf16")[usual], rounded(x, name)[usual])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["q8_0", "bfp12", "bfp16"])
def test_a_number_that_is_not_finite_stays_none(native_library, name, bad):
    """All of its block become NaN, for which a call ends with an error; other blocks stay."""
    x = numbers(64)
    x[3, 40] = bad
    stored = parse_kv_format(name, plain=("q8_0",)).keys
    for keys in (True, False):
        found = native_library.stored(stored, x, half=True, keys=keys, slots=np.arange(150))
        assert np.isnan(found[3, 32:]).all()
        assert np.isfinite(np.delete(found, 3, axis=0)).all() and np.isfinite(found[3, :32]).all()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("kind", ["int8", "float32"])
@pytest.mark.parametrize(
    "kv", ["f32", "f16", "bf16", "q8_0", "bfp12", "bfp16", "bfp12/bfp16", "q8_0/f32", "bf16/bfp16n16"]
)
def test_cuts_forks_and_trees_change_no_bit(natives, kind, kv):
    """Over memory that grows, on slots in a run and on others, with pieces put together and apart."""
    for name in ("llama, seven heads a key", "llama, whole groups"):
        whole = natives(name, kind, kv_dtype=kv, tokens_per_call=512, group_prefixes=False)
        expected = rows_of(whole, TEXT)
        runtime = natives(name, kind, kv_dtype=kv, tokens_per_call=37)
        first, beside = runtime.open(), runtime.open()
        forward(runtime, beside, TEXT[:3], want=Want.NONE)
        np.testing.assert_array_equal(forward(runtime, first, TEXT[:200]).logits, expected[:200])
        opened = [runtime.fork(first, length) for length in (200, 150, 129, 64)]
        for sequence in opened:
            at = sequence.length
            chain = np.arange(20) - 1
            np.testing.assert_array_equal(
                forward(runtime, sequence, TEXT[at : at + 20], chain).logits, expected[at : at + 20]
            )
            runtime.commit([(sequence, list(range(10)))])
            np.testing.assert_array_equal(forward(runtime, sequence, TEXT[at + 10 :]).logits, expected[at + 10 :])
        for sequence in (first, beside, *opened):
            runtime.close(sequence)


@pytest.mark.parametrize(("kv", "apart"), [("bf16", 0.3), ("f16", 0.02), ("bfp16", 0.5), ("bfp12/bf16", 3)])
def test_it_is_what_the_torch_runtime_computes(made, natives, kv, apart):
    """Formats that both have: closer to each other than either is to the model with fp32 keys and values."""
    module, tokens = made("llama, whole groups")[0], TEXT[:90]
    native = rows_of(natives("llama, whole groups", "float32", kv_dtype=kv), tokens)
    plain = rows_of(natives("llama, whole groups", "float32"), tokens)
    other = TorchRuntime(module, kv_dtype=kv, tokens_held=128)
    difference, moved = np.abs(native - rows_of(other, tokens)).mean(), np.abs(native - plain).mean()
    assert difference < 0.1 * moved  # a code may flip
    assert 0 < moved < apart


def test_keys_of_int8_are_multiplied_as_they_are(made, natives):
    """Queries become codes, too: near what decoded keys give, far from what keys of four bits do."""

    def rows(kv, kind="bfloat16"):
        return rows_of(natives("llama, whole groups", kind, kv_dtype=kv), TEXT[:150])

    exact = rows("f32", "float32")
    direct, decoded, usual, coarse = (
        np.abs(rows(kv) - exact).mean() for kv in ("q8_0/bf16", "q8_0/f16", "bf16", "bfp12/bf16")
    )
    assert usual < direct < 1.5 * usual + 2 * decoded < coarse


def test_bytes_tokens_and_names_are_told(made, monkeypatch):
    """Three layers, two heads of 32: 192 numbers of keys and as many of values a token."""
    monkeypatch.setattr("likely.runtimes.native.runtime.free_bytes", lambda: 8 * 768 * 1100)
    found = {}
    for kv, size in [(None, 768), ("bf16", 768), ("f32", 1536), ("q8_0", 408), ("bfp16", 396), ("bfp12/bfp16", 300),
                     ("bfp12", 204), ("bfp12n16", 216)]:  # fmt: skip
        runtime = NativeRuntime(made("llama, whole groups")[1], dtype="int8", threads=1, kv_dtype=kv)
        assert runtime.kv_bytes_per_token == size
        assert runtime.kv_dtype == (kv or "bf16")
        assert ("-kv-" in runtime.revision) == (kv not in (None, "bf16"))
        found[kv] = runtime.limits.tokens_held
        runtime.shutdown()
    assert found["bf16"] == 1100 and found["bfp12"] == 1100 * 768 // 204


def test_formats_that_it_has_not_are_one_line(made):
    def opened(kv, name="llama, whole groups"):
        NativeRuntime(made(name)[1], threads=1, tokens_held=64, kv_dtype=kv)

    with pytest.raises(CapabilityError, match=r"bfp12 and bfp16.*use runtime='torch'"):
        opened("bfp14")
    with pytest.raises(CapabilityError, match="multiple of 16"):
        opened("bfp12n8")
    with pytest.raises(CapabilityError, match="blocks of 32 do not divide 12 values"):
        opened("q8_0", "llama")
    with pytest.raises(ModelError, match='"q4_0" is not understood'):
        opened("q4_0")
    with pytest.raises(ModelError, match=r"at least 1 value, got 0$"):
        opened("bfp12n0")


def test_it_is_an_option_of_loading(tmp_path, native_library, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path))
    path = write_tiny_llama(tmp_path / "tiny.gguf", dtype="F32")
    opened = load_local(path, runtime="native", kv_dtype="f16", threads=1)
    assert opened.info.kv_dtype == opened.runtime.kv_dtype == "f16"
    assert opened.info.kv_bytes_per_token == opened.runtime.kv_bytes_per_token
    opened.runtime.shutdown()


def test_keys_that_are_not_finite_end_with_an_error(native_cache):
    """In whatever format: softmax may not pass over them."""
    module = module_of(CONFIGS["llama, whole groups"](), std=0.15, vectors=0.2)
    with torch.no_grad():
        module.model.layers[0].self_attn.k_proj.weight *= 1e38
        module.model.layers[0].input_layernorm.weight *= 1e10
    folder = folder_of(module)
    for kv in ("f32", "bfp16", "q8_0"):
        runtime = NativeRuntime(folder, dtype="float32", threads=1, tokens_held=64, kv_dtype=kv)
        with pytest.raises(FloatingPointError, match="NaN"):
            rows_of(runtime, TEXT[:20])
        runtime.shutdown()


# --- sorted channels --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(native_cache):
    """A model whose key channels are of very different sizes, each at its place; its folder, and sorted orders."""
    module = module_of(llama(hidden_size=128, num_attention_heads=4, head_dim=32), std=0.15, vectors=0.2)
    scale = torch.exp(1.5 * torch.randn(16, generator=torch.Generator().manual_seed(1))).repeat(2)
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.k_proj.weight *= scale.repeat(2)[:, None]
            layer.self_attn.q_proj.weight /= scale.repeat(4)[:, None]
    folder, decoder = folder_of(module), DecoderMap.of(module)
    return decoder, folder, KvOrders(k_sort(decoder).orders, v_sort(decoder).orders)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_sorted_channels_change_what_shares_a_block_and_nothing_else(uneven, dtype):
    _, folder, orders = uneven

    def rows(kv, order):
        runtime = NativeRuntime(folder, dtype=dtype, threads=1, tokens_held=256, kv_dtype=kv, kv_orders=order)
        found, revision = rows_of(runtime, TEXT[:120]), runtime.revision
        runtime.shutdown()
        return found, revision

    (exact, name), (again, other) = rows("f32", None), rows("f32", orders)
    assert 0 < np.abs(exact - again).max() < 0.1 * exact.std()
    assert name != other
    plain, better = (np.abs(rows("bfp16n16/f32", order)[0] - exact).mean() for order in (None, orders))
    assert better < 0.8 * plain
    with pytest.raises(ValueError, match="each of 32 channels once"):
        rows("f32", KvOrders([np.zeros((2, 32), int)] * 3, [np.zeros((2, 32), int)] * 3))


def test_sorted_channels_are_those_of_the_torch_runtime(uneven):
    decoder, folder, orders = uneven
    options = {"dtype": "float32", "threads": 1, "tokens_held": 256}
    exact, native = (
        NativeRuntime(folder, **options),
        NativeRuntime(folder, **options, kv_dtype="bfp12n16", kv_orders=orders),
    )
    KSort(orders.keys).apply(decoder)
    VSort(orders.values).apply(decoder)
    other = TorchRuntime(decoder.module, kv_dtype="bfp12n16", tokens_held=256)
    rows = [rows_of(runtime, TEXT[:90]) for runtime in (other, native, exact)]
    assert np.abs(rows[0] - rows[1]).mean() < 0.1 * np.abs(rows[2] - rows[1]).mean()
    assert other.kv_bytes_per_token == native.kv_bytes_per_token
    native.shutdown()
    exact.shutdown()
