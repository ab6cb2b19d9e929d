"""Which drafted tokens are kept.  Pure functions of arrays; p is the target's distribution, q the draft's.

Rules M and G   `matched_walk`: the target's own pick decides; exact for any draft
Rule R          `recursive_rejection`: exact for sampled drafts.  One candidate: speculative sampling (Leviathan et al.
                2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318); independent candidates: SpecInfer (Miao et
                al. 2023, arXiv:2305.09781); without replacement: RSD (Jeon et al. 2024, arXiv:2402.14160)
Rule K          `k_sequential`: SpecTr (Sun et al. 2023, arXiv:2310.15141), independent candidates
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from likely.decoding.drafting.protocol import Draft, DraftDistribution
from likely.metrics.checks import Floats

Uniform = Callable[[], float]  # fresh draws from [0, 1)


def matched_walk(
    draft: Draft,
    pick: Callable[[int, tuple[int, ...]], int],
    go_on: Callable[[], bool] = lambda: True,
) -> tuple[list[int], list[int]]:
    """(accepted nodes from the root down, emitted tokens: the accepted ones and one more).

    pick(node, path) -> the target's token after `node` (-1: the root), `path` holding the drafted tokens down to it.
    It is called once per visited node.  Where a child holds the token the walk descends, so the emitted tokens are the
    target's picks: distributed as the target's whatever the draft.
    go_on()  asked before descending; False ends the walk with what was picked so far
    """
    children = draft.children()
    node = -1
    path: tuple[int, ...] = ()
    accepted: list[int] = []
    while True:
        token = pick(node, path)
        path = (*path, token)
        child = children.get(node, {}).get(token)
        if child is None or not go_on():
            return accepted, list(path)
        accepted.append(child)
        node = child


def sampled_walk(
    draft: Draft,
    distribution_at: Callable[[int, tuple[int, ...]], Floats],
    uniform: Uniform,
    *,
    rule: str = "rejection",
    emit: Callable[[int], None] = lambda token: None,
    go_on: Callable[[], bool] = lambda: True,
) -> tuple[list[int], list[int]]:
    """As `matched_walk`, by rule R ("rejection") or K ("spectr") at each node of a sampled draft.

    distribution_at(node, path) -> p (V,) after `node`.  Emitted tokens are distributed as the target's, for every q.
    emit(token)  called with every token as it is decided
    """
    if draft.distribution is DraftDistribution.FIXED:
        raise ValueError("rejection needs a draft that was sampled from a known q; a fixed draft takes matched_walk")
    if rule == "spectr" and draft.distribution is not DraftDistribution.IID:
        raise ValueError('the rule "spectr" needs independent candidates; this draft was sampled without replacement')
    node = -1
    path: tuple[int, ...] = ()
    accepted: list[int] = []
    while True:
        p = distribution_at(node, path)
        children = draft.draws.get(node, ())
        if children:
            tokens = [int(draft.tokens[c]) for c in children]
            q = np.exp(draft.log_q[node].astype(np.float64))
            if rule == "spectr":
                kept, p = k_sequential(p, q, tokens, uniform)
            else:
                kept, p = recursive_rejection(
                    p, q, tokens, uniform, replaced=draft.distribution is DraftDistribution.IID
                )
            if kept is not None:
                token = tokens[kept]
                emit(token)
                path = (*path, token)
                if not go_on():
                    return accepted, list(path)
                node = children[kept]
                accepted.append(node)
                continue
        token = sample_from(p, uniform())
        emit(token)
        return accepted, [*path, token]


def recursive_rejection(
    p: Floats, q: Floats, candidates: Sequence[int], uniform: Uniform, *, replaced: bool
) -> tuple[int | None, Floats]:
    """Rule R at one node: (which candidate was accepted or None, distribution of the correction).

    candidates  in the order sampled from q, independently (`replaced`) or without replacement
    Accept x when u q_k(x) < r(x), u ~ U[0, 1); after a refusal r becomes (r - q_k)+, normalised.
    """
    for k, x in enumerate(candidates):
        if uniform() * q[x] < p[x]:
            return k, p
        p, q = _after_refusal(p, q, x, replaced)
    return None, p


def _after_refusal(r: Floats, q: Floats, x: int, replaced: bool) -> tuple[Floats, Floats]:
    """What r and q_k become when x was refused."""
    residual = np.maximum(r - q, 0.0)
    total = residual.sum()
    if total > 0:  # 0 only by rounding, where r = q and a refusal has probability 0
        r = residual / total
    if not replaced:
        q = q.copy()
        q[x] = 0.0
        rest = q.sum()
        if rest > 0:  # else there is no further candidate
            q /= rest
    return r, q


def k_sequential(p: Floats, q: Floats, candidates: Sequence[int], uniform: Uniform) -> tuple[int | None, Floats]:
    """Rule K at one node, K independent candidates: (which was accepted or None, distribution of the correction)."""
    k = len(candidates)
    gamma = spectr_gamma(p, q, k)
    for i, x in enumerate(candidates):
        if uniform() * gamma * q[x] < p[x]:
            return i, p
    overlap = np.minimum(q, p / gamma)
    beta = overlap.sum()
    refused = (1 - beta) ** k
    residual = np.maximum(p - overlap * ((1 - refused) / beta if beta > 0 else 0.0), 0.0)
    total = residual.sum()
    return None, residual / total if total > 0 else p


def acceptance(
    p: Floats, q: Floats, candidates: Sequence[int], *, distribution: DraftDistribution, rule: str = "rejection"
) -> Floats:
    """(K,) the probability, given the candidates, that the k-th is the one accepted, by rule R or K ("spectr").

    Their sum is how likely this node's draft is of use; no uniforms are drawn.
    """
    gamma = spectr_gamma(p, q, len(candidates)) if rule == "spectr" else 1.0
    out, left = np.zeros(len(candidates)), 1.0
    for k, x in enumerate(candidates):
        ratio = min(1.0, p[x] / (gamma * q[x])) if q[x] > 0 else float(p[x] > 0)
        out[k], left = left * ratio, left * (1 - ratio)
        if rule != "spectr":
            p, q = _after_refusal(p, q, x, distribution is DraftDistribution.IID)
    return out


def spectr_gamma(p: Floats, q: Floats, k: int) -> float:
    """The γ in [1, k] with 1 - (1 - β)^k = γ β, β = Σ min(q, p / γ), by bisection."""

    def surplus(gamma: float) -> float:
        beta = float(np.minimum(q, p / gamma).sum())
        return 1 - (1 - beta) ** k - gamma * beta

    low, high = 1.0, float(k)
    if surplus(low) <= 0:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
    return high


def sample_from(p: Floats, u: float) -> int:
    """The token at quantile u in [0, 1) of p (V,); never one of probability 0."""
    cumulative = np.cumsum(p)
    return int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
