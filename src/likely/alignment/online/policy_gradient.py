"""Policy gradients with a price in KL: Nash-MD, where samples that win against a mixture become likelier, and REINFORCE
on a reward, which it is compared with.  torch.

Ascent along E_{y~π} ∇log π(y) · (a(y) - τ lr(y)), lr = log π - log π_ref.
  Nash-MD-PG  a(y) = p(y ≻ y') - ½, y' from the mixture: Munos et al. 2023, arXiv:2312.00886, section 7; ½ is a baseline
  REINFORCE   a(y) = r(y) - baseline: Williams 1992, Machine Learning 8
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from likely.errors import check_choice

KlForm = Literal["sequence", "per_token"]
KL_FORMS = ("sequence", "per_token")


def policy_gradient_loss(
    token_logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    advantage: Tensor,
    *,
    tau: float,
    kl: KlForm = "sequence",
) -> Tensor:
    """(B,) what is to be minimised for samples of the policy; its gradient is the policy gradient, its value is not.

    token_logprobs      (B, T) log π(y_t | h_t) of the samples, with gradients
    reference_logprobs  (B, T) log π_ref(y_t | h_t)
    mask                (B, T) which of them belong to the sample, its end token included
    advantage           (B,) a(y), without gradients
    tau                 >= 0: what a nat of KL(π‖π_ref) per sequence costs

    -a Σ_t ℓ_t + τ Σ_t c_t ℓ_t, where c_t carries no gradient:
    kl="sequence"   c_t = Σ_{u>=t} lr_u, the log-ratios from this token on: unbiased for ∇KL of the whole sequence
    kl="per_token"  c_t = lr_t alone, as trl's NashMDTrainer computed it: a token does not answer for the KL of what
                    follows it, so that this is the gradient of no KL
    """
    check_choice("kl", kl, KL_FORMS)
    if not tau >= 0:
        raise ValueError(f"tau must be >= 0, got {tau}")
    if token_logprobs.shape != reference_logprobs.shape or token_logprobs.shape != mask.shape:
        raise ValueError(
            f"log-probabilities and mask must have one shape (B, T), got {tuple(token_logprobs.shape)}, "
            f"{tuple(reference_logprobs.shape)} and {tuple(mask.shape)}"
        )
    if advantage.shape != token_logprobs.shape[:1]:
        raise ValueError(f"one number per row is needed: shape ({len(token_logprobs)},), got {tuple(advantage.shape)}")
    zero = torch.zeros((), dtype=token_logprobs.dtype, device=token_logprobs.device)
    logprobs = torch.where(mask.bool(), token_logprobs, zero)  # padding may hold any number
    ratios = (logprobs - torch.where(mask.bool(), reference_logprobs.to(logprobs), zero)).detach()
    cost = ratios.flip(1).cumsum(1).flip(1) if kl == "sequence" else ratios
    return tau * (cost * logprobs).sum(1) - advantage.to(logprobs).detach() * logprobs.sum(1)


def nash_md_loss(
    token_logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    preference: Tensor,
    *,
    tau: float,
    kl: KlForm = "sequence",
) -> Tensor:
    """(B,) `policy_gradient_loss` with the advantage p(y ≻ y') - ½ over the other player's sample.

    preference  (B,) p(y ≻ y') in [0, 1], y' from the mixture of policy and reference, or from the policy itself, which
                is self-play;  tau: in wins per nat
    The other arguments and the result are those of `policy_gradient_loss`.
    """
    wrong = ~((preference >= 0) & (preference <= 1))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"row {row + 1}: a preference must lie in [0, 1], got {preference[row].item():g}")
    return policy_gradient_loss(token_logprobs, reference_logprobs, mask, preference - 0.5, tau=tau, kl=kl)
