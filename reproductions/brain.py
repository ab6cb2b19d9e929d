"""BRAIn: is a policy that is drawn to the posterior of its rewarded samples better, at equal KL, than one from pairs?

The sentiment lab: all methods get the same candidates of the reference with proxy rewards, as many sequences a step, as
many steps and the same learning rate.

  brain β             the list loss with α = softmax(r/β) over a prompt's candidates
  brain, no baseline  the same without the self-normalised baseline (smallest β)
  dpo                 4 disjoint random pairs a prompt, the larger reward wins
  rso                 pairs of half of the candidates, by rejection sampling
  raft                likelihood of each prompt's best candidate

Beside them the variance of the gradient at the first step, with and without the baseline, over the same minibatches.

  python reproductions/brain.py            3 seeds, 128 prompts of 8 candidates, some 5 minutes of processor time
  python reproductions/brain.py --full     5 seeds, 400 prompts of 16 candidates, three β
  python reproductions/brain.py --quick    the smallest lab

Rows are kept in --work, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rso import BETAS, Pairs, disjoint_pairs, train_on_pairs
from sentiment_lab import (
    Candidates,
    Lab,
    completion_logprobs,
    kept_samples,
    lab_arguments,
    open_for_study,
    pooled,
    read_samples,
    sequence_logprob,
    train_policy,
)
from study import conclude, figure_with, report, run_script, run_study
from torch import Tensor

from likely.alignment import (
    Logistic,
    MatchedKl,
    PolicySamples,
    compare_policies,
    draw_frontier,
    envelope,
    exponential_goodness,
    matched_kl,
    rejection_sample,
    snis_cross_entropy,
)
from likely.alignment.frontier import lies_above
from likely.evidence import Check, Evidence, Figure
from likely.io.kept import KeptValues
from likely.io.whole_file import write_whole_file

Floats = NDArray[np.float64]
SEQUENCES = 64  # of a step
LEARNING_RATE = 5e-4
GAMMA = 0.1
SAMPLING_BETA = 0.5


@dataclass(frozen=True)
class Size:
    """Of a run.  minibatches: over which the variance of the gradient is taken, of `of_prompts` prompts each."""

    seeds: int = 3
    prompts: int = 128
    candidates: int = 8
    held_out: int = 128
    completions: int = 2
    envelope_samples: int = 32
    checkpoints: tuple[int, ...] = (8, 16)
    betas: tuple[float, ...] = (0.3,)
    minibatches: int = 24
    of_prompts: int = 2


FULL = Size(5, 400, 16, 300, 4, 128, (10, 20, 40, 80), (0.15, 0.3, 0.6), 64, 4)
TOY = Size(2, 8, 4, 6, 2, 12, (1,), (0.3,), 3, 2)


def methods(size: Size) -> list[str]:
    return [*(f"brain {beta}" for beta in size.betas), "brain, no baseline", "dpo", "rso", "raft"]


@dataclass(frozen=True, eq=False)
class Lists:
    """Candidates of P prompts, n each; logprob: (P, n) under the reference, which drew them;  rewards: (P, n)."""

    rows: Candidates
    logprob: Tensor
    rewards: Floats

    @property
    def n(self) -> int:
        return self.rewards.shape[1]


def draw_lists(lab: Lab, size: Size, seed: int) -> Lists:
    rows = lab.sample(lab.reference, lab.prompts[: size.prompts], size.candidates, seed=6000 + seed)
    shape = (-1, size.candidates)
    logprob = torch.from_numpy(sequence_logprob(lab.reference, rows).reshape(shape)).float()
    return Lists(rows, logprob, lab.proxy_reward(rows).reshape(shape))


def list_loss(policy: torch.nn.Module, lists: Lists, prompts: NDArray[np.int64], beta: float, baseline: bool) -> Tensor:
    at = (prompts[:, None] * lists.n + np.arange(lists.n)).ravel()
    sums = completion_logprobs(policy, lists.rows.take(at))[0].sum(-1).reshape(-1, lists.n)
    goodness = exponential_goodness(beta)(torch.from_numpy(lists.rewards[prompts]).float())
    return snis_cross_entropy(sums, lists.logprob[prompts], goodness, baseline=baseline).loss


def shuffled(rows: int, size: int, steps: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Batches of `size` rows for so many steps, each pass in an order of its own."""
    passes = -(-size * steps // rows)
    order = np.concatenate([rng.permutation(rows) for _ in range(passes)])
    return [order[first : first + size] for first in range(0, size * steps, size)]


def train_method(
    lab: Lab, lists: Lists, method: str, size: Size, seed: int, measure: Callable[[torch.nn.Module, int], None]
) -> None:
    rng, steps = np.random.default_rng(7000 + seed), max(size.checkpoints)
    places = np.arange(len(lists.rows)).reshape(-1, lists.n)
    if method in ("dpo", "rso"):
        rows, rewards = lists.rows, lists.rewards.ravel()
        if method == "rso":
            kept = [rejection_sample(r, lists.n // 2, SAMPLING_BETA, rng) for r in lists.rewards]
            at = np.concatenate([row[i] for row, i in zip(places, kept, strict=True)])
            rows, rewards = rows.take(at), rewards[at]
        pairs: Pairs = disjoint_pairs(rows, rewards, rng)
        train_on_pairs(lab, pairs, Logistic(GAMMA), True, size, seed, measure)
        return
    at_steps = {step: lambda policy, step=step: measure(policy, step) for step in size.checkpoints}
    if method == "raft":
        best = lists.rows.take(places[np.arange(len(places)), lists.rewards.argmax(axis=1)])
        batches = shuffled(len(best), min(SEQUENCES, len(best)), steps, rng)

        def likelihood(policy: torch.nn.Module, batch: NDArray[np.int64]) -> Tensor:
            logprobs, counted = completion_logprobs(policy, best.take(batch))
            return -logprobs.sum() / counted.sum()

        train_policy(lab, batches, likelihood, LEARNING_RATE, at_steps)
        return
    baseline = method != "brain, no baseline"
    beta = float(method.removeprefix("brain ")) if baseline else min(size.betas)
    batches = shuffled(len(places), max(1, SEQUENCES // lists.n), steps, rng)
    train_policy(
        lab, batches, lambda policy, batch: list_loss(policy, lists, batch, beta, baseline), LEARNING_RATE, at_steps
    )


def gradient_variances(lab: Lab, lists: Lists, size: Size, seed: int) -> dict[str, list[float]]:
    """For both forms: squared distance of each minibatch's gradient from their mean, at the first step."""
    rng, policy = np.random.default_rng(8000 + seed), lab.policy()
    batches = shuffled(len(lists.rewards), size.of_prompts, size.minibatches, rng)
    found = {}
    for name, baseline in (("with", True), ("without", False)):
        gradients = []
        for batch in batches:
            policy.zero_grad()
            list_loss(policy, lists, batch, min(size.betas), baseline).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
        stacked = torch.stack(gradients)
        found[name] = ((stacked - stacked.mean(0)) ** 2).sum(1).tolist()
    return found


# --- the study --------------------------------------------------------------------------------------------------------


def run_seed(lab: Lab, size: Size, seed: int, kept: KeptValues) -> None:
    held_out = lab.held_out[: size.held_out]
    if kept.missing(["reference"]):
        wide = lab.measure("reference", lab.reference, held_out, size.envelope_samples, seed=3000)
        kept.add({"reference": kept_samples(wide)})
    if not kept.missing([f"{seed} {name}" for name in ("variances", *methods(size))]):
        return
    lists = draw_lists(lab, size, seed)
    if kept.missing([f"{seed} variances"]):
        kept.add({f"{seed} variances": gradient_variances(lab, lists, size, seed)})
    for method in methods(size):
        if f"{seed} {method}" in kept:
            continue
        found: list[PolicySamples] = []

        def measure(policy: torch.nn.Module, step: int, method=method, found=found) -> None:
            found.append(lab.measure(f"{method} {step}", policy, held_out, size.completions, seed=5000 + seed))

        train_method(lab, lists, method, size, seed, measure)
        kept.add({f"{seed} {method}": [kept_samples(one) for one in found]})
        said = ", ".join(f"KL {one.kl['exact'].mean():.2f} gold {one.rewards['gold'].mean():.3f} proxy "
                         f"{one.rewards['proxy'].mean():.3f}" for one in found)  # fmt: skip
        report(f"seed {seed}, {method}: {said}")


def study(size: Size, lab: Lab, kept: KeptValues, *, full: bool, threads: int, plot: Path | None) -> Evidence:
    started = time.perf_counter()
    for seed in range(size.seeds):
        run_seed(lab, size, seed, kept)
    seeds = range(size.seeds)
    wide = read_samples(kept["reference"])
    sweeps = {
        name: [
            pooled(f"{name} after {step}", [read_samples(kept[f"{seed} {name}"][i]) for seed in seeds])
            for i, step in enumerate(size.checkpoints)
        ]
        for name in methods(size)
    }
    bounds = {name: envelope(wide.rewards[name].reshape(wide.prompts, -1), BETAS) for name in ("gold", "proxy")}
    points = compare_policies([*(one for sweep in sweeps.values() for one in sweep), wide], wide)
    brain = f"brain {min(size.betas)}"
    figures: list[Figure] = []
    for point in points:
        for quantity, mean, unit in (
            *((f"{name} reward", point.rewards[name], "reward") for name in ("gold", "proxy")),
            ("KL", point.best_kl, "nats"),
        ):
            ends = (mean.value - 1.96 * mean.se, mean.value + 1.96 * mean.se)
            figures.append(figure_with(point.name, quantity, mean.value, ends, unit=unit, n=point.completions,
                                       of="completions"))  # fmt: skip
    gaps: dict[tuple[str, str], MatchedKl] = {}
    for other in methods(size):
        if other == brain:
            continue
        for reward in ("gold", "proxy"):
            gap = matched_kl(sweeps[brain], sweeps[other], wide, reward)
            gaps[other, reward] = gap
            figures.append(figure_with(f"{brain} less {other}", f"{reward} reward at equal KL", gap.difference,
                                       (gap.low, gap.high), unit="reward", n=wide.prompts, of="prompts",
                                       note=f"KL {gap.from_kl:.2f} to {gap.to_kl:.2f} nats"))  # fmt: skip
    ratio = _variance_ratio(kept, size)
    figures.append(figure_with("gradient without the baseline", "variance, of that with it", *ratio, unit="ratio",
                               n=size.seeds * size.minibatches, of="minibatches"))  # fmt: skip
    checks = _checks(sweeps, points, bounds, gaps, ratio, brain)
    if plot is not None:
        from likely.show.plot import render

        picture = draw_frontier(points, "gold", bound=bounds["gold"], lines=methods(size))
        write_whole_file(plot, render(picture, plot.suffix))
    return _conclude(figures, checks, gaps, ratio, brain, size, lab, full, threads, time.perf_counter() - started)


def _variance_ratio(kept: KeptValues, size: Size) -> tuple[float, tuple[float, float]]:
    found = [kept[f"{seed} variances"] for seed in range(size.seeds)]
    without, kept_in = (np.concatenate([one[name] for one in found]) for name in ("without", "with"))
    rng = np.random.default_rng(0)
    drawn = [without[i].mean() / kept_in[i].mean() for i in rng.integers(0, len(without), (2000, len(without)))]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(without.mean() / kept_in.mean()), (float(low), float(high))


def _checks(sweeps, points, bounds, gaps, ratio, brain) -> list[Check]:  # type: ignore[no-untyped-def]
    last = {name: float(sweep[-1].rewards["proxy"].mean()) for name, sweep in sweeps.items()}
    return [
        Check(statement="gold reward at equal KL: dpo less brain, upper end of the interval",
              value=-gaps["dpo", "gold"].low, bound=0, unit="reward"),
        Check(statement="proxy reward at equal KL: dpo less brain, upper end of the interval",
              value=-gaps["dpo", "proxy"].low, bound=0, unit="reward"),
        Check(statement="proxy reward at equal KL: the best other method less brain",
              value=max(-gap.difference for (other, reward), gap in gaps.items()
                        if reward == "proxy" and not other.startswith("brain")), bound=0, unit="reward"),
        Check(statement="3 less the times that the gradient's variance grows without the baseline",
              value=3 - ratio[0], bound=0, unit="times"),
        Check(statement="proxy reward at the last step: without the baseline less with it",
              value=last["brain, no baseline"] - last[brain], bound=0, unit="reward"),
        Check(statement="policies above the envelope, in gold or proxy reward",
              value=sum(lies_above(point, bound, name) for point in points for name, bound in bounds.items()),
              bound=0, unit="policies"),
        Check(statement="policies whose estimates of KL disagree",
              value=sum(not point.kls_agree for point in points), bound=0, unit="policies"),
    ]  # fmt: skip


def _conclude(
    figures: list[Figure], checks: list[Check], gaps: dict[tuple[str, str], MatchedKl],
    ratio: tuple[float, tuple[float, float]], brain: str, size: Size, lab: Lab, full: bool, threads: int,
    seconds: float,
) -> Evidence:  # fmt: skip
    def said(other: str, reward: str) -> str:
        gap = gaps[other, reward]
        return f"{gap.difference:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] over {other}"

    ours = (
        f"{brain} at equal KL: proxy reward {said('dpo', 'proxy')}, {said('rso', 'proxy')}, {said('raft', 'proxy')}; "
        f"gold reward {said('dpo', 'gold')}; the gradient's variance is {ratio[0]:.1f} times as large "
        "without the baseline"
    )
    return conclude(
        "brain",
        title="BRAIn: Bayesian reward-conditioned amortized inference for natural language generation from feedback",
        claim=(
            "Distilling the posterior of a text given that it is good, by self-normalised weights of n samples, gives "
            "a better policy than methods of pairs, and its baseline removes most of the gradient's variance."
        ),
        paper_figure=(
            "significantly better than DPO, SLiC, RRHF and others on Reddit TL;DR and AnthropicHH by LLM judges (the "
            "win rates are not recorded here); variance far below DPG's and GDC++'s"
        ),
        ours=ours, figures=figures, checks=checks,
        samples=(
            f"{size.seeds} seeds; {size.prompts} training prompts of {size.candidates} candidates; measured after "
            f"{', '.join(map(str, size.checkpoints))} steps of {SEQUENCES} sequences on {size.held_out} other prompts "
            f"with {size.completions} completions each; variance over {size.minibatches} minibatches a seed"
        ),
        intervals="95 %: paired bootstrap over prompts for differences, else 1.96 standard errors of prompts",
        full=full, data=lab.sources, seconds=seconds, threads=threads,
        not_shown=[
            "Human or LLM judges, policies of 6.9B; the policy here has a million parameters and one proxy is shared "
            "by all seeds.",
            "Several phases with candidates drawn anew: all candidates come from the reference.",
            "The paper's win rates are not stated beside ours.",
        ],
    )  # fmt: skip


def main() -> Evidence | None:
    return run_study(lab_arguments("5 seeds, 400 prompts of 16 candidates, three β"), measure)


def measure(options: argparse.Namespace) -> Evidence:
    size = FULL if options.full else TOY if options.quick else Size()
    lab, kept = open_for_study(options, "brain", size)
    return study(size, lab, kept, full=options.full, threads=options.threads, plot=options.plot)


if __name__ == "__main__":
    run_script(main)
