"""Calibration error by smoothing instead of bins: no bin edges, and the width of the smoothing is not a choice.

smECE_σ = ∫_0^1 |Σ_i (y_i − c_i) K_σ(t, c_i)| dt / N, with K_σ the Gaussian kernel of width σ reflected at 0 and 1.
It falls as σ grows; the smooth ECE is where it meets σ.  Błasiok & Nakkiran 2023, arXiv:2309.12236, section 3.

The reflected Gaussian is diagonal in cosines: cos(πkt) is multiplied by exp(−(πkσ)²/2).  So the residuals are put on a
grid once, and every σ costs one inverse cosine transform.  The grid's error is below 1e-5 for σ >= 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from likely.metrics.bins import checked_tally
from likely.metrics.bootstrap import resampled_weights
from likely.metrics.checks import Floats, check_confidence, check_correct
from likely.metrics.tally import Tally, group

CELLS = 2048  # of the grid on 0..1; widths below a cell, 0.0005, are not resolved
SHOWN = 8  # a curve has a point every so many cells
SPARSE = 1e-3  # no curve where the density of rows is below this (1 if they lie evenly on 0..1)


def smooth_ece(confidence: Any, correct: Any) -> float:
    """The σ with smECE_σ = σ, 0 (calibrated) to 1.  confidence (N,) in [0, 1], correct (N,) of 0 and 1."""
    return float(smooth_ece_of(checked_tally(confidence, correct)))


def smooth_ece_at(confidence: Any, correct: Any, width: float) -> float:
    """smECE_σ for a given σ = width > 0."""
    if not width > 0:
        raise ValueError(f"width must be > 0, got {width!r}")
    counted = checked_tally(confidence, correct)
    waves = scipy.fft.dct(_on_grid(counted.value, counted.right - counted.n * counted.value)) / counted.rows
    return float(np.abs(_smooth(waves, np.asarray(width))).sum())


@dataclass(frozen=True)
class SmoothCurve:
    """Accuracy as a smooth function of confidence, where there are rows; arrays (P,).

    width         σ of the smoothing: the smooth ECE, and at least one cell of the grid
    confidence    points t;  accuracy  Σ y_i K_σ(t, c_i) / Σ K_σ(t, c_i)
    density       of rows at t; integrates to 1
    low, high     of the accuracy: percentile bootstrap at each point, width held fixed
    """

    width: float
    confidence: Floats
    accuracy: Floats
    density: Floats
    low: Floats
    high: Floats

    def to_dict(self) -> dict[str, Any]:
        names = ("confidence", "accuracy", "density", "low", "high")
        return {"width": self.width} | {name: getattr(self, name).tolist() for name in names}


def smooth_curve(
    confidence: Any, correct: Any, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> SmoothCurve:
    """A reliability diagram without bins: kernel regression at the width that smooth ECE finds."""
    c = check_confidence(confidence)
    y = check_correct(correct, len(c))
    groups = group(c)
    whole = groups.tally(y)
    width = max(float(smooth_ece_of(whole)), 1 / CELLS)

    def smoothed(counted: Tally) -> tuple[Floats, Floats]:
        kernels = [
            _smooth(scipy.fft.dct(_on_grid(counted.value, w)), np.asarray(width)) for w in (counted.n, counted.right)
        ]
        density, right = (k[..., SHOWN // 2 :: SHOWN] * CELLS / counted.rows for k in kernels)
        return density, right / np.maximum(density, SPARSE / 10)

    density, accuracy = smoothed(whole)
    resampled = np.concatenate(
        [smoothed(groups.tally(y, w))[1] for w in resampled_weights(len(c), resamples=resamples, seed=seed)]
    )
    low, high = np.clip(np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0), 0, 1)
    at = (np.arange(CELLS)[SHOWN // 2 :: SHOWN] + 0.5) / CELLS
    held = density >= SPARSE
    return SmoothCurve(width, at[held], np.clip(accuracy, 0, 1)[held], density[held], low[held], high[held])


def smooth_ece_of(counted: Tally) -> Floats:
    """`smooth_ece` of a `Tally` with any leading axes: halving [0, 1] 24 times, all resamples at once."""
    waves = scipy.fft.dct(_on_grid(counted.value, counted.right - counted.n * counted.value)) / counted.rows
    low, high = np.zeros(waves.shape[:-1]), np.ones(waves.shape[:-1])
    for _ in range(24):
        middle = (low + high) / 2
        above = np.abs(_smooth(waves, middle)).sum(axis=-1) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2


def _on_grid(value: Floats, weight: Floats) -> Floats:
    """(..., G) weights at places `value` (G,) -> (..., CELLS), shared linearly by the two nearest cell centres.

    Beyond the outermost centre lies its own reflection, so the whole weight stays with it.
    """
    place = value * CELLS - 0.5
    below = np.floor(place).astype(np.int64)
    share = place - below
    cells = np.concatenate([np.maximum(below, 0), np.minimum(below + 1, CELLS - 1)])
    groups = np.arange(len(value))
    spread = scipy.sparse.csr_array(
        (np.concatenate([1 - share, share]), (cells, np.concatenate([groups, groups]))), shape=(CELLS, len(value))
    )
    return (spread @ weight.reshape(-1, len(value)).T).T.reshape(*weight.shape[:-1], CELLS)


def _smooth(waves: Floats, width: Floats) -> Floats:
    """Cosine transform (..., CELLS) -> smoothed grid; width (...,)."""
    decay = np.exp(-0.5 * (np.pi * np.arange(CELLS) * width[..., None]) ** 2)
    return scipy.fft.idct(waves * decay)
