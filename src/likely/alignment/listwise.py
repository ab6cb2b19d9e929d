"""Losses of n candidates a prompt and their rewards (BRAIn): the policy's weights drawn to those of a posterior.

Shapes: P prompts, n candidates.  Sums are sequence log-probabilities in nats.
Pandey et al. 2024, arXiv:2402.02479.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from likely.alignment.scores import completion_scores
from likely.alignment.sources import Candidates
from likely.errors import DataError
from likely.training.loop import LossOutput

Goodness = Callable[[Tensor], Tensor]  # rewards (P, n) -> log p(G = 1 | x, y), up to a constant per prompt


def exponential_goodness(beta: float) -> Goodness:
    """log g(r) = r/β: the posterior is π_ref·e^{r/β}/Z, the optimum of the KL-regularised reward."""
    _check_beta(beta)
    return lambda rewards: rewards / beta


def sigmoid_goodness(beta: float, baseline: float | Tensor | None = None) -> Goodness:
    """log g(r) = log σ((r − r_0)/β): better than an answer of reward r_0, as Bradley and Terry have it.

    baseline  r_0, or one per prompt (P, 1); None: the mean reward of the prompt's candidates
    """
    _check_beta(beta)

    def log_goodness(rewards: Tensor) -> Tensor:
        zero = rewards.mean(-1, keepdim=True) if baseline is None else torch.as_tensor(baseline, dtype=rewards.dtype)
        return -softplus(-(rewards - zero) / beta)

    return log_goodness


@dataclass(frozen=True, eq=False)
class ListLoss:
    """Of P prompts.

    loss           scalar: the mean over prompts that are not dropped
    target         α (P, n), constants
    weights        b (P, n), the policy's
    ess_target, ess_policy  (P,) effective sample sizes of both, 1 to n; 0 for a dropped prompt
    dropped        prompts none of whose candidates is possible under the target
    """

    loss: Tensor
    target: Tensor
    weights: Tensor
    ess_target: Tensor
    ess_policy: Tensor
    dropped: int

    @property
    def stale(self) -> bool:
        """Whether the policy has moved so far from the proposal that candidates should be drawn anew: ESS(b) < n/5."""
        kept = self.ess_policy > 0
        return bool(kept.any()) and bool(self.ess_policy[kept].mean() < 0.2 * self.weights.shape[-1])


def posterior_logweights(reference_sum: Tensor, proposal_sum: Tensor, log_goodness: Tensor) -> Tensor:
    """s_ref(y) + log g(r) − s_q(y), each (P, n): the log-weight of a sample of q under the posterior.

    With candidates of the reference itself it is log g(r).
    """
    return reference_sum + log_goodness - proposal_sum


def snis_cross_entropy(
    policy_sum: Tensor,
    proposal_sum: Tensor,
    target_logweight: Tensor,
    mask: Tensor | None = None,
    *,
    baseline: bool = True,
) -> ListLoss:
    """−Σ_i α_i log b_i per prompt, α = softmax(target_logweight), b = softmax(s_θ − s_q).

    Its gradient is −Σ_i (α_i − b_i) ∇s_θ(y_i): zero on every set of samples once the policy is the posterior.

    policy_sum        (P, n) s_θ(y), with gradients
    proposal_sum      (P, n) s_q(y) under the law that the candidates were really drawn from, its temperature included
    target_logweight  (P, n) see `posterior_logweights`; −inf excludes a candidate from α alone
    mask              (P, n) False where there is no candidate: left out of α and b
    baseline          False: without the −b_i term, −Σ α_i s_θ(y_i), for comparison only: its variance is far higher
    DataError on fewer than 2 candidates, on NaN, on a proposal that cannot have drawn a candidate.
    """
    shape = policy_sum.shape
    if len(shape) != 2 or shape != proposal_sum.shape or shape != target_logweight.shape:
        raise DataError(
            f"sums and weights must have one shape (prompts, candidates), got {tuple(shape)}, "
            f"{tuple(proposal_sum.shape)} and {tuple(target_logweight.shape)}"
        )
    there = torch.ones(shape, dtype=torch.bool, device=policy_sum.device) if mask is None else mask.bool()
    _check_lists(proposal_sum, target_logweight, there)
    possible = there & ~torch.isneginf(target_logweight)
    kept = possible.any(-1)
    if not bool(kept.any()):
        raise DataError("no prompt has a candidate that is possible under the target")
    log_target = _log_softmax(target_logweight.detach(), possible, kept)
    log_weights = _log_softmax(policy_sum - proposal_sum, there, kept)
    target = log_target.exp()
    fitted = log_weights if baseline else policy_sum
    per_prompt = -torch.where(possible & kept[:, None], target * fitted, torch.zeros_like(target)).sum(-1)
    weights = log_weights.exp()
    return ListLoss(
        loss=per_prompt[kept].mean(),
        target=target,
        weights=weights,
        ess_target=_ess(target),
        ess_policy=_ess(weights.detach()),
        dropped=int((~kept).sum()),
    )


def list_batch_loss(
    module: torch.nn.Module, lists: Seq[Candidates], goodness: Goodness, reference: Tensor | None = None
) -> LossOutput:
    """BRAIn's loss of some prompts in one call of the model, summed over them, and what is worth logging.

    lists      prompts with candidates, their rewards and the log-probabilities under the law that drew them
    reference  (all candidates, in order) log p under π_ref, where the candidates were drawn from another policy; None:
               they were drawn from the reference
    DataError where a candidate has no reward or was not drawn by a policy.
    """
    if not lists:
        raise DataError("a list loss needs at least one prompt")
    most = max(len(candidates) for candidates in lists)
    place = [(p, i) for p, candidates in enumerate(lists) for i in range(len(candidates))]
    rows, columns = (torch.tensor(side) for side in zip(*place, strict=True))
    completions = [lists[p].completions[i] for p, i in place]
    for p, candidates in enumerate(lists):
        if candidates.rewards is None or any(c.sampling_logprob is None for c in candidates.completions):
            raise DataError(f"prompt {p}: candidates need rewards, and the log-probabilities that they were drawn with")
    scores = completion_scores(module, completions)
    device = scores.mask.device
    there = torch.zeros(len(lists), most, dtype=torch.bool)
    there[rows, columns] = True

    def grid(values: Tensor) -> Tensor:
        filled = torch.zeros(len(lists), most, dtype=values.dtype, device=device)
        return filled.index_put((rows.to(device), columns.to(device)), values.to(device))

    drawn = torch.tensor([c.sampling_logprob for c in completions], dtype=torch.float32)
    rewards = torch.full((len(lists), most), torch.nan)
    rewards[rows, columns] = torch.tensor([float(lists[p].rewards[i]) for p, i in place])  # type: ignore[index]
    means = rewards.nanmean(-1, keepdim=True)
    log_goodness = goodness(torch.where(there, rewards, means)).to(device)
    proposal = grid(drawn)
    base = proposal if reference is None else grid(reference.float())
    found = snis_cross_entropy(
        grid(scores.sum.float()), proposal, posterior_logweights(base, proposal, log_goodness), there.to(device)
    )
    kept = len(lists) - found.dropped
    metrics = {
        "ess_policy": (found.ess_policy.sum().item(), kept),
        "ess_target": (found.ess_target.sum().item(), kept),
        "dropped": (found.dropped, len(lists)),
    }
    return LossOutput(found.loss * kept, metrics)


def _check_lists(proposal_sum: Tensor, target_logweight: Tensor, there: Tensor) -> None:
    few = there.sum(-1) < 2
    if bool(few.any()):
        raise DataError(f"prompt {int(few.int().argmax())}: a list loss needs at least 2 candidates")
    for what, bad in (
        ("a target weight that is NaN or +inf", torch.isnan(target_logweight) | torch.isposinf(target_logweight)),
        ("no finite proposal log-probability", ~torch.isfinite(proposal_sum)),
    ):
        rows = (bad & there).any(-1)
        if bool(rows.any()):
            raise DataError(f"prompt {int(rows.int().argmax())}: a candidate has {what}")


def _log_softmax(values: Tensor, there: Tensor, kept: Tensor) -> Tensor:
    """Over the candidates that are there; −inf for others, and rows that are not kept are all −inf."""
    usable = there & kept[:, None]
    filled = values.masked_fill(~usable, -torch.inf)
    safe = torch.where(kept[:, None], filled, torch.zeros_like(filled))  # no NaN from rows of −inf alone
    return safe.log_softmax(-1).masked_fill(~usable, -torch.inf)


def _ess(weights: Tensor) -> Tensor:
    squares = (weights**2).sum(-1)
    return torch.where(squares > 0, 1 / squares.clamp_min(torch.finfo(squares.dtype).tiny), torch.zeros_like(squares))


def _check_beta(beta: float) -> None:
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be a finite number > 0, got {beta}")
