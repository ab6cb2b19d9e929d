"""Systems x' = (Λ − P P*) x + B u with diagonal Λ and low rank P: convolution kernel, step, and blocks of steps.

Λ, P, B and C hold one of each conjugate pair: y = 2 Re(C x).  Time is discretised by the bilinear rule,
Ā = (I − ΔA/2)⁻¹(I + ΔA/2), B̄ = (I − ΔA/2)⁻¹ΔB.  As long as Re Λ < 0 the symmetric part of A is negative definite, so
that no power of Ā is longer than 1: all of this is stable without diagonalising Ā, whose eigenvectors are not (their
condition is 8e10 at the start of HiPPO-LegS with N = 16).

Gu, Goel, Ré 2021, arXiv:2111.00396, section 3 and appendix C.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MOST_BYTES = 2**26  # of one block of the Cauchy matrix


class DplrSystem(NamedTuple):
    """One system for each of H channels.

    eigenvalues (H, n) Λ, n = N/2, Re Λ < 0;  low_rank (r, H, n) P;  inputs (H, n) B: complex;  step (H,) Δ > 0: real
    """

    eigenvalues: Tensor
    low_rank: Tensor
    inputs: Tensor
    step: Tensor


class DiscreteSystem(NamedTuple):
    """x ← Ā x + B̄ u on real states [Re x, Im x].  matrix (H, N, N), inputs (H, N)"""

    matrix: Tensor
    inputs: Tensor


# --- convolution ------------------------------------------------------------------------------------------------------


def dplr_kernel(system: DplrSystem, truncated: Tensor, length: int) -> Tensor:
    """K_k = 2 Re(C Ā^k B̄) for k < length.

    truncated (..., H, n)  C̃ = C (I − Ā^length), see `truncated_outputs`;  returns (..., H, length)

    The generating function at the roots of unity z, with g = (2/Δ)(1 − z)/(1 + z) and the Cauchy sums
    k_ab = Σ a b/(g − λ) over all pairs: K̂ = 2/(1 + z) · [k_CB − k_CP (I + k_P*P)⁻¹ k_P*B] (Woodbury); K is its inverse
    FFT.  At z = −1, where g is infinite, the limit (Δ/2) C̃ B stands.  S4, algorithm 1.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    step = system.step[:, None]
    eigenvalues = system.eigenvalues * step
    low_rank = system.low_rank * step.sqrt()
    inputs = system.inputs * step
    outputs = truncated.reshape(-1, *truncated.shape[-2:])
    left = torch.cat([outputs, low_rank.conj()])  # (m + r, H, n)
    right = torch.cat([inputs[None], low_rank])  # (1 + r, H, n)
    products = (left[:, None] * right[None]).movedim(2, 0)  # (H, m + r, 1 + r, n)
    finite = (length + 1) // 2  # frequencies below Nyquist
    frequencies = torch.arange(finite, device=step.device, dtype=torch.float64) * (math.pi / length)
    heights = torch.tan(frequencies).to(step.dtype)  # (1 − z)/(1 + z) = i tan(πj/length)
    sums = _cauchy_sums(products.flatten(1, 2), eigenvalues, heights)
    sums = sums.unflatten(1, products.shape[1:3])  # (H, m + r, 1 + r, finite)
    m = len(outputs)
    direct, of_low_rank = sums[:, :m, 0], sums[:, :m, 1:]
    inner, of_inputs = sums[:, m:, 1:], sums[:, m:, 0]
    unit = torch.eye(inner.shape[1], dtype=inner.dtype, device=inner.device)
    solved = torch.linalg.solve(
        unit + inner.permute(0, 3, 1, 2), of_inputs.permute(0, 2, 1)[..., None]
    )  # (H, finite, r, 1)
    values = direct - (of_low_rank.permute(0, 3, 1, 2) @ solved).squeeze(-1).transpose(1, 2)
    values = values * torch.complex(torch.ones_like(heights), heights)  # 2/(1 + z) = 1 + i tan
    if length % 2 == 0:
        nyquist = (outputs * inputs).sum(-1).real.T[..., None]
        values = torch.cat([values, nyquist.to(values.dtype)], -1)
    kernel = torch.fft.irfft(values, n=length)  # (H, m, length)
    return kernel.transpose(0, 1).reshape(*truncated.shape[:-1], length)


def _cauchy_sums(products: Tensor, eigenvalues: Tensor, heights: Tensor) -> Tensor:
    """Σ_n v_n/(g − λ_n) + v̄_n/(g − λ̄_n) at g = 2i·heights: (H, m, points), of v (H, m, n) and λ (H, n)."""
    real, imaginary = eigenvalues.real, eigenvalues.imag
    square = real.square() + imaginary.square()
    tops = torch.cat([products.real, -(products * eigenvalues.conj()[:, None]).real], 1)

    def block(tops: Tensor, real: Tensor, square: Tensor, heights: Tensor) -> Tensor:
        points = 2 * heights
        bottom = torch.complex(square[..., None] - points.square(), -2 * real[..., None] * points)
        both = tops.to(bottom.dtype) @ bottom.reciprocal()
        first, second = both.chunk(2, 1)
        return 2 * (first * torch.complex(torch.zeros_like(points), points) + second)

    width = max(1, MOST_BYTES // (16 * eigenvalues.numel()))
    parts = heights.split(width)
    if len(parts) == 1:
        return block(tops, real, square, heights)
    return torch.cat([checkpoint(block, tops, real, square, part, use_reentrant=False) for part in parts], -1)


# --- steps ------------------------------------------------------------------------------------------------------------


def dplr_step(system: DplrSystem, state: Tensor, values: Tensor) -> Tensor:
    """The state after one more input, in O(N) a channel.  state (B, H, n) complex, values (B, H) real.

    With D = (2/Δ − Λ)⁻¹: x' = [D − D P (I + P* D P)⁻¹ P* D] ((2/Δ + Λ − P P*) x + 2 B u).
    """
    rate = 2 / system.step[:, None]
    inverse = 1 / (rate - system.eigenvalues)
    low_rank = system.low_rank
    right = (rate + system.eigenvalues) * state + 2 * system.inputs * values[..., None]
    right = right - _outer(low_rank, _inner(low_rank, state))
    near = inverse * low_rank  # D P
    core = 2 * torch.einsum("rhn,shn->hrs", low_rank.conj(), near).real
    core = core + torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
    scaled = inverse * right
    solved = torch.linalg.solve(core, _inner(low_rank, scaled).movedim(0, -1)[..., None])  # (B, H, r, 1)
    return scaled - _outer(near, solved.squeeze(-1).movedim(-1, 0))


def _inner(low_rank: Tensor, state: Tensor) -> Tensor:
    """P* x over all pairs: (r, B, H), real."""
    return 2 * torch.einsum("rhn,bhn->rbh", low_rank.conj(), state).real


def _outer(low_rank: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("rhn,rbh->bhn", low_rank, weights.to(low_rank.dtype))


def discretise(system: DplrSystem, dtype: torch.dtype | None = None) -> DiscreteSystem:
    """Ā and B̄ as matrices over real states; dtype: a real one to work in, by default the system's."""
    dtype = dtype or system.step.dtype
    real, imaginary = system.eigenvalues.real.to(dtype), system.eigenvalues.imag.to(dtype)
    low_rank = real_state(system.low_rank).to(dtype)  # (r, H, N)
    step = system.step.to(dtype)[:, None, None]
    turn = torch.diag_embed(imaginary)
    decay = torch.diag_embed(real)
    matrix = torch.cat([torch.cat([decay, -turn], -1), torch.cat([turn, decay], -1)], -2)
    matrix = (matrix - 2 * torch.einsum("rhn,rhm->hnm", low_rank, low_rank)) * (step / 2)
    unit = torch.eye(matrix.shape[-1], dtype=dtype, device=matrix.device)
    inputs = real_state(system.inputs).to(dtype)[..., None] * step
    solved = torch.linalg.solve(unit - matrix, torch.cat([unit + matrix, inputs], -1))
    return DiscreteSystem(solved[..., :-1], solved[..., -1])


def real_state(state: Tensor) -> Tensor:
    """(..., n) complex as (..., N) real: real parts, then imaginary ones."""
    return torch.cat([state.real, state.imag], -1)


def complex_state(state: Tensor) -> Tensor:
    """The inverse of `real_state`."""
    return torch.complex(*(part.contiguous() for part in state.chunk(2, -1)))


def real_outputs(outputs: Tensor) -> Tensor:
    """C (..., n) as (..., N) such that 2 Re(C x) is its product with `real_state(x)`."""
    return 2 * torch.cat([outputs.real, -outputs.imag], -1)


def truncated_outputs(system: DplrSystem, outputs: Tensor, length: int) -> Tensor:
    """C̃ = C (I − Ā^length) of outputs C (..., H, n), computed in float64."""
    return _times(outputs, _one_less_power(system, length))


def doubled_outputs(system: DplrSystem, truncated: Tensor, length: int) -> Tensor:
    """C̃ of twice the length: C̃ (I + Ā^length)."""
    unit = torch.eye(2 * truncated.shape[-1], dtype=torch.float64, device=truncated.device)
    return _times(truncated, 2 * unit - _one_less_power(system, length))


def untruncated_outputs(system: DplrSystem, truncated: Tensor, length: int) -> Tensor:
    """C = C̃ (I − Ā^length)⁻¹."""
    return _times(truncated, torch.linalg.inv(_one_less_power(system, length)))


def _one_less_power(system: DplrSystem, length: int) -> Tensor:
    matrix = discretise(system, torch.float64).matrix
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return unit - torch.linalg.matrix_power(matrix, length)


def _times(outputs: Tensor, matrix: Tensor) -> Tensor:
    """C M, of C as it is held: half of the pairs."""
    wide = real_outputs(outputs.to(torch.complex128)) / 2  # [Re C, −Im C]
    real, imaginary = torch.einsum("...hn,hnm->...hm", wide, matrix).chunk(2, -1)
    return torch.complex(real.contiguous(), -imaginary.contiguous()).to(outputs.dtype)


# --- blocks of steps --------------------------------------------------------------------------------------------------


def input_powers(system: DiscreteSystem, count: int) -> Tensor:
    """Ā^k B̄ for k < count, by doubling.  (H, N, count)"""
    powers, matrix = system.inputs[..., None], system.matrix
    while powers.shape[-1] < count:
        powers = torch.cat([powers, matrix @ powers], -1)
        matrix = matrix @ matrix
    return powers[..., :count]


def output_powers(system: DiscreteSystem, outputs: Tensor, count: int) -> Tensor:
    """C Ā^(k+1) for k < count.  outputs (H, N) from `real_outputs`; (H, count, N)"""
    rows, matrix = outputs[:, None] @ system.matrix, system.matrix
    while rows.shape[1] < count:
        rows = torch.cat([rows, rows @ matrix], 1)
        matrix = matrix @ matrix
    return rows[:, :count]


def run_blocks(
    system: DiscreteSystem, values: Tensor, state: Tensor, outputs: Tensor | None = None, *, block: int = 64
) -> tuple[Tensor | None, Tensor]:
    """(y (B, H, L), the state after the last input), block by block from a state: linear in L.

    values (B, H, L);  state (B, H, N) real;  outputs (H, N) from `real_outputs`, None: only the state is wanted
    """
    length = values.shape[-1]
    block = min(block, length)
    powers = input_powers(system, block)
    leap = torch.linalg.matrix_power(system.matrix, block)
    read = within = None
    if outputs is not None:
        read = output_powers(system, outputs, block)
        impulse = torch.einsum("hn,hnk->hk", outputs, powers)
        lag = torch.arange(block, device=values.device)
        lag = lag[None, :] - lag[:, None]  # [j, i]: i − j
        within = torch.where(lag >= 0, impulse[:, lag.clamp_min(0)], 0.0)  # (H, j, i)
    found = []
    for part in values.split(block, -1):
        size = part.shape[-1]
        if read is not None and within is not None:
            free = torch.einsum("bhn,hkn->bhk", state, read[:, :size])
            found.append(free + torch.einsum("bhj,hji->bhi", part, within[:, :size, :size]))
        forced = torch.einsum("bhj,hnj->bhn", part, powers[..., :size].flip(-1))
        jump = leap if size == block else torch.linalg.matrix_power(system.matrix, size)
        state = torch.einsum("hnm,bhm->bhn", jump, state) + forced
    return (torch.cat(found, -1) if found else None), state


def last_state(system: DiscreteSystem, values: Tensor, state: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The state (B, H, N) after each row's first `lengths` (B,) inputs; None: after all.  values (B, H, L)"""
    if lengths is None:
        return run_blocks(system, values, state)[1]
    length = values.shape[-1]
    index = torch.arange(length, device=values.device) - (length - lengths)[:, None]  # every row ends at the right
    moved = values.gather(-1, index.clamp_min(0)[:, None].expand(values.shape))
    moved = moved.masked_fill((index < 0)[:, None], 0.0)
    forced = run_blocks(system, moved, torch.zeros_like(state))[1]
    matrix, left = system.matrix, lengths
    while bool(left.any()):
        leapt = torch.einsum("hnm,bhm->bhn", matrix, state)
        state = torch.where((left % 2 == 1)[:, None, None], leapt, state)
        matrix, left = matrix @ matrix, left // 2
    return forced + state
