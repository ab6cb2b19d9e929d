"""Attention within a window of positions, in blocks as long as the window: linear in the length.

A query at place i sees the keys at places i − w … i (causal), or i − w … i + w, where keys are given; a query that sees
none gives exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionKind = Literal["softmax", "relu2"]


class WindowedKeys(NamedTuple):
    """Keys and values of places.

    keys (B, R, s);  values (B, R, h);  times (B, R) original positions;  given (B, R) bool, False: the place is empty
    """

    keys: Tensor
    values: Tensor
    times: Tensor
    given: Tensor


Bias = Callable[[Tensor, Tensor], Tensor]  # (distance in time, distance in places), (B, blocks, w, keys) -> the same


def windowed_attention(
    queries: Tensor, memory: WindowedKeys, *, window: int, causal: bool, kind: AttentionKind, bias: Bias | None = None,
) -> Tensor:  # fmt: skip
    """o_i = Σ_j f(q_i·k_j) v_j over the window: (B, R, h).

    queries (B, R, s) of the last R places;  memory: of the same places, after w earlier ones if causal
    kind  softmax of q·k/√s + bias, or relu(q·k/ℓ + bias)² with ℓ = w, 2w where not causal
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    _, count, size = queries.shape
    blocks = -(-count // window)
    padding = blocks * window - count
    before, after = (0, padding) if causal else (window, padding + window)
    queries = F.pad(queries, (0, 0, 0, padding)).unflatten(1, (blocks, window))
    around = 2 if causal else 3

    def blocked(part: Tensor) -> Tensor:
        """(B, places, ...) -> (B, blocks, around·w, ...): of each block the one before, itself and, maybe, the next."""
        part = F.pad(part, (*(0 for _ in part.shape[2:] for _ in range(2)), before, after))
        cut = part.unflatten(1, (blocks + around - 1, window))
        return torch.cat([cut[:, i : i + blocks] for i in range(around)], 2)

    keys, values, times, given = (blocked(part) for part in memory)
    own = slice(window, 2 * window)  # the queries' places among the keys
    distance = torch.arange(window, device=keys.device)[:, None] + window
    distance = distance - torch.arange(around * window, device=keys.device)  # (w, keys): i − j
    seen = (distance >= (0 if causal else -window)) & (distance <= window)
    seen = seen & given[:, :, None, :]
    scores = queries @ keys.mT
    scores = scores / (size**0.5 if kind == "softmax" else window * (1 if causal else 2))
    if bias is not None:
        scores = scores + bias(times[:, :, own, None] - times[:, :, None, :], distance.expand(scores.shape))
    if kind == "softmax":
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    else:
        weights = torch.relu(scores).square()
    weights = weights.masked_fill(~seen, 0.0)  # a row that sees nothing is 0, not uniform
    return (weights @ values).flatten(1, 2)[:, :count]


def rotate(values: Tensor, times: Tensor, *, base: float = 10000.0) -> Tensor:
    """Rotary positions: the pairs (x_i, x_{i+s/2}) turned by times·base^(−2i/s).  values (B, R, s), times (B, R)"""
    half = values.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=values.device, dtype=torch.float64) / half)
    angles = times[..., None].double() * rates
    cosine, sine = angles.cos().to(values.dtype), angles.sin().to(values.dtype)
    first, second = values[..., :half], values[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
