"""DPO on SmolLM2 with LoRA beside best-of-N: which has more reward at equal KL to the model before training?

The sentiment lab's task on a real model: SmolLM2-135M continues the first words of movie reviews, 24 tokens at
temperature 1, and the reward is 2 x VADER's compound score of what it wrote.  Samples of the model itself make disjoint
pairs, the larger reward wins, ties are left out; DPO (LoRA of rank 16) learns from them and is measured on other
prompts.  Best-of-N takes the best of N samples of the untrained model there, at its bound of KL; both know the reward.

  python reproductions/frontier_smollm2.py           2 seeds, 64 + 48 prompts, some 20 minutes of processor time
  python reproductions/frontier_smollm2.py --full    3 seeds, 256 + 128 prompts
  python reproductions/frontier_smollm2.py --quick   a smoke run

What is finished stands in --kept, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rso import best_of
from sentiment_lab import kept_samples, pooled, read_samples
from study import arguments, conclude, data_sources, figure_with, model_source, report, run_script, run_study

from likely.alignment.frontier import PolicySamples, compare_policies, envelope, lies_above, matched_kl
from likely.alignment.frontier.measure import sample_policy
from likely.alignment.labellers import PreferencePair, RewardDifference
from likely.alignment.methods import dpo, pair_batch_loss
from likely.alignment.online.training import ReferenceRuntime
from likely.alignment.pairing import pairs_of
from likely.alignment.rewards import SentimentReward
from likely.alignment.runs.rows import RowEncoder
from likely.alignment.scores import Completion, ReferenceSums
from likely.alignment.sources import FromPolicy, Prompt
from likely.data import load_records
from likely.evidence import Check, Evidence, Source
from likely.io.hashes import fingerprint
from likely.io.kept import KeptValues
from likely.models.load import Loaded, load_local
from likely.training import LoraSettings, Policy, TrainingSettings
from likely.training.fit import fit
from likely.training.loop import LossOutput

DATA = (("sentiment-snippets", "movie_test.jsonl.gz"),)
REWARD, MAX_NEW, WORDS = "sentiment", 24, 6
BETAS = (2.0, 1.0, 0.7, 0.5, 0.35, 0.25)  # of the envelope
DPO_BETA, BATCH, LEARNING_RATE = 0.1, 8, 2e-4


@dataclass(frozen=True)
class Size:
    """prompts, samples: of training;  held_out, completions: of the measurement;  wide: samples of the untrained model
    there;  checkpoints: in steps of 8 pairs."""

    seeds: int = 2
    prompts: int = 64
    samples: int = 8
    held_out: int = 48
    completions: int = 2
    wide: int = 32
    checkpoints: tuple[int, ...] = (10, 24)
    best: tuple[int, ...] = (2, 4, 8, 16)


FULL = Size(3, 256, 8, 128, 4, 64, (20, 60, 120))
TOY = Size(1, 4, 4, 3, 2, 8, (1, 2), (2, 4))


@dataclass(frozen=True)
class Held:
    """What a frontier is measured on: a runtime, and the tokenizer of its ids."""

    runtime: Any
    tokenizer: Any


def cell(size: Size, name: str) -> str:
    """The key of what is finished of a study of this size."""
    return f"{fingerprint([asdict(size), LEARNING_RATE, BATCH, DPO_BETA])} {name}"


def prompts_of(lm: Loaded, size: Size) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held out): the first words of different snippets that are at least twice as long."""
    encoder = RowEncoder(lm, 64, "drop")
    texts = (row["text"].split() for row in load_records(*DATA[0]))
    different = dict.fromkeys(" ".join(words[:WORDS]) for words in texts if len(words) >= 2 * WORDS)
    rows = [encoder.prompt(text, text, i) for i, text in enumerate(different, 1)]
    return rows[: size.prompts], rows[-size.held_out :]


def pairs_for(lm: Loaded, prompts: Sequence[Prompt], size: Size, seed: int, kept: KeptValues) -> list[PreferencePair]:
    """Disjoint pairs of the model's own samples; the better one stands first."""
    key = cell(size, f"{seed} pairs")
    if key not in kept:
        reward = SentimentReward()
        drawn = FromPolicy(lm, n=size.samples, max_tokens=MAX_NEW).draw(prompts, seed=1000 + seed)
        rewarded = [c.rewarded(reward) for c in drawn]
        found = pairs_of(
            rewarded, "first_round", RewardDifference(reward), hard=True, rng=np.random.default_rng(2000 + seed)
        )
        rows = []
        for pair in found:
            first, second = (pair.first, pair.second) if pair.preference > 0.5 else (pair.second, pair.first)
            rows.append([list(first.prompt), list(first.tokens), first.finished, list(second.tokens), second.finished])
        kept.add({key: rows})
        report(f"seed {seed}: {len(rows)} pairs")
    return [
        PreferencePair(Completion(tuple(p), tuple(a), a_ended), Completion(tuple(p), tuple(b), b_ended))
        for p, a, a_ended, b, b_ended in kept[key]
    ]


def run_seed(lm: Loaded, size: Size, seed: int, kept: KeptValues, folder: Path) -> None:
    """Train and measure what `kept` does not hold of a seed."""
    training, held = prompts_of(lm, size)
    keys = {step: cell(size, f"{seed} dpo {step}") for step in size.checkpoints}
    if not kept.missing(keys.values()):
        return
    pairs = pairs_for(lm, training, size, seed, kept)
    with Policy(lm, LoraSettings(), seed=seed) as policy:
        reference = Held(ReferenceRuntime(policy), lm.tokenizer)
        sums = ReferenceSums(policy)
        sums.prepare([text for pair in pairs for text in (pair.first, pair.second)])

        def loss(batch: Sequence[PreferencePair]) -> LossOutput:
            known = sums([pair.first for pair in batch] + [pair.second for pair in batch])
            return pair_batch_loss(dpo(beta=DPO_BETA), policy.module, batch, known)

        def measure(step: int, value: float) -> None:
            key = keys.get(step + 1)
            if key is None or key in kept:
                return
            policy.refresh()
            found = sample_policy(
                f"dpo {step + 1}", Held(lm.runtime, lm.tokenizer), reference, held, {REWARD: SentimentReward()},
                n=size.completions, max_tokens=MAX_NEW, seed=3000 + seed,
            )  # fmt: skip
            kept.add({key: kept_samples(found)})
            report(
                f"seed {seed}, step {step + 1}: loss {value:.3f}, KL {found.kl['exact'].mean():.2f}, reward "
                f"{found.rewards[REWARD].mean():.3f}"
            )

        steps = max(size.checkpoints)
        settings = TrainingSettings(steps, BATCH, 4, LEARNING_RATE, decay="constant", checkpoint_every=5, seed=seed)
        place = folder / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        fit(
            policy, pairs, loss, settings, length=lambda p: len(p.first) + len(p.second), folder=place,
            recipe={"study": "frontier_smollm2", "beta": DPO_BETA, "pairs": fingerprint([asdict(p) for p in pairs])},
            progress=measure,
        )  # fmt: skip
        reference.runtime.shutdown()


def study(
    size: Size, kept: KeptValues, folder: Path, *, model: str = "smollm2", full: bool = False, threads: int = 1,
    sources: Sequence[Source] = (),
) -> Evidence:  # fmt: skip
    started = time.perf_counter()
    torch.set_num_threads(threads)
    lm = load_local(model, runtime="torch", threads=threads)
    _, held = prompts_of(lm, size)
    untrained = cell(size, "reference")
    if untrained not in kept:
        wide = sample_policy(
            "reference", lm, lm, held, {REWARD: SentimentReward()}, n=size.wide, max_tokens=MAX_NEW, seed=4000
        )
        kept.add({untrained: kept_samples(wide)})
        report(f"reference: reward {wide.rewards[REWARD].mean():.3f} (s.d. {wide.rewards[REWARD].std():.3f})")
    for seed in range(size.seeds):
        run_seed(lm, size, seed, kept, folder)
    lm.runtime.shutdown()
    wide = read_samples(kept[untrained])
    per_seed = [
        [read_samples(kept[cell(size, f"{seed} dpo {s}")]) for s in size.checkpoints] for seed in range(size.seeds)
    ]
    trained = [pooled(f"dpo {s}", [own[i] for own in per_seed]) for i, s in enumerate(size.checkpoints)]
    best = [best_of(wide, n, REWARD) for n in size.best]
    return _conclude(wide, trained, best, size, full, threads, sources, time.perf_counter() - started)


def _conclude(
    wide: PolicySamples, trained: list[PolicySamples], best: list[PolicySamples], size: Size, full: bool, threads: int,
    sources: Sequence[Source], seconds: float,
) -> Evidence:  # fmt: skip
    bound = envelope(wide.rewards[REWARD].reshape(wide.prompts, -1), BETAS)
    points = compare_policies([*trained, *best, wide], wide)
    figures = []
    for point in points:
        kl = "bound of KL" if point.name.startswith("best-of") else "KL"
        for quantity, mean, unit in (("reward", point.rewards[REWARD], "reward"), (kl, point.best_kl, "nats"),
                                     ("wins against the reference", point.win_rate, "share of pairs")):  # fmt: skip
            interval = (mean.value - 1.96 * mean.se, mean.value + 1.96 * mean.se)
            figures.append(figure_with(point.name, quantity, mean.value, interval, unit=unit, n=point.completions,
                                       of="completions"))  # fmt: skip
    gap = matched_kl(trained, best, wide, REWARD)
    figures.append(
        figure_with("dpo less best-of-N", "reward at equal KL", gap.difference, (gap.low, gap.high), unit="reward",
                    n=wide.prompts, of="prompts", note=f"KL {gap.from_kl:.2f} to {gap.to_kl:.2f} nats")
    )  # fmt: skip
    last = trained[-1]
    gained = last.by_prompt(last.rewards[REWARD]) - wide.by_prompt(wide.rewards[REWARD])
    error = 1.96 * gained.std(ddof=1) / len(gained) ** 0.5
    checks = [
        Check(statement="reward of the untrained model less that of DPO's last step, upper end of the interval",
              value=float(-gained.mean() + error), bound=0, unit="reward"),
        Check(statement="reward at equal KL: DPO less best-of-N, lower end of the interval", value=gap.low, bound=0,
              unit="reward"),
        Check(statement="trained policies above the envelope",
              value=sum(lies_above(point, bound, REWARD) for point in points[: len(trained)]), bound=0,
              unit="policies"),
        Check(statement="trained policies whose estimates of KL disagree",
              value=sum(not point.kls_agree for point in points[: len(trained)]), bound=0, unit="policies"),
    ]  # fmt: skip
    said = "; ".join(
        f"{point.name}: reward {point.rewards[REWARD].value:.2f} at {point.best_kl.value:.2f} nats, wins "
        f"{point.win_rate.value:.0%}"
        for point in points[: len(trained)]
    )
    return conclude(
        "frontier_smollm2",
        title="DPO and best-of-N on SmolLM2: reward at equal KL",
        claim=(
            "DPO on pairs of the model's own samples raises the reward, stays below the envelope, and has no more "
            "reward at equal KL than best-of-N, which is nearly the best that there is."
        ),
        paper_figure=None,
        ours=(
            f"{said}; the untrained model has {wide.rewards[REWARD].mean():.2f}; DPO less best-of-N at equal KL "
            f"{gap.difference:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}] ({gap.from_kl:.2f} to {gap.to_kl:.2f} nats)"
        ),
        figures=figures,
        checks=checks,
        samples=(
            f"{size.seeds} seeds; pairs of {size.samples} samples of {size.prompts} prompts, β {DPO_BETA}, measured "
            f"after {' and '.join(map(str, size.checkpoints))} steps of {BATCH} pairs on {size.held_out} other prompts "
            f"with {size.completions} completions each; {size.wide} completions of the untrained model there"
        ),
        intervals="95 %: paired bootstrap over prompts for the difference at equal KL, else 1.96 standard errors of "
        "prompts",
        full=full,
        models=[source for source in sources if source.name.endswith(".gguf")],
        data=[source for source in sources if not source.name.endswith(".gguf")],
        seconds=seconds,
        threads=threads,
        not_shown=[
            "A reward that is learned, or people's: VADER counts words, and both methods read it itself.",
            "Sweeps of β and of the learning rate: one of each, chosen on another seed.",
            "Best-of-N is placed at log N − (N − 1)/N, a bound of its KL, which flatters what it is compared with.",
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence:
    size = FULL if options.full else TOY if options.quick else Size()
    kept = KeptValues(None if options.quick else options.kept)
    folder = options.kept.with_suffix(".full" if options.full else ".smoke" if options.quick else ".standard")
    sources = [model_source("smollm2"), *data_sources(DATA)]
    return study(size, kept, folder, full=options.full, threads=options.threads, sources=sources)


def main() -> Evidence | None:
    parser = arguments(
        full="3 seeds, 256 + 128 prompts", quick="a smoke run", threads="threads of torch",
        kept="studies/frontier_smollm2.jsonl",
    )  # fmt: skip
    return run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
