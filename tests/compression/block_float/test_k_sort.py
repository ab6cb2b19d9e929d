"""K-sort and V-sort: exact rewrites, whatever the order; what they do to rounded keys; what is refused."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_torch import CONFIGS, SMALL, module_of  # noqa: E402

from likely.compression.architecture import DecoderMap  # noqa: E402
from likely.compression.block_float import BFPFormat, KSort, VSort, bfp_quantize, k_sort, v_sort  # noqa: E402
from likely.compression.block_float.permutation import inverse, pair_order, sorted_order  # noqa: E402
from likely.compression.block_float.scores import activations, weight_norms  # noqa: E402
from likely.compression.calibration_set import CalibrationSet  # noqa: E402
from likely.errors import CapabilityError, LikelyError  # noqa: E402

KINDS = ("llama", "qwen2", "qwen3", "gemma3")  # grouped heads; biases; norms of heads; windows and 1 + weight
IDS = np.random.default_rng(0).integers(0, 64, (1, 24))


@pytest.fixture(scope="module")
def modules():
    """One of each kind, its norms and biases not all alike."""
    return {kind: module_of(CONFIGS[kind](), vectors=0.3) for kind in KINDS}


def logits(module, ids=IDS, first=0):
    positions = torch.arange(first, first + ids.shape[1])[None]
    with torch.no_grad():
        return module(input_ids=torch.from_numpy(ids), position_ids=positions).logits


def one_by_one(module, ids=IDS):
    cache, rows = transformers.DynamicCache(config=module.config), []
    for token in ids[0]:
        with torch.no_grad():
            rows.append(module(input_ids=torch.tensor([[token]]), past_key_values=cache).logits)
    return torch.cat(rows, dim=1)


def random_orders(decoder, seed=0):
    rng = np.random.default_rng(seed)
    return [np.stack([rng.permutation(decoder.head_dim) for _ in range(decoder.kv_heads)]) for _ in decoder.blocks]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["table", "gather", "pairs"])
def test_logits_stay_what_they_were(modules, kind, layout):
    module = copy.deepcopy(modules[kind])
    decoder = DecoderMap.of(module)
    before, far = logits(module), logits(module, first=1500)
    sort = k_sort(decoder, layout=layout) if layout == "pairs" else KSort(random_orders(decoder), layout)
    sort.apply(decoder)
    for got, expected in ((logits(module), before), (logits(module, first=1500), far), (one_by_one(module), before)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_values_may_be_sorted_too(modules, kind):
    module = copy.deepcopy(modules[kind])
    decoder = DecoderMap.of(module)
    before, values = logits(module), decoder.blocks[0].v.weight.clone()
    VSort(random_orders(decoder)).apply(decoder)
    assert not torch.equal(values, decoder.blocks[0].v.weight)
    torch.testing.assert_close(logits(module), before, rtol=0, atol=1e-4)
    norms = weight_norms(decoder, decoder.blocks[0], "v")
    assert (np.take_along_axis(norms, v_sort(decoder).orders[0], 1) == -np.sort(-norms)).all()


def test_permuted_weights_without_the_table_are_wrong(modules):
    """The control: rotation must follow the permutation."""
    module = copy.deepcopy(modules["llama"])
    decoder = DecoderMap.of(module)
    before = logits(module)
    KSort(random_orders(decoder)).apply(decoder)
    for block in decoder.blocks:
        del block.module.self_attn.__dict__["forward"]
    assert float((logits(module) - before).abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_gives_the_keys_that_a_gather_gives(modules, kind):
    found = []
    for layout in ("table", "gather"):
        module = copy.deepcopy(modules[kind])
        decoder = DecoderMap.of(module)
        KSort(random_orders(decoder), layout).apply(decoder)
        found.append([seen.keys for seen in activations(decoder, IDS)])
    for table, gather in zip(*found, strict=True):
        torch.testing.assert_close(table, gather, rtol=1e-4, atol=1e-5)
        codes = [bfp_quantize(keys, BFPFormat(4, 8)).codes() for keys in (table, gather)]
        assert float((codes[0] != codes[1]).float().mean()) < 0.01  # but for ties


def test_a_block_as_wide_as_the_head_holds_the_same_keys_in_any_order():
    keys = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    order = torch.from_numpy(np.random.default_rng(0).permutation(64))
    plain, sorted_keys = (bfp_quantize(x, BFPFormat(4, 64)).dequantize() for x in (keys, keys[:, order]))
    assert torch.equal(plain[:, order], sorted_keys)
    halves = torch.from_numpy(pair_order(keys.abs().mean(0).numpy(), rope="halves"))
    plain, paired = (bfp_quantize(x, BFPFormat(4, 32)).dequantize() for x in (keys, keys[:, halves]))
    assert torch.equal(plain[:, halves], paired)


def test_sorting_minimises_the_sum_of_block_maxima():
    scores = np.random.default_rng(1).exponential(size=8)

    def cost(order):
        return (scores[list(order)].reshape(2, 4).max(axis=1) ** 2).sum()

    best = min(cost([*first, *(set(range(8)) - set(first))]) for first in itertools.combinations(range(8), 4))
    assert cost(sorted_order(scores)) == pytest.approx(best, rel=1e-12)
    assert cost(pair_order(scores)) >= best


def test_pairs_stay_pairs():
    scores = np.random.default_rng(2).exponential(size=(3, 16))
    order = pair_order(scores)
    assert (order[:, 1::2] == order[:, ::2] + 8).all()
    weights = np.hypot(*np.split(scores, 2, axis=1))
    assert (np.diff(np.take_along_axis(weights, order[:, ::2], 1)) <= 0).all()
    assert (np.take_along_axis(order, inverse(order), 1) == np.arange(16)).all()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_the_weight_norm_is_that_of_the_rows(modules, kind):
    decoder = DecoderMap.of(modules[kind])
    block = decoder.blocks[1]
    rows = block.k.weight.detach().numpy().reshape(decoder.kv_heads, decoder.head_dim, -1)
    expected = np.sqrt((rows.astype(np.float64) ** 2).sum(-1))
    if block.k_norm is not None:
        scale = block.k_norm.weight.detach().numpy() + (1 if kind == "gemma3" else 0)
        expected = expected / expected.mean(axis=1, keepdims=True) * np.abs(scale)
    np.testing.assert_allclose(weight_norms(decoder, block), expected, rtol=1e-6)
    assert (k_sort(decoder).orders[1] == np.argsort(-expected, axis=1)).all()


def test_the_error_is_that_of_the_scores():
    """E over queries and tokens of the squared error of q·k, less its mean over tokens, by two loops."""
    from likely.compression.block_float.scores import HeadActivations

    rng = np.random.default_rng(3)
    keys, queries = rng.standard_normal((20, 2, 16)), rng.standard_normal((9, 2, 16))
    seen = HeadActivations(
        torch.from_numpy(keys.astype(np.float32)),
        torch.from_numpy((np.einsum("thi,thj->hij", queries, queries) / 9).astype(np.float32)),
    )
    order = np.stack([rng.permutation(16) for _ in range(2)])
    found = seen.error(order, BFPFormat(4, 8))
    for head in range(2):
        shuffled = torch.from_numpy(keys[:, head, order[head]].astype(np.float32))
        delta = (bfp_quantize(shuffled, BFPFormat(4, 8)).dequantize() - shuffled).numpy()
        errors = queries[:, head, order[head]] @ delta.T
        assert found[head] == pytest.approx(((errors - errors.mean(1, keepdims=True)) ** 2).mean(), rel=1e-4)


@pytest.mark.parametrize("score", ["best", "rms", "absmax", "std", "std/query"])
def test_scores_of_cached_keys(modules, score):
    module = modules["llama"]
    decoder = DecoderMap.of(module)
    data = CalibrationSet(IDS, "t", "t")
    fmt = BFPFormat(4, 4)
    sort = k_sort(decoder, score=score, calibration=data, fmt=fmt)
    seen = activations(decoder, IDS)
    assert len(sort.orders) == 2 and sort.layout == "table"
    if score == "best":
        for block, layer, order in zip(decoder.blocks, seen, sort.orders, strict=True):
            none = np.tile(np.arange(8), (2, 1))
            others = [none, sorted_order(weight_norms(decoder, block)), sorted_order(layer.std())]
            assert all((layer.error(order, fmt) <= layer.error(other, fmt)).all() for other in others)
    elif score == "rms":
        rms = np.sqrt((seen[0].keys.numpy().astype(np.float64) ** 2).mean(0))
        assert (np.diff(np.take_along_axis(rms, sort.orders[0], 1)) <= 0).all()
    assert logits(module).isfinite().all()  # it was not changed
    with pytest.raises(ValueError, match="calibration set"):
        k_sort(decoder, score=score)


def test_outliers_are_confined_by_the_sort():
    """A block's worth of channels is 50 times as large: in order they spoil every block, sorted only one."""
    module = module_of(transformers.LlamaConfig(**{**SMALL, "hidden_size": 128}, num_key_value_heads=2))
    decoder = DecoderMap.of(module)
    with torch.no_grad():
        for block in decoder.blocks:
            block.k.weight[torch.arange(0, 64, 4)] *= 50
    [seen, *_] = activations(decoder, IDS)
    order = k_sort(decoder).orders[0]
    none = np.tile(np.arange(32), (2, 1))
    at = torch.from_numpy(order)[None].expand(seen.keys.shape)

    def small_error(keys):
        delta = (bfp_quantize(keys, BFPFormat(4, 8)).dequantize() - keys).abs()
        return float(delta.median())

    assert small_error(seen.keys.gather(-1, at)) < 0.2 * small_error(seen.keys)
    assert (seen.error(order, BFPFormat(4, 8)) != seen.error(none, BFPFormat(4, 8))).all()


def test_what_is_refused(modules):
    module = copy.deepcopy(modules["llama"])
    decoder = DecoderMap.of(module)
    orders = random_orders(decoder)
    for wrong, words in (
        (orders[:1], "1 layers do not fit 2"),
        ([orders[0][:, :4], orders[1]], "does not fit 2 heads of 8"),
        ([orders[0], np.zeros((2, 8), int)], "each of 8 channels once"),
        ([orders[0], orders[1].astype(float)], "each of 8 channels once"),
    ):
        for rewrite in (KSort, VSort):
            with pytest.raises(ValueError, match=words):
                rewrite(wrong).apply(decoder)
    KSort(orders).apply(decoder)
    with pytest.raises(CapabilityError, match="sorted before"):
        KSort(orders).apply(decoder)
    with pytest.raises((ValueError, LikelyError), match="score"):
        k_sort(decoder, score="norm")
    with pytest.raises(ValueError, match="even"):
        pair_order(np.ones(5))
    with pytest.raises(ValueError, match="halves"):
        pair_order(np.ones(4), rope="half")
    module.config.rope_parameters = {"rope_type": "default", "partial_rotary_factor": 0.5}
    with pytest.raises(CapabilityError, match="50% of 8 channels"):
        KSort(orders).apply(decoder)
