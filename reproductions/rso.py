"""RSO: do pairs from rejection sampling beat pairs from the SFT policy, and those pairs of another policy, at equal KL?

The sentiment lab: 8 completions a prompt make 4 disjoint pairs, labelled by the proxy; every method gets as many pairs,
steps and the same learning rate.  Where the 8 come from is what differs:

  direct   another policy: the reference at temperature 1.5 (DPO on given pairs)
  sft      the first 8 of the reference's samples (sft-sample-rank)
  rso      8 of all samples of the reference by rejection sampling with the proxy (rso-sample-rank)

with the logistic loss on log-ratios; rso also with the hinge on log-ratios (hinge-norm) and on log-probabilities
(hinge).  Best-of-n of the proxy at run time is drawn beside them, at its bound of KL.

  python reproductions/rso.py            3 seeds, 128 prompts of 32 samples, some 5 minutes of processor time
  python reproductions/rso.py --full     5 seeds, 640 prompts of 64 samples, both γ
  python reproductions/rso.py --quick    the smallest lab

Rows are kept in --work, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
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
    Envelope,
    Hinge,
    Logistic,
    PolicySamples,
    RejectionStatistics,
    accept_candidates,
    compare_policies,
    draw_frontier,
    envelope,
    matched_kl,
)
from likely.alignment.frontier import lies_above
from likely.alignment.links import Link
from likely.evidence import Check, Evidence, Figure
from likely.io.kept import KeptValues
from likely.io.whole_file import write_whole_file

Floats = NDArray[np.float64]
SAMPLING_BETA = 0.5
PER_PROMPT = 8  # completions that make pairs
BATCH = 32  # pairs
LEARNING_RATE = 5e-4
BETAS = (2.0, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18)  # of the envelope


@dataclass(frozen=True)
class Size:
    """Of a run.  held_out: prompts of the evaluation;  completions: of each of them;  checkpoints: in steps."""

    seeds: int = 3
    prompts: int = 128
    samples: int = 32
    held_out: int = 128
    completions: int = 2
    envelope_samples: int = 32
    checkpoints: tuple[int, ...] = (8, 16)
    gammas: tuple[float, ...] = (0.1,)


FULL = Size(5, 640, 64, 300, 4, 128, (10, 20, 40, 80, 160), (0.05, 0.1))
TOY = Size(2, 8, 10, 6, 2, 12, (1,), (0.1,))


@dataclass(frozen=True, eq=False)
class Pairs:
    """rows: the completions;  winners, losers (M,): their rows."""

    rows: Candidates
    winners: NDArray[np.int64]
    losers: NDArray[np.int64]


def disjoint_pairs(rows: Candidates, rewards: Floats, rng: np.random.Generator) -> Pairs:
    """Random disjoint pairs of each prompt's completions, labelled by the reward; ties are dropped."""
    winners, losers = [], []
    for prompt in np.unique(rows.prompt):
        order = rng.permutation(np.flatnonzero(rows.prompt == prompt))
        for a, b in zip(order[::2], order[1::2], strict=False):
            if rewards[a] != rewards[b] and rows.ids[a] != rows.ids[b]:
                winners.append(a if rewards[a] > rewards[b] else b)
                losers.append(b if rewards[a] > rewards[b] else a)
    return Pairs(rows, np.array(winners), np.array(losers))


def sources(lab: Lab, size: Size, seed: int) -> tuple[dict[str, tuple[Candidates, Floats]], RejectionStatistics]:
    """By name, 8 completions of each prompt with their proxy rewards; and how the rejection sampler fared."""
    prompts = lab.prompts[: size.prompts]
    rng = np.random.default_rng(seed)
    own = lab.sample(lab.reference, prompts, size.samples, seed=1000 + seed)
    other = lab.sample(lab.reference, prompts, PER_PROMPT, seed=2000 + seed, temperature=1.5)
    rewards = lab.proxy_reward(own)
    places = np.arange(len(own)).reshape(len(prompts), size.samples)
    first = places[:, :PER_PROMPT].ravel()
    found = [
        accept_candidates(rewards[row], PER_PROMPT, SAMPLING_BETA, rng, where=f"prompt {i}")
        for i, row in enumerate(places)
    ]
    accepted = np.concatenate([row[sample.indices] for row, sample in zip(places, found, strict=True)])
    drawn = {"direct": (other, lab.proxy_reward(other))}
    drawn |= {name: (own.take(at), rewards[at]) for name, at in (("sft", first), ("rso", accepted))}
    return drawn, RejectionStatistics.of(found)


def train_on_pairs(
    lab: Lab, pairs: Pairs, link: Link, normalised: bool, size: Size, seed: int,
    measure: Callable[[torch.nn.Module, int], None],
) -> None:  # fmt: skip
    """Steps on link(margin).  normalised: a margin of log-ratios to the reference, else of log-probabilities."""
    base = sequence_logprob(lab.reference, pairs.rows) if normalised else np.zeros(len(pairs.rows))
    offset = torch.from_numpy(base[pairs.winners] - base[pairs.losers]).float()
    rng, most = np.random.default_rng(seed), max(size.checkpoints)

    def loss(policy: torch.nn.Module, batch: NDArray[np.int64]) -> Tensor:
        both = pairs.rows.take([*pairs.winners[batch], *pairs.losers[batch]])
        sums = completion_logprobs(policy, both)[0].sum(-1)
        return link(sums[: len(batch)] - sums[len(batch) :] - offset[batch]).mean()

    passes = -(-BATCH * most // len(pairs.winners))
    order = np.concatenate([rng.permutation(len(pairs.winners)) for _ in range(passes)])
    batches = [order[first : first + BATCH] for first in range(0, BATCH * most, BATCH)]
    at = {step: lambda policy, step=step: measure(policy, step) for step in size.checkpoints}
    train_policy(lab, batches, loss, LEARNING_RATE, at)


# --- the study --------------------------------------------------------------------------------------------------------

METHODS = {  # source, link of the margin given γ, on log-ratios or not
    "direct": ("direct", "logistic", True),
    "sft": ("sft", "logistic", True),
    "rso": ("rso", "logistic", True),
    "rso, hinge-norm": ("rso", "hinge", True),
    "rso, hinge": ("rso", "hinge", False),
}
LINKS: dict[str, Callable[[float], Link]] = {"logistic": Logistic, "hinge": Hinge}
BEST_OF = (2, 4, 8, 16)


def cells(size: Size) -> list[tuple[str, float]]:
    return [(method, gamma) for gamma in size.gammas for method in METHODS]


def run_seed(lab: Lab, size: Size, seed: int, kept: KeptValues) -> None:
    """Train and measure what `kept` does not hold of a seed."""
    held_out = lab.held_out[: size.held_out]
    keys = [f"{seed} {method} {gamma}" for method, gamma in cells(size)]
    if kept.missing(["reference"]):
        wide = lab.measure("reference", lab.reference, held_out, size.envelope_samples, seed=3000)
        kept.add({"reference": kept_samples(wide)})
    if not kept.missing(keys):
        return
    drawn, statistics = sources(lab, size, seed)
    worth = {
        f"{name} {reward}": float(values.mean())
        for name in ("sft", "rso")
        for reward, values in (("proxy", drawn[name][1]), ("gold", lab.gold(drawn[name][0])))
    }
    kept.add({f"{seed} candidates": {"acceptance rate": statistics.acceptance_rate, **worth}})
    for (method, gamma), key in zip(cells(size), keys, strict=True):
        if key in kept:
            continue
        source, link, normalised = METHODS[method]
        rng = np.random.default_rng(4000 + seed)
        pairs = disjoint_pairs(*drawn[source], rng)
        found: list[PolicySamples] = []

        def measure(policy: torch.nn.Module, step: int, method=method, found=found) -> None:
            found.append(lab.measure(f"{method} {step}", policy, held_out, size.completions, seed=5000 + seed))

        train_on_pairs(lab, pairs, LINKS[link](gamma), normalised, size, seed, measure)
        kept.add({key: [kept_samples(one) for one in found]})
        said = ", ".join(f"KL {one.kl['exact'].mean():.2f} gold {one.rewards['gold'].mean():.3f}" for one in found)
        report(f"seed {seed}, {method}, γ {gamma}, {len(pairs.winners)} pairs: {said}")


def best_of(wide: PolicySamples, n: int, reward: str = "proxy") -> PolicySamples:
    """The best of each n samples by a reward, at log n − (n − 1)/n, which bounds its KL (Beirami et al. 2024)."""
    rows = np.arange(len(wide.prompt)).reshape(wide.prompts, -1)
    groups = rows[:, : rows.shape[1] // n * n].reshape(-1, n)
    best = groups[np.arange(len(groups)), wide.rewards[reward][groups].argmax(axis=1)]
    bound = np.full(len(best), np.log(n) - (n - 1) / n)
    return PolicySamples(
        f"best-of {n}", wide.prompt[best], {name: values[best] for name, values in wide.rewards.items()},
        {"exact": bound}, [wide.tokens[i] for i in best],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pooled:
    """The reference, and sweeps by "METHOD, γ": of all seeds together, and of each."""

    wide: PolicySamples
    sweeps: dict[str, list[PolicySamples]]
    per_seed: list[dict[str, list[PolicySamples]]]


def pool(kept: KeptValues, size: Size) -> Pooled:
    per_seed = [
        {
            f"{method}, γ {gamma}": [read_samples(one) for one in kept[f"{seed} {method} {gamma}"]]
            for method, gamma in cells(size)
        }
        for seed in range(size.seeds)
    ]
    sweeps = {
        name: [pooled(f"{name} {step}", [own[name][i] for own in per_seed]) for i, step in enumerate(size.checkpoints)]
        for name in per_seed[0]
    }
    return Pooled(read_samples(kept["reference"]), sweeps, per_seed)


def study(size: Size, lab: Lab, kept: KeptValues, *, full: bool, threads: int, plot: Path | None) -> Evidence:
    started = time.perf_counter()
    for seed in range(size.seeds):
        run_seed(lab, size, seed, kept)
    found = pool(kept, size)
    bounds = {
        name: envelope(found.wide.rewards[name].reshape(found.wide.prompts, -1), BETAS) for name in ("gold", "proxy")
    }
    gamma = size.gammas[-1]
    names = [f"{method}, γ {gamma}" for method in METHODS]
    best = [best_of(found.wide, n) for n in BEST_OF if n <= size.envelope_samples]
    points = compare_policies(
        [*(one for sweep in found.sweeps.values() for one in sweep), *best, found.wide], found.wide
    )
    figures, checks = [], []
    for point in points:
        for name in ("gold", "proxy"):
            mean = point.rewards[name]
            figures.append(_figure(point.name, f"{name} reward", mean.value, mean.se, point.completions))
        bounded = point.name.startswith("best-of")
        figures.append(_figure(point.name, "bound of KL" if bounded else "KL", point.best_kl.value, point.best_kl.se,
                               point.completions, unit="nats"))  # fmt: skip
    gaps = {}
    for other, label in (("direct", "rso less direct"), ("sft", "rso less sft"), ("best-of", "rso less best-of-n")):
        sweep = best if other == "best-of" else found.sweeps[f"{other}, γ {gamma}"]
        for reward in ("gold", "proxy"):
            gap = matched_kl(found.sweeps[names[2]], sweep, found.wide, reward)
            gaps[other, reward] = gap
            figures.append(figure_with(label, f"{reward} reward at equal KL", gap.difference, (gap.low, gap.high),
                                       unit="reward", n=found.wide.prompts, of="prompts",
                                       note=f"KL {gap.from_kl:.2f} to {gap.to_kl:.2f} nats"))  # fmt: skip
    apart = [
        matched_kl(own[names[2]], own[f"sft, γ {gamma}"], found.wide, "gold", resamples=1).difference
        for own in found.per_seed
    ]
    checks += [
        Check(statement="gold reward at equal KL: direct less rso, upper end of the interval",
              value=-gaps["direct", "gold"].low, bound=0, unit="reward"),
        Check(statement="gold reward at equal KL: sft less rso, upper end of the interval",
              value=-gaps["sft", "gold"].low, bound=0, unit="reward"),
        Check(statement="seeds in which sft has more gold reward than rso at equal KL",
              value=sum(gap <= 0 for gap in apart), bound=size.seeds // 3, unit="seeds"),
        _over_optimised(found, names),
        Check(statement="policies above the envelope, in gold or proxy reward",
              value=sum(lies_above(point, bound, name) for point in points for name, bound in bounds.items()),
              bound=0, unit="policies"),
        Check(statement="policies whose estimates of KL disagree",
              value=sum(not point.kls_agree for point in points), bound=0, unit="policies"),
    ]  # fmt: skip
    if plot is not None:
        _draw(points, bounds["gold"], [*names, "best-of"], plot)
    return _conclude(found, figures, checks, gaps, apart, kept, size, lab, full, threads, time.perf_counter() - started)


def _figure(subject: str, quantity: str, value: float, se: float, n: int, *, unit: str = "reward") -> Figure:
    return figure_with(
        subject, quantity, value, (value - 1.96 * se, value + 1.96 * se), unit=unit, n=n, of="completions"
    )


def _over_optimised(found: Pooled, names: Sequence[str]) -> Check:
    """Hinge on log-probabilities: proxy gained over the best other minus gold gained over it, at its last step."""
    last = {name: found.sweeps[name][-1] for name in names}
    gold = {name: float(one.rewards["gold"].mean()) for name, one in last.items()}
    proxy = {name: float(one.rewards["proxy"].mean()) for name, one in last.items()}
    hinge = names[-1]
    others = [name for name in names if name != hinge]
    return Check(
        statement="hinge on log-probabilities: most proxy reward of all at the last step, yet not most gold reward",
        value=float(proxy[hinge] < max(proxy[n] for n in others)) + float(gold[hinge] > max(gold[n] for n in others)),
        bound=0, unit="of 2 parts missed",
    )  # fmt: skip


def _draw(points: Sequence, bound: Envelope, lines: Sequence[str], path: Path) -> None:
    from likely.show.plot import render

    write_whole_file(path, render(draw_frontier(points, "gold", bound=bound, lines=lines), path.suffix))
    report(f"wrote {path}")


def _conclude(
    found: Pooled, figures: list[Figure], checks: list[Check], gaps: dict, apart: list[float], kept: KeptValues,
    size: Size, lab: Lab, full: bool, threads: int, seconds: float,
) -> Evidence:  # fmt: skip
    told = [kept[f"{seed} candidates"] for seed in range(size.seeds)]
    mean = {key: float(np.mean([one[key] for one in told])) for key in told[0]}

    def said(other: str, reward: str) -> str:
        gap = gaps[other, reward]
        return f"{gap.difference:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"

    ours = (
        f"gold reward of rso at equal KL: {said('direct', 'gold')} over direct, {said('sft', 'gold')} over sft "
        f"({sum(gap > 0 for gap in apart)} of {size.seeds} seeds), {said('best-of', 'gold')} over best-of-n; "
        f"accepted candidates have a gold reward of {mean['rso gold']:.2f} instead of {mean['sft gold']:.2f} (proxy "
        f"{mean['rso proxy']:.2f} instead of {mean['sft proxy']:.2f}), acceptance rate {mean['acceptance rate']:.0%}"
    )
    return conclude(
        "rso",
        title="Statistical rejection sampling improves preference optimization (RSO)",
        claim=(
            "Pairs of completions that rejection sampling takes from the SFT policy towards the optimal one train a "
            "better policy than pairs of the SFT policy, and those a better one than given pairs of another policy."
        ),
        paper_figure=(
            "Reddit TL;DR, T5-large policy, wins against the SFT target by a gold reward model: direct 76.09 %, "
            "sft-sample-rank 78.14 %, RSO 82.22 %; AnthropicHH 36.13, 58.65 and 59.15 %"
        ),
        ours=ours, figures=figures, checks=checks,
        samples=(
            f"{size.seeds} seeds; {size.prompts} training prompts of {size.samples} samples, {PER_PROMPT} of which "
            f"make 4 pairs, sampling β {SAMPLING_BETA}, γ {size.gammas[-1]}; measured after "
            f"{', '.join(map(str, size.checkpoints))} steps of {BATCH} pairs on {size.held_out} other prompts with "
            f"{size.completions} completions each"
        ),
        intervals="95 %: paired bootstrap over prompts for differences, else 1.96 standard errors of prompts",
        full=full, data=lab.sources, seconds=seconds, threads=threads,
        not_shown=[
            "Human or LLM judges, 770M to 11B policies; the policy here has a million parameters and one proxy is "
            "shared by all seeds.",
            "A pair ranker: pairs are labelled by the proxy's rewards, the larger one wins.",
            "Temperature 0.7 and top-k 40 as the paper samples: here temperature 1, for which the law is exact.",
            "Best-of-n is placed at log n − (n − 1)/n, a bound of its KL, which flatters whatever it is compared with.",
        ],
    )  # fmt: skip


def main() -> Evidence | None:
    return run_study(lab_arguments("5 seeds, 640 prompts of 64 samples, both γ"), measure)


def measure(options: argparse.Namespace) -> Evidence:
    size = FULL if options.full else TOY if options.quick else Size()
    lab, kept = open_for_study(options, "rso", size, METHODS)
    return study(size, lab, kept, full=options.full, threads=options.threads, plot=options.plot)


if __name__ == "__main__":
    run_script(main)
