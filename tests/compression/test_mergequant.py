"""MergeQuant: folding and splitting are exact, integers give the simulated numbers, and each part earns its place."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from random_decoders import FAMILIES, calibration, random_decoder, windows

from likely.compression.architecture import DecoderMap
from likely.compression.calibration_set import CalibrationSet
from likely.compression.mergequant.merged import (
    SplitColumns,
    Steps,
    clip_channels,
    clip_layer,
    drop_columns,
    fit_steps,
    round_merged,
    split_columns,
    split_integers,
)
from likely.compression.mergequant.method import MergeQuant, QuantRMSNorm, run_mergequant, unfold, use_integer_products
from likely.compression.quantisers.activations import to_codes
from likely.compression.quantized import round_to_nearest
from likely.compression.schemes import parse_scheme
from likely.compression.settings import MethodSettings
from likely.compression.statistics import ActivationStats
from likely.compression.transforms.scaling import logits_of
from likely.errors import ModelError

RTN = MergeQuant(clip=False, reconstruct=None, rounding="rtn")


@pytest.mark.parametrize("m", range(1, 10))
def test_shares_of_an_integer_add_up_to_it(m):
    codes = np.arange(-60, 61)
    split = split_integers(codes[:, None], SplitColumns(np.array([m])))
    assert split.shape == (121, m) and np.array_equal(split.sum(1), codes)
    assert (split.max(1) - split.min(1) <= 1).all()
    assert (np.abs(split).max(1) <= -(-np.abs(codes) // m)).all()  # r within m Qmax: every share within Qmax


def test_a_split_matrix_multiplies_as_the_whole_one():
    rng = np.random.default_rng(0)
    codes, x = rng.integers(-200, 200, (5, 6)), rng.integers(-8, 8, (9, 6))
    columns = SplitColumns(np.array([1, 4, 1, 1, 3, 1]), padding=5)
    assert np.array_equal(x[:, columns.index] @ split_integers(codes, columns).T, x @ codes.T)


def test_large_steps_are_split_and_growth_is_bounded():
    steps = np.ones(100)
    steps[7], steps[9] = 11.0, 2.0
    columns = split_columns(steps, growth=0.5)
    assert columns.copies[7] == 6 and columns.copies.sum() == 105 and columns.padding == 23
    assert (np.delete(columns.copies, 7) == 1).all()
    assert split_columns(np.ones(64)).unchanged
    wild = split_columns(np.exp(3 * np.random.default_rng(0).standard_normal(200)), growth=0.1)
    assert 200 < wild.copies.sum() <= 220
    kept = drop_columns(columns, np.arange(100.0))
    assert kept.copies.sum() == 100 and not kept.copies[:5].any() and kept.copies[7] == 6
    with pytest.raises(ValueError, match="growth"):
        split_columns(steps, growth=-1)


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_changes_nothing_before_rounding(name):
    """Norms divided by their steps, and matrices times them: the exact half of the method."""
    decoder = random_decoder(name)
    before = logits_of(decoder.module, windows(2, 16))
    stats = ActivationStats.collect(decoder, windows(2, 16))
    for block in decoder.blocks:
        for what, norm, readers in (
            ("attention", block.input_norm, (block.q, block.k, block.v)),
            ("mlp", block.mlp_norm, (block.gate, block.up)),
        ):
            steps = torch.from_numpy(stats.all(block.number, what).absmax).float() / 127
            decoder.set_norm_scale(norm, decoder.norm_scale(norm) / steps)
            for linear in readers:
                linear.weight *= steps
    torch.testing.assert_close(logits_of(decoder.module, windows(2, 16)), before, rtol=1e-4, atol=1e-4)


def test_the_norm_emits_the_codes_of_its_output():
    decoder = random_decoder()
    norm = decoder.blocks[0].input_norm.double()
    x = torch.randn(40, 32, dtype=torch.float64)
    y = norm(x)
    steps = fit_steps(y, 4)
    decoder.set_norm_scale(norm, decoder.norm_scale(norm) / steps)
    torch.testing.assert_close(norm(x), y / steps, rtol=1e-12, atol=0)
    found = QuantRMSNorm(norm, 4, torch.tensor([3, 3, 0]))(x)
    assert torch.equal(found, to_codes(y / steps, 1.0, 4)[:, [3, 3, 0]])


@pytest.mark.parametrize("other_inputs", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_integer_products_give_the_simulated_logits(name, other_inputs):
    decoder = random_decoder(name)
    codes = MergeQuant(8, 8, other_inputs=other_inputs).fit(decoder, calibration())
    simulated = logits_of(decoder.module, windows(2, 16))
    decoder = DecoderMap.of(decoder.module)
    use_integer_products(decoder, codes)
    assert all(linear.backend == "int8" for _, _, _, linear in decoder.linears())
    found = logits_of(decoder.module, windows(2, 16))
    assert float((found - simulated).abs().max() / simulated.abs().max()) < 2e-5


@pytest.mark.parametrize("other_inputs", ["dynamic", "static", "float"])
@pytest.mark.parametrize("name", FAMILIES)
def test_eight_bits_keep_the_distribution(name, other_inputs):
    before = logits_of(random_decoder(name).module, windows())
    decoder = random_decoder(name)
    MergeQuant(8, 8, other_inputs=other_inputs).fit(decoder, calibration())
    assert divergence(before, logits_of(decoder.module, windows())) < (
        0.1 if other_inputs == "static" else 0.02  # steps of down's inputs differ much, and its columns are not split
    )


@pytest.mark.parametrize("other_inputs", ["dynamic", "static"])
@pytest.mark.parametrize("name", FAMILIES)
def test_unfolded_it_is_the_same_model_but_for_the_rounding_of_activations(name, other_inputs, monkeypatch):
    decoder = random_decoder(name)
    original = copy.deepcopy(decoder.module)
    MergeQuant(4, 8, other_inputs=other_inputs).fit(decoder, calibration())
    before = logits_of(original, windows(2, 16))
    plain = logits_of(unfold(decoder.module, original), windows(2, 16))
    for place in ("mergequant.method", "quantisers.activations"):
        monkeypatch.setattr(f"likely.compression.{place}.to_codes", lambda inputs, scale, bits: inputs / scale)
    torch.testing.assert_close(plain, logits_of(decoder.module, windows(2, 16)), rtol=1e-4, atol=1e-4)
    assert float((plain - before).abs().max()) > 1e-2  # of weights in 4 bits


def divergence(before, after):
    p, q = torch.log_softmax(before.double(), -1), torch.log_softmax(after.double(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_sixteen_bits_lose_nothing():
    """The parts of the method at a number of bits that no scheme has."""
    torch.manual_seed(0)
    y, w = torch.randn(200, 24, dtype=torch.float64), torch.randn(10, 24, dtype=torch.float64)
    steps = Steps(fit_steps(y, 16))
    integers, scales = round_merged(w, steps, torch.ones(24), 16)
    found = to_codes(y, steps.values, 16) @ (integers * scales).T
    assert divergence(y @ w.T, found) < 1e-6


def test_equal_steps_are_one_static_scale():
    """Static quantisation per tensor: the plain weights' codes, and one number taken out of the product."""
    torch.manual_seed(0)
    w, step = torch.randn(10, 24), 0.25
    merged, merged_scales = round_merged(w, Steps(torch.full((24,), step)), torch.ones(24), 8)
    plain, scales = round_merged(w, Steps(torch.ones(24)), torch.ones(24), 8)
    assert torch.equal(merged, plain) and torch.equal(merged_scales, step * scales)


def outlier_layer(seed=0):
    rng = torch.Generator().manual_seed(seed)
    y, w = torch.randn(400, 64, generator=rng), torch.randn(48, 64, generator=rng)
    y[:, 5] *= 100
    w[:, 5] /= 100
    return y, w


def test_the_order_with_one_outlier_channel():
    """One static scale, far worse than merged steps, these worse than split ones, those near the unfolded bound."""
    y, w = outlier_layer()
    wanted, bits = y @ w.T, 4

    def error(outputs):
        return float((outputs - wanted).square().mean() / wanted.square().mean())

    rounded = torch.from_numpy(round_to_nearest(w.numpy(), parse_scheme("w4-sym")).dequantize())
    tensor = y.abs().max() / 7
    one_scale = error((to_codes(y, tensor, bits) * tensor) @ rounded.T)
    steps = fit_steps(y, bits)
    bound = error((to_codes(y, steps, bits) * steps) @ w.T)
    w[:, 5] *= 30  # the merged column is now larger than the others
    wanted = y @ w.T
    codes, found = to_codes(y, steps, bits), {}
    for label, copies in (
        ("merged", torch.ones(64)),
        ("split", torch.from_numpy(split_columns(steps.numpy(), growth=2).copies)),
    ):
        integers, scales = round_merged(w, Steps(steps), copies.float(), bits)
        found[label] = error(codes @ (integers * scales).T)
    unfolded = error((codes * steps) @ w.T)
    assert one_scale > 10 * bound
    assert found["merged"] > 2 * found["split"] > found["split"] >= unfolded


def test_clipping_never_raises_the_error_that_it_minimises():
    y, w = outlier_layer(1)
    y = y * torch.exp(0.5 * torch.randn(400, 1, generator=torch.Generator().manual_seed(2)))  # long tails
    steps = fit_steps(y, 4)
    clipped = clip_channels(y, steps, 4)

    def channel_error(s):
        return (to_codes(y, s, 4) * s - y).square().sum(0)

    assert (channel_error(clipped) <= channel_error(steps) + 1e-6).all() and (clipped < steps).any()

    def output_error(found):
        integers, scales = round_merged(w, found, torch.ones(64), 4)
        return float((to_codes(y, found.values, 4) @ (integers * scales).T - y @ w.T).square().sum())

    best = clip_layer(y, w, steps, torch.ones(64), 4, 4)
    assert output_error(best) <= output_error(Steps(steps))


def test_gptq_on_codes_loses_less_than_rounding_to_nearest():
    before, data = logits_of(random_decoder().module, windows()), calibration(16)
    lost = {}
    for rounding in ("rtn", "gptq"):
        decoder = random_decoder()
        MergeQuant(3, 8, rounding=rounding, reconstruct=None, clip=False).fit(decoder, data)
        lost[rounding] = divergence(before, logits_of(decoder.module, windows()))
    assert lost["gptq"] < lost["rtn"]


@pytest.mark.parametrize("reconstruct", ["split", "split+prune"])
def test_reconstructed_matrices_read_split_channels(reconstruct):
    decoder, data = random_decoder(), calibration()
    for block in decoder.blocks:
        scale = decoder.norm_scale(block.input_norm).clone()
        scale[4] *= 30
        decoder.set_norm_scale(block.input_norm, scale)
    codes = MergeQuant(8, 8, reconstruct=reconstruct).fit(decoder, data)
    block = DecoderMap.of(decoder.module).blocks[0]
    index = block.input_norm.index
    assert (index == 4).sum() > 1
    width = 64 if reconstruct == "split" else 32  # 32, at most 3 more, in whole 32s
    assert block.q.weight.shape[1] == len(index) == width == codes["model.layers.0.self_attn.q_proj.weight"].shape[1]
    assert logits_of(decoder.module, windows()).isfinite().all()


def test_logits_do_not_depend_on_the_batch():
    decoder, ids = random_decoder(), windows(4, 12)
    MergeQuant(8, 8, other_inputs="static").fit(decoder, calibration())
    together = logits_of(decoder.module, ids)
    for number, row in enumerate(ids):
        torch.testing.assert_close(logits_of(decoder.module, row[None])[0], together[number], rtol=1e-4, atol=1e-4)
    beginning = logits_of(decoder.module, ids[:, :5])
    torch.testing.assert_close(beginning, together[:, :5], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(ValueError, match="a_bits"):
        MergeQuant(4, 9)
    decoder = random_decoder()
    with pytest.raises(ValueError, match="128 calibration tokens"):
        RTN.fit(decoder, calibration(2, 8))
    with pytest.raises(ValueError, match="128 calibration tokens"):
        RTN.fit(decoder, CalibrationSet(np.empty((0, 8), np.int64), "empty", "nothing"))
    RTN.fit(decoder, calibration())
    with pytest.raises(ModelError, match="already"):
        RTN.fit(DecoderMap.of(decoder.module), calibration())
    for scheme in ("w4g16", "w4a4g16"):
        with pytest.raises(ValueError, match="w4a4"):
            run_mergequant(random_decoder(), MethodSettings(parse_scheme(scheme), calibration()))


def test_a_channel_that_never_fires_gets_the_median_step():
    y = torch.randn(50, 5)
    y[:, 2] = 0
    steps = fit_steps(y, 8)
    assert steps[2] == steps[[0, 1, 3, 4]].median() and (fit_steps(torch.zeros(3, 4), 8) == 1).all()
