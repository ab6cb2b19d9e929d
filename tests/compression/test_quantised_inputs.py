"""Rounded activations: per token, per tensor, per channel; integer products give the simulated numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_decoders import calibration, random_decoder, windows

from likely.compression.architecture import DecoderMap
from likely.compression.quantisers.activations import QuantLinear, exact_inputs, quantize_inputs, to_codes
from likely.compression.quantized import round_to_nearest
from likely.compression.schemes import QuantScheme, parse_scheme
from likely.compression.transforms.scaling import logits_of
from likely.errors import CapabilityError
from likely.runtimes.protocol import Want, Work

ROWS = QuantScheme(bits=8, group_size=None, symmetric=True, restricted=True)


def linear(width=24, out=10, bias=True, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(width, out, bias=bias).requires_grad_(False)


def test_codes_are_rounded_to_even_and_clamped():
    x = torch.tensor([0.5, 1.5, -2.5, 9.0, -9.0])
    assert to_codes(x, 1.0, 4).tolist() == [0, 2, -2, 7, -8]


def test_a_token_has_its_own_scale():
    """Scaling one token scales its output, and leaves the others alone."""
    module = QuantLinear(linear(bias=False), 4)
    x = torch.randn(3, 24)
    y = module(x)
    x[1] *= 8
    again = module(x)
    torch.testing.assert_close(again[1], 8 * y[1])
    torch.testing.assert_close(again[[0, 2]], y[[0, 2]])


@pytest.mark.parametrize("scale", [None, 0.05])
@pytest.mark.parametrize("bias", [False, True])
def test_integer_products_equal_simulated_ones(scale, bias):
    plain = linear(bias=bias)
    tensor = round_to_nearest(plain.weight.numpy(), ROWS)
    plain.weight.copy_(torch.from_numpy(tensor.dequantize()))
    module = QuantLinear(plain, 8, scale)
    x = torch.randn(2, 5, 24)
    simulated = module(x)
    module.use_integers(tensor)
    torch.testing.assert_close(module(x), simulated, rtol=1e-5, atol=1e-5)
    assert module.backend == "int8" and "int8" in repr(module)
    sums = to_codes(x.reshape(10, 24), 0.05, 8).numpy().astype(np.int64) @ tensor.codes.astype(np.int64).T
    found = torch._int_mm(
        to_codes(x.reshape(10, 24), 0.05, 8).to(torch.int8), torch.from_numpy(tensor.codes).to(torch.int8).T
    )
    assert np.array_equal(found.numpy(), sums)


def test_what_integer_kernels_cannot_do_is_refused():
    plain = linear()
    weights = plain.weight.numpy()
    with pytest.raises(CapabilityError, match="each row"):
        QuantLinear(plain, 8).use_integers(round_to_nearest(weights, parse_scheme("w8g8")))
    with pytest.raises(CapabilityError, match="each input channel"):
        QuantLinear(plain, 8, torch.ones(24)).use_integers(round_to_nearest(weights, ROWS))


def test_static_scales_cover_the_calibration_set_and_no_more():
    decoder, data = random_decoder(), calibration()
    largest = {}
    hooks = [
        x.register_forward_pre_hook(
            lambda _, args, key=(b.number, p): largest.update({key: float(args[0].abs().max())})
        )
        for _, b, p, x in decoder.linears()
    ]
    logits_of(decoder.module, data.input_ids)
    for hook in hooks:
        hook.remove()
    quantize_inputs(decoder, parse_scheme("w8a8-static"), data)
    for _, block, part, module in DecoderMap.of(decoder.module).linears():
        close = 1e-5 if (block.number, part) == (0, "q") else 0.05  # later inputs are those of rounded ones
        assert float(module.scale) * 127 == pytest.approx(largest[block.number, part], rel=close)


def test_eight_bits_change_little_and_three_much():
    before = logits_of(random_decoder().module, windows())
    found = []
    for bits in (8, 3):
        decoder = random_decoder()
        quantize_inputs(decoder, QuantScheme(8, None, symmetric=True, activation_bits=bits))
        found.append(float((logits_of(decoder.module, windows()) - before).abs().mean() / before.abs().mean()))
    assert found[0] < 0.03 < 0.2 < found[1]


def test_static_scales_need_a_set():
    with pytest.raises(ValueError, match="calibration"):
        quantize_inputs(random_decoder(), parse_scheme("w8a8-static"))


def test_a_runtimes_checks_of_form_see_unrounded_inputs_and_its_rows_rounded_ones(tmp_path):
    """Rounding has steps, so that rows with other companions may differ by far more than floats do."""
    from tiny_gguf import write_tiny_llama

    from likely.compression.methods import compress

    made = compress(write_tiny_llama(tmp_path / "tiny.gguf"), scheme="w8a2")
    inputs, seen = windows(1, 12), []
    with exact_inputs(made.module):
        plain = logits_of(made.module, inputs)
    assert not torch.equal(logits_of(made.module, inputs), plain)
    linears = [part for part in made.module.modules() if isinstance(part, QuantLinear)]
    hooks = [part.register_forward_hook(lambda m, *_: seen.append(m.exact)) for part in linears]
    runtime = made.runtime
    for hook in hooks:
        hook.remove()
    assert seen and all(seen) and not any(part.exact for part in linears) and runtime.cached
    sequence = runtime.open()
    [output] = runtime.forward([Work(sequence, inputs[0], want=Want.ALL)])
    rounded = logits_of(made.module, inputs)[0].numpy()
    assert np.abs(output.logits - rounded).max() < np.abs(output.logits - plain[0].numpy()).max() / 2
