"""Hadamard matrices of the orders that models have, and rotations made of them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

Signs = NDArray[np.int8]


def hadamard_matrix(order: int) -> Signs | None:
    """(n, n) of ±1 with orthogonal rows; None where the constructions below have none of this order.

    Powers of two by Sylvester; q + 1 (Paley I, prime q = 3 mod 4), 2 (q + 1) (Paley II, prime q = 1 mod 4); and powers
    of two times these: 576 = 16 · 36, 640 = 32 · 20, 1536 = 128 · 12.
    """
    if order < 1:
        raise ValueError(f"the order must be at least 1, got {order}")
    rest, found = order, np.ones((1, 1), np.int8)
    while True:
        base = found if rest == 1 else _paley(rest)
        if base is not None:
            return np.kron(_sylvester(order // rest), base).astype(np.int8)
        if rest % 2:
            return None
        rest //= 2


@lru_cache(maxsize=8)
def _signs_of(order: int) -> NDArray[np.float64]:
    """(n, n) orthogonal: a Hadamard matrix over √n, or blocks of the largest power of two that divides n."""
    whole = hadamard_matrix(order)
    if whole is not None:
        return whole / np.sqrt(order)
    size = order & -order
    return np.kron(np.eye(order // size), _sylvester(size) / np.sqrt(size))


def rotation_matrix(order: int, seed: int = 0) -> torch.Tensor:
    """R (n, n) fp64 orthogonal, R = diag(random signs) · Hadamard / √n; blocks of it for orders without a matrix.

    An odd order, of which there is neither, gets the QR factor of a Gaussian matrix.
    """
    rng = np.random.default_rng(seed)
    if order % 2 and order > 1:
        q, r = np.linalg.qr(rng.standard_normal((order, order)))
        return torch.from_numpy(q * np.sign(np.diag(r)))
    return torch.from_numpy(rng.choice([-1.0, 1.0], order)[:, None] * _signs_of(order))


def _sylvester(order: int) -> Signs:
    found = np.ones((1, 1), np.int8)
    while len(found) < order:
        found = np.kron(np.array([[1, 1], [1, -1]], np.int8), found)
    return found


def _paley(order: int) -> Signs | None:
    """Of this very order, from the squares modulo a prime."""
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        q = order - 1
        skew = np.zeros((order, order), np.int8)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
        return (skew + np.eye(order, dtype=np.int8)).astype(np.int8)
    q = order // 2 - 1
    if order % 4 == 0 and _is_prime(q) and q % 4 == 1:
        conference = np.zeros((q + 1, q + 1), np.int8)
        conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _jacobsthal(q)
        pair, single = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
        return (np.kron(conference, pair) + np.kron(np.eye(q + 1, dtype=np.int8), single)).astype(np.int8)
    return None


def _jacobsthal(q: int) -> Signs:
    """(q, q) entries χ(i - j): 1 for squares modulo q, -1 for others, 0 for 0."""
    character = np.full(q, -1, np.int8)
    character[(np.arange(1, q) ** 2) % q] = 1
    character[0] = 0
    return character[(np.arange(q)[:, None] - np.arange(q)) % q]


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
