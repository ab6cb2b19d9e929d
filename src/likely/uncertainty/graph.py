"""Uncertainty from a graph of S samples whose edges are their similarities.  Lin et al. 2023, arXiv:2305.19187.

W (S, S): symmetric, in [0, 1], 1 on the diagonal; D = diag(W·1); L = I − D^(−1/2) W D^(−1/2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from likely.uncertainty.overlap import similarities
from likely.uncertainty.sampling import any_cut, samples_of
from likely.uncertainty.types import Floats, Gathered, Uncertainty

ECCENTRIC_BELOW = 0.9  # eigenvalues of L whose eigenvectors are coordinates of the samples


def eigenvalue_sum(w: Floats) -> float:
    """EigV: Σ_k max(0, 1 − λ_k) over the eigenvalues of L, a soft number of meanings: 1 if all agree, S if none."""
    return float(np.maximum(0.0, 1 - np.linalg.eigvalsh(_laplacian(w))).sum())


def missing_degree(w: Floats) -> float:
    """Deg: trace(S·I − D) / S², the mean of 1 − W over all pairs: 0 if all agree."""
    return float((len(w) - w.sum(axis=1)).sum() / len(w) ** 2)


def eccentricity(w: Floats) -> float:
    """Ecc: the Frobenius norm of the samples' coordinates (eigenvectors of L with λ < 0.9) less their mean."""
    values, vectors = np.linalg.eigh(_laplacian(w))
    coordinates = vectors[:, values < ECCENTRIC_BELOW]
    return float(np.linalg.norm(coordinates - coordinates.mean(axis=0)))


def _laplacian(w: Floats) -> Floats:
    if w.ndim != 2 or w.shape[0] != w.shape[1] or not np.allclose(w, w.T):
        raise ValueError(f"similarities must be a symmetric (S, S) matrix, got shape {w.shape}")
    scale = 1 / np.sqrt(w.sum(axis=1))
    return np.eye(len(w)) - scale[:, None] * w * scale


def graph_score(gathered: Gathered, of: Callable[[Floats], float], name: str) -> Uncertainty:
    """One of the scores above per prompt, with ROUGE-L as similarity (S >= 2)."""
    samples = gathered.texts("samples")
    values = np.empty(gathered.n)
    for i in range(gathered.n):
        values[i] = of(similarities([samples.texts[k] for k in samples_of(samples, i, least=2)]))
    return Uncertainty(
        values, "score", "less_certain", name, truncated=any_cut(samples, gathered.n), note="similarity: ROUGE-L"
    )
