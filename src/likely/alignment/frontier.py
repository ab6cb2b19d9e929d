"""Reward against KL: what a policy gained, what it cost, and what could have been had for that.  numpy.

A larger step buys reward with KL(π‖π_ref); policies are compared at equal KL.  For any reward none lies above
π*_β ∝ π_ref·e^{r/β}, whose reward and KL are estimated from samples of the reference alone.  P prompts, all in nats
per sequence.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likely.alignment.importance import effective_sample_size, tilted_kl, weighted_mean
from likely.errors import DataError, missing_extra
from likely.metrics.bootstrap import check_settings, percentiles, resampled_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
KlEstimator = Literal["exact", "k3", "k1"]
KL_ESTIMATORS: tuple[KlEstimator, ...] = ("exact", "k3", "k1")
LEAST_ESS = 5.0
_GRID = 33  # values of KL at which two sweeps are compared


# --- KL of sampled sequences ------------------------------------------------------------------------------------------


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


# --- policies ---------------------------------------------------------------------------------------------------------


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
    kl = {name: _mean(policy.by_prompt(policy.kl[name])) for name in KL_ESTIMATORS if name in policy.kl}
    per_prompt = {name: policy.by_prompt(values) for name, values in policy.kl.items()}
    names = list(kl)
    first = next(iter(policy.rewards))
    return FrontierPoint(
        name=policy.name,
        rewards={name: _mean(policy.by_prompt(values)) for name, values in policy.rewards.items()},
        kl=kl,
        kls_agree=all(_agree(per_prompt[a], per_prompt[b]) for i, a in enumerate(names) for b in names[i + 1 :]),
        win_rate=_mean(_wins(policy, reference, first)),
        mean_length=float(np.mean([len(tokens) for tokens in policy.tokens])),
        distinct_2=distinct(policy.tokens, 2),
        prompts=policy.prompts,
        completions=len(policy.prompt),
    )


def _mean(per_prompt: Floats) -> Mean:
    spread = float(per_prompt.std(ddof=1)) if len(per_prompt) > 1 else float("nan")
    return Mean(float(per_prompt.mean()), spread / len(per_prompt) ** 0.5)


def _agree(one: Floats, other: Floats) -> bool:
    """On the same completions, so by their differences."""
    difference = _mean(one - other)
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


# --- the envelope -----------------------------------------------------------------------------------------------------


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
    points = [EnvelopePoint(float("inf"), _mean(values.mean(axis=1)), Mean(0.0, 0.0), float(values.shape[1]))]
    refused = []
    for beta in sorted(betas, reverse=True):
        kl = tilted_kl(values, beta)
        size = float(effective_sample_size(values / beta).mean())
        if size < least_ess:
            refused.append(beta)
        else:
            points.append(EnvelopePoint(beta, _mean(weighted_mean(values, values / beta)), _mean(kl), size))
    return Envelope(tuple(points), tuple(refused))


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


# --- two methods at equal KL ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatchedKl:
    """Reward of one method less that of another, averaged over the KL that both reach.

    low, high  95 % bootstrap interval over prompts;  from_kl, to_kl: where both were compared
    """

    difference: float
    low: float
    high: float
    from_kl: float
    to_kl: float

    @property
    def dominates(self) -> bool:
        """The first is better, and the interval does not reach 0."""
        return self.low > 0


def matched_kl(
    one: Sequence[PolicySamples],
    other: Sequence[PolicySamples],
    reference: PolicySamples,
    reward: str,
    *,
    estimator: KlEstimator = "exact",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> MatchedKl:
    """Two sweeps (of β, of steps) of policies compared at equal KL.

    Each sweep is a line through its (KL, reward), from the reference at KL 0 on, linear between them.  Resampled are
    prompts, the same ones for all policies.  Where no KL is reached by both: DataError.
    """
    check_settings(resamples, level)
    base = reference.by_prompt(reference.rewards[reward])
    sweeps = []
    for sweep in (one, other):
        if not sweep or any(policy.prompts != len(base) for policy in sweep):
            raise DataError(f"each sweep needs policies on the {len(base)} prompts of the reference")
        kls = [np.zeros(len(base)), *(policy.by_prompt(policy.kl[estimator]) for policy in sweep)]
        rewards = [base, *(policy.by_prompt(policy.rewards[reward]) for policy in sweep)]
        sweeps.append((np.stack(kls), np.stack(rewards)))
    start = max(np.sort(kls.mean(axis=1))[1] for kls, _ in sweeps)
    end = min(kls.mean(axis=1).max() for kls, _ in sweeps)
    if not end > 0:
        raise DataError("no KL above 0 is reached by both sweeps: nothing to compare")
    grid = np.linspace(min(start, end), end, _GRID)

    def gap(weights: Floats) -> float:
        lines = []
        for kls, rewards in sweeps:
            at, worth = kls @ weights, rewards @ weights
            order = np.argsort(at)
            lines.append(np.interp(grid, at[order], worth[order]))
        return float((lines[0] - lines[1]).mean())

    n = len(base)
    drawn = [gap(w / n) for block in resampled_weights(n, resamples=resamples, seed=seed) for w in block]
    found = percentiles(np.array(drawn), level)
    assert found is not None
    value = gap(np.full(n, 1 / n))
    return MatchedKl(value, min(found[0], value), max(found[1], value), float(grid[0]), float(grid[-1]))


# --- a picture --------------------------------------------------------------------------------------------------------


def draw_frontier(
    points: Sequence[FrontierPoint], reward: str, *, bound: Envelope | None = None, lines: Sequence[str] = ()
) -> Figure:
    """Reward over KL with standard errors, and the envelope.

    lines  names of sweeps: points whose name is "SWEEP SETTING" are joined in the order of their KL
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "plots") from None
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    if bound is not None:
        kls, rewards = zip(*((p.kl.value, p.reward.value) for p in bound.points), strict=True)
        axes.plot(kls, rewards, color="black", linestyle="--", label="envelope (no policy lies above)")
    left = list(points)
    for name in lines:
        sweep = [point for point in left if point.name.startswith(f"{name} ")]
        left = [point for point in left if point not in sweep]
        _draw(axes, sorted(sweep, key=lambda point: point.best_kl.value), reward, name, "-")
    for point in left:
        _draw(axes, [point], reward, point.name, "")
    axes.set(xlabel="KL to the reference (nats per sequence)", ylabel=f"reward: {reward}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.8, edgecolor="none", fontsize="small")
    return figure


def _draw(axes, points: Sequence[FrontierPoint], reward: str, name: str, line: str) -> None:  # type: ignore[no-untyped-def]
    if points:
        axes.errorbar(
            [p.best_kl.value for p in points], [p.rewards[reward].value for p in points],
            xerr=[np.nan_to_num(p.best_kl.se) for p in points],
            yerr=[np.nan_to_num(p.rewards[reward].se) for p in points],
            fmt=f"o{line}", capsize=2, markersize=4, label=name.replace("$", r"\$"),
        )  # fmt: skip
