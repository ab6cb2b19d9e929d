"""Sparse modular activation and SeqBoat: compression is exact, and equals the dense, masked form it stands for."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from likely.sequence.layers.ema import EMA  # noqa: E402
from likely.sequence.seqboat import SeqBoat, compress, extract, route, run_where_active  # noqa: E402
from likely.sequence.seqboat.windowed import WindowedKeys, rotate, windowed_attention  # noqa: E402

WIDTH = 6


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(**settings):
    """Parameters of size 1, so that attention and router matter."""
    torch.manual_seed(3)
    mixer = SeqBoat(WIDTH, **{"z_dim": 4, "h_dim": 5, "ema_dim": 3, "window": 3, **settings}).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return mixer


def push_router(mixer, by):
    with torch.no_grad():
        mixer.hx_proj.bias[1] += by
    return mixer


def balance_router(mixer, x):
    """Half of these tokens are activated."""
    logits = parts_of(mixer, x)[1].detach()
    return push_router(mixer, -float((logits[..., 1] - logits[..., 0]).median()))


def parts_of(mixer, x):
    """H, the router's logits, hx."""
    hidden = F.silu(mixer.ssm(x).y)
    return hidden, *mixer.hx_proj(hidden).split([2, WIDTH], -1)


# --- route, compress, extract -----------------------------------------------------------------------------------------


def test_extracting_what_was_compressed_gives_the_active_elements():
    values, mask = normal(4, 9, 3), torch.ones(4, 9, dtype=torch.bool)
    mask[1, 5:], mask[2] = False, False
    found = route(normal(4, 9, 2, seed=1), mask=mask)
    assert found.active.any() and not found.active[2].any() and not found.active[1, 5:].any()
    assert torch.equal(extract(compress(values, found), found), values * found.active[..., None])
    rows = compress(values, found)
    assert torch.equal(rows[0, : found.counts[0]], values[0, found.active[0]])
    assert rows.shape[1] == found.longest == found.counts.max() and not rows[1, found.counts[1] :].any()
    assert float(found.rate()) == pytest.approx(float(found.active.double().mean()))


def test_nothing_active_is_an_empty_sequence():
    found = route(normal(2, 5, 2) * 0 + torch.tensor([1.0, 0.0]))
    assert compress(normal(2, 5, 3), found).shape == (2, 0, 3)
    assert torch.equal(extract(normal(2, 0, 3), found), torch.zeros(2, 5, 3, dtype=torch.float64))
    assert torch.equal(run_where_active(lambda rows: 1 / 0, normal(2, 5, 3), found), torch.zeros(2, 5, 3).double())


def test_a_unit_runs_where_active_and_is_scaled_by_its_probability():
    logits, values = normal(2, 7, 2), normal(2, 7, 3, seed=1)
    found = route(logits, temperature=2.0)
    p = torch.softmax(logits / 2, -1)[..., 1]
    expected = values.square() * (p * (p > 0.5))[..., None]
    assert (run_where_active(torch.square, values, found) - expected).abs().max() < 1e-12


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"logits must be \(B, L, 2\)"):
        route(normal(2, 5, 3))
    with pytest.raises(ValueError, match=r"mask must be \(2, 5\), got \(2, 4\)"):
        route(normal(2, 5, 2), mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="rows must hold"):
        extract(normal(2, 9, 3), route(normal(2, 5, 2)))


# --- attention in a window --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["softmax", "relu2"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "count"), [(1, 5), (3, 3), (3, 8), (10, 4)])
def test_blocks_see_exactly_the_window(kind, causal, window, count):
    """Against all pairs and a mask."""
    size = count + window * causal
    queries, keys, values = normal(2, count, 4), normal(2, size, 4, seed=1), normal(2, size, 3, seed=2)
    given = torch.ones(2, size, dtype=torch.bool)
    given[0, :window] = not causal  # nothing before the first
    given[1, -2:] = False
    place = torch.arange(count) + window * causal
    distance = place[:, None] - torch.arange(size)
    seen = (distance <= window) & (distance >= (0 if causal else -window)) & given[:, None]
    scores = queries @ keys.mT + 0.1 * distance
    weights = torch.softmax((queries @ keys.mT / 2 + 0.1 * distance).masked_fill(~seen, -torch.inf), -1).nan_to_num(0)
    if kind == "relu2":
        scores = queries @ keys.mT / (window * (1 if causal else 2)) + 0.1 * distance
        weights = scores.relu().square() * seen
    found = windowed_attention(
        queries, WindowedKeys(keys, values, torch.zeros(2, size), given), window=window, causal=causal, kind=kind,
        bias=lambda time, place: 0.1 * place,
    )  # fmt: skip
    assert (found - weights @ values).abs().max() < 1e-12


def test_rotated_products_depend_on_the_difference_of_times():
    q, k = normal(1, 1, 6), normal(1, 1, 6, seed=1)
    products = [float((rotate(q, torch.tensor([[t]])) * rotate(k, torch.tensor([[t - 7]]))).sum()) for t in (7, 900)]
    assert products[0] == pytest.approx(products[1], abs=1e-10)
    assert products[0] != pytest.approx(float((q * k).sum()), abs=1e-3)


# --- the layer --------------------------------------------------------------------------------------------------------


def dense(mixer, x):
    """The layer with attention over all pairs of tokens, masked: slow and without compression."""
    hidden, logits, hx = parts_of(mixer, x)
    p = torch.softmax(logits / mixer.log_temperature.exp(), -1)[..., 1]
    active = torch.ones_like(p, dtype=torch.bool) if mixer.always_act else logits[..., 1] > logits[..., 0]
    place, times = active.cumsum(1), torch.arange(x.shape[1])
    z, gate, values = F.silu(mixer.mx_proj(hidden)).split([mixer.z_dim, mixer.h_dim, mixer.h_dim], -1)
    q, k = (z * mixer.gamma[i] + mixer.beta[i] for i in range(2))
    if mixer.pos == "rotary":
        q, k = rotate(q, times.expand(len(x), -1)), rotate(k, times.expand(len(x), -1))
    near = place[:, :, None] - place[:, None, :]
    seen = (near <= mixer.window) & (near >= (0 if mixer.causal else -mixer.window))
    seen = seen & active[:, :, None] & active[:, None, :]
    if mixer.causal:
        seen = seen & (times[:, None] >= times)
    scale = mixer.z_dim**0.5 if mixer.attn == "softmax" else mixer.window * (1 if mixer.causal else 2)
    scores = q @ k.mT / scale
    if mixer.bias is not None:
        distance = (times[:, None] - times).expand_as(near) if mixer.pos == "bias" else near
        middle = 0 if mixer.causal else len(mixer.bias) // 2
        scores = scores + mixer.bias[(distance + middle).clamp(0, len(mixer.bias) - 1)]
    if mixer.attn == "softmax":
        weights = torch.softmax(scores.masked_fill(~seen, -1e30), -1) * seen
    else:
        weights = scores.relu().square() * seen
    unit = mixer.out_proj((weights @ values) * gate)
    return hx + unit * (active if mixer.always_act else active * p)[..., None]


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"attn": "relu2", "pos": "bias", "max_positions": 6}, {"pos": "local_bias", "always_act": True},
        {"bidirectional": True, "pos": "bias"}, {"bidirectional": True, "attn": "relu2", "pos": "local_bias"},
        {"ssm": "s4d"}, {"window": 30},
    ],
    ids=str,
)  # fmt: skip
def test_compressed_attention_equals_masked_attention(settings):
    x = normal(3, 21, WIDTH).requires_grad_()
    mixer = balance_router(layer(**settings), x)
    out = mixer(x)
    rate = float(out.aux["activation_rate"])
    assert rate == 1.0 if mixer.always_act else 0.1 < rate < 0.9
    expected = dense(mixer, x)
    assert (out.y - expected).abs().max() < 1e-9
    wanted = [x, *mixer.parameters()]
    gradients = torch.autograd.grad(out.y.square().sum(), wanted, allow_unused=True)
    for one, two in zip(
        gradients, torch.autograd.grad(expected.square().sum(), wanted, allow_unused=True), strict=True
    ):
        assert one is two is None or (one - two).abs().max() < 1e-8 * max(1.0, float(two.abs().max()))


def test_everything_active_is_the_dense_baseline_times_the_probability():
    x = normal(2, 12, WIDTH)
    sparse, full = push_router(layer(), 40.0), push_router(layer(always_act=True), 40.0)
    _, logits, hx = parts_of(sparse, x)
    p = torch.softmax(logits / sparse.log_temperature.exp(), -1)[..., 1:]
    assert ((sparse(x).y - hx) - p * (full(x).y - hx)).abs().max() < 1e-12
    assert sparse(x).aux["activation_rate"] == 1


def test_nothing_active_is_the_recurrence_alone_with_gradients_of_zero():
    mixer, x = push_router(layer(), -40.0), normal(2, 12, WIDTH)
    out = mixer(x, return_state=True)
    assert torch.equal(out.y, parts_of(mixer, x)[2]) and out.aux["activation_rate"] == out.aux["mean_span"] == 0
    assert not out.state["keys"].any() and not out.state["activated"].any()
    out.y.sum().backward()
    assert not mixer.mx_proj.weight.grad.any() and mixer.hx_proj.weight.grad.any()


def test_the_router_learns_through_active_tokens_alone():
    x, seen = normal(2, 15, WIDTH), []
    mixer = balance_router(layer(), x)
    mixer.hx_proj.register_forward_hook(lambda module, inputs, output: seen.append(output) or output.retain_grad())
    mixer(x).y.square().sum().backward()
    gradient, active = seen[0].grad[..., :2], seen[0][..., 1] > seen[0][..., 0]
    assert gradient[active].abs().min() > 0 and not gradient[~active].any() and (~active).any()


def test_tokens_that_are_not_active_do_not_touch_the_others():
    """Their H may be anything: only what goes through the recurrence reaches other tokens."""
    x = normal(1, 15, WIDTH)
    mixer = balance_router(layer(), x)
    hidden, logits, _ = parts_of(mixer, x)
    found = route(logits)
    off = (~found.active[0]).nonzero()[:, 0]
    changed = hidden.clone()
    changed[0, off] = hidden[0, off.flip(0)]
    times, state = torch.arange(15)[None], mixer.init_state(1)
    assert torch.equal(mixer._unit(hidden, found, times, state)[0], mixer._unit(changed, found, times, state)[0])


def test_a_step_is_of_constant_size_and_reaches_back_in_time():
    """Two activated tokens with many others between them see each other: the window counts activated tokens."""
    mixer = balance_router(layer(window=1), normal(2, 40, WIDTH))
    state = mixer(normal(2, 40, WIDTH), return_state=True).state
    assert state.nbytes == mixer.init_state(2).nbytes and state["length"].tolist() == [40, 40]
    out = mixer(normal(2, 40, WIDTH))
    assert out.aux["mean_span"] > 1


def test_moving_averages_in_both_directions_count_the_present_once():
    torch.manual_seed(0)
    ema, x = EMA(WIDTH, d_state=3, activation=False, bidirectional=True).double(), normal(2, 9, WIDTH)
    with torch.no_grad():
        for parameter in (ema.delta, ema.alpha, ema.beta, ema.gamma):
            parameter[1] = parameter[0]
    log_q, b, c = (part[0] for part in ema.coefficients())
    lag = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    kernel = (b[..., None] * c[..., None] * (log_q[..., None] * torch.arange(9)).exp()).sum(1)
    expected = torch.einsum("dts,bsd->btd", kernel[:, lag], x) + ema.omega * x
    assert (ema(x).y - expected).abs().max() < 1e-12
    with pytest.raises(ValueError, match="return_state"):
        ema(x, return_state=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"), ({"z_dim": 5}, "z_dim must be even for rotary"),
        ({"ssm": "s4d", "bidirectional": True}, "sees both directions"), ({"attn": "laplace"}, "unknown attn"),
        ({"pos": "alibi"}, "unknown pos"), ({"ssm": "lstm"}, "unknown ssm"),
        ({"init_temp_scale": 0.0}, "init_temp_scale must be positive"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        layer(**settings)
