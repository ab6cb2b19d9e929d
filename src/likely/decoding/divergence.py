"""How far two laws over the same tokens lie apart.  Pure functions of log-probabilities."""

from __future__ import annotations

import numpy as np

from likely.models.runtime import FloatArray


def jensen_shannon(logp: FloatArray, logq: FloatArray) -> float:
    """Jensen-Shannon divergence in bits, so that it lies in [0, 1]: 0 for equal laws, 1 for disjoint ones.

    logp, logq  (V,) natural log-probabilities of two laws; -inf is a legal entry
    JS = ½ Σ p log₂(p / m) + ½ Σ q log₂(q / m),  m = (p + q) / 2.  Lin 1991, IEEE Trans. Inf. Theory 37(1).
    Multiply by log 2 for nats.
    """
    p, q = np.exp(logp), np.exp(logq)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_m = np.log((p + q) / 2)
        parts = np.where(p > 0, p * (logp - log_m), 0) + np.where(q > 0, q * (logq - log_m), 0)
    return float(np.clip(parts.sum(dtype=np.float64) / (2 * np.log(2)), 0.0, 1.0))
