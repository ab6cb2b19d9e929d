"""The SequenceMatch objective on logits of prefix trees: pure functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from likely.alignment.sequence_match.trajectories import PrefixTrees
from likely.errors import check_choice
from likely.training.loop import LossOutput

Divergence = Literal["chi2_mixture", "chi2", "mle"]
Weights = Literal["uniform", "discount"]
DIVERGENCES = ("chi2_mixture", "chi2", "mle")


def action_values(logits: Tensor, trees: PrefixTrees, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(ℓ(a_t | s_t), V(s_t), V(s_{t+1})), each (B, T), in fp32; V is 0 after an action that ends its text.

    logits (B, S, V) of `tree_logits`.  Where a text was cut V(s_T) is that of the state after its last action.
    """
    device = logits.device
    row = torch.from_numpy(trees.row).to(device)
    action = torch.from_numpy(trees.action).to(device)
    batch = torch.arange(len(trees), device=device)[:, None]
    logits = logits.float() - offset
    chosen = logits[batch, row[:, :-1], action]
    value = torch.logsumexp(logits, -1).gather(1, row)
    after = value[:, 1:].masked_fill(torch.from_numpy(trees.ends).to(device), 0.0)
    return chosen, value[:, :-1], after


def step_weights(trees: PrefixTrees, member: Tensor, *, gamma: float, weights: Weights, device: torch.device) -> Tensor:
    """(B, T) weights of the steps of the trajectories in `member` (B,); 0 for padding and what is not to be learned.

    uniform   1 / number of such steps;  discount  γ^t / number of such trajectories, t the number of the action
    """
    learned = torch.from_numpy(trees.taught & trees.real).to(device) & member[:, None]
    if weights == "uniform":
        return learned.float() / learned.sum().clamp(min=1)
    discounts = gamma ** torch.arange(learned.shape[1], device=device, dtype=torch.float64)
    return (learned * discounts / member.sum().clamp(min=1)).float()


def sequence_match_loss(
    logits: Tensor,
    trees: PrefixTrees,
    is_data: Tensor,
    *,
    gamma: float = 0.998,
    alpha: float = 0.01,
    divergence: Divergence = "chi2_mixture",
    weights: Weights = "uniform",
    model_values: float = 0.5,
    offset: float = 0.0,
    backspace_id: int | None = None,
) -> LossOutput:
    """−J of data and of texts that the model wrote itself; gradients flow through the logits, not through sampling.

    Metrics are sums and counts of −log π, of ρ̂ and of V on data and on the model's texts, and how often those delete.

    logits   (B, S, V) of `tree_logits`;  is_data (B,) bool: from the data, not from the model
    gamma    discount, in (0, 1];  alpha >= 0: of the χ² terms; 0 is maximum likelihood up to the value terms
    weights  see `step_weights`
    offset   taken from every logit, which leaves π as it is and lowers every value by as much
    model_values  κ, 0 to 1: the share of the value term that the model's texts estimate
    backspace_id  for the metric of how often the model's texts delete

    With ρ̂_t = ℓ(a_t | s_t) − γ V(s_{t+1}) and E the weighted sums over data and over the model's texts,
      J = E_data φ(ρ̂) − (1 − κ) E_data (V_t − γ V_{t+1}) − κ E_model (V_t − γ V_{t+1}) − penalty
      chi2_mixture  φ(x) = x − α/4 x², penalty α/4 E_model ρ̂²: the χ² divergence between data and the even mixture
      chi2          the same φ, no penalty: the χ² divergence from the model to the data
      mle           φ(x) = x, values from the data alone: J = E_data log π(a_t | s_t)
    Both value terms estimate one number, the value of the first state (weighted by discounts, of a text that has ended,
    each is V_0 exactly).  The paper averages them, κ = ½; where a batch's own texts continue other prompts than its
    data does, their difference is noise, and κ = 0 has none.  Without texts of the model κ is 0.
    Cundy and Ermon 2023, arXiv:2306.05426, section 3, after IQ-Learn (Garg et al. 2021, arXiv:2106.12142).  The factor
    α follows from an entropy temperature α by rescaling the logits.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must lie in (0, 1], got {gamma}")
    if not alpha >= 0:
        raise ValueError(f"alpha must be >= 0, got {alpha}")
    if not 0 <= model_values <= 1:
        raise ValueError(f"model_values must lie in [0, 1], got {model_values}")
    check_choice("divergence", divergence, DIVERGENCES)
    check_choice("weights", weights, ("uniform", "discount"))
    if is_data.shape != (len(trees),) or not bool(is_data.any()):
        raise ValueError(f"is_data must be ({len(trees)},) and hold a text of the data, got shape {is_data.shape}")
    device = logits.device
    data = is_data.to(device)
    chosen, value, after = action_values(logits, trees, offset)
    reward, drop = chosen - gamma * after, value - gamma * after
    of_data = step_weights(trees, data, gamma=gamma, weights=weights, device=device)
    of_model = step_weights(trees, ~data, gamma=gamma, weights=weights, device=device)
    with_model = divergence != "mle" and not bool(data.all())
    if divergence == "mle":
        objective = (of_data * (reward - drop)).sum()
    else:
        objective = (of_data * (reward - alpha / 4 * reward**2)).sum()
        share = model_values if with_model else 0.0
        objective = objective - (1 - share) * (of_data * drop).sum()
        if with_model:
            objective = objective - share * (of_model * drop).sum()
        if with_model and divergence == "chi2_mixture":
            objective = objective - alpha / 4 * (of_model * reward**2).sum()
    return LossOutput(-objective, _metrics(chosen, value, reward, of_data, of_model, trees, backspace_id))


@torch.no_grad()
def _metrics(
    chosen: Tensor, value: Tensor, reward: Tensor, of_data: Tensor, of_model: Tensor, trees: PrefixTrees,
    backspace_id: int | None,
) -> dict[str, tuple[float, int]]:  # fmt: skip
    found = {}
    for name, weight in (("data", of_data), ("model", of_model)):
        steps = weight > 0
        n = int(steps.sum())
        if not n:
            continue
        found[f"nll_{name}"] = (float((value - chosen)[steps].sum()), n)
        found[f"reward_{name}"] = (float(reward[steps].sum()), n)
        found[f"value_{name}"] = (float(value[steps].sum()), n)
    if backspace_id is not None and bool((of_model > 0).any()):
        written = torch.from_numpy(trees.action).to(of_model.device)[of_model > 0]
        found["backspaces"] = (float((written == backspace_id).sum()), len(written))
    return found
