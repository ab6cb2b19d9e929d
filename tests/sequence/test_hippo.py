"""HiPPO matrices: normal plus low rank in exact form, known eigenvalues, and that their states remember."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

from likely.sequence.hippo import (
    DIAGONALS,
    RANKS,
    diagonal_initialisation,
    hippo_matrix,
    low_rank_correction,
    nplr,
)


def all_pairs(half):
    return np.concatenate([half, half.conj()], axis=-1)


@pytest.mark.parametrize("size", [2, 4, 16, 64])
@pytest.mark.parametrize(("name", "shift"), [("legs", -1.0), ("legt", 0.0), ("fout", 0.0)])
def test_the_correction_makes_the_matrix_normal(name, shift, size):
    matrix, _ = hippo_matrix(name, size)
    correction = low_rank_correction(name, size)
    normal = matrix + correction.T @ correction
    assert np.abs(normal + normal.T - shift * np.eye(size)).max() < 1e-12


@pytest.mark.parametrize("size", [2, 4, 16, 64])
@pytest.mark.parametrize("name", RANKS)
def test_half_of_the_pairs_hold_the_whole_matrix(name, size):
    matrix, inputs = hippo_matrix(name, size)
    found = nplr(name, size)
    basis = np.concatenate([found.basis, found.basis.conj()], axis=1)
    eigenvalues, low_rank = all_pairs(found.eigenvalues), all_pairs(found.low_rank)
    assert np.abs(basis.conj().T @ basis - np.eye(size)).max() < 1e-10, "unitary"
    again = basis @ (np.diag(eigenvalues) - low_rank.T @ low_rank.conj()) @ basis.conj().T
    assert np.abs(again - matrix).max() < 1e-9 * max(1, size)
    assert np.abs(basis @ all_pairs(found.inputs) - inputs).max() < 1e-10
    assert np.allclose(found.eigenvalues.real, -0.5 if name == "legs" else 0.0, atol=1e-12)
    assert (found.eigenvalues.imag <= 0).all()


def test_known_eigenvalues_of_legs():
    """Imaginary parts in closed agreement with the published ones; the largest is about N²/π."""
    sixteen = np.sort(-nplr("legs", 16).eigenvalues.imag)
    assert np.allclose(sixteen[:3], [0.35202, 1.37198, 2.89967], atol=1e-5)
    assert sixteen[-1] == pytest.approx(80.97, abs=0.01)
    assert -nplr("legs", 64).eigenvalues.imag.min() == pytest.approx(1303.3, abs=0.1)


def test_more_rank_is_zeros_and_less_is_refused():
    assert np.all(nplr("legs", 8, rank=2).low_rank[1] == 0)
    with pytest.raises(ValueError, match="rank must be at least 2 for legt, got 1"):
        nplr("legt", 8, rank=1)


def test_a_state_of_legt_holds_the_last_two_units_of_time():
    """u(t−s) = Σ x_n √(2n+1) P_n(1−s), for s in the window; the state is made by exact steps (u is held)."""
    size, step = 64, 1 / 512
    matrix, inputs = hippo_matrix("legt", size)
    forward = expm(np.block([[matrix, inputs[:, None]], [np.zeros((1, size + 1))]]) * step)
    moments = np.arange(4 * 512) * step
    signal = np.sin(3 * moments) + 0.5 * np.cos(7 * moments + 1)
    state = np.zeros(size)
    for value in signal:
        state = forward[:size, :size] @ state + forward[:size, size] * value
    ago = np.arange(1, 1024) * step  # inside the window
    basis = np.polynomial.legendre.legvander(1 - ago, size - 1) * np.sqrt(2 * np.arange(size) + 1)
    now = moments[-1] + step / 2  # the middle of the last held value
    past = np.sin(3 * (now - ago)) + 0.5 * np.cos(7 * (now - ago) + 1)
    assert np.abs(basis @ state - past)[8:-8].max() < 1e-2
    assert np.abs(basis[:, ::-1] @ state - past).max() > 0.1, "the order of the coefficients matters"


def test_diagonal_initialisations():
    assert np.allclose(diagonal_initialisation("lin", 6)[0], -0.5 + 1j * np.pi * np.arange(3))
    assert np.allclose(diagonal_initialisation("inv", 4)[0], [-0.5 + 12j / np.pi, -0.5 + 4j / (3 * np.pi)])
    assert np.allclose(diagonal_initialisation("real", 6)[0], [-1, -2, -3])
    for name in DIAGONALS:
        eigenvalues, inputs = diagonal_initialisation(name, 32)
        assert eigenvalues.shape == inputs.shape == (16,) and (eigenvalues.real < 0).all()


@pytest.mark.parametrize("size", [0, 3, -2])
def test_an_odd_state_is_refused(size):
    for make in (lambda: nplr("legs", size), lambda: diagonal_initialisation("lin", size)):
        with pytest.raises(ValueError, match=f"state_size must be even and at least 2, got {size}"):
            make()
    with pytest.raises(ValueError, match="unknown HiPPO method"):
        nplr("lags", 4)
