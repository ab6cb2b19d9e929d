"""Pair losses: link(margin) for a preferred first, and the soft-label form that all methods share.  torch.

For a pair (a, b) with p = P(a ≻ b) and margin δ = s(a) − s(b):  loss(δ, p) = p·link(δ) + (1 − p)·link(−δ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Link(Protocol):
    """What a margin costs when the first completion is the better one: (B,) nats -> (B,), convex."""

    def __call__(self, margin: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Logistic:
    """−log σ(γδ) = softplus(−γδ).

    Bradley–Terry likelihood; DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7) with γ = β on "ratio".
    """

    gamma: float

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma)

    def __call__(self, margin: Tensor) -> Tensor:
        return softplus(-self.gamma * margin)


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 − γδ): γ times SLiC's max(0, 1/γ − δ) (Zhao et al. 2023, arXiv:2305.10425, eq. 1).

    On "logp" SLiC's hinge, on "ratio" RSO's hinge-norm (Liu et al. 2024, arXiv:2309.06657, eq. 10), which trl calls
    "hinge".
    """

    gamma: float

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma)

    def __call__(self, margin: Tensor) -> Tensor:
        return torch.relu(1 - self.gamma * margin)


@dataclass(frozen=True)
class Square:
    """(δ − 1/(2τ))²: identity preference optimisation (Azar et al. 2023, arXiv:2310.12036, eq. 17) on "ratio"."""

    tau: float

    def __post_init__(self) -> None:
        _positive("tau", self.tau)

    def __call__(self, margin: Tensor) -> Tensor:
        return (margin - 1 / (2 * self.tau)) ** 2


def pair_loss(link: Link, margin: Tensor, preference: Tensor | float = 1.0) -> Tensor:
    """(B,) p·link(δ) + (1 − p)·link(−δ).

    margin      (B,) δ = s(a) − s(b), nats
    preference  (B,) p = P(a ≻ b).  1 or 0: hard labels.  1 − ε: label smoothing (cDPO).  `robust_preference`: weights
                outside [0, 1] that undo known label noise
    """
    if isinstance(preference, float | int):
        preference = torch.full_like(margin, preference)
    preference = preference.to(margin)
    if not bool(torch.isfinite(preference).all()):
        raise ValueError("a preference is not a finite number")
    if bool((preference == 1).all()):
        return link(margin)
    return preference * link(margin) + (1 - preference) * link(-margin)


def smoothed_preference(preference: Tensor, epsilon: float) -> Tensor:
    """(B,) p moved towards ½ by a flip of probability ε: (1 − ε)p + ε(1 − p), the label smoothing of cDPO."""
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon must lie in [0, 0.5), got {epsilon}")
    return (1 - 2 * epsilon) * preference + epsilon


def robust_preference(preference: Tensor, epsilon: float) -> Tensor:
    """(B,) weights (p − ε)/(1 − 2ε) for `pair_loss`, which outside [0, 1] make its mean over flipped labels unbiased.

    With hard labels: ((1 − ε)·link(δ) − ε·link(−δ)) / (1 − 2ε), trl's "robust"; ε is the rate of flipped labels.
    Chowdhury et al. 2024, arXiv:2403.00409, eq. 12.
    """
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon must lie in [0, 0.5), got {epsilon}")
    return (preference - epsilon) / (1 - 2 * epsilon)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
