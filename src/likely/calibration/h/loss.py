"""The h-calibration loss: how far predicted probabilities lie from frequencies around them.  Differentiable; torch.

Every (row, class) is an event with a predicted probability q and an outcome b.  In the order of q, the windowed mean
of q − b is the local miscalibration; its size above a tolerance eps is the loss, averaged over where q lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from likely.errors import check_choice
from likely.metrics.checks import Floats, Ints
from likely.training.loop import import_torch

if TYPE_CHECKING:
    from torch import Tensor

Weighting = Literal["cluster", "uniform"]
WEIGHTINGS = ("cluster", "uniform")
LLOYD_STEPS = 100


def hcal_loss(
    probs: Tensor,
    labels: Tensor,
    *,
    window: int = 200,
    eps: float = 0.0,
    weighting: Weighting = "cluster",
    clusters: int = 15,
    loco: bool | Iterable[int] = False,
) -> Tensor:
    """One number, 0 for q = b, with gradients to `probs`: a training objective, or a regulariser beside another.

    probs    (N, K)  each in [0, 1];  labels (N,) classes
    window   M, even: w_i = Σ_{|j−i| <= M/2} (q_j − b_j) / (M + 1) in the order of q, zeros beyond the ends
    eps      >= 0, the error bound that is tolerated: t_i = max(|w_i| − eps, 0)
    weighting  "cluster": the mean over clusters of q (1-D k-means) of the mean t of each, so that the mass of events
             near 0 does not drown the rest;  "uniform": the mean of t
    loco     leave one class out: the mean over classes e of the loss of the rows whose label is not e, for all classes
             (True) or those named; classes that no row has are skipped
    The order and the clusters are constants: gradients flow through q − b only.  Sums are in float64; O(NK log NK).
    Sampling noise alone gives about √(2/π) √(q(1−q)/(M+1)) per window: `resampling_floor` says how much in all.
    h-calibration (spelled out from its description; the official code has more weightings).
    """
    torch = import_torch()
    if probs.ndim != 2 or labels.shape != probs.shape[:1]:
        raise ValueError(f"probs must be (N, K) and labels (N,), got {tuple(probs.shape)} and {tuple(labels.shape)}")
    check_objective(window, eps, weighting)
    n, k = probs.shape
    q = probs.reshape(-1).double()
    hits = torch.nn.functional.one_hot(labels.long(), k).reshape(-1)
    order = torch.argsort(q.detach(), stable=True)
    values, residuals = q.detach()[order], (q - hits).gather(0, order)

    def loss_of(values: Tensor, residuals: Tensor) -> Tensor:
        off = torch.relu(windowed(residuals, window).abs() - eps)
        if weighting == "uniform":
            return off.mean()
        ends = torch.as_tensor(cluster_ends(values.cpu().numpy(), clusters), device=off.device)
        sums = torch.cat([off.new_zeros(1), off.cumsum(0)])[ends].diff()
        counts = ends.diff()
        return (sums[counts > 0] / counts[counts > 0]).mean()

    if loco is False:
        return loss_of(values, residuals)
    owner = labels[order // k]
    losses = []
    for left_out in range(k) if loco is True else loco:
        kept = owner != left_out
        if 0 < int(kept.sum()) < n * k:
            losses.append(loss_of(values[kept], residuals[kept]))
    if not losses:
        raise ValueError("loco: no class can be left out (of those asked for, none has rows, or it has all of them)")
    return torch.stack(losses).mean()


def check_objective(window: int, eps: float, weighting: str) -> None:
    """ValueError for settings of `hcal_loss` that are not allowed."""
    if window < 2 or window % 2:
        raise ValueError(f"window must be an even number >= 2, got {window}")
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    check_choice("weighting", weighting, WEIGHTINGS)


def windowed(residuals: Tensor, window: int) -> Tensor:
    """(n,) sums over the window/2 neighbours on each side and itself, divided by window + 1, by cumulative sums."""
    torch = import_torch()
    sums = residuals.cumsum(0)
    half = window // 2
    padded = torch.cat([sums.new_zeros(half + 1), sums, sums[-1:].expand(half)])
    return (padded[window + 1 :] - padded[: len(sums)]) / (window + 1)


def cluster_ends(rising: Floats, clusters: int) -> Ints:
    """(clusters + 1,) where each cluster of sorted numbers begins, and the end: 1-D k-means by Lloyd's algorithm.

    Starts from centres at equal distances, so that it depends on nothing but the numbers; some may end up empty.
    """
    if clusters < 1:
        raise ValueError(f"clusters must be >= 1, got {clusters}")
    sums = np.concatenate([[0.0], np.cumsum(rising)])
    centres = rising[0] + (rising[-1] - rising[0]) * (np.arange(clusters) + 0.5) / clusters
    ends = np.zeros(0, np.int64)
    for _ in range(LLOYD_STEPS):
        inner = np.searchsorted(rising, (centres[1:] + centres[:-1]) / 2)
        now = np.concatenate([[0], inner, [len(rising)]])
        if np.array_equal(now, ends):
            break
        ends = now
        counts = np.diff(ends)
        centres = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), centres)
    return ends


def fitting_window(window: int, pairs: int) -> int:
    """The window for so many (row, class) pairs: at most 2·⌊pairs / 40⌋, which counts as 10 where it is below."""
    return min(window, max(10, 2 * (pairs // 40)))


def resampling_floor(
    probs: Any, *, resamples: int = 20, seed: int = 0, window: int = 200, eps: float = 0.0,
    weighting: Weighting = "cluster",
) -> Floats:  # fmt: skip
    """(resamples,) the loss of perfectly calibrated predictions: labels sampled from `probs` (N, K) themselves.

    What a fitted map's loss is to be compared with, since it is never 0.  window, eps, weighting: of `hcal_loss`.
    """
    torch = import_torch()
    p = np.asarray(probs, np.float64)
    rng = np.random.default_rng(seed)
    upper = p.cumsum(axis=1)
    found = []
    with torch.no_grad():
        for _ in range(resamples):
            sampled = (rng.uniform(size=(len(p), 1)) * upper[:, -1:] >= upper[:, :-1]).sum(axis=1)
            loss = hcal_loss(
                torch.as_tensor(p), torch.as_tensor(sampled), window=window, eps=eps, weighting=weighting
            )  # fmt: skip
            found.append(float(loss))
    return np.array(found)
