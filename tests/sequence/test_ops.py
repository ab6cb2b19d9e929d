"""Kernels against their definitions step by step: values, states, gradients, chunk sizes, bad input."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from likely.sequence.ops import (
    causal_conv1d,
    conv_by_steps,
    fft_conv,
    linear_attention,
    linear_attention_by_steps,
    linear_scan,
    scan_by_steps,
    selective_scan,
    ssd,
    ssd_by_steps,
    vandermonde,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def agree(found, expected, tolerance=1e-10):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200, 257])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_scan_equals_the_loop(length, dtype):
    a, b, h0 = (
        normal(2, length, 3, dtype=dtype) * 0.7,
        normal(2, length, 3, seed=1, dtype=dtype),
        normal(2, 3, dtype=dtype),
    )
    agree(linear_scan(a, b, h0), scan_by_steps(a, b, h0))
    agree(linear_scan(a[:1, :1], b), scan_by_steps(a[:1, :1], b))
    flipped, last = linear_scan(a, b, h0, reverse=True)
    expected, last_ = scan_by_steps(a.flip(1), b.flip(1), h0)
    agree((flipped.flip(1), last), (expected, last_))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("length", [1, 7, 70])
def test_gradients_of_the_scan(length, dtype):
    arguments = [
        normal(1, length, 2, dtype=dtype) * 0.8,
        normal(2, length, 2, seed=1, dtype=dtype),
        normal(2, 2, dtype=dtype),
    ]
    arguments = [t.requires_grad_() for t in arguments]
    assert gradcheck(linear_scan, arguments, fast_mode=length > 10)
    assert gradcheck(lambda a, b: linear_scan(a[:, :1], b, reverse=True), arguments[:2], fast_mode=length > 10)


def test_a_real_decay_of_complex_states_has_a_real_gradient():
    a, b = normal(1, 5, 2).requires_grad_(), normal(2, 5, 2, dtype=torch.complex128).requires_grad_()
    assert gradcheck(linear_scan, (a, b))


def ssd_inputs(length=23, heads=4, groups=2):
    x, B, C = normal(2, length, heads, 3), normal(2, length, groups, 5, seed=1), normal(2, length, groups, 5, seed=2)
    return x, -normal(2, length, heads, seed=3).abs(), B, C, normal(2, heads, 3, 5, seed=4)


@pytest.mark.parametrize("chunk", [1, 7, 64, 23])
def test_ssd_equals_the_loop_whatever_the_chunk(chunk):
    x, log_a, B, C, h0 = ssd_inputs()
    agree(ssd(x, log_a, B, C, h0=h0, chunk=chunk), ssd_by_steps(x, log_a, B, C, h0=h0))
    agree(ssd(x, log_a, B, C, chunk=chunk), ssd_by_steps(x, log_a, B, C))


@pytest.mark.parametrize("least", [-50.0, -1e4, -1e6])
@pytest.mark.parametrize("kind", ["ssd", "delta", "per key"])
def test_steep_decays_beside_flat_ones_keep_single_precision(kind, least):
    """Sums of log-decays over a chunk reach many nats, of which single precision has few digits behind the point."""
    steep = torch.rand(2, 70, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    decay = torch.where(steep, least, -0.01).double()
    q, k, v = (
        normal(2, 70, 3, 5),
        torch.nn.functional.normalize(normal(2, 70, 3, 5, seed=1), dim=-1),
        normal(2, 70, 3, 6),
    )
    more = {"log_decay": decay if kind == "per key" else decay[..., 0]}
    if kind == "delta":
        more["beta"] = normal(2, 70, 3, seed=2).sigmoid()
    found = linear_attention(*(t.float() for t in (q, k, v)), **{name: t.float() for name, t in more.items()})
    for single, exact in zip(found, linear_attention_by_steps(q, k, v, **more), strict=True):
        assert float((single - exact).abs().max() / exact.abs().max()) < 5e-6


def test_ssd_equals_the_scan_over_outer_products():
    x, log_a, B, C, h0 = ssd_inputs(groups=4)
    states, last = linear_scan(log_a.exp()[..., None, None], x[..., None] * B[..., None, :], h0)
    agree(ssd(x, log_a, B, C, h0=h0, chunk=8), ((states @ C[..., None])[..., 0], last))


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_ssd_forgets_at_documents_and_at_minus_infinity(chunk):
    x, log_a, B, C, h0 = ssd_inputs(11)
    ids = torch.tensor([[0] * 4 + [1] * 1 + [2] * 6, [5] * 11])
    log_a.requires_grad_()
    y, last = ssd(x, log_a, B, C, h0=h0, chunk=chunk, seq_idx=ids)
    for part, start in ((slice(0, 4), h0[:1]), (slice(4, 5), None), (slice(5, 11), None)):
        inner = [t[:1, part] for t in (x, log_a, B, C)]
        expected, state = ssd_by_steps(*inner, h0=start)
        agree([y[:1, part]], [expected])
    agree([last[:1]], [state])
    agree([y[1:]], [ssd_by_steps(x[1:], log_a[1:], B[1:], C[1:], h0=h0[1:])[0]])
    (gradient,) = torch.autograd.grad(y.sum(), log_a)
    assert bool(gradient.isfinite().all())


def attention_inputs(length=37, key=4, value=3):
    q, k, v = normal(2, length, 2, key), normal(2, length, 2, key, seed=1), normal(2, length, 2, value, seed=2)
    k = k / k.norm(dim=-1, keepdim=True)
    return q, k, v, normal(2, 2, key, value, seed=5)


DECAYS = {
    "none": None,
    "per head": -normal(2, 37, 2, seed=3).abs(),
    "per key": -normal(2, 37, 2, 4, seed=4).abs(),
    "steep, per key": -30 * normal(2, 37, 2, 4, seed=4).abs(),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("with_state", [False, True])
def test_linear_attention_equals_the_loop(decay, with_state):
    q, k, v, h0 = attention_inputs()
    h0 = h0 if with_state else None
    found = linear_attention(q, k, v, log_decay=DECAYS[decay], h0=h0, chunk=8)
    agree(found, linear_attention_by_steps(q, k, v, log_decay=DECAYS[decay], h0=h0), 1e-9)


def test_plain_linear_attention_equals_the_masked_product():
    q, k, v, _ = attention_inputs()
    scores = torch.einsum("bihk,bjhk->bhij", q, k).tril()
    agree([linear_attention(q, k, v)[0]], [torch.einsum("bhij,bjhv->bihv", scores, v)])


@pytest.mark.parametrize("chunk", [1, 7, 37, 64])
@pytest.mark.parametrize("decay", ["none", "per head"])
def test_the_delta_rule_equals_the_loop_whatever_the_chunk(chunk, decay):
    q, k, v, h0 = attention_inputs()
    beta = torch.sigmoid(normal(2, 37, 2, seed=6)) * 2
    found = linear_attention(q, k, v, log_decay=DECAYS[decay], beta=beta, h0=h0, chunk=chunk)
    agree(found, linear_attention_by_steps(q, k, v, log_decay=DECAYS[decay], beta=beta, h0=h0), 1e-9)


@pytest.mark.parametrize("kind", ["per head", "per key", "delta"])
def test_minus_infinity_forgets(kind):
    q, k, v, h0 = attention_inputs()
    decay = (DECAYS["per key" if kind == "per key" else "per head"]).clone()
    decay[:, [3, 20, 21]] = -torch.inf
    beta = torch.sigmoid(normal(2, 37, 2, seed=6)) if kind == "delta" else None
    decay.requires_grad_()
    y, last = linear_attention(q, k, v, log_decay=decay, beta=beta, h0=h0, chunk=8)
    agree((y, last), linear_attention_by_steps(q, k, v, log_decay=decay, beta=beta, h0=h0), 1e-9)
    (gradient,) = torch.autograd.grad(y.sum(), decay)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("kind", ["scalar", "per key", "delta"])
def test_gradients_of_chunked_kernels(kind):
    q, k, v, h0 = (t[:1].requires_grad_() for t in attention_inputs(6))
    decay = (DECAYS["per key" if kind == "per key" else "per head"])[:1, :6].clone().requires_grad_()
    beta = torch.sigmoid(normal(1, 6, 2, seed=6)).requires_grad_()

    def run(q, k, v, decay, h0, beta):
        return linear_attention(q, k, v, log_decay=decay, beta=beta if kind == "delta" else None, h0=h0, chunk=4)

    assert gradcheck(run, (q, k, v, decay, h0, beta), fast_mode=True)


def test_the_selective_scan_equals_its_definition_and_does_not_depend_on_segments():
    u, delta, A = normal(2, 19, 3), normal(2, 19, 3, seed=1).abs(), -normal(3, 4, seed=2).abs()
    B, C, h0 = normal(2, 19, 4, seed=3), normal(2, 19, 4, seed=4), normal(2, 3, 4, seed=5)
    h, outputs = h0, []
    for t in range(19):
        h = (delta[:, t, :, None] * A).exp() * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1))
    given = [t.clone().requires_grad_() for t in (u, delta, A, B, C)]
    gradients = []
    for segment in (256, 5):
        y, last = selective_scan(*given, h0=h0, segment=segment)
        agree((y, last), (torch.stack(outputs, 1), h))
        gradients.append(torch.autograd.grad(y.square().sum(), given))
    agree(*gradients)


def test_constant_steps_make_the_selective_scan_a_diagonal_convolution():
    u, A = normal(1, 40, 3), -normal(3, 4).abs()
    step, B, C = 0.1, normal(4, seed=1), normal(4, seed=2)
    y, _ = selective_scan(u, torch.full_like(u, step), A, B.expand(1, 40, 4), C.expand(1, 40, 4))
    agree([y], [fft_conv(u, vandermonde(step * (B * C).expand(3, 4), step * A, 40))])


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_fft_convolution_equals_the_double_loop(length):
    u, kernel, D = normal(2, length, 3), normal(3, 20, seed=1), normal(3)
    agree([fft_conv(u, kernel), fft_conv(u, kernel, D)], [conv_by_steps(u, kernel), conv_by_steps(u, kernel) + D * u])


def test_vandermonde_in_pieces_is_the_sum(monkeypatch):
    v, log_w = normal(3, 2, dtype=torch.complex128), -0.1 * normal(3, 2, dtype=torch.complex128).abs() + 0.3j
    steps = torch.arange(50)
    expected = 2 * (v[..., None] * torch.exp(log_w[..., None] * steps)).sum(1).real
    agree([vandermonde(v, log_w, 50)], [expected])
    monkeypatch.setattr("likely.sequence.ops.conv.ELEMENTS", 40)
    agree([vandermonde(v, log_w, 50)], [expected])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_short_convolutions_continue_stop_and_start_again(width):
    x, w, bias = normal(2, 9, 3), normal(3, width, seed=1), normal(3, seed=2)
    whole, window = causal_conv1d(x, w, bias)
    agree([whole], [conv_by_steps(x, w.flip(1)) + bias])
    first, state = causal_conv1d(x[:, :4], w, bias)
    outputs = [first]
    for t in range(4, 9):
        y, state = causal_conv1d(x[:, t : t + 1], w, bias, state)
        outputs.append(y)
    agree([torch.cat(outputs, 1), state], [whole, window])
    _, short = causal_conv1d(x, w, bias, lengths=torch.tensor([1, 7]))
    agree([short[1]], [causal_conv1d(x[1:, :7], w, bias)[1][0]])
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 6] = True
    y, after = causal_conv1d(x, w, bias, starts=starts)
    alone, alone_after = causal_conv1d(x[:1, 6:], w, bias)
    agree(
        [y[:1, 6:], y[:1, :6], y[1:], after[:1], after[1:]], [alone, whole[:1, :6], whole[1:], alone_after, window[1:]]
    )


def test_shapes_that_do_not_fit_are_refused():
    x, log_a, B, C, _ = ssd_inputs()
    q, k, v, _ = attention_inputs()
    for call in (
        lambda: linear_scan(normal(2, 3, 1), normal(2, 4, 1)),
        lambda: linear_scan(normal(2, 3), normal(2, 3, 1)),
        lambda: linear_scan(normal(2, 3, 2), normal(2, 3, 1)),
        lambda: linear_scan(normal(2, 4, 1), normal(2, 4, 1), normal(2, 2)),
        lambda: ssd(x, log_a[..., :1], B, C),
        lambda: ssd(x, log_a, B[:, :, :1].expand(-1, -1, 3, -1), C[:, :, :1].expand(-1, -1, 3, -1)),
        lambda: linear_attention(q, k[:, :1], v),
        lambda: linear_attention(q, k, v, log_decay=normal(2, 37)),
        lambda: linear_attention(q, k, v, log_decay=DECAYS["per key"], beta=normal(2, 37, 2)),
        lambda: causal_conv1d(normal(1, 3, 2), normal(3, 4)),
    ):
        with pytest.raises(ValueError, match=r"must|takes"):
            call()
