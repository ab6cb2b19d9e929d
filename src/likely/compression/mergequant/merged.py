"""Weights merged with the steps of their inputs, rounded, and spread: dimension reconstruction.

A channel with a large step becomes several columns that carry the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from likely.compression.quantisers.activations import code_range

IntMatrix = NDArray[np.int64]
MULTIPLE = 32  # of columns, as integer kernels like them
_RAISE = 1.05


@dataclass(frozen=True, eq=False)
class SplitColumns:
    """Which channels a reconstructed matrix reads.

    copies  (in,) columns of each channel, 0: dropped;  padding: columns of zeros at the end, which read channel 0
    """

    copies: IntMatrix
    padding: int = 0

    @property
    def index(self) -> IntMatrix:
        """(columns,) the channel that each column reads."""
        return np.concatenate([np.repeat(np.arange(len(self.copies)), self.copies), np.zeros(self.padding, np.int64)])

    @property
    def unchanged(self) -> bool:
        return self.padding == 0 and bool((self.copies == 1).all())


def split_columns(steps: NDArray[np.floating], *, threshold: float = 2.0, growth: float = 0.1) -> SplitColumns:
    """ceil(s_j / τ) columns for each channel with a step s_j above τ = threshold · median(s).

    growth  the matrix gets at most this share of columns more, padding to a multiple of 32 left out; τ is raised until
            it does not
    """
    if not threshold > 0 or growth < 0:
        raise ValueError(f"threshold must be > 0 and growth >= 0, got {threshold} and {growth}")
    tau = threshold * float(np.median(steps))
    copies = np.maximum(1, np.ceil(steps / tau)).astype(np.int64)
    while copies.sum() - len(copies) > growth * len(copies):
        tau *= _RAISE
        copies = np.maximum(1, np.ceil(steps / tau)).astype(np.int64)
    padding = -int(copies.sum()) % MULTIPLE if copies.max() > 1 else 0
    return SplitColumns(copies, padding)


def drop_columns(columns: SplitColumns, saliency: NDArray[np.floating]) -> SplitColumns:
    """The same width as without a split: as many unsplit channels go as columns came, those of least saliency first."""
    copies = columns.copies.copy()
    spare = int(copies.sum()) - len(copies)
    order = [int(j) for j in np.argsort(saliency, kind="stable") if copies[j] == 1]
    copies[order[:spare]] = 0
    return SplitColumns(copies)


def split_integers(codes: IntMatrix, columns: SplitColumns) -> IntMatrix:
    """(out, columns) from codes (out, in): copy i of m gets floor((r + i) / m), and these add up to r exactly."""
    index = np.repeat(np.arange(len(columns.copies)), columns.copies)
    counts = columns.copies[index]
    first = np.cumsum(columns.copies) - columns.copies
    place = np.arange(len(index)) - first[index]
    found = (codes[:, index] + place) // counts
    return np.pad(found, ((0, 0), (0, columns.padding)))


@dataclass(frozen=True, eq=False)
class Steps:
    """What codes of inputs mean. values (in,); weight_clip: share of the largest weight that is covered."""

    values: torch.Tensor
    weight_clip: float = 1.0


def round_merged(
    weights: torch.Tensor, steps: Steps, copies: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest integers r (out, in) of W diag(s), |r_ij| <= m_j Qmax, and their scales z (out, 1).

    copies  (in,) m_j columns that channel j is spread over: z covers the largest |W_ij| s_j / m_j
    """
    highest, merged = code_range(bits)[1], weights * steps.values
    scales = row_scales(merged, steps, copies, bits)
    most = copies * highest
    return torch.minimum(torch.maximum((merged / scales).round(), -most), most) * (copies > 0), scales


def row_scales(merged: torch.Tensor, steps: Steps, copies: torch.Tensor, bits: int) -> torch.Tensor:
    """(out, 1) z of merged weights (out, in)."""
    largest = (merged.abs() / copies.clamp_min(1) * (copies > 0)).amax(1, keepdim=True)
    scales = steps.weight_clip * largest / code_range(bits)[1]
    return torch.where(scales > 0, scales, torch.ones_like(scales))
