"""Samples of policies: what they are worth, what they cost in KL, and a point of the frontier for each.  numpy.

A larger step buys reward with KL(π‖π_ref), so that a reward alone says nothing.  All KL in nats per sequence.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likely.errors import DataError
from likely.metrics.checks import Floats

KlEstimator = Literal["exact", "k3", "k1"]
KL_ESTIMATORS: tuple[KlEstimator, ...] = ("exact", "k3", "k1")


def kl_k1(token_log_ratios: ArrayLike) -> float:
    """Σ_t lr_t of a sequence sampled from the policy: unbiased for KL(π‖π_ref), may be negative.

    token_log_ratios  (T,) log π(y_t|h_t) − log π_ref(y_t|h_t) of the sampled tokens.  Schulman 2020, "k1"
    """
    return float(np.asarray(token_log_ratios, np.float64).sum())


def kl_k3(token_log_ratios: ArrayLike) -> float:
    """Σ_t (e^{−lr_t} − 1 + lr_t): unbiased where π_ref has no token that π excludes, never negative.

    token_log_ratios  (T,) as of `kl_k1`.  Schulman 2020, "k3"
    """
    ratios = np.asarray(token_log_ratios, np.float64)
    return float((np.expm1(-ratios) + ratios).sum())


def kl_exact(policy_logprobs: ArrayLike, reference_logprobs: ArrayLike) -> float:
    """Σ_t KL(π(·|h_t)‖π_ref(·|h_t)) along one sampled sequence: the least noisy of the three.

    Both (T, V) log-probabilities of the next token; −inf under the policy counts nothing, under the reference alone it
    is an infinite KL.
    """
    ours, theirs = np.asarray(policy_logprobs, np.float64), np.asarray(reference_logprobs, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise DataError(f"rows of both models must have one shape (T, V), got {ours.shape} and {theirs.shape}")
    held = np.exp(ours)
    with np.errstate(invalid="ignore"):
        return float(np.where(held > 0, held * (ours - theirs), 0.0).sum())


@dataclass(frozen=True, eq=False)
class PolicySamples:
    """N completions sampled from a policy at temperature 1, with what they are worth and what they cost.

    prompt   (N,) row of the prompt, 0 to P−1, each with one completion at least
    rewards  by name, each (N,)
    kl       by estimator, each (N,); for the reference itself zeros
    tokens   the completions' tokens, for their length and variety
    """

    name: str
    prompt: NDArray[np.int64]
    rewards: dict[str, Floats]
    kl: dict[KlEstimator, Floats]
    tokens: Sequence[Sequence[Hashable]]

    def __post_init__(self) -> None:
        n = len(self.prompt)
        for what, values in (*self.rewards.items(), *self.kl.items()):
            if np.shape(values) != (n,):
                raise DataError(f"{self.name}: {what} must have {n} values, got shape {np.shape(values)}")
            if np.isnan(values).any():
                raise DataError(f"{self.name}: {what} of completion {int(np.isnan(values).argmax())} is NaN")
        if len(self.tokens) != n or n == 0:
            raise DataError(f"{self.name}: completions must be as many as prompts, 1 at least, got {len(self.tokens)}")
        if set(self.prompt.tolist()) != set(range(self.prompts)):
            raise DataError(f"{self.name}: prompts 0 to {self.prompts - 1} must each have a completion")

    @property
    def prompts(self) -> int:
        return int(self.prompt.max()) + 1

    def by_prompt(self, values: ArrayLike) -> Floats:
        """(P,) mean over the completions of each prompt."""
        return np.bincount(self.prompt, np.asarray(values, np.float64)) / np.bincount(self.prompt)


@dataclass(frozen=True)
class Mean:
    """A mean over prompts and its standard error."""

    value: float
    se: float


@dataclass(frozen=True)
class FrontierPoint:
    """One policy.

    rewards        by name
    kl             KL(π‖π_ref) by estimator, "exact" first where it was measured
    kls_agree      whether the estimators lie within 3 standard errors of each other: where not, the completions were
                   not sampled from the policy that was scored (another temperature, say)
    win_rate       against the reference's completions of the same prompt, ties ½, of the first reward
    mean_length    tokens of a completion
    distinct_2     different bigrams / bigrams, over all completions
    """

    name: str
    rewards: dict[str, Mean]
    kl: dict[KlEstimator, Mean]
    kls_agree: bool
    win_rate: Mean
    mean_length: float
    distinct_2: float
    prompts: int
    completions: int

    @property
    def best_kl(self) -> Mean:
        """By the least noisy estimator that was measured."""
        return next(self.kl[name] for name in KL_ESTIMATORS if name in self.kl)


def compare_policies(policies: Sequence[PolicySamples], reference: PolicySamples) -> list[FrontierPoint]:
    """A point for each policy.

    reference  completions of the same prompts under π_ref
    Standard errors are over prompts.
    """
    for policy in policies:
        if policy.prompts != reference.prompts:
            raise DataError(f"{policy.name} has {policy.prompts} prompts, the reference {reference.prompts}")
        if list(policy.rewards) != list(reference.rewards):
            raise DataError(f"{policy.name} has the rewards {list(policy.rewards)}, not {list(reference.rewards)}")
    return [_point(policy, reference) for policy in policies]


def _point(policy: PolicySamples, reference: PolicySamples) -> FrontierPoint:
    kl = {name: mean_over_prompts(policy.by_prompt(policy.kl[name])) for name in KL_ESTIMATORS if name in policy.kl}
    per_prompt = {name: policy.by_prompt(values) for name, values in policy.kl.items()}
    names = list(kl)
    first = next(iter(policy.rewards))
    return FrontierPoint(
        name=policy.name,
        rewards={name: mean_over_prompts(policy.by_prompt(values)) for name, values in policy.rewards.items()},
        kl=kl,
        kls_agree=all(_agree(per_prompt[a], per_prompt[b]) for i, a in enumerate(names) for b in names[i + 1 :]),
        win_rate=mean_over_prompts(_wins(policy, reference, first)),
        mean_length=float(np.mean([len(tokens) for tokens in policy.tokens])),
        distinct_2=distinct(policy.tokens, 2),
        prompts=policy.prompts,
        completions=len(policy.prompt),
    )


def mean_over_prompts(per_prompt: Floats) -> Mean:
    spread = float(per_prompt.std(ddof=1)) if len(per_prompt) > 1 else float("nan")
    return Mean(float(per_prompt.mean()), spread / len(per_prompt) ** 0.5)


def _agree(one: Floats, other: Floats) -> bool:
    """On the same completions, so by their differences."""
    difference = mean_over_prompts(one - other)
    return not abs(difference.value) > 3 * difference.se + 1e-9


def _wins(policy: PolicySamples, reference: PolicySamples, reward: str) -> Floats:
    """(P,) share of pairs of completions of a prompt that the policy wins."""
    ours, theirs = policy.rewards[reward], reference.rewards[reward]
    found = np.zeros(policy.prompts)
    for row in range(policy.prompts):
        margin = np.subtract.outer(ours[policy.prompt == row], theirs[reference.prompt == row])
        found[row] = np.mean(np.where(margin == 0, 0.5, margin > 0))
    return found


def distinct(completions: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams / n-grams, over all completions; 0 where there are none.  Li et al. 2016."""
    grams = [tuple(tokens[i : i + n]) for tokens in completions for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
