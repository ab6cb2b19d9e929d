"""How children of a draft's node are sampled from q: independently, without replacement, or as whole sequences.

Pure functions of arrays and noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from likely.metrics.checks import Floats
from likely.runtimes.protocol import FloatArray, IntArray
from likely.runtimes.rows import top_tokens


def independent(log_q: FloatArray, k: int, noise: np.random.Generator) -> IntArray:
    """(k,) draws from q (V,), with replacement."""
    return np.array([int((log_q + noise.gumbel(size=len(log_q))).argmax()) for _ in range(k)], np.int64)


def without_replacement(log_q: FloatArray, k: int, noise: np.random.Generator) -> IntArray:
    """(<= k,) draws from q (V,), each without the earlier ones."""
    return gumbel_top_k(log_q, k, noise.gumbel(size=len(log_q)))


def log1mexp(a: Floats) -> Floats:
    """log(1 - exp(a)) for a <= 0, exact at both ends: -inf at 0, -exp(a) far below (Mächler 2012)."""
    a = np.asarray(a, np.float64)
    with np.errstate(divide="ignore"):
        return np.where(a > -math.log(2), np.log(-np.expm1(np.minimum(a, 0.0))), np.log1p(-np.exp(a)))


def gumbel_top_k(log_q: NDArray[np.floating], k: int, noise: NDArray[np.floating]) -> IntArray:
    """k draws from q without replacement, in the order of sampling; fewer where q has fewer tokens.

    log_q, noise (V,): -inf is a legal log-probability; noise is independent standard Gumbel.  Returns (<= k,) ids:
    the largest of log q + noise, largest first, so that P(x1, x2, ..) = q(x1) q(x2) / (1 - q(x1)) ..
    Kool et al. 2019, arXiv:1903.06059, section 2.3.
    """
    perturbed = log_q + noise
    ids = top_tokens(perturbed, k)
    return ids[perturbed[ids] > -np.inf]


class BeamStep(NamedTuple):
    """The beam after one step, most perturbed first.  W' <= width.

    parents (W',) row of the old beam;  tokens (W',);  phi (W',) sequence_logprob;  perturbed (W',) G, decreasing
    """

    parents: IntArray
    tokens: IntArray
    phi: Floats
    perturbed: Floats


def stochastic_beam_step(
    phi: Floats, perturbed: Floats, log_q: NDArray[np.floating], noise: NDArray[np.floating], width: int
) -> BeamStep:
    """One level of stochastic beam search: the `width` first of all sequences sampled without replacement.

    phi, perturbed (B,) of the beam; the root has phi = 0 and any perturbed value, say 0
    log_q, noise (B, V): log q after each row of the beam, and independent standard Gumbel noise

    The children of row u get noisy values conditioned on their maximum being the value of u:
    G'(x) = phi_u + log q_u(x) + noise,  Z = max G',  v = G_u - G' + log(1 - exp(G' - Z)),
    G(x) = G_u - max(0, v) - log(1 + exp(-|v|)).
    So the leaves have the values that Gumbel-top-k over all whole sequences would give them.
    Kool et al. 2019, arXiv:1903.06059, algorithm 1 and appendix B.3.
    """
    if width < 1:
        raise ValueError(f"width must be >= 1, got {width}")
    next_phi = phi[:, None] + np.asarray(log_q, np.float64)  # (B, V)
    raw = next_phi + noise
    peak = raw.max(axis=1, keepdims=True)
    bound = perturbed[:, None]
    v = bound - raw + log1mexp(raw - peak)
    values = bound - np.maximum(0.0, v) - np.log1p(np.exp(-np.abs(v)))
    best = gumbel_top_k(values.ravel(), width, np.zeros(values.size))
    rows, tokens = np.divmod(best, values.shape[1])
    return BeamStep(rows, tokens, next_phi[rows, tokens], values[rows, tokens])
