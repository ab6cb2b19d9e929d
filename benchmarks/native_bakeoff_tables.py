"""The few arrays that every forward of the bake-off takes beside its tokens: numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
CAPACITY = 576  # tokens that every variant has room for: 512 kept and 64 new ones


@dataclass(frozen=True)
class Shape:
    """layers, heads and key-value heads of Dh each, and the two constants of the norm and the rotation."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float

    @property
    def group(self) -> int:
        """Queries that share a head of keys."""
        return self.heads // self.kv_heads


def rotation(shape: Shape, positions: int) -> tuple[Array, Array]:
    """cos, sin (positions, 1, Dh); the sine of the first half is negative, so that a roll is all that is left."""
    inverse = shape.theta ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = np.arange(positions)[:, None] * inverse
    cos, sin = np.cos(angles), np.sin(angles)
    double = np.concatenate([cos, cos], 1), np.concatenate([-sin, sin], 1)
    return double[0][:, None].astype(np.float32), double[1][:, None].astype(np.float32)


def causal_mask(group: int, new: int, past: int, width: int | None = None) -> Array:
    """(1, 1, group * new, width + new): 0 where a query may look, -inf elsewhere.

    width  columns of kept tokens, of which the first `past` are in use (default: all)
    """
    width = past if width is None else width
    mask = np.zeros((new, width + new), np.float32)
    mask[:, past:width] = -np.inf
    mask[:, width:] = np.triu(np.full((new, new), -np.inf, np.float32), 1)
    return np.tile(mask, (group, 1))[None, None]
