"""Sparse modular activation: which elements of a sequence go through a unit, as a short sequence, and back.

Ren et al. 2023, arXiv:2306.11197, section 3: a router gives each element two probabilities; the unit runs where that of
running is the larger, and what it gives is multiplied by it, which is how the router learns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ActiveTokens(NamedTuple):
    """Where a unit is active.

    active (B, L) bool;  confidence (B, L) probability of running;  index (B, L) 1…r of active elements, 0 of others;
    counts (B,) active elements of each row
    """

    active: Tensor
    confidence: Tensor
    index: Tensor
    counts: Tensor

    @property
    def longest(self) -> int:
        """r_max, the length of the short sequences."""
        return int(self.counts.max()) if self.counts.numel() else 0

    def rate(self, lengths: Tensor | None = None) -> Tensor:
        """Share of the elements that are active.  lengths (B,) real elements of each row; None: all"""
        total = self.active.numel() if lengths is None else lengths.sum().clamp_min(1)
        return self.counts.sum() / total


def route(
    logits: Tensor, *, temperature: Tensor | float = 1.0, mask: Tensor | None = None, always: bool = False
) -> ActiveTokens:
    """p = softmax(logits/temperature); active where p₁ > p₀ and the mask holds.

    logits (B, L, 2);  mask (B, L), False where nothing is real;  always: every real element is active
    """
    if logits.ndim != 3 or logits.shape[-1] != 2:
        raise ValueError(f"logits must be (B, L, 2), got {tuple(logits.shape)}")
    if mask is not None and mask.shape != logits.shape[:2]:
        raise ValueError(f"mask must be {tuple(logits.shape[:2])}, got {tuple(mask.shape)}")
    wide = torch.promote_types(logits.dtype, torch.float32)
    confidence = torch.softmax(logits / temperature, -1, dtype=wide)[..., 1]
    active = torch.ones_like(logits[..., 0], dtype=torch.bool) if always else logits[..., 1] > logits[..., 0]
    if mask is not None:
        active = active & mask.bool()
    index = active.cumsum(1) * active
    return ActiveTokens(active, confidence.to(logits.dtype), index, active.sum(1))


def compress(values: Tensor, activation: ActiveTokens) -> Tensor:
    """The active elements of each row in their order, then zeros.  values (B, L, ...); (B, r_max, ...)"""
    index = activation.index.reshape(*activation.index.shape, *(1 for _ in values.shape[2:])).expand(values.shape)
    rows = values.new_zeros(len(values), activation.longest + 1, *values.shape[2:])
    return rows.scatter(1, index, values)[:, 1:]  # row 0 takes all that is not active


def extract(rows: Tensor, activation: ActiveTokens) -> Tensor:
    """The inverse of `compress`, zeros where nothing is active.  rows (B, r_max, D); (B, L, D)"""
    if rows.shape[1] != activation.longest:
        raise ValueError(f"rows must hold {activation.longest} elements, got {rows.shape[1]}")
    index = activation.index[..., None].expand(*activation.index.shape, rows.shape[-1])
    return F.pad(rows, (0, 0, 1, 0)).gather(1, index)


def run_where_active(unit: Callable[[Tensor], Tensor], values: Tensor, activation: ActiveTokens) -> Tensor:
    """unit(x)·p where active, 0 elsewhere: a layer for some tokens, an expert, a later exit.

    unit  (B, r, D) -> (B, r, D), and no row may depend on another or on the zeros that fill up its own
    """
    if not activation.longest:
        return torch.zeros_like(values)
    rows = unit(compress(values, activation))
    return extract(rows, activation) * (activation.confidence * activation.active)[..., None].to(rows.dtype)
