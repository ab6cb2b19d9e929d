"""Every rewrite leaves the logits as they are, on every family, and changes what it is meant to change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_decoders import FAMILIES, random_decoder, windows

from likely.compression.architecture import DecoderMap
from likely.compression.statistics import ActivationStats
from likely.compression.transforms import (
    fold_norms,
    hadamard_matrix,
    inject_outliers,
    permute_heads,
    permute_neurons,
    rotate_residual,
    rotate_values,
    rotation_matrix,
    scale_neurons,
    scale_norm,
    scale_values,
    split_channels,
    verify,
)
from likely.compression.transforms.residual import check_rotatable
from likely.compression.transforms.scaling import logits_of
from likely.errors import CapabilityError, ModelError

IDS = windows(2, 20)


def positive(width, seed=0):
    return torch.exp(torch.randn(width, generator=torch.Generator().manual_seed(seed)))


REWRITES = {
    "norm": lambda d, b: scale_norm(d, b.input_norm, (b.q, b.k, b.v), positive(32)),
    "neurons": lambda d, b: scale_neurons(b, positive(64)),
    "values": lambda d, b: scale_values(d, b, positive(d.kv_heads * d.head_dim)),
    "order of neurons": lambda d, b: permute_neurons(b, torch.randperm(64)),
    "order of heads": lambda d, b: permute_heads(d, b, torch.arange(d.kv_heads).flip(0)),
    "rotated values": lambda d, b: rotate_values(d, b, rotation_matrix(d.head_dim, 3)),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rewrite", REWRITES)
def test_logits_stay(name, rewrite):
    decoder = random_decoder(name)
    before = logits_of(decoder.module, IDS)
    weights = [p.clone() for p in decoder.module.parameters()]
    for block in decoder.blocks:
        REWRITES[rewrite](decoder, block)
    assert verify(before, decoder.module, IDS) < 1e-4
    changed = any(not torch.equal(a, b) for a, b in zip(weights, decoder.module.parameters(), strict=True))
    assert changed or (rewrite == "order of heads" and decoder.kv_heads == 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_can_be_folded_into_what_reads_them(name):
    decoder = random_decoder(name)
    before = logits_of(decoder.module, IDS)
    tied = decoder.tied
    decoder = fold_norms(decoder)
    assert verify(before, decoder.module, IDS) < 1e-4
    assert not decoder.tied and (not tied or decoder.head.weight is not decoder.embedding.weight)
    for block in decoder.blocks:
        torch.testing.assert_close(decoder.norm_scale(block.mlp_norm), torch.ones(32))


@pytest.mark.parametrize("name", FAMILIES[:3])
def test_the_residual_stream_can_be_rotated(name):
    decoder = random_decoder(name)
    before = logits_of(decoder.module, IDS)
    decoder = fold_norms(decoder)
    stream = decoder.embedding.weight.clone()
    rotation = rotation_matrix(32, 1)
    rotate_residual(decoder, rotation)
    assert verify(before, decoder.module, IDS) < 1e-4
    torch.testing.assert_close(decoder.embedding.weight, (stream.double() @ rotation).float())


def test_a_rotation_needs_folded_norms_and_no_norm_on_the_way():
    with pytest.raises(ValueError, match="fold_norms"):
        rotate_residual(random_decoder(), rotation_matrix(32))
    with pytest.raises(CapabilityError, match="Gemma3ForCausalLM has norms"):
        check_rotatable(random_decoder("gemma3"))


def test_a_rewrite_that_is_wrong_is_noticed():
    decoder = random_decoder()
    before = logits_of(decoder.module, IDS)
    decoder.blocks[0].up.weight *= 1.01
    with pytest.raises(ModelError, match="changed the logits"):
        verify(before, decoder.module, IDS)
    with pytest.raises(ValueError, match="an order of 64"):
        permute_neurons(decoder.blocks[0], torch.zeros(64, dtype=torch.long))


@pytest.mark.parametrize("where", ["norms", "keys", "neurons"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_injected_outliers_are_there_and_change_nothing(where, name):
    decoder = random_decoder(name)
    if name == "gemma3" and where == "keys":
        with pytest.raises(ModelError, match="normalised"):
            inject_outliers(decoder, channels=2, where=where)
        return
    before, calm = logits_of(decoder.module, IDS), ActivationStats.collect(decoder, IDS)
    found = inject_outliers(decoder, channels=2, beta=50, where=where, layers=[1])
    assert list(found) == [1] and len(found[1]) == 2
    assert verify(before, decoder.module, IDS) < 1e-4
    after = ActivationStats.collect(decoder, IDS)
    what = {"norms": "attention", "keys": "keys", "neurons": "down"}[where]
    ratio = after.all(1, what).absmax / calm.all(1, what).absmax
    picked = np.isin(np.arange(len(ratio)) % (decoder.head_dim // 2 if where == "keys" else len(ratio)), found[1])
    np.testing.assert_allclose(ratio[picked], 50, rtol=1e-3)
    np.testing.assert_allclose(ratio[~picked], 1, rtol=1e-3)
    assert after.all(1, what).kurtosis > calm.all(1, what).kurtosis + 1
    np.testing.assert_allclose(after.all(0, what).absmax, calm.all(0, what).absmax)


def test_the_same_seed_injects_the_same_outliers():
    first, again, other = (inject_outliers(random_decoder(), channels=3, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert any(not np.array_equal(first[n], other[n]) for n in first)


def test_split_channels_give_the_same_outputs():
    weights, x = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    split, index = split_channels(weights, torch.tensor([1, 3, 1, 2]))
    assert split.shape == (5, 7)
    torch.testing.assert_close(x[:, index] @ split.T, x @ weights.T)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 28, 36, 64, 576, 640, 1536])
def test_hadamard_matrices_are_orthogonal(order):
    found = hadamard_matrix(order).astype(np.float64)
    assert np.array_equal(found @ found.T, order * np.eye(order)) and set(np.unique(found)) <= {-1, 1}


@pytest.mark.parametrize("order", [9, 6, 52 * 2, 92, 576])
def test_rotations_are_orthogonal_of_any_order(order):
    found = rotation_matrix(order, seed=2)
    torch.testing.assert_close(found @ found.T, torch.eye(order, dtype=torch.float64))
    assert not torch.equal(found, rotation_matrix(order, seed=5))


def test_orders_without_a_construction_say_so():
    assert hadamard_matrix(6) is None and hadamard_matrix(7) is None
    with pytest.raises(ValueError, match="at least 1"):
        hadamard_matrix(0)


def test_the_map_after_untying_is_a_new_one():
    decoder = random_decoder("gemma3")
    assert DecoderMap.of(fold_norms(decoder).module).tied is False
