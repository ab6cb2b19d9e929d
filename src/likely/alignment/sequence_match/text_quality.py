"""How near the texts of a model are to texts of people: a score like MAUVE on given features, and repetition."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likely.metrics.checks import Floats

POINTS, SCALE, KEPT_VARIANCE = 25, 5.0, 0.9


def divergence_frontier(p: ArrayLike, q: ArrayLike, *, scale: float = SCALE) -> float:
    """Area under the divergence curve of two histograms (K,): 1 where they are equal, 0 where they share nothing.

    The curve is (exp(−c KL(q ‖ r)), exp(−c KL(p ‖ r))), r = λ p + (1 − λ) q, λ from 0 to 1, c the scale.
    Pillutla et al. 2021, arXiv:2102.01454, eq. 1 and 2.
    """
    first, second = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if first.shape != second.shape or first.ndim != 1 or (first < 0).any() or (second < 0).any():
        raise ValueError(f"p and q must be histograms of one length, got shapes {first.shape} and {second.shape}")
    first, second = first / first.sum(), second / second.sum()
    shares = np.linspace(1e-6, 1 - 1e-6, POINTS)
    mixtures = shares[:, None] * first + (1 - shares[:, None]) * second
    x, y = (np.exp(-scale * np.array([_kl(own, r) for r in mixtures])) for own in (second, first))
    order = np.argsort(np.concatenate([[0.0], x, [1.0]]), kind="stable")
    x, y = np.concatenate([[0.0], x, [1.0]])[order], np.concatenate([[1.0], y, [0.0]])[order]
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def mauve_like(
    p_features: ArrayLike, q_features: ArrayLike, *, clusters: int | None = None, scale: float = SCALE, seed: int = 0
) -> float:
    """`divergence_frontier` of two sets of texts (N, D) and (M, D), both quantised by one k-means.

    clusters  by default a tenth of the smaller set's size, at least 2

    As in MAUVE features are of length 1, reduced to the principal components that hold 90 % of the variance, and the
    area is the mean of both directions.  Unlike it, features are whatever is given (for instance
    `scoring.hidden_states` of a small model) and k-means is scipy's, so that values compare with each other only where
    features, number of texts and clusters are the same.
    """
    from scipy.cluster.vq import kmeans2

    p, q = np.asarray(p_features, np.float64), np.asarray(q_features, np.float64)
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1] or min(len(p), len(q)) < 2:
        raise ValueError(f"features must be (N, D) and (M, D) of at least two texts, got {p.shape} and {q.shape}")
    k = max(2, min(len(p), len(q)) // 10) if clusters is None else clusters
    if not 2 <= k <= len(p) + len(q):
        raise ValueError(f"clusters must lie between 2 and {len(p) + len(q)} texts, got {clusters}")
    both = np.concatenate([p, q])
    both = both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    both = _principal(both)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty clusters
        _, labels = kmeans2(both, k, minit="++", iter=50, seed=seed)
    mine, theirs = (np.bincount(part, minlength=k) for part in (labels[: len(p)], labels[len(p) :]))
    return (divergence_frontier(mine, theirs, scale=scale) + divergence_frontier(theirs, mine, scale=scale)) / 2


def repeated_ngrams(texts: Sequence[Sequence[int]], n: int = 4) -> Floats:
    """Per text: the share of its n-grams that stood in it before, 1 − distinct / all; NaN for one shorter than n."""
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    found = []
    for text in texts:
        grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
        found.append(1 - len(set(grams)) / len(grams) if grams else np.nan)
    return np.array(found)


def _kl(p: NDArray[np.float64], r: NDArray[np.float64]) -> float:
    inside = p > 0
    return float((p[inside] * np.log(p[inside] / r[inside])).sum())


def _principal(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = values - values.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    shares = np.cumsum(sizes**2) / max(float((sizes**2).sum()), 1e-300)
    kept = int(np.searchsorted(shares, KEPT_VARIANCE)) + 1
    return left[:, :kept] * sizes[:kept]
