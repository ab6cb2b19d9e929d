"""AWQ's and SmoothQuant's scales: never worse than rounding to nearest, and balanced as the formulas say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_decoders import calibration, random_decoder

from likely.compression.architecture import DecoderMap
from likely.compression.quantisers.activations import quantize_inputs
from likely.compression.quantisers.awq import ALPHAS, awq_scale, search_clip, search_scale
from likely.compression.quantisers.gptq import output_error
from likely.compression.quantisers.rewritten import run_smoothquant, smoothing_scale
from likely.compression.quantisers.walk import BlockWalk, second_moment
from likely.compression.quantized import fit_grid, round_to_grid, round_to_nearest
from likely.compression.schemes import parse_scheme
from likely.compression.settings import MethodSettings

SCHEME = parse_scheme("w3g16")


def layer(seed=0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((400, 32)) * np.exp(1.5 * rng.standard_normal(32))).float()
    return rng.standard_normal((24, 32)).astype(np.float32), x


def test_no_scaling_is_one_of_the_choices():
    weights, x = layer()
    assert ALPHAS[0] == 0 and torch.equal(awq_scale(x.abs().mean(0), 0.0), torch.ones(32))
    h = second_moment(x)
    scale, error = search_scale([weights], x.abs().mean(0), h, SCHEME)
    assert error < output_error(weights, round_to_nearest(weights, SCHEME).dequantize(), h)
    assert float(scale.max() * scale.min()) == pytest.approx(1, abs=1e-5)


def test_the_error_is_that_of_outputs_over_tokens():
    weights, x = layer()
    rounded = round_to_nearest(weights, SCHEME).dequantize()
    slow = float((x @ torch.from_numpy(rounded - weights).T).square().sum(1).mean())
    assert output_error(weights, rounded, second_moment(x)) == pytest.approx(2 * slow, rel=1e-4)


def test_clipping_is_chosen_by_the_error_of_each_group():
    weights, x = layer()
    weights[0, 3] = 9.0  # one weight stretches its group's grid
    x[:, 3] = 0.0  # and hardly matters
    h = second_moment(x)
    ratios = search_clip(weights, h, SCHEME)
    assert ratios.shape == (24, 2) and ratios[0, 0] < 1
    for row, group in ((0, 0), (5, 1)):
        part = slice(16 * group, 16 * group + 16)

        def error(ratio, row=row, part=part):
            w = weights[row : row + 1, part]
            moved = round_to_grid(w, fit_grid(w, SCHEME, ratio), SCHEME).dequantize() - w
            return float((x[:, part] @ torch.from_numpy(moved).T).square().mean())

        assert error(float(ratios[row, group])) <= min(error(r) for r in (1.0, 0.9, 0.75, 0.6)) * 1.0001


def test_smoothing_balances_activations_and_weights():
    weights, x = layer()
    w = torch.from_numpy(weights)
    scale = smoothing_scale(x.abs().amax(0), w, 0.5)
    torch.testing.assert_close((x / scale).abs().amax(0), (w * scale).abs().amax(0))
    torch.testing.assert_close(smoothing_scale(x.abs().amax(0), w, 1.0), x.abs().amax(0))
    with pytest.raises(ValueError, match="alpha"):
        smoothing_scale(x.abs().amax(0), w, 1.5)


def test_full_smoothing_never_saturates_on_its_own_set():
    """alpha = 1: every channel of what a norm feeds fills the same range."""
    decoder, data = random_decoder(), calibration()
    run_smoothquant(decoder, MethodSettings(parse_scheme("w8a8-static"), data, alpha=1.0))
    walk = BlockWalk(decoder, data.input_ids)
    scales = {}
    for stage in walk.stages(0):
        if len(stage.parts) > 1:
            largest = stage.inputs.abs().amax(0)
            torch.testing.assert_close(largest, torch.ones_like(largest), rtol=1e-4, atol=1e-4)
    quantize_inputs(decoder, parse_scheme("w8a8-static"), data)
    for _, block, part, linear in DecoderMap.of(decoder.module).linears():
        scales[block.number, part] = float(linear.scale)
    assert scales[0, "q"] == pytest.approx(1 / 127, rel=1e-4)


def test_smoothquant_needs_bits_for_activations():
    with pytest.raises(ValueError, match="w8a8"):
        run_smoothquant(random_decoder(), MethodSettings(parse_scheme("w4g16"), calibration()))
