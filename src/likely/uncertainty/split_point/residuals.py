"""Split-point self-consistency: what the mean absolute residual of a prediction must be, given its two sides.

A prediction v splits what is predicted, Y, in two.  U = E[Y−v | Y>v] and D = E[v−Y | Y<v] are the mean residuals of
the sides, MAR = E|Y−v| that of both.  If v is the mean of Y, both sides carry MAR/2, so MAR is the harmonic mean of U
and D: three estimates of a model agree where it has learned, and where they do not, something is wrong for this input.

Two things share a name in the published code: for numbers U and D are means *given the side*; for classes the side
means A and B are *unconditional*, E[(1−p)·1[y=k]] and E[p·1[y≠k]].

Shapes: N rows, K classes.  SPC-UQ; its identities, and the settings of its official repository (zzz0527/SPC-UQ).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from likely.errors import check_choice
from likely.metrics.checks import Floats, as_floats, check_probs

Gap = Literal["product", "root", "relative"]
TOLERANCE = 0.05  # of |A + B − MAR|: where the heads contradict each other more, nothing is corrected
LARGEST_FACTOR = 10.0


def check_sides(residual: Floats) -> tuple[Any, Any]:
    """Which residuals are positive, which negative; ValueError if none is."""
    up, down = residual > 0, residual < 0
    for side, where in ((up, "above"), (down, "below")):
        if not side.any():
            raise ValueError(
                f"none of {len(residual)} rows lies {where} its prediction, so that side has no residual to learn: "
                f"is y constant, or does the base reproduce it exactly? give rows that the base has not seen"
            )
    return up, down


def harmonic_mar(upper: Any, lower: Any, at_split: Any = 0.0) -> Floats:
    """2UD(1−q)/(U+D): the MAR of a prediction that is the mean, q the probability of lying on the prediction itself.

    P(Y>v)·U = P(Y<v)·D = MAR/2 and P(Y>v) + P(Y<v) = 1 − q give it.  0 where both sides are 0.
    """
    u, d = _sides(upper, lower)
    q = np.asarray(at_split, np.float64)
    if ((q < 0) | (q > 1)).any():
        raise ValueError(f"at_split is a probability in 0..1, got {q.min():g} to {q.max():g}")
    total = u + d
    return np.where(total > 0, 2 * u * d * (1 - q) / np.where(total > 0, total, 1), 0.0)


def self_consistency_gap(mar: Any, upper: Any, lower: Any, *, gap: Gap = "product", eps: float = 1e-12) -> Floats:
    """SDS of numbers, (N,) >= 0, 0 where the three estimates agree.

    product   |2UD − MAR(U+D)|, in squared units of y;  root: its square root, in units of y
    relative  |MAR − 2UD/(U+D)| / (MAR + eps): free of units
    With the true MAR, U and D the product is |U−D|·|E[Y]−v|: it sees a wrong mean, quadratically near 0 where Y is
    symmetric about it, and is blind to one where U = D, which a skewed Y has away from its mean as well.
    """
    check_choice("gap", gap, get_args(Gap))
    u, d = _sides(upper, lower)
    m = _not_negative(mar, "mar")
    if gap == "relative":
        return np.abs(m - harmonic_mar(u, d)) / (m + eps)
    product = np.abs(2 * u * d - m * (u + d))
    return np.sqrt(product) if gap == "root" else product


class Factors(NamedTuple):
    """up, down (N,) >= 1 for the two half-widths;  flagged (N,): the estimates contradict each other, factor capped."""

    up: Floats
    down: Floats
    flagged: np.ndarray


def interval_factors(mar: Any, upper: Any, lower: Any, *, largest: float = LARGEST_FACTOR) -> Factors:
    """How much wider each side of an interval must be for the estimates to agree.

    Given MAR and D, the U that agrees is U* = MAR·D/(2D−MAR); the factor is max(1, U*/U), likewise below with D* =
    MAR·U/(2U−MAR).  If 2D <= MAR no U agrees: the factor is then `largest`, and the row is flagged; so it is where the
    factor would be greater.  (The published code divides by the negative number and thereby leaves such rows alone.)
    """
    if not largest >= 1:
        raise ValueError(f"largest must be >= 1, got {largest}")
    u, d = _sides(upper, lower)
    m = _not_negative(mar, "mar")
    up, down = _factor(m, u, d, largest), _factor(m, d, u, largest)
    return Factors(np.clip(up, 1, largest), np.clip(down, 1, largest), (up >= largest) | (down >= largest))


def _factor(m: Floats, own: Floats, other: Floats, largest: float) -> Floats:
    """MAR·other / ((2·other − MAR)·own), `largest` where the bracket is not positive; 1 where MAR is 0."""
    bottom = (2 * other - m) * own
    found = np.where(bottom > 0, m * other / np.where(bottom > 0, bottom, 1), largest)
    return np.where(m == 0, 1.0, np.minimum(found, largest))


def class_mar(probs: Any) -> Floats:
    """(N, K) 2p(1−p): E|1[y=k] − p_k| if p_k is the probability of class k.

    With true probability π it is (1−p)π + p(1−π), so what a head learns differs from this by (π−p)(1−2p).
    """
    p = check_probs(probs)
    return 2 * p * (1 - p)


def class_gap(mar: Any, probs: Any) -> Floats:
    """SDS of classes, (N,): Σ_k |MAR_k − 2p_k(1−p_k)|.  mar (N, K) as learned, probs (N, K)."""
    expected = class_mar(probs)
    return np.abs(_like(mar, expected, "mar") - expected).sum(axis=1)


def corrections(mar: Any, above: Any, below: Any) -> Floats:
    """(3, N, K): A − B, MAR − 2B and 2A − MAR, three estimates of π − p that agree if MAR = A + B.

    above, below  (N, K) A = E[(1−p)·1[y=k]] = (1−p)π and B = E[p·1[y≠k]] = p(1−π), unconditional
    """
    m = as_floats(mar, "mar", 2)
    a, b = _like(above, m, "above"), _like(below, m, "below")
    return np.stack([a - b, m - 2 * b, 2 * a - m])


def corrected_probs(probs: Any, mar: Any, above: Any, below: Any, *, tolerance: float = TOLERANCE) -> Floats:
    """(N, K): p plus the least of `corrections`, where |A + B − MAR| < tolerance; then clipped to 0..1, rows sum to 1.

    Without the last step, which the published code leaves out, the numbers are not probabilities.  A row that is
    clipped to nothing keeps its p.
    """
    p = check_probs(probs)
    m, a, b = _like(mar, p, "mar"), _like(above, p, "above"), _like(below, p, "below")
    least = corrections(m, a, b).min(axis=0)
    moved = np.clip(p + np.where(np.abs(a + b - m) < tolerance, least, 0.0), 0, 1)
    total = moved.sum(axis=1, keepdims=True)
    return np.where(total > 0, moved / np.where(total > 0, total, 1), p)


def entropy(probs: Any) -> Floats:
    """(N,) −Σ p log p, nats."""
    p = check_probs(probs)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)


def _sides(upper: Any, lower: Any) -> tuple[Floats, Floats]:
    return _not_negative(upper, "upper"), _not_negative(lower, "lower")


def _not_negative(values: Any, name: str) -> Floats:
    array = np.asarray(values, np.float64)
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name}: row {row} is {array.flat[row]:g}: mean residuals are finite and >= 0")
    return array


def _like(values: Any, other: Floats, name: str) -> Floats:
    array = as_floats(values, name, 2)
    if array.shape != other.shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {other.shape}")
    return array
