"""State matrices that remember: HiPPO as matrix, as normal plus low rank (S4), and its diagonal relatives (S4D).

    x'(t) = A x(t) + B u(t)

A HiPPO matrix makes x the coefficients of the past of u in an orthogonal basis.  S4 needs it as A = V (Λ − P P*) V*
with V unitary, Λ diagonal.  A is real, so that Λ comes in conjugate pairs: one of each is kept, and a sum over all of
them is twice the real part of the sum over those.  Everything is numpy in float64 and complex128.

Gu, Goel, Ré 2021, arXiv:2111.00396 (S4); Gu et al. 2020, arXiv:2008.07669 (HiPPO); Gu et al. 2022, arXiv:2206.11893
(S4D) and arXiv:2206.12037 (FouT).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from likely.errors import check_choice

ComplexArray = NDArray[np.complex128]

RANKS = {"legs": 1, "legt": 2, "fout": 1}  # of the correction that makes the matrix normal
DIAGONALS = ("lin", "inv", "real", "legs")


class DiagonalPlusLowRank(NamedTuple):
    """A = V (Λ − P P*) V* and B in that basis, one of each conjugate pair (those with Im Λ ≤ 0).

    eigenvalues (N/2,) Λ;  low_rank (r, N/2) P;  inputs (N/2,) V*B;  basis (N, N/2) columns of V
    """

    eigenvalues: ComplexArray
    low_rank: ComplexArray
    inputs: ComplexArray
    basis: ComplexArray


def hippo_matrix(name: str, state_size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(A (N, N), B (N,)) of a HiPPO method.

    legs  all of the past, the same weight for each part of it, in Legendre polynomials (time scaled by 1/t)
    legt  the last 2 units of time, in Legendre polynomials
    fout  the last unit of time, in a Fourier basis
    """
    check_choice("HiPPO method", name, RANKS)
    _check_state_size(state_size)
    n = np.arange(state_size, dtype=np.float64)
    root = np.sqrt(2 * n + 1)
    if name == "legs":
        below = np.tril(np.outer(root, root), -1)
        return -below - np.diag(n + 1), root
    if name == "legt":
        past = n[:, None] >= n[None, :]
        sign = np.where(past, 1.0, (-1.0) ** (n[:, None] - n[None, :]))
        return -0.5 * np.outer(root, root) * sign, 0.5 * root
    frequencies = np.zeros(state_size - 1)
    frequencies[1::2] = np.pi * np.arange(1, state_size // 2)
    inputs = np.where(n % 2 == 0, np.sqrt(2.0), 0.0)
    inputs[0] = 1.0
    return np.diag(frequencies, -1) - np.diag(frequencies, 1) - np.outer(inputs, inputs), inputs


def low_rank_correction(name: str, state_size: int) -> NDArray[np.float64]:
    """P (r, N) such that A + PᵀP is normal: a multiple of the identity plus a skew-symmetric matrix."""
    check_choice("HiPPO method", name, RANKS)
    n = np.arange(state_size, dtype=np.float64)
    if name == "legs":
        return np.sqrt(n + 0.5)[None]
    if name == "legt":
        root = np.sqrt(n + 0.5)
        return np.stack([np.where(n % 2 == 0, 0.0, root), np.where(n % 2 == 0, root, 0.0)])
    return hippo_matrix(name, state_size)[1][None]


def nplr(name: str, state_size: int, *, rank: int | None = None) -> DiagonalPlusLowRank:
    """A HiPPO matrix as normal plus low rank, diagonalised by a Hermitian solver.

    state_size  N, even;  rank  rows of P, at least the method's own (1 for legs and fout, 2 for legt; more are zeros)

    A + PᵀP = −c·I + S, with S skew-symmetric: −iS is Hermitian, its eigenvalues ω are real, Λ = −c + iω.
    c = ½ for legs, 0 for legt and fout (their decay is in the correction).  S4, theorem 1 and appendix C.
    """
    matrix, inputs = hippo_matrix(name, state_size)
    own = RANKS[name]
    rank = own if rank is None else rank
    if rank < own:
        raise ValueError(f"rank must be at least {own} for {name}, got {rank}")
    correction = np.zeros((rank, state_size))
    correction[:own] = low_rank_correction(name, state_size)
    normal = matrix + correction.T @ correction
    shift = float(np.mean(np.diagonal(normal)))
    frequencies, vectors = np.linalg.eigh(-1j * (normal - shift * np.eye(state_size)))
    half = state_size // 2
    kept, basis = frequencies[:half], vectors[:, :half]
    zero = np.abs(frequencies) < 1e-9 * max(1.0, float(np.abs(frequencies).max()))
    pairs = int(zero.sum()) // 2
    if pairs:  # eigenvectors of the eigenvalue 0 are arbitrary in their plane: take conjugate ones
        real = np.linalg.svd(normal - shift * np.eye(state_size))[2][state_size - 2 * pairs :]
        kept[half - pairs :] = 0.0
        basis[:, half - pairs :] = (real[0::2] + 1j * real[1::2]).T / np.sqrt(2.0)
    back = basis.conj().T
    low_rank, turned = (np.asarray(part, np.complex128) for part in ((back @ correction.T).T, back @ inputs))
    return DiagonalPlusLowRank(shift + 1j * kept, low_rank, turned, basis)


def diagonal_initialisation(name: str, state_size: int) -> tuple[ComplexArray, ComplexArray]:
    """(Λ (N/2,), B (N/2,)) of S4D, one of each conjugate pair.

    lin   −½ + iπn           inv   −½ + i (N/π)(N/(2n+1) − 1)       real  −(n+1)       each with B = 1
    legs  Λ and B of `nplr("legs", N)` without its low rank part

    Gu et al. 2022, arXiv:2206.11893, section 4.
    """
    check_choice("initialisation", name, DIAGONALS)
    _check_state_size(state_size)
    if name == "legs":
        found = nplr("legs", state_size)
        return found.eigenvalues, found.inputs
    n = np.arange(state_size // 2, dtype=np.float64)
    real = -(n + 1) if name == "real" else np.full_like(n, -0.5)
    turns = {"lin": np.pi * n, "inv": state_size / np.pi * (state_size / (2 * n + 1) - 1), "real": np.zeros_like(n)}
    return np.asarray(real + 1j * turns[name], np.complex128), np.ones(len(n), np.complex128)


def _check_state_size(state_size: int) -> None:
    if state_size < 2 or state_size % 2:
        raise ValueError(f"state_size must be even and at least 2, got {state_size}")
