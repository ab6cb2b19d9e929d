"""The packed cache of transformers: equal to rounding by hand, counted in bytes, cropped and reordered."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_torch import CONFIGS, SMALL, module_of  # noqa: E402

from likely.compression.architecture import DecoderMap  # noqa: E402
from likely.compression.block_float import BFPFormat, BlockQuantizedCache, bfp_quantize, k_sort  # noqa: E402
from likely.errors import CapabilityError  # noqa: E402

K, V = BFPFormat(4, 8), BFPFormat(8, 8)
LAYERS, HEADS, WIDTH = 2, 2, 8


@pytest.fixture(scope="module")
def module():
    return module_of(CONFIGS["llama"]())


def text(n=20, batch=1, seed=0):
    return torch.randint(0, 64, (batch, n), generator=torch.Generator().manual_seed(seed))


def rows(module, ids, cache, cuts=()):
    parts, start = [], 0
    for stop in (*cuts, ids.shape[1]):
        with torch.no_grad():
            parts.append(module(input_ids=ids[:, start:stop], past_key_values=cache).logits)
        start = stop
    return torch.cat(parts, dim=1)


def test_it_gives_what_was_rounded(module):
    cache = BlockQuantizedCache(module.config, k=K, v=V)
    keys, values = torch.randn(2, HEADS, 5, WIDTH), torch.randn(2, HEADS, 5, WIDTH)
    got = cache.update(keys, values, 1)
    assert torch.equal(got[0], bfp_quantize(keys, K).dequantize())
    assert torch.equal(got[1], bfp_quantize(values, V).dequantize())
    again = cache.update(keys[:, :, :1], values[:, :, :1], 1)
    assert torch.equal(again[0][:, :, :5], got[0]) and cache.get_seq_length(1) == 6 and cache.get_seq_length(0) == 0


def test_token_by_token_equals_one_call_and_differs_from_floats(module):
    ids = text()
    whole = rows(module, ids, BlockQuantizedCache(module.config, k=K, v=V))
    steps = rows(module, ids, BlockQuantizedCache(module.config, k=K, v=V), cuts=range(1, 20))
    torch.testing.assert_close(steps, whole, rtol=0, atol=1e-3)
    floats = rows(module, ids, BlockQuantizedCache(module.config, k=None, v=None))
    with torch.no_grad():
        torch.testing.assert_close(floats, module(input_ids=ids).logits, rtol=0, atol=1e-4)
    assert float((whole - floats).abs().max()) > 0.01


@pytest.mark.parametrize("sink", [0, 4])
def test_bytes_are_those_that_are_stored(module, sink):
    cache = BlockQuantizedCache(module.config, k=K, v=V, sink=sink)
    rows(module, text(), cache, cuts=(2, 7))
    packed = (20 - sink) * WIDTH * (4 + 1 + 8 + 1) / 8  # an exponent of 8 bits to 8 values: a bit each
    assert cache.nbytes == LAYERS * HEADS * (packed + sink * WIDTH * 2 * 4)
    cache.reset()
    assert cache.nbytes == 0 and cache.get_seq_length() == 0


def test_sinks_stay_floats(module):
    cache = BlockQuantizedCache(module.config, k=K, v=V, sink=3)
    keys = torch.randn(1, HEADS, 6, WIDTH)
    found = torch.cat(
        [cache.update(keys[:, :, :2], keys[:, :, :2], 0)[0], cache.update(keys[:, :, 2:], keys[:, :, 2:], 0)[0]], 2
    )
    assert torch.equal(found[:, :, 2:5], keys[:, :, :3])
    assert torch.equal(found[:, :, 5:], bfp_quantize(keys[:, :, 3:], K).dequantize())


@pytest.mark.parametrize("sink", [0, 5])
def test_cropped_and_reordered_it_is_the_cache_of_that_text(module, sink):
    ids = text(batch=2)
    cache = BlockQuantizedCache(module.config, k=K, v=V, sink=sink)
    rows(module, ids, cache)
    cache.crop(-12)
    assert cache.get_seq_length() == 8
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 2]))
    new = text(6, batch=2, seed=1)
    with torch.no_grad():
        got = module(input_ids=new, past_key_values=cache).logits
    fresh = BlockQuantizedCache(module.config, k=K, v=V, sink=sink)
    expected = rows(module, torch.cat([ids.flip(0)[:, :8], new], dim=1), fresh, cuts=(8,))[:, 8:]
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02)  # a code may flip between batches
    cache.crop(-100)
    assert cache.get_seq_length() == 0
    with pytest.raises(ValueError, match="minus the number"):
        cache.crop(3)


def test_generate_takes_it_with_sorted_keys(module):
    sorted_copy = copy.deepcopy(module)
    decoder = DecoderMap.of(sorted_copy)
    k_sort(decoder).apply(decoder)
    fine = BFPFormat(16, 8)
    found = []
    for one, cache in ((module, None), (sorted_copy, BlockQuantizedCache(module.config, k=fine, v=fine))):
        kept = {} if cache is None else {"past_key_values": cache}
        found.append(one.generate(text(6), max_new_tokens=10, do_sample=False, pad_token_id=0, **kept).tolist())
    assert found[0] == found[1]


def test_what_is_refused():
    gemma = CONFIGS["gemma3"]()
    with pytest.raises(CapabilityError, match="sliding_attention"):
        BlockQuantizedCache(gemma, k=K, v=V)
    config = transformers.LlamaConfig(**SMALL)
    with pytest.raises(ValueError, match="do not divide 8"):
        BlockQuantizedCache(config)
    with pytest.raises(ValueError, match="sink"):
        BlockQuantizedCache(config, k=K, v=V, sink=-1)
