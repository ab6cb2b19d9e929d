"""The loss of a masked diffusion language model (Sahoo et al. 2024; Nie et al. 2025, LLaDA, eq. 3).

A text x is masked, token by token, with probability t, and the network predicts what was masked:

    loss = E_t E_{x_t} [ 1/t Σ_{i masked} -log p(x_i | x_t) ]  >=  -log p(x).

Drawing the number l of masked tokens uniformly from 1..L and weighing with L/l has the same expectation and a lower
variance: ∫ t^(l-1) (1-t)^(L-l) dt = 1 / (l C(L, l)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from likely.errors import check_choice

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMS = ("time", "count")
EPSILON = 1e-3  # of LLaDA: p_mask = (1 - ε) t + ε, so that weights stay below 1/ε


def stratified_times(batch: int, u: Tensor) -> Tensor:
    """(B,) times in [0, 1), one in each of B equal parts: t_b = (u + b/B) mod 1, u a uniform number in [0, 1)."""
    import torch

    return (u + torch.arange(batch, device=u.device) / batch) % 1.0


def mask_by_time(answer: Tensor, times: Tensor, uniform: Tensor, epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    """(masked (B, T), weight (B,) of a masked token) for times (B,): each answer token is masked independently.

    answer   (B, T) bool, the tokens that may be masked: never those of a prompt
    uniform  (B, T) in [0, 1)
    """
    probability = (1 - epsilon) * times + epsilon
    return answer & (uniform < probability[:, None]), 1 / probability


def mask_by_count(answer: Tensor, u: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(masked (B, T), weight (B,)) with exactly l_b answer tokens masked; weight L_b / l_b.

    u  (B,) in [0, 1): l_b = 1 + floor(u_b L_b) is uniform on 1..L_b
    """
    import torch

    lengths = answer.sum(1)
    counts = (1 + (u * lengths).long()).clamp_max(lengths)
    keys = torch.where(answer, uniform, torch.inf)
    ranks = keys.argsort(1).argsort(1)
    return answer & (ranks < counts[:, None]), lengths / counts


def masked_nll(logits: Tensor, ids: Tensor, masked: Tensor, mask_id: int) -> Tensor:
    """(B,) Σ over the masked tokens of -log p(token), in nats, over all tokens but mask_id, which is never predicted.

    logits (B, T, V) · ids (B, T), the text before it was masked · masked (B, T)
    """
    import torch

    rows, targets = logits[masked].float(), ids[masked]
    rows = rows.index_fill(-1, torch.tensor([mask_id], device=rows.device), -torch.inf)
    each = torch.nn.functional.cross_entropy(rows, targets, reduction="none")
    where = masked.nonzero()[:, 0]
    return torch.zeros(len(ids), device=each.device).index_add(0, where, each)


def diffusion_loss(
    network: torch.nn.Module,
    ids: Tensor,
    answer: Tensor,
    *,
    mask_id: int,
    form: Literal["time", "count"] = "time",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loss of a batch: per row divided by the length of its answer, then the mean; nats per token.

    network  ids (B, T) -> logits (B, T, V) of the positions themselves
    ids      (B, T), answers padded by an end token, which is trained on;  answer  (B, T) bool: what may be masked
    form     "time": stratified times over the batch;  "count": stratified counts of masked tokens
    """
    import torch

    check_choice("form", form, FORMS)
    if not bool(answer.any(1).all()):
        raise ValueError("every row needs an answer of at least one token")
    if bool((ids[answer] == mask_id).any()):
        raise ValueError(f"an answer holds the mask token {mask_id}, which is never predicted")
    device = ids.device
    times = stratified_times(len(ids), torch.rand((), generator=generator, device=device))
    uniform = torch.rand(ids.shape, generator=generator, device=device)
    masked, weight = (mask_by_time if form == "time" else mask_by_count)(answer, times, uniform)
    logits = network(torch.where(masked, mask_id, ids))
    return (weight * masked_nll(logits, ids, masked, mask_id) / answer.sum(1)).mean()
