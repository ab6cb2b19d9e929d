"""Every layer against its definition, written again from its parameters without kernels, scans or transforms."""

from __future__ import annotations

import math

import mixer_laws as laws
import pytest
import torch
from torch.nn import functional as F

from likely.sequence import make_mixer
from likely.sequence.ops import conv_by_steps, linear_attention_by_steps

LENGTH = 21


def case(name, **changed):
    return laws.tiny(name, **changed), laws.tokens(2, LENGTH)


def complex_of(parameter):
    return torch.view_as_complex(parameter.double())


def glu_block(layer, y):
    return F.glu(layer.out_proj(F.gelu(y)), -1)


def heads_of(t, heads):
    return t.unflatten(-1, (heads, -1))


def head_norm(y, eps):
    return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)


@pytest.mark.parametrize("init", ["lin", "inv", "real"])
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_s4d_is_the_convolution_with_powers_of_its_matrix(init, method):
    layer, x = case("s4d", init=init, method=method)
    A = torch.complex(-layer.A_log.exp(), layer.A_imag)
    step = layer.log_dt.exp()[:, None]
    if method == "zoh":
        Ab = torch.exp(step * A)
        Bb = (Ab - 1) / A
    else:
        Ab, Bb = (1 + step * A / 2) / (1 - step * A / 2), step / (1 - step * A / 2)
    C = complex_of(layer.C)
    kernel = torch.stack([2 * (C * Ab**k * Bb).sum(-1).real for k in range(LENGTH)], 1)
    laws.close(layer.kernel(LENGTH), kernel)
    laws.close(layer(x).y, glu_block(layer, conv_by_steps(x, kernel) + layer.D * x))


def test_s4d_starts_where_the_paper_says():
    lin, inv, real = (make_mixer("s4d", 2, {"d_state": 8, "init": init}) for init in ("lin", "inv", "real"))
    n = torch.arange(4)
    torch.testing.assert_close(lin.A_imag[0], math.pi * n, check_dtype=False)
    torch.testing.assert_close(inv.A_imag[0], 8 / math.pi * (8 / (2 * n + 1) - 1))
    torch.testing.assert_close(real.A_log[0].exp(), n + 1.0)
    assert not real.A_imag.any()
    torch.testing.assert_close(lin.A_log.exp(), torch.full_like(lin.A_log, 0.5))


def test_dss_is_a_softmax_over_lags():
    layer, x = case("dss")
    A = torch.complex(-layer.A_log.exp(), layer.A_imag)
    rows = torch.exp(layer.log_dt.exp()[:, None, None] * A[..., None] * torch.arange(40))
    small = 1e-7
    total = rows.sum(-1)
    weights = complex_of(layer.C) * A.conj() / (A.abs() ** 2 + small) * total.conj() / (total.abs() ** 2 + small)
    kernel = (weights[..., None] * rows).sum(1).real[:, :LENGTH]
    laws.close(layer(x).y, glu_block(layer, conv_by_steps(x, kernel) + layer.D * x))


def shared_diagonal(layer, x, decay, B, C):
    h, outputs = torch.zeros(len(x), len(decay), dtype=torch.complex128), []
    for t in range(LENGTH):
        h = decay * h + x[:, t].to(B.dtype) @ B.T
        outputs.append((h @ C.T).real + layer.D * x[:, t])
    y = F.gelu(torch.stack(outputs, 1))
    return y * torch.sigmoid(layer.gate(y))


def test_lru_is_its_recurrence():
    layer, x = case("lru")
    decay = torch.exp(torch.complex(-layer.nu_log.exp(), layer.theta_log.exp()))
    B = torch.sqrt(1 - decay.abs() ** 2)[:, None] * complex_of(layer.B)
    laws.close(layer(x).y, shared_diagonal(layer, x, decay, B, complex_of(layer.C)))


def test_white_noise_gives_the_lru_states_of_unit_variance():
    torch.manual_seed(0)
    layer = make_mixer("lru", 8, {"d_state": 32, "r_max": 0.95}).double()
    with torch.no_grad():
        layer.B.copy_(torch.randn_like(layer.B))
        out = layer(torch.randn(1000, 80, 8, dtype=torch.float64), return_state=True)
        power = (out.state["h"].abs() ** 2).mean(0) / complex_of(layer.B).abs().square().sum(1)
    assert float(power.mean()) == pytest.approx(1.0, abs=0.02)


def test_s5_is_its_recurrence_and_starts_at_hippo():
    layer, x = case("s5")
    A = torch.complex(-layer.A_log.exp(), layer.A_imag)
    step = layer.log_dt.exp()
    decay = torch.exp(step * A)
    B = ((decay - 1) / A)[:, None] * complex_of(layer.B)
    laws.close(layer(x).y, shared_diagonal(layer, x, decay, B, 2 * complex_of(layer.C)))


def test_ema_is_a_damped_moving_average():
    layer, x = case("ema")
    P = torch.sigmoid(layer.delta)
    Q = 1 - P * torch.sigmoid(layer.alpha)
    h, outputs = torch.zeros(2, 8, 3, dtype=torch.float64), []
    for t in range(LENGTH):
        h = Q * h + P * layer.beta * x[:, t, :, None]
        outputs.append((layer.gamma * h).sum(-1) / math.sqrt(3) + layer.omega * x[:, t])
    laws.close(layer(x).y, F.silu(torch.stack(outputs, 1)))


def test_gss_gates_a_state_space():
    layer, x = case("gss")
    y = layer.ssm(F.gelu(layer.in_proj(x))).y
    laws.close(layer(x).y, layer.out_proj(layer.up_proj(y) * F.gelu(layer.gate_proj(x))))


def test_h3_multiplies_shifted_keys_and_values():
    layer, x = case("h3")
    q, k, v = layer.qkv_proj(x).chunk(3, -1)
    laws.close(layer(x).y, layer.out_proj(q * layer.ssm(conv_by_steps(k, layer.shift.flip(1)) * v).y))


def test_hyena_is_two_gated_convolutions():
    layer, x = case("hyena")
    short = conv_by_steps(layer.in_proj(x), layer.short.weight[:, 0].flip(1)) + layer.short.bias
    v, x1, x2 = short.chunk(3, -1)
    first, second = (filter_(LENGTH) for filter_ in layer.filters)
    y = x2 * conv_by_steps(x1 * conv_by_steps(v, first), second)
    laws.close(layer(x).y, layer.out_proj(y))
    longer = layer.filters[0](2 * LENGTH)
    laws.close(longer[:, :LENGTH], first)


def test_linear_attention_is_normalised():
    layer, x = case("linear_attention")
    q, k, v = (heads_of(p(x), 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    weights = torch.einsum("bihk,bjhk->bhij", F.elu(q) + 1, F.elu(k) + 1).tril()
    y = torch.einsum("bhij,bjhv->bihv", weights / weights.sum(-1, keepdim=True), v)
    laws.close(layer(x).y, layer.o_proj(y.flatten(2)))


def test_retnet_decays_by_its_heads():
    layer, x = case("retnet")
    q, k, v = (heads_of(p(x), 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    gamma = 1 - 2.0 ** (-5 - torch.arange(2, dtype=torch.float64))
    lag = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    weights = torch.einsum("bihk,bjhk->bhij", q, k) / 2 * (gamma[:, None, None] ** lag).tril()
    y = head_norm(torch.einsum("bhij,bjhv->bihv", weights, v), 1e-5).flatten(2) * layer.norm.weight
    laws.close(layer(x).y, layer.o_proj(y * F.silu(layer.g_proj(x))))


def test_gla_decays_by_its_keys():
    layer, x = case("gla")
    q, k, v = (heads_of(p(x), 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    alpha = torch.sigmoid(heads_of(layer.decay_out(layer.decay_in(x)), 2)) ** (1 / 16)
    y, _ = linear_attention_by_steps(q / 2, k, v, log_decay=alpha.log())
    y = head_norm(y, 1e-5).flatten(2) * layer.norm.weight
    laws.close(layer(x).y, layer.o_proj(y * F.silu(layer.g_proj(x))))


def test_deltanet_overwrites():
    layer, x = case("deltanet")
    mixed = F.silu(conv_by_steps(layer.qkv_proj(x), layer.conv1d.weight[:, 0].flip(1)))
    q, k, v = (heads_of(t, 2) for t in mixed.split(layer.sizes, -1))
    q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
    S, outputs = torch.zeros(2, 2, 4, 4, dtype=torch.float64), []
    beta = 2 * torch.sigmoid(layer.beta_proj(x))
    eye = torch.eye(4, dtype=torch.float64)
    for t in range(LENGTH):
        b, key = beta[:, t, :, None, None], k[:, t, ..., None]
        S = (eye - b * key @ key.mT) @ S + b * key @ v[:, t, :, None]
        outputs.append((q[:, t, :, None] / 2 @ S)[..., 0, :])
    y = head_norm(torch.stack(outputs, 1), 1e-6).flatten(2) * layer.norm.weight
    laws.close(layer(x).y, layer.o_proj(y))


def test_attention_is_softmax_attention_with_rotated_pairs():
    layer, x = case("attention", head_dim=4)
    q, k, v = layer.q_proj(x).unflatten(-1, (4, 4)), layer.k_proj(x).unflatten(-1, (2, 4)), layer.v_proj(x)
    angle = torch.arange(LENGTH)[:, None, None] * torch.tensor([1.0, 1e4**-0.5], dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle)
    q, k = (torch.complex(*t.chunk(2, -1)) * turn for t in (q, k))
    q, k = (torch.cat([t.real, t.imag], -1) for t in (q, k))
    k, v = (t.repeat_interleave(2, 2) for t in (k, v.unflatten(-1, (2, 4))))
    y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
    laws.close(layer(x).y, layer.o_proj(y.transpose(1, 2).flatten(2)))
    given = layer(x, positions=torch.arange(LENGTH).expand(2, -1) + 5).y
    laws.close(given, layer(x).y)  # rotary positions are relative


def test_layers_side_by_side_are_added():
    layer, x = case("parallel")
    first, second = layer.branches
    laws.close(layer(x).y, 0.5 * first(x).y + 2.0 * second(x).y)


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("s4d", {"d_state": 3}, "d_state must be even"),
        ("s4d", {"init": "lims"}, 'did you mean "lin"'),
        ("mamba2", {"head_dim": 5}, "head_dim must divide"),
        ("mamba2", {"head_dim": 4, "groups": 3}, "groups must divide"),
        ("attention", {"heads": 4, "kv_heads": 3}, "kv_heads must divide"),
        ("lru", {"r_min": 1.2}, "r_min"),
        ("s5", {"d_state": 6, "blocks": 2}, "multiple of"),
        ("parallel", {"branches": ["mamba2"], "out_scales": (1.0, 1.0)}, "out_scales"),
        ("deltanet", {"heads": 3, "value_heads": 4}, "must divide"),
        ("mamba", {"width": 3}, "layer mamba"),
        ("mambo", {}, 'did you mean "mamba"'),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, settings, problem):
    with pytest.raises(ValueError, match=problem):
        make_mixer(name, 8, settings)
