"""Which channels share a block: orders of a head's channels by score, and what an order costs.

An order is (d,) int: new channel c holds old channel order[c].  Rotary embedding turns channels in pairs (i, i + d/2).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int64]
Scores = NDArray[np.float64]
Rope = Literal["halves", "interleaved"]


def sorted_order(scores: Scores) -> Order:
    """Largest first, ties in their old order; scores (..., d).

    Among all ways to fill equal blocks it has the smallest sum over blocks of the largest score squared.
    """
    return np.argsort(-np.asarray(scores, np.float64), axis=-1, kind="stable")


def pair_order(scores: Scores, *, rope: Rope = "interleaved") -> Order:
    """Rotary pairs, sorted by sqrt(a_i² + a_(i+d/2)²), stay pairs; scores (..., d), d even.

    rope  where the members of a pair come to lie: side by side ("interleaved"), or d/2 apart ("halves").  With halves
          and blocks of d/2 each block holds the channels that it held before: such a sort does nothing.
    """
    scores = np.asarray(scores, np.float64)
    half, odd = divmod(scores.shape[-1], 2)
    if odd:
        raise ValueError(f"heads of {scores.shape[-1]} channels have no rotary pairs: the number must be even")
    pairs = sorted_order(np.hypot(scores[..., :half], scores[..., half:]))
    if rope == "halves":
        return np.concatenate([pairs, pairs + half], axis=-1)
    if rope == "interleaved":
        return np.stack([pairs, pairs + half], axis=-1).reshape(*pairs.shape[:-1], -1)
    raise ValueError(f'rope must be "halves" or "interleaved", got "{rope}"')


def check_order(order: Order, heads: int, width: int) -> Order:
    """(heads, width), each row a permutation; ValueError otherwise."""
    order = np.asarray(order)
    if order.shape != (heads, width):
        raise ValueError(f"an order of shape {order.shape} does not fit {heads} heads of {width} channels")
    if order.dtype.kind not in "iu" or not (np.sort(order, axis=-1) == np.arange(width)).all():
        raise ValueError(f"an order must name each of {width} channels once")
    return order.astype(np.int64)


def inverse(order: Order) -> Order:
    """Where each old channel went."""
    return np.argsort(order, axis=-1)


def partners(order: Order) -> tuple[Order, NDArray[np.float32]]:
    """Of each new channel of (..., d): the new channel of its rotary partner, and -1 for a first member, else +1.

    With cos', sin' the usual tables in the new order, rotation is x'_c cos'_c + sign_c x'_partner(c) sin'_c.
    """
    width = order.shape[-1]
    other = (order + width // 2) % width
    found = np.take_along_axis(inverse(order), other, axis=-1)
    return found, np.where(order < width // 2, -1.0, 1.0).astype(np.float32)
