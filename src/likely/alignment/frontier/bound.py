"""The most reward that any policy can have at each KL, estimated from samples of the reference alone.  numpy.

For any reward no policy lies above π*_β ∝ π_ref·e^{r/β}.  P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from likely.alignment.frontier.policies import FrontierPoint, Mean, mean_over_prompts
from likely.alignment.importance import effective_sample_size, tilted_kl, weighted_mean
from likely.errors import DataError

LEAST_ESS = 5.0


@dataclass(frozen=True)
class EnvelopePoint:
    """π*_β: reward and KL with standard errors over prompts;  ess: mean effective sample size a prompt."""

    beta: float
    reward: Mean
    kl: Mean
    ess: float


@dataclass(frozen=True)
class Envelope:
    """The most reward at each KL.  refused: the β at which too few samples of the reference say anything."""

    points: tuple[EnvelopePoint, ...]
    refused: tuple[float, ...]

    def reward_at(self, kl: float) -> float:
        """Interpolated; NaN beyond the largest KL that was estimated."""
        found = sorted((point.kl.value, point.reward.value) for point in self.points)
        kls, rewards = zip(*found, strict=True)
        return float(np.interp(kl, kls, rewards, right=np.nan))


def envelope(rewards: ArrayLike, betas: Sequence[float], *, least_ess: float = LEAST_ESS) -> Envelope:
    """Reward and KL of π*_β ∝ π_ref·e^{r/β}, with the reference itself as the point of KL 0.

    rewards  (P, M) of M samples of π_ref for each prompt;  betas: each > 0
    Self-normalised: E*[r] ≈ Σ w r, KL = E*[r]/β − log mean e^{r/β}.  A β is refused where 1/Σw² is below `least_ess` on
    average: with fewer samples both are too low.
    """
    values = np.asarray(rewards, np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or not np.isfinite(values).all():
        raise DataError(f"rewards must be finite with shape (prompts, samples >= 2), got shape {values.shape}")
    points = [
        EnvelopePoint(float("inf"), mean_over_prompts(values.mean(axis=1)), Mean(0.0, 0.0), float(values.shape[1]))
    ]
    refused = []
    for beta in sorted(betas, reverse=True):
        kl = tilted_kl(values, beta)
        size = float(effective_sample_size(values / beta).mean())
        if size < least_ess:
            refused.append(beta)
        else:
            points.append(
                EnvelopePoint(
                    beta, mean_over_prompts(weighted_mean(values, values / beta)), mean_over_prompts(kl), size
                )
            )
    return Envelope(tuple(points), tuple(refused))


def default_betas(rewards: ArrayLike) -> list[float]:
    """Eight temperatures in even steps of their logarithm, from 4 standard deviations of the rewards down to 1/8."""
    spread = float(np.std(np.asarray(rewards, np.float64))) or 1.0
    return (spread * np.geomspace(4, 0.125, 8)).tolist()


def lies_above(point: FrontierPoint, bound: Envelope, reward: str) -> bool:
    """Whether a policy has more reward than any can at its KL, by more than 3 standard errors: then there is a bug.

    False beyond the largest KL of the envelope, where nothing is known.
    """
    most = bound.reward_at(point.best_kl.value)
    nearest = min(bound.points, key=lambda p: abs(p.kl.value - point.best_kl.value))
    slope = 1 / nearest.beta  # d kl / d reward along the envelope
    from_kl = point.best_kl.se / slope if slope > 0 else 0.0
    error = (point.rewards[reward].se ** 2 + nearest.reward.se**2 + from_kl**2) ** 0.5
    return bool(point.rewards[reward].value - most > 3 * error)
