"""Online preference optimisation: does training on own samples find the Nash equilibrium, and does it beat offline?

Three experiments.  Games with exact sums: how much a best response gains on what each method ends at.  A language model
judged by a cyclic rule (short beats medium, medium beats long, long beats short): where training ends, against the
equilibrium that is computed, and what a policy does that is trained on the best Bradley-Terry reward of the same judge.
Sentiment of continued reviews under preferences that do come from a reward: online and offline at equal KL.

  python reproductions/online_preference.py           the first two, with a model of 0.1 million parameters
  python reproductions/online_preference.py --full    all three, with the sentiment lab's model, for hours
  python reproductions/online_preference.py --quick   a minute; not written

Cells (method, seed) are kept in a file and read again by a later run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import sentiment_lab
import torch
from numpy.typing import NDArray
from sentiment_lab import Lab, LabSettings, kept_samples, open_lab, pooled, read_samples
from study import arguments, conclude, figure_with, report, run_script, run_study

from likely.alignment.frontier import PolicySamples, compare_policies, matched_kl
from likely.alignment.labellers import Labeller, PreferencePair, RewardDifference
from likely.alignment.online import (
    OnlinePreferences,
    OnlineSettings,
    bradley_terry_fit,
    descend,
    dpo_gradient,
    exploitability,
    ipo_gradient,
    mirror_descent_fixed_point,
    nash,
    policy_gradient_loss,
    reward_optimum,
    train_online,
)
from likely.alignment.scores import Completion, completion_scores
from likely.alignment.sources import FromPolicy, Prompt
from likely.evidence import Check, Evidence, Figure
from likely.io.hashes import fingerprint
from likely.io.kept import KeptValues
from likely.metrics.bootstrap import mean_interval
from likely.runtimes.torch.runtime import TorchRuntime
from likely.tokenizers.huggingface import HFTokenizer, byte_level_bytes
from likely.training.fit import TrainingSettings, fit
from likely.training.loop import LossOutput
from likely.training.policy import Policy
from tokenizers import Tokenizer

Floats = NDArray[np.float64]
CYCLE = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])  # each bucket beats the next
BUCKETS = ("short", "medium", "long")
ONLINE_IPO, IPO_MD, NASH_MD, ONLINE_DPO = "online IPO", "IPO-MD", "Nash-MD", "online DPO"
IPO, DPO, RL = "IPO", "DPO", "RL on a fitted reward"
METHODS = {ONLINE_IPO: "online_ipo", IPO_MD: "ipo_md", NASH_MD: "nash_md", ONLINE_DPO: "online_dpo"}
TINY = LabSettings(vocab=512, width=64, layers=2, epochs=2, learning_rate=4e-3, proxy_pairs=32)


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    words  the last number of words of a short and of a medium text;  cyclic_tau, sentiment_tau: of IPO
    points  the steps after which reward and KL are measured
    """

    lab: LabSettings = TINY
    seeds: int = 3
    games: int = 8
    opening: str = "the film"
    words: tuple[int, int] = (1, 2)
    cyclic_tau: float = 0.2
    cyclic_tokens: int = 6
    cyclic_steps: int = 100
    cyclic_samples: int = 128
    cyclic_rate: float = 1e-3
    judged: int = 512
    points: tuple[int, ...] = (10, 20, 30)
    prompts: int = 16
    samples: int = 2
    rate: float = 1e-3
    sentiment_tau: float = 0.1
    gamma: float = 0.1
    measured: int = 100
    each: int = 2
    cyclic: tuple[str, ...] = (ONLINE_IPO, RL)
    sentiment: tuple[str, ...] = ()  # none: that part is left out


FULL = Sizes(
    lab=LabSettings(), seeds=3, games=20, cyclic_steps=200, points=(50, 100, 200, 300), rate=3e-4, measured=400,
    words=(5, 8), cyclic_tokens=16, cyclic_rate=1e-3, cyclic=(ONLINE_IPO, RL, IPO_MD, NASH_MD),
    sentiment=(ONLINE_IPO, DPO, IPO, IPO_MD, ONLINE_DPO),
)  # fmt: skip
SMALLEST = Sizes(
    lab=sentiment_lab.SMALLEST, seeds=1, games=2, cyclic_tokens=4, cyclic_steps=3, cyclic_samples=8, judged=64,
    words=(1, 2), points=(1, 2), prompts=2, samples=2, measured=4, each=1, sentiment=(ONLINE_IPO, IPO_MD, IPO, DPO),
    cyclic=(ONLINE_IPO, RL, NASH_MD),
)  # fmt: skip


# --- games ------------------------------------------------------------------------------------------------------------


def games(count: int) -> list[tuple[str, Floats, Floats]]:
    """(name, preferences, log reference): the cycle under a reference that favours one answer, and random games."""
    found = [("cycle", CYCLE, np.log([0.15, 0.25, 0.6]))]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        strength = 1.5 * rng.normal(size=(6, 6))
        reference = rng.normal(size=6)
        found.append(
            (
                f"random game {seed}",
                1 / (1 + np.exp(strength.T - strength)),
                reference - np.log(np.exp(reference).sum()),
            )
        )
    return found


def gains(preferences: Floats, reference: Floats, tau: float) -> dict[str, float]:
    """What a best response gains on where each method ends; DPO and RL at their best γ and temperature."""
    ended = descend(
        lambda z: ipo_gradient(preferences, z, reference, tau), reference, learning_rate=0.4 * min(tau, 1), steps=1500
    )
    gain = partial(exploitability, preferences, log_reference=reference, tau=tau)
    fitted = bradley_terry_fit(preferences, reference)
    scales = np.geomspace(0.1, 10, 7)
    return {
        ONLINE_IPO: gain(ended),
        IPO_MD: gain(mirror_descent_fixed_point(preferences, reference, tau, beta=0.125)),
        ONLINE_DPO: min(gain(_dpo(preferences, reference, 4 * tau * scale)) for scale in scales),
        RL: min(gain(reward_optimum(fitted, reference, 4 * tau * scale)) for scale in scales),
        "the reference": gain(reference),
    }


def _dpo(preferences: Floats, reference: Floats, gamma: float) -> Floats:
    return descend(
        lambda z: dpo_gradient(preferences, z, reference, gamma), reference, learning_rate=2 / gamma**2, steps=300
    )


def of_games(count: int, tau: float) -> tuple[list[Figure], list[Check]]:
    found = {name: gains(p, reference, tau) for name, p, reference in games(count)}
    figures = []
    for method in next(iter(found.values())):
        values = np.array([each[method] for each in found.values()])
        figures += [
            Figure(subject=f"games: {method}", quantity="exploitability of the cycle", value=values[0], unit="wins",
                   n=1, of="games", note="exact"),
            Figure(subject=f"games: {method}", quantity="mean exploitability", value=values[1:].mean(), unit="wins",
                   n=count, of="random games of 6 answers", low=values[1:].min(), high=values[1:].max(),
                   note="the ends are the least and the most of all games"),
        ]  # fmt: skip
    largest = max(each[ONLINE_IPO] for each in found.values())
    least = min(min(each[ONLINE_DPO], each[RL]) for each in found.values())
    checks = [
        Check(statement="games: the most that a best response gains on online IPO", value=largest, bound=1e-6,
              unit="wins"),
        Check(statement="games: the same, less the least that it gains on online DPO at its best γ or on RL at its "
              "best temperature", value=largest - least, bound=0.0, unit="wins"),
    ]  # fmt: skip
    return figures, checks


# --- a language model under a cyclic judge ----------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedPolicy:
    runtime: TorchRuntime
    tokenizer: HFTokenizer


def own_tokenizer(backend: Tokenizer) -> HFTokenizer:
    """The lab's tokenizer as the package knows tokenizers."""
    pieces = [b""] * backend.get_vocab_size()
    for text, token in backend.get_vocab().items():
        pieces[token] = b"" if token == sentiment_lab.EOS else byte_level_bytes(text)
    ends = {str(backend.id_to_token(sentiment_lab.EOS)): sentiment_lab.EOS}
    copy = Tokenizer.from_str(backend.to_str())
    return HFTokenizer(copy, pieces=pieces, control=ends, bos_id=sentiment_lab.EOS, eos_id=sentiment_lab.EOS)


def fresh_policy(lab: Lab) -> Policy:
    """The reference, to be trained in all its weights."""
    runtime = TorchRuntime(lab.policy(), tokens_held=16384, sequences=512)
    return Policy(LoadedPolicy(runtime, own_tokenizer(lab.tokenizer)), None)


@dataclass(frozen=True)
class CyclicJudge:
    """p(first ≻ second) by the buckets of the texts' numbers of words."""

    words: tuple[int, int]

    def bucket(self, completion: Completion) -> int:
        return int(np.searchsorted(self.words, len(completion.text.split())))

    def __call__(self, firsts: Iterable[Completion], seconds: Iterable[Completion]) -> Floats:
        return np.array([CYCLE[self.bucket(a), self.bucket(b)] for a, b in zip(firsts, seconds, strict=True)])


@dataclass
class RewardGradient(OnlinePreferences):
    """RL: the same samples, each paid the fitted reward of its bucket, less the mean, at the same price of KL."""

    rewards: Floats = field(default_factory=lambda: np.zeros(3))

    def loss(self, pairs: Any) -> LossOutput:
        judge = self.preference
        assert isinstance(judge, CyclicJudge)
        both = [completion for pair in pairs for completion in (pair.first, pair.second)]
        paid = torch.tensor([self.rewards[judge.bucket(c)] for c in both], dtype=torch.float32)
        scores = completion_scores(self.policy.module, both)
        with self.policy.reference() as module:
            reference = completion_scores(module, both)
        losses = policy_gradient_loss(
            scores.token_logprobs, reference.token_logprobs, scores.mask, paid - paid.mean(), tau=self.settings.strength
        )
        return LossOutput(losses.sum() / 2)


def shares(policy: Policy, prompt: Prompt, judge: CyclicJudge, sizes: Sizes, seed: int) -> Floats:
    """(3,) share of each bucket among samples."""
    counts = np.zeros(3)
    for part in range(-(-sizes.judged // 256)):
        source = FromPolicy(policy.lm, n=min(256, sizes.judged), max_tokens=sizes.cyclic_tokens)
        for completion in source.draw([prompt], seed=1000 * seed + part)[0].completions:
            counts[judge.bucket(completion)] += 1
    return counts / counts.sum()


def cyclic_cell(lab: Lab, sizes: Sizes, method: str, reference: Floats, seed: int) -> list[float]:
    """Shares of the buckets after training."""
    policy, judge = fresh_policy(lab), CyclicJudge(sizes.words)
    prompt = Prompt((sentiment_lab.EOS, *lab.tokenizer.encode(sizes.opening).ids), sizes.opening)
    settings = OnlineSettings(
        "online_ipo" if method == RL else METHODS[method],  # type: ignore[arg-type]
        tau=sizes.cyclic_tau, max_tokens=sizes.cyclic_tokens, samples=sizes.cyclic_samples,
        opponents="one" if method == RL else "all",
    )  # fmt: skip
    training = TrainingSettings(
        sizes.cyclic_steps, batch=1, piece=sizes.cyclic_samples**2, lr=sizes.cyclic_rate, warmup=0.05, decay="cosine",
        seed=seed,
    )  # fmt: skip
    if method == RL:
        rewards = bradley_terry_fit(CYCLE, np.log(reference))
        online = RewardGradient(policy, judge, settings, seed, rewards=rewards)
        fit(policy, [prompt], online.loss, training, expand=online.pairs)
    else:
        train_online(policy, [prompt], judge, training, settings)
    return shares(policy, prompt, judge, sizes, seed=seed + 1).tolist()


def of_cycle(cells: Cells, lab: Lab, sizes: Sizes) -> tuple[list[Figure], list[Check]]:
    def reference_shares() -> list[float]:
        prompt = Prompt((sentiment_lab.EOS, *lab.tokenizer.encode(sizes.opening).ids), sizes.opening)
        parts = [shares(fresh_policy(lab), prompt, CyclicJudge(sizes.words), sizes, seed=90 + i) for i in range(2)]
        return np.mean(parts, axis=0).tolist()

    reference = np.maximum(np.array(cells.get("cyclic reference", reference_shares)), 1e-3)
    reference /= reference.sum()
    tau, log_reference = sizes.cyclic_tau, np.log(reference)
    wanted = np.exp(nash(CYCLE, log_reference, tau))
    methods = sizes.cyclic
    runs = {
        (method, seed): cells.get(f"cyclic {method} {seed}", partial(cyclic_cell, lab, sizes, method, reference, seed))
        for seed in range(sizes.seeds)
        for method in methods
    }
    ended = {method: np.array([runs[method, seed] for seed in range(sizes.seeds)]) for method in methods}
    computed = {
        "computed: the reference": reference,
        "computed: Nash equilibrium": wanted,
        "computed: optimum of the fitted reward": np.exp(
            reward_optimum(bradley_terry_fit(CYCLE, log_reference), log_reference, tau)
        ),
    }
    rows = {**computed, **{f"cyclic judge: {method}": values.mean(axis=0) for method, values in ended.items()}}
    figures = [
        Figure(subject=subject, quantity=f"share of {bucket} texts", value=float(row[i]), unit="share",
               n=sizes.judged * (2 if "computed" in subject else sizes.seeds), of="texts",
               note="mean over seeds" if "judge" in subject else "from samples of the reference")
        for subject, row in rows.items() for i, bucket in enumerate(BUCKETS)
    ]  # fmt: skip
    distance = {method: 0.5 * np.abs(values - wanted).sum(axis=1) for method, values in ended.items()}
    gain = {
        method: np.array([exploitability(CYCLE, np.log(np.maximum(v, 1e-4)), log_reference, tau) for v in values])
        for method, values in ended.items()
    }
    for method in methods:
        for quantity, unit, values in (
            ("distance from the equilibrium", "total variation", distance[method]),
            ("exploitability", "wins", gain[method]),
        ):
            figures.append(
                figure_with(f"cyclic judge: {method}", quantity, values.mean(), (values.min(), values.max()), unit=unit,
                            n=sizes.seeds, of="seeds", note="the ends are the least and the most of all seeds")
            )  # fmt: skip
    start = 0.5 * np.abs(reference - wanted).sum()
    checks = [
        Check(statement="cyclic judge: distance of online IPO from the computed equilibrium, of all seeds the most, "
              "over that of the reference", value=float(distance[ONLINE_IPO].max() / start), bound=0.5, unit="ratio"),
        Check(statement="cyclic judge: exploitability of online IPO, of all seeds the most, less that of RL on the "
              "fitted reward, of all seeds the least", value=float(gain[ONLINE_IPO].max() - gain[RL].min()), bound=0.0,
              unit="wins"),
        Check(statement="cyclic judge: 0.8 less the share of the bucket that RL collapses to, of all seeds the least",
              value=float(0.8 - ended[RL].max(axis=1).min()), bound=0.0, unit="share"),
        Check(statement="cyclic judge: share of the largest bucket under online IPO, of all seeds the most, less that "
              "of the equilibrium", value=float(ended[ONLINE_IPO].max() - wanted.max()), bound=0.15, unit="share"),
    ]  # fmt: skip
    return figures, checks


# --- a reward: online and offline at equal KL -------------------------------------------------------------------------


def sentiment_preference() -> Labeller:
    compound = sentiment_lab.gold_reward()
    scale = sentiment_lab.REWARD_SCALE
    return RewardDifference(lambda texts: np.array([scale * compound(c.text) for c in texts]), scale=0.5)


def sentiment_cell(lab: Lab, sizes: Sizes, method: str, seed: int) -> list[dict[str, Any]]:
    """Samples of the policy after each of the points."""
    policy, prompts = fresh_policy(lab), [Prompt(tuple(p)) for p in lab.prompts]
    kind = METHODS.get(method, "online_dpo" if method == DPO else "online_ipo")
    settings = OnlineSettings(
        kind, tau=sizes.gamma if kind == "online_dpo" else sizes.sentiment_tau,  # type: ignore[arg-type]
        max_tokens=sentiment_lab.MAX_NEW, samples=sizes.samples,
    )  # fmt: skip
    per_step = sizes.prompts * sizes.samples // 2
    online = OnlinePreferences(policy, sentiment_preference(), settings, seed)
    found: list[dict[str, Any]] = []

    def progress(step: int, _: float) -> None:
        if step + 1 in sizes.points:
            name = f"{method} {step + 1} steps"
            held_out = lab.held_out[: sizes.measured]
            found.append(kept_samples(lab.measure(name, policy.base, held_out, sizes.each, seed=500 + seed)))

    steps = max(sizes.points)
    if method in METHODS:
        training = TrainingSettings(
            steps, batch=sizes.prompts, piece=per_step, lr=sizes.rate, warmup=0.05, decay="constant", seed=seed
        )
        fit(policy, prompts, online.loss, training, expand=online.pairs, progress=progress)
        return found
    pairs: list[PreferencePair] = []  # as many, of the reference
    rng = np.random.default_rng(seed)
    while len(pairs) < steps * per_step:
        chosen = rng.integers(len(prompts), size=sizes.prompts)
        pairs += online.pairs(len(pairs), [prompts[i] for i in chosen])
    training = TrainingSettings(
        steps, batch=per_step, piece=per_step, lr=sizes.rate, warmup=0.05, decay="constant", seed=seed
    )
    fit(policy, pairs, online.loss, training, length=lambda pair: len(pair.first) + len(pair.second), progress=progress)
    return found


def wins(one: PolicySamples, other: PolicySamples) -> Floats:
    """(P,) mean gold preference of one policy's completions over the other's of the same prompt."""
    found = np.zeros(one.prompts)
    for row in range(one.prompts):
        ours, theirs = one.rewards["gold"][one.prompt == row], other.rewards["gold"][other.prompt == row]
        found[row] = (1 / (1 + np.exp(-np.subtract.outer(ours, theirs) / 0.5))).mean()
    return found


def of_sentiment(cells: Cells, lab: Lab, sizes: Sizes) -> tuple[list[Figure], list[Check]]:
    def reference_samples(seed: int) -> dict[str, Any]:
        held_out = lab.held_out[: sizes.measured]
        return kept_samples(lab.measure("reference", lab.reference, held_out, sizes.each, seed=800 + seed))

    seeds = range(sizes.seeds)
    reference = pooled(
        "reference",
        [read_samples(cells.get(f"sentiment reference {s}", partial(reference_samples, s))) for s in seeds],
    )
    runs = {
        (method, seed): cells.get(f"sentiment {method} {seed}", partial(sentiment_cell, lab, sizes, method, seed))
        for seed in seeds
        for method in sizes.sentiment
    }
    sweeps = {
        method: [
            pooled(f"{method} {step} steps", [read_samples(runs[method, seed][i]) for seed in seeds])
            for i, step in enumerate(sizes.points)
        ]
        for method in sizes.sentiment
    }
    figures = []
    for point in compare_policies([one for sweep in sweeps.values() for one in sweep], reference):
        for quantity, mean, unit in (
            ("gold reward", point.rewards["gold"], "reward"), ("KL", point.best_kl, "nats"),
            ("win rate against the reference", point.win_rate, "share"),
        ):  # fmt: skip
            half = 1.96 * mean.se
            figures.append(
                figure_with(f"sentiment: {point.name}", quantity, mean.value, (mean.value - half, mean.value + half),
                            unit=unit, n=point.completions, of="completions")
            )  # fmt: skip
    for one, first in sweeps.items():
        for other, second in sweeps.items():
            if one != other:
                won = wins(first[-1], second[-1])
                figures.append(
                    figure_with(f"sentiment: {one}", f"preferred to {other}", won.mean(), mean_interval(won),
                                unit="share", n=len(won), of="prompts")
                )  # fmt: skip
    against = wins(sweeps[ONLINE_IPO][-1], sweeps[DPO][-1])
    checks = [
        Check(statement="sentiment: 0.5 less the rate at which online IPO is preferred to DPO, lower end of the "
              "interval",
              value=0.5 - mean_interval(against)[0], bound=0.0, unit="share"),
    ]  # fmt: skip
    moved = {name for name, sweep in sweeps.items() if any(each.kl["exact"].mean() > 0 for each in sweep)}
    for one, other in ((ONLINE_IPO, IPO), (ONLINE_DPO, DPO)):
        if {one, other} <= moved:
            gap = matched_kl(sweeps[one], sweeps[other], reference, "gold")
            figures.append(
                figure_with(f"sentiment: {one}", f"reward more than {other} at equal KL", gap.difference,
                            (gap.low, gap.high), unit="reward", n=reference.prompts, of="prompts",
                            note=f"KL {gap.from_kl:.2f} to {gap.to_kl:.2f}")
            )  # fmt: skip
            checks.append(
                Check(statement=f"sentiment: gold reward of {other} less that of {one} at equal KL, upper end of the "
                      "interval", value=-gap.low, bound=0.0, unit="reward")
            )  # fmt: skip
    if {ONLINE_IPO, IPO_MD} <= moved:
        same = matched_kl(sweeps[ONLINE_IPO], sweeps[IPO_MD], reference, "gold")
        checks.append(
            Check(statement=f"sentiment: difference of {ONLINE_IPO} and {IPO_MD} in gold reward at equal KL",
                  value=abs(same.difference), bound=0.1, unit="reward")
        )  # fmt: skip
    return figures, checks


# --- the study --------------------------------------------------------------------------------------------------------


@dataclass
class Cells:
    """Results by name, kept in a file under what they depend on."""

    kept: KeptValues
    sizes: Sizes
    say: Callable[[str], None] = report

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        which = ("seeds", "cyclic", "sentiment")
        key = fingerprint([name, {k: v for k, v in asdict(self.sizes).items() if k not in which}])
        if key not in self.kept:
            started = time.process_time()
            self.kept.add({key: make()})
            self.say(f"{name}: {time.process_time() - started:.0f} s of processor time")
        return self.kept[key]


def study(lab: Lab, cells: Cells, sizes: Sizes, *, full: bool, started: float) -> Evidence:
    figures, checks = of_games(sizes.games, tau=0.2)
    sentiment = bool(sizes.sentiment)
    parts = [of_cycle, of_sentiment] if sentiment else [of_cycle]
    for part in parts:
        more, judged = part(cells, lab, sizes)
        figures, checks = figures + more, checks + judged
    by = {(f.subject, f.quantity): f.value for f in figures}
    ours = (
        f"a best response gains {checks[0].value:.1g} wins on online IPO in exact games (on the fitted reward's "
        f"optimum {by[f'games: {RL}', 'exploitability of the cycle']:.2g} in the cycle); under the cyclic judge online "
        "IPO ends at "
        + "/".join(f"{by[f'cyclic judge: {ONLINE_IPO}', f'share of {b} texts']:.2f}" for b in BUCKETS)
        + " where the equilibrium is "
        + "/".join(f"{by['computed: Nash equilibrium', f'share of {b} texts']:.2f}" for b in BUCKETS)
        + ", RL on the fitted reward at "
        + "/".join(f"{by[f'cyclic judge: {RL}', f'share of {b} texts']:.2f}" for b in BUCKETS)
    )
    if sentiment:
        ours += (
            f"; online IPO is preferred to DPO at a rate of {by[f'sentiment: {ONLINE_IPO}', f'preferred to {DPO}']:.3f}"
        )
    return conclude(
        "online_preference",
        title="Online preference optimisation",
        claim="Online IPO finds the Nash equilibrium of the preferences by self-play"
        + (", and its samples are preferred to those of DPO." if sentiment else "."),
        paper_figure="summaries of online IPO are preferred to DPO's at a rate of .608, to those of RL at .791, to "
        "IPO-MD's at .515 (second-hand)",
        ours=ours,
        figures=figures,
        checks=checks,
        samples=f"{sizes.games + 1} games; cyclic judge: {sizes.cyclic_steps} steps of {sizes.cyclic_samples} samples, "
        f"{sizes.seeds} seeds" + (
            f"; sentiment: {max(sizes.points)} steps of {sizes.prompts} prompts with {sizes.samples} samples, "
            f"{sizes.seeds} seeds" if sentiment else ""
        ),
        intervals="games: all of them; cyclic judge: least and most of the seeds"
        + ("; sentiment: 95 %, bootstrap or normal over prompts, seeds pooled" if sentiment else ""),
        full=full,
        data=lab.sources,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Summarisation with models of 0.8 and 3 billion parameters and a large judge: the policies here are small "
            "and trained from scratch on movie reviews.",
            "Preferences learned from people: the judge is a rule, the reward VADER's.",
            "Hyper-parameters chosen per method by a search: each has one setting, and a sweep along its steps.",
            *([] if sentiment else ["Online against offline, and against DPO: --full."]),
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence:
    torch.set_num_threads(1)
    started = time.perf_counter()
    sizes = SMALLEST if options.quick else FULL if options.full else Sizes()
    path = None if options.quick else options.kept
    lab = open_lab(settings=sizes.lab)
    return study(lab, Cells(KeptValues(path), sizes), sizes, full=options.full, started=started)


def main() -> None:
    parser = arguments(
        full="also sentiment, with a larger model and more steps", quick="a smoke run at the smallest size",
        kept="online_preference.jsonl",
    )  # fmt: skip
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
