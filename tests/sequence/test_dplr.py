"""Kernels and steps of DPLR systems against explicit powers of their matrices, in float64."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from likely.sequence.hippo import nplr  # noqa: E402
from likely.sequence.ops import dplr  # noqa: E402


def system_of(name="legs", size=16, channels=2, rank=None, *, step=0.05, seed=0):
    """The same HiPPO system with other steps for each channel, and random outputs."""
    found = nplr(name, size, rank=rank)
    random = np.random.default_rng(seed)
    eigenvalues = np.repeat(found.eigenvalues[None] - 1e-3, channels, 0)
    low_rank = np.repeat(found.low_rank[:, None], channels, 1)
    inputs = np.repeat(found.inputs[None], channels, 0)
    steps = step * (1 + np.arange(channels))
    outputs = random.normal(size=(channels, size // 2)) + 1j * random.normal(size=(channels, size // 2))
    system = dplr.DplrSystem(*(torch.tensor(part) for part in (eigenvalues, low_rank, inputs, steps)))
    return system, torch.tensor(outputs)


def powers_of(system, outputs, length):
    """2 Re(C Ā^k B̄), k < length, with complex matrices over all pairs."""
    rows = []
    for h, step in enumerate(system.step.numpy()):
        both = [np.concatenate([x, x.conj()], -1) for x in (part.numpy() for part in (
            system.eigenvalues[h], system.low_rank[:, h], system.inputs[h], outputs[h]))]  # fmt: skip
        matrix = np.diag(both[0]) - both[1].T @ both[1].conj()
        unit = np.eye(len(matrix))
        below = np.linalg.inv(unit - step / 2 * matrix)
        state, row = below @ (step * both[2]), []
        for _ in range(length):
            row.append((both[3] @ state).real)
            state = below @ (unit + step / 2 * matrix) @ state
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 65])
@pytest.mark.parametrize(("name", "rank"), [("legs", 1), ("legs", 2), ("legt", 2), ("fout", 1)])
@pytest.mark.parametrize("size", [2, 4, 16, 64])
def test_the_kernel_is_that_of_explicit_powers(name, rank, size, length):
    system, outputs = system_of(name, size, rank=rank)
    kernel = dplr.dplr_kernel(system, dplr.truncated_outputs(system, outputs, length), length)
    expected = powers_of(system, outputs, length)
    assert np.abs(kernel.numpy() - expected).max() < 1e-10 * max(1, np.abs(expected).max())


def test_a_kernel_without_truncation_wraps_around():
    """The negative control: with C in the place of C̃, later samples fold onto the first ones."""
    system, outputs = system_of(size=16)
    wrong = dplr.dplr_kernel(system, outputs, 64).numpy()
    assert np.abs(wrong - powers_of(system, outputs, 64)).max() > 1e-3


@pytest.mark.slow  # torch imports half of itself for the first checkpoint
def test_blocks_of_the_cauchy_matrix_change_nothing(monkeypatch):
    system, outputs = system_of(size=16)
    outputs.requires_grad_()
    whole = dplr.dplr_kernel(system, outputs, 33)
    gradient = torch.autograd.grad(whole.square().sum(), outputs)[0]
    monkeypatch.setattr(dplr, "MOST_BYTES", 16 * 2 * 8 * 5)
    parts = dplr.dplr_kernel(system, outputs, 33)
    assert torch.equal(whole, parts) or (whole - parts).abs().max() < 1e-13
    assert (torch.autograd.grad(parts.square().sum(), outputs)[0] - gradient).abs().max() < 1e-11


@pytest.mark.parametrize(("name", "size"), [("legs", 4), ("legs", 64), ("legt", 16)])
def test_a_step_is_that_of_the_matrices(name, size):
    system, _ = system_of(name, size)
    discrete = dplr.discretise(system)
    random = torch.Generator().manual_seed(1)
    state = torch.randn(3, 2, size // 2, dtype=torch.complex128, generator=random)
    values = torch.randn(3, 2, dtype=torch.float64, generator=random)
    expected = torch.einsum("hnm,bhm->bhn", discrete.matrix, dplr.real_state(state))
    expected = expected + discrete.inputs * values[..., None]
    found = dplr.dplr_step(system, state, values)
    assert (dplr.real_state(found) - expected).abs().max() < 1e-11
    assert torch.equal(dplr.complex_state(dplr.real_state(state)), state)


def test_the_matrices_have_the_kernel_and_never_grow():
    system, outputs = system_of("legs", 64)
    discrete = dplr.discretise(system)
    impulse = torch.einsum("hn,hnk->hk", dplr.real_outputs(outputs), dplr.input_powers(discrete, 20))
    assert np.abs(impulse.numpy() - powers_of(system, outputs, 20)).max() < 1e-10
    assert torch.linalg.eigvals(discrete.matrix).abs().max() < 1
    assert torch.linalg.matrix_norm(discrete.matrix, 2).max() <= 1 + 1e-12


@pytest.mark.parametrize("length", [1, 5, 64, 150])
def test_blocks_equal_steps(length):
    system, outputs = system_of("legs", 8)
    random = torch.Generator().manual_seed(2)
    values = torch.randn(3, 2, length, dtype=torch.float64, generator=random)
    state = torch.randn(3, 2, 4, dtype=torch.complex128, generator=random)
    y, last = dplr.run_blocks(
        dplr.discretise(system), values, dplr.real_state(state), dplr.real_outputs(outputs), block=16
    )
    expected = []
    for t in range(length):
        state = dplr.dplr_step(system, state, values[..., t])
        expected.append(2 * (outputs * state).sum(-1).real)
    assert (y - torch.stack(expected, -1)).abs().max() < 1e-11
    assert (dplr.complex_state(last) - state).abs().max() < 1e-11


def test_outputs_truncated_doubled_and_back():
    system, outputs = system_of("legs", 16)
    short = dplr.truncated_outputs(system, outputs, 24)
    double = dplr.doubled_outputs(system, short, 24)
    assert (double - dplr.truncated_outputs(system, outputs, 48)).abs().max() < 1e-11
    assert (dplr.untruncated_outputs(system, double, 48) - outputs).abs().max() < 1e-9
    longer = dplr.dplr_kernel(system, double, 48)
    assert (longer[:, :24] - dplr.dplr_kernel(system, short, 24)).abs().max() < 1e-12


def test_gradients_of_the_kernel():
    system, outputs = system_of("legt", 4, channels=1)

    def kernel(*parts):
        return dplr.dplr_kernel(dplr.DplrSystem(*parts[:4]), parts[4], 6)

    parts = [part.clone().requires_grad_() for part in (*system, outputs)]
    assert torch.autograd.gradcheck(kernel, parts, eps=1e-6, atol=1e-6)


def test_no_length_is_an_error():
    system, outputs = system_of()
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        dplr.dplr_kernel(system, outputs, 0)
