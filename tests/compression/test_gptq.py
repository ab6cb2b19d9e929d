"""GPTQ: identities with rounding to nearest, the update by hand, less error on correlated inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from likely.compression.quantisers.gptq import inverse_factor, output_error, round_by_gptq, round_in_order
from likely.compression.quantisers.walk import second_moment
from likely.compression.quantized import round_to_nearest
from likely.compression.schemes import parse_scheme


def weights_and_moment(rows=12, width=48, tokens=300, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, width)) @ (np.eye(width) + 0.5 * rng.standard_normal((width, width)))
    return rng.standard_normal((rows, width)).astype(np.float32), second_moment(torch.from_numpy(mixed))


@pytest.mark.parametrize("scheme", ["w4g16", "w3g16-sym", "w4", "w4g24"])
@pytest.mark.parametrize("act_order", [False, True])
def test_white_inputs_give_rounding_to_nearest(scheme, act_order):
    weights, _ = weights_and_moment()
    parsed = parse_scheme(scheme)
    found = round_by_gptq(weights, 3.0 * torch.eye(48, dtype=torch.float64), parsed, act_order=act_order)
    nearest = round_to_nearest(weights, parsed)
    assert np.array_equal(found.codes, nearest.codes)
    np.testing.assert_array_equal(found.dequantize(), nearest.dequantize())


def test_the_second_column_makes_up_for_the_first():
    h = torch.tensor([[2.0, 1.2], [1.2, 1.5]], dtype=torch.float64)
    w = torch.tensor([[0.7, -0.4], [1.6, 0.3]], dtype=torch.float64)
    seen = []

    def round_column(j, values):
        seen.append(torch.from_numpy(values.copy()))
        return values.round()

    round_in_order(w, h, round_column, damping=0.0)
    torch.testing.assert_close(seen[1], w[:, 1] + (w[:, 0] - w[:, 0].round()) * h[0, 1] / h[1, 1])


def slow_gptq(w, h, step):
    """Each column by the inverse Hessian of those that are left, made anew (Frantar et al., eq. 2 and 3)."""
    w, h = w.clone(), h + 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    found = torch.empty_like(w)
    for j in range(w.shape[1]):
        inverse = torch.linalg.inv(h[j:, j:])
        found[:, j] = (w[:, j] / step).round() * step
        error = (w[:, j] - found[:, j]) / inverse[0, 0]
        w[:, j:] -= error[:, None] * inverse[0][None]
    return found


def test_it_equals_the_slow_form():
    weights, h = weights_and_moment()
    w = torch.from_numpy(weights).double()
    fast = round_in_order(w, h, lambda j, values: (values / 0.3).round() * 0.3, columns=7)
    torch.testing.assert_close(fast, slow_gptq(w, h, 0.3))


@pytest.mark.parametrize("act_order", [False, True])
def test_less_output_error_than_rounding_to_nearest(act_order):
    scheme = parse_scheme("w3g16")
    for seed in range(3):
        weights, h = weights_and_moment(seed=seed)
        ours = output_error(weights, round_by_gptq(weights, h, scheme, act_order=act_order).dequantize(), h)
        assert ours < 0.8 * output_error(weights, round_to_nearest(weights, scheme).dequantize(), h)


def test_inputs_that_never_fire_get_no_weight():
    weights, h = weights_and_moment()
    h[5], h[:, 5] = 0, 0
    assert not round_by_gptq(weights, h, parse_scheme("w4g16-sym")).codes[:, 5].any()


def test_damping_is_raised_and_then_gives_up():
    singular = torch.ones(4, 4)
    singular[0, 0] -= 1e-1  # needs more than 1 %
    assert inverse_factor(singular.double()).isfinite().all()
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_factor(-torch.eye(3))


def test_weights_that_are_no_numbers_are_refused():
    weights, h = weights_and_moment()
    weights[0, 0] = np.nan
    with pytest.raises(ValueError, match="q_proj"):
        round_by_gptq(weights, h, parse_scheme("w4g16"), name="q_proj")
