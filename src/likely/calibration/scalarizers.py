"""Pareto scalarizers: one number from the losses of several sources, so that its minimum is Pareto optimal.

losses (..., M) tensors, ℓ_j >= 0 of M sources, 0 where a source abstains; results (...,).  Each grows with every loss
(Chebyshev: never falls), so at a minimum no source can be fitted better without another being fitted worse.
Zhao et al. 2023, arXiv:2306.16564.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Scalarizer = Callable[["Tensor"], "Tensor"]


def linear(losses: Tensor) -> Tensor:
    """Σ_j ℓ_j: the fit is to the shares of the votes."""
    return losses.sum(-1)


def quadratic(losses: Tensor) -> Tensor:
    """(Σ_j ℓ_j)²: texts on which many sources disagree with the fit count most.  The paper's default."""
    return losses.sum(-1) ** 2


def euclidean(losses: Tensor) -> Tensor:
    """sqrt(Σ_j ℓ_j²), with gradient 0 where all losses are 0."""
    return losses.norm(dim=-1)


def chebyshev(losses: Tensor) -> Tensor:
    """max_j ℓ_j: only the worst fitted source counts (of equal ones, all in equal parts)."""
    return losses.amax(-1)


SCALARIZERS: dict[str, Scalarizer] = {
    "linear": linear,
    "quadratic": quadratic,
    "euclidean": euclidean,
    "chebyshev": chebyshev,
}


def source_losses(logp: Tensor, votes: Tensor) -> Tensor:
    """ℓ_j = −log h(x)[Λ_j(x)], (B, M); exactly 0, without a gradient, where source j abstains.

    logp (B, K) log-probabilities, votes (B, M) classes or -1
    """
    voted = votes >= 0
    picked = -logp.gather(-1, votes.clamp(min=0))
    return picked.where(voted, picked.new_zeros(()))  # not a product: 0 · inf is NaN


def pareto_loss(
    logp: Tensor,
    votes: Tensor,
    *,
    scalarizer: Scalarizer = quadratic,
    weights: Tensor | None = None,
    normalize_by_votes: bool = False,
) -> Tensor:
    """G(w_1 ℓ_1, ..., w_M ℓ_M) of each text, (B,); 0 where nobody votes.

    weights             (M,) > 0 per source, None: 1 each
    normalize_by_votes  divide the losses by the number of sources that vote on the text.  Under the quadratic
                        scalarizer a text with many votes otherwise counts with their number squared
    """
    losses = source_losses(logp, votes)
    if weights is not None:
        losses = losses * weights
    if normalize_by_votes:
        losses = losses / (votes >= 0).sum(-1, keepdim=True).clamp(min=1)
    return scalarizer(losses)
