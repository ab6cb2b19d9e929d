"""S4 as a layer: its kernel is its recurrence, longer kernels go on, rates, dtypes, saving, and what it refuses."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from likely.sequence.layers.s4 import S4  # noqa: E402
from likely.sequence.mixer import MixerState  # noqa: E402
from likely.sequence.ops import dplr  # noqa: E402

WIDTH = 4


def layer(**settings):
    torch.manual_seed(0)
    return S4(WIDTH, **{"d_state": 8, "l_max": 24, "mix_channels": False, **settings}).double()


def signal(length=24, batch=2, seed=1):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def impulse_response(mixer, length):
    """K by single steps, channel by channel: what goes in at time 0 comes out at k, less the skip."""
    impulse = torch.zeros(1, length, WIDTH, dtype=torch.float64)
    impulse[:, 0] = 1.0
    state, found = mixer.init_state(1), []
    for t in range(length):
        y, state = mixer.step(impulse[:, t], state)
        found.append(y - mixer.skip * impulse[:, t])
    return torch.cat(found).T


@pytest.mark.parametrize(
    "settings",
    [{}, {"init": "legt"}, {"init": "fout"}, {"rank": 2}, {"n_ssm": 2}, {"n_ssm": 1}, {"l_max": 13}],
    ids=str,
)
def test_the_kernel_is_what_steps_answer_to_an_impulse(settings):
    mixer = layer(**settings)
    with torch.no_grad():
        assert (mixer.kernel(24) - impulse_response(mixer, 24)).abs().max() < 1e-9
    assert mixer.kernel(5).shape == (WIDTH, 5)


@pytest.mark.parametrize("init", ["legs", "legt", "fout"])
def test_the_kernel_of_float32_is_that_of_float64(init):
    torch.manual_seed(1)
    mixer = S4(16, init=init, l_max=64)
    with torch.no_grad():
        kernel, exact = mixer.kernel(64), mixer.double().kernel(64)
    assert kernel.dtype == torch.float32 and (kernel - exact).abs().max() < 2e-5 * exact.abs().max()


def test_a_longer_kernel_goes_on_where_the_old_one_ended():
    mixer = layer(l_max=16)
    short = mixer.kernel(16)
    held = mixer.outputs.clone()
    longer = mixer.kernel(50)
    assert int(mixer.kernel_length) == 64 and not torch.equal(held, mixer.outputs)
    assert (longer[:, :16] - short).abs().max() < 1e-12
    assert (longer - impulse_response(mixer, 50)).abs().max() < 1e-9


@pytest.mark.parametrize("length", [1, 9, 24, 90])
def test_a_state_goes_on_in_blocks_as_in_steps(length):
    mixer = layer()
    with torch.no_grad():
        before = mixer(signal(11), return_state=True).state
        whole = mixer(signal(length, seed=2), before, return_state=True)
        state, outputs = before, []
        for t in range(length):
            y, state = mixer.step(signal(length, seed=2)[:, t], state)
            outputs.append(y)
    assert (whole.y - torch.stack(outputs, 1)).abs().max() < 1e-9
    assert (whole.state["h"] - state["h"]).abs().max() < 1e-9
    assert before["h"].dtype == torch.float64 and before["h"].shape == (2, WIDTH, 8)


def test_a_doubled_rate_is_a_doubled_step():
    mixer, other = layer(), layer()
    with torch.no_grad():
        outputs = mixer._untruncated(mixer.system())
        other.log_step += math.log(2)
        truncated = dplr.truncated_outputs(other.system(), outputs, int(other.kernel_length))
        other.outputs.copy_(torch.view_as_real(truncated))
        assert (mixer.kernel(20, rate=2.0) - other.kernel(20)).abs().max() < 1e-10
        assert (mixer.kernel(20, rate=1.5) - other.kernel(20)).abs().max() > 1e-3
        mixer.rate = 2.0
        assert (mixer(signal()).y - other(signal()).y).abs().max() < 1e-9
        assert (impulse_response(mixer, 12) - other.kernel(12)).abs().max() < 1e-9


def test_half_as_many_samples_at_twice_the_rate_give_the_same_answer():
    """A slow signal, sampled twice as coarsely."""
    mixer = layer(d_state=16, l_max=800, dt_min=0.02, dt_max=0.05)
    moments = torch.arange(800, dtype=torch.float64)[None, :, None].expand(1, 800, WIDTH)
    fine = torch.sin(moments * 0.02)
    with torch.no_grad():
        mixer.skip.zero_()
        expected = mixer(fine).y[:, 1::2]
        mixer.rate = 2.0
        found = mixer(fine[:, ::2]).y
    assert (found - expected)[:, 50:].abs().max() < 0.05 * expected.abs().max()


def test_impulse_responses_decay():
    mixer = layer(d_state=64, l_max=4096, dt_min=0.01)
    kernel = mixer.kernel(4096)
    assert kernel.isfinite().all()
    assert kernel[:, -100:].abs().max() < 1e-3 * kernel.abs().max()


def test_both_directions_count_the_present_once():
    mixer = layer(bidirectional=True)
    with torch.no_grad():
        mixer.outputs[1] = mixer.outputs[0]
        kernel = mixer.kernel(9)[0]
        x = signal(9)
        lag = (torch.arange(9)[:, None] - torch.arange(9)).abs()
        expected = torch.einsum("dts,bsd->btd", kernel[:, lag], x) + mixer.skip * x
        assert (mixer(x).y - expected).abs().max() < 1e-11
        assert (mixer(x.flip(1)).y.flip(1) - expected).abs().max() < 1e-11
        mask = torch.ones(2, 9)
        mask[0, 6:] = 0
        assert (mixer(x, mask=mask).y[0, :6] - mixer(x[:1, :6]).y[0]).abs().max() < 1e-11
    with pytest.raises(ValueError, match="state"):
        mixer(signal(3), layer().init_state(2))
    with pytest.raises(ValueError, match="return_state"):
        mixer(signal(3), return_state=True)


def test_saved_and_read_again_with_the_length_of_its_kernel():
    mixer = layer(l_max=8)
    mixer.kernel(20)
    other = layer(l_max=24)
    other.load_state_dict(mixer.state_dict())
    assert int(other.kernel_length) == 32
    assert torch.equal(other(signal()).y, mixer(signal()).y)
    with torch.no_grad():  # what steps kept is made anew
        assert torch.equal(other(signal(1), other.init_state(2)).y, mixer(signal(1), mixer.init_state(2)).y)


def test_dtypes():
    mixer = layer()
    expected = mixer(signal()).y
    narrow = layer().float()
    assert narrow.system().eigenvalues.dtype == torch.complex64
    assert (narrow(signal().float()).y - expected).abs().max() < 2e-5 * expected.abs().max()
    assert torch.equal(narrow.double().log_step.float(), layer().float().log_step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (layer().float()(signal().float()).y - expected).abs().max() < 2e-5 * expected.abs().max()
    half = layer(mix_channels=True).float().half()
    assert half.out_proj.weight.dtype == torch.float16 and torch.equal(half.kernel(9), layer().float().kernel(9))
    half.log_step = torch.nn.Parameter(half.log_step.half())
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.float16"):
        half.kernel(8)


def test_training_moves_every_parameter():
    mixer = layer(mix_channels=True)
    mixer(signal()).y.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    stepped = layer(mix_channels=True)
    state, total = stepped.init_state(2), torch.zeros(())
    for t in range(24):
        y, state = stepped.step(signal()[:, t], state)
        total = total + y.square().sum()
    total.backward()
    for (name, one), two in zip(mixer.named_parameters(), stepped.parameters(), strict=True):
        assert (one.grad - two.grad).abs().max() < 1e-7 * one.grad.abs().max().clamp_min(1), name


def test_what_steps_keep_follows_the_parameters():
    mixer = layer()
    with torch.no_grad():
        before, _ = mixer.step(signal(1)[:, 0], mixer.init_state(2))
        mixer.outputs.mul_(2)
        after, _ = mixer.step(signal(1)[:, 0], mixer.init_state(2))
        skip = mixer.skip * signal(1)[:, 0]
        assert ((after - skip) - 2 * (before - skip)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_state": 7}, "d_state must be even and at least 2, got 7"), ({"l_max": 0}, "l_max must be at least 1"),
        ({"init": "legz"}, 'unknown init "legz"; did you mean'), ({"n_ssm": 3}, "n_ssm must divide d_model = 4"),
        ({"dt_min": 0.0}, "dt_min must be positive"), ({"init": "legt", "rank": 1}, "rank must be at least 2 for legt"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        layer(**settings)


def test_calls_that_cannot_be():
    mixer = layer()
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        mixer.kernel(0)
    with pytest.raises(ValueError, match="rate must be positive"):
        mixer.rate = -1.0
    with pytest.raises(ValueError, match="rate must be positive, got 0"):
        mixer.kernel(8, rate=0.0)
    with pytest.raises(ValueError, match=r"state must hold .*'h': \(4, 8\).* for 2 rows, got .*\(2, 4, 6\)"):
        mixer(signal(), MixerState({"h": torch.zeros(2, 4, 6)}))
    with pytest.raises(ValueError, match="x must be"):
        mixer(signal()[:, :0])
