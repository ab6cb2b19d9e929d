"""Steps of a layer's inputs, weights merged with them, rounded, clipped and spread over columns.

A channel with a large step becomes several columns that carry the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from likely.compression.quantisers.activations import code_range, to_codes

IntMatrix = NDArray[np.int64]
MULTIPLE = 32  # of columns, as integer kernels like them
_RAISE = 1.05
CHANNEL_RATIOS = tuple(1 - i / 20 for i in range(11))  # 1.0 .. 0.5
LAYER_RATIOS = tuple(1 - i / 40 for i in range(13))  # 1.0 .. 0.7
WEIGHT_RATIOS = tuple(1 - i / 20 for i in range(5))  # 1.0 .. 0.8
TOKENS = 1024  # of the calibration set that ratios are chosen on
_LEAST = 1e-12


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


def some_tokens(inputs: torch.Tensor, tokens: int = TOKENS) -> torch.Tensor:
    """At most so many rows, evenly spaced."""
    return inputs if len(inputs) <= tokens else inputs[torch.linspace(0, len(inputs) - 1, tokens).long()]


def fit_steps(inputs: torch.Tensor, bits: int) -> torch.Tensor:
    """(in,) max_t |y_tj| / Qmax of inputs (n, in); a channel that never fires gets the median step."""
    steps = inputs.abs().amax(0) / code_range(bits)[1]
    fires = steps > _LEAST
    if not fires.any():
        return torch.ones_like(steps)
    return torch.where(fires, steps, steps[fires].median())


def clip_channels(inputs: torch.Tensor, steps: torch.Tensor, bits: int) -> torch.Tensor:
    """(in,) steps times the ratio of `CHANNEL_RATIOS` with the least squared error of each channel.

    How strongly a channel counts, Σ_i W_ij², is a factor of its error and moves no minimum.
    """
    sample = some_tokens(inputs)
    errors = torch.stack(
        [(to_codes(sample, c * steps, bits) * (c * steps) - sample).square().sum(0) for c in CHANNEL_RATIOS]
    )
    return steps * torch.tensor(CHANNEL_RATIOS, dtype=steps.dtype)[errors.argmin(0)]


def clip_layer(
    inputs: torch.Tensor, weights: torch.Tensor, steps: torch.Tensor, copies: torch.Tensor, w_bits: int, a_bits: int
) -> Steps:  # fmt: skip
    """One factor on all steps, then one ratio of the weights: those with the least error of the outputs W y.

    weights (out, in) of all matrices that read the inputs (n, in), one below the other
    """
    sample = some_tokens(inputs)
    wanted = sample @ weights.T

    def error(found: Steps) -> float:
        codes = to_codes(sample, found.values, a_bits)
        integers, scales = round_merged(weights, found, copies, w_bits)
        return float((codes @ (integers * scales).T - wanted).square().sum())

    best = min((Steps(ratio * steps) for ratio in LAYER_RATIOS), key=error)
    return min((Steps(best.values, ratio) for ratio in WEIGHT_RATIOS), key=error)
