"""The loss of group-relative policy optimisation, on log-probabilities that somebody else computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def grpo_loss(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    reference: torch.Tensor,
    written: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip: float = 0.2,
    beta: float = 0.04,
) -> torch.Tensor:
    """A scalar to minimise; gradients flow through `logprobs` only.

    logprobs, old, reference  (B, T) log p of each written token: of the policy now, of the policy that wrote it, of the
                              policy before training
    written     (B, T) 1 for tokens of a text, 0 for padding
    advantages  (B,) see `group_advantages`

    Per token −min(r·A, clamp(r, 1−clip, 1+clip)·A) + beta·KL with r = p/p_old and the estimate
    KL = p_ref/p − ln(p_ref/p) − 1 >= 0; averaged over each text's tokens, then over texts.
    Shao et al. 2024, arXiv:2402.03300, eq. 3 and 4.
    """
    import torch

    mask = written.to(logprobs.dtype)
    # padding may hold any number, inf included: it must reach neither the loss nor the gradient
    logprobs, old, reference = (torch.where(mask > 0, x, torch.zeros_like(x)) for x in (logprobs, old, reference))
    ratio = torch.exp(logprobs - old.detach())
    gain = advantages[:, None].to(logprobs.dtype)
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    gap = reference.detach() - logprobs
    per_token = mask * (beta * (torch.exp(gap) - gap - 1) - surrogate)
    return (per_token.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
