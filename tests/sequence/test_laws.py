"""The laws of sequence layers, over every layer of the table (float64, and float32 where rounding is what is asked)."""

from __future__ import annotations

from dataclasses import replace

import mixer_laws as laws
import pytest
import torch

from likely.sequence import MIXERS, RecurrentMixer
from likely.sequence.layers import S4D

every_layer = pytest.mark.parametrize("name", laws.names())
LENGTH = 23  # more than a chunk, no multiple of one


@pytest.fixture(autouse=True)
def one_thread():
    torch.manual_seed(0)


@every_layer
def test_steps_equal_the_parallel_form(name):
    laws.step_is_parallel(laws.tiny(name), laws.tokens(2, LENGTH))
    laws.step_is_parallel(laws.tiny(name, torch.float32), laws.tokens(2, LENGTH, torch.float32), 2e-5)


@every_layer
def test_cuts_do_not_change_anything(name):
    laws.chunks_do_not_matter(laws.tiny(name), laws.tokens(2, LENGTH), (1, 5, 7, 16, LENGTH - 1))
    laws.chunks_do_not_matter(laws.tiny(name, torch.float32), laws.tokens(2, LENGTH, torch.float32), (9,), 2e-5)


@every_layer
def test_outputs_do_not_depend_on_later_tokens(name):
    laws.is_causal(laws.tiny(name), laws.tokens(2, LENGTH), 13, MIXERS[name].training)


@every_layer
def test_padding_leaves_outputs_and_states_alone(name):
    laws.padding_does_not_matter(laws.tiny(name), laws.tokens(5, LENGTH))
    laws.padding_does_not_matter(laws.tiny(name), laws.tokens(5, 9))


@every_layer
def test_packed_documents_are_as_if_alone(name):
    laws.packing_does_not_matter(laws.tiny(name), laws.tokens(4, LENGTH))


@every_layer
def test_rows_of_a_batch_are_independent(name):
    laws.rows_are_independent(laws.tiny(name), laws.tokens(3, LENGTH))


@every_layer
def test_chunks_compose(name):
    mixer = laws.tiny(name)
    if not isinstance(mixer, RecurrentMixer):
        pytest.skip("no linear recurrence")
    laws.summaries_compose(mixer, laws.tokens(2, LENGTH), (6, 17))


@every_layer
def test_gradients_are_those_of_finite_differences(name):
    mixer = laws.tiny(name)
    x = laws.tokens(1, 19).requires_grad_()
    state = mixer(laws.tokens(1, 4, seed=1), return_state=True).state
    loose = {
        n: t.detach().requires_grad_() for n, t in state.tensors.items() if t.is_floating_point() or t.is_complex()
    }

    def run(x, *tensors):
        given = dict(state.tensors) | dict(zip(loose, tensors, strict=True))
        return mixer(x, type(state)(given)).y

    assert torch.autograd.gradcheck(run, (x, *loose.values()), fast_mode=True)
    parameters = list(mixer.parameters())
    loss = mixer(x).y.square().sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    direction = [torch.randn_like(p) for p in parameters]
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    with torch.no_grad():
        sides = []
        for sign in (1, -1):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * 1e-6 * d)
            sides.append(float(mixer(x).y.square().sum()))
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(sign * 1e-6 * d)
    assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(expected, rel=1e-5, abs=1e-6)


@every_layer
def test_the_stated_bytes_are_the_held_ones(name):
    mixer = laws.tiny(name)
    for length in (0, 1, LENGTH):
        state = mixer.init_state(3) if not length else mixer(laws.tokens(3, length), return_state=True).state
        spec = mixer.state_spec(length)
        assert {n: (tuple(t.shape[1:]), t.dtype) for n, t in state.tensors.items()} == spec
        assert state.nbytes == 3 * mixer.state_bytes(length)


@every_layer
def test_bad_input_is_refused(name):
    mixer, x = laws.tiny(name), laws.tokens(2, 5)
    state = mixer.init_state(3)
    for problem, call in {
        "x must be": lambda: mixer(x[..., :-1]),
        "length > 0": lambda: mixer(x[:, :0]),
        "mask must be": lambda: mixer(x, mask=torch.ones(2, 4)),
        "1 for tokens": lambda: mixer(x, mask=torch.full((2, 5), 0.5)),
        "seq_idx must be": lambda: mixer(x, seq_idx=torch.zeros(5)),
        "state must hold": lambda: mixer(x, state),
        "states_at": lambda: mixer(x, states_at=[5]),
        "x_t must be": lambda: mixer.step(x[:, 0], state),
    }.items():
        with pytest.raises(ValueError, match=problem):
            call()


@every_layer
def test_half_precision_keeps_its_state_wide(name):
    mixer = laws.tiny(name, torch.bfloat16)
    out = mixer(laws.tokens(2, LENGTH, torch.bfloat16), return_state=True)
    assert out.y.dtype == torch.bfloat16 and bool(out.y.isfinite().all())
    if "h" in out.state.tensors:
        assert out.state["h"].dtype in (torch.float32, torch.complex64)
    with torch.autocast("cpu", torch.bfloat16):
        under = laws.tiny(name, torch.float32)(laws.tokens(2, LENGTH, torch.float32), return_state=True)
    if "h" in under.state.tensors:
        assert under.state["h"].dtype in (torch.float32, torch.complex64)


class Broken(S4D):
    """A layer with one fault, for the laws to find."""

    def __init__(self, fault: str):
        super().__init__(laws.WIDTH, d_state=4, dt_max=0.5)
        self.fault = fault

    def mix(self, x, state, rows):
        if self.fault == "forgets its state":
            state = self.init_state(len(x))
        if self.fault == "decays at padding":
            rows = replace(rows, lengths=None)
        if self.fault == "looks ahead":
            x = x + 0.1 * x.roll(-1, 1)
        if self.fault == "mixes rows":
            x = x - x.mean(0)
        if self.fault == "knows no document":
            rows = replace(rows, starts=None)
        return super().mix(x, state, rows)

    @property
    def packs(self):
        return self.fault == "knows no document"


@pytest.mark.parametrize(
    ("fault", "law", "more"),
    [
        ("forgets its state", laws.step_is_parallel, ()),
        ("forgets its state", laws.chunks_do_not_matter, ((7,),)),
        ("looks ahead", laws.is_causal, (13, "fft")),
        ("decays at padding", laws.padding_does_not_matter, ()),
        ("knows no document", laws.packing_does_not_matter, ()),
        ("mixes rows", laws.rows_are_independent, ()),
    ],
)
def test_the_laws_find_a_fault(fault, law, more):
    x = laws.tokens(4, LENGTH)
    law(Broken("none").double().eval(), x, *more)
    with pytest.raises(AssertionError):
        law(Broken(fault).double().eval(), x, *more)
