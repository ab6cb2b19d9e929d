"""Two methods at equal KL, and a picture of all.  numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from likely.alignment.frontier.bound import Envelope
from likely.alignment.frontier.policies import FrontierPoint, KlEstimator, PolicySamples
from likely.errors import DataError, needs
from likely.metrics.bootstrap import check_settings, percentiles, resampled_weights
from likely.metrics.checks import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GRID = 33  # values of KL at which two sweeps are compared


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


def draw_frontier(
    points: Sequence[FrontierPoint], reward: str, *, bound: Envelope | None = None, lines: Sequence[str] = ()
) -> Figure:
    """Reward over KL with standard errors, and the envelope.

    lines  names of sweeps: points whose name is "SWEEP SETTING" are joined in the order of their KL
    """
    with needs("matplotlib", "plots"):
        from matplotlib.figure import Figure
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


def _draw(axes: Axes, points: Sequence[FrontierPoint], reward: str, name: str, line: str) -> None:
    if points:
        axes.errorbar(
            [p.best_kl.value for p in points], [p.rewards[reward].value for p in points],
            xerr=[np.nan_to_num(p.best_kl.se) for p in points],
            yerr=[np.nan_to_num(p.rewards[reward].se) for p in points],
            fmt=f"o{line}", capsize=2, markersize=4, label=name.replace("$", r"\$"),
        )  # fmt: skip
