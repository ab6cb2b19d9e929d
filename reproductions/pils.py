"""PILS: how much of a hidden prompt do log-probabilities give away, and does more of the answer give more?

Hidden prompts of a small grammar, whose combinations are new in the test; the model's greedy answer with
log-probabilities of T steps; an inverter trained on them from scratch for T = 1, 4 and 16, on the answer's
text alone, and against defences.  Before that: what the log-probabilities of one
model span, and how exactly all follow from a few.

  python reproductions/pils.py          1,600 prompts, 200 of them for the test
  python reproductions/pils.py --full   10,000 prompts, and an inverter of 8 steps that reads 16

Trajectories are kept in the --kept folder, part by part, without the prompts; a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from study import (
    arguments,
    conclude,
    model_source,
    ratio_figure,
    report,
    run_script,
    run_study,
    share_figure,
)

from likely.audit.inversion import (
    EndpointSpec,
    ExposureReport,
    Inverter,
    InverterConfig,
    LogprobCompressor,
    Recovery,
    RoundedLogprobs,
    TextOnly,
    TopTokensOnly,
    Undefended,
    exposed,
    kept_trajectories,
    measure_runtime,
    recovery,
)
from likely.audit.standard import PROMPT_TEMPLATES, instruction_prompts
from likely.evidence import Check, Evidence, Figure, Source
from likely.runtimes.protocol import Runtime

STEPS = (1, 4, 16)
SEED = 5
LEAST_RATIO = 1.5


@dataclass(frozen=True)
class Sizes:
    """Prompts in all and in the test, the training, and whether an inverter of 8 steps is also asked to read 16."""

    prompts: int
    test: int
    config: InverterConfig
    longer: bool = False


def study(
    runtime: Runtime, render: Callable[[str], Sequence[int]], hidden_size: int, sizes: Sizes, *,
    steps: Sequence[int] = STEPS, kept: Path | None = None, sources: Sequence[Source] = (), full: bool = False,
    threads: int = 1, report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    started = time.perf_counter()
    rng, spare = np.random.default_rng(SEED), min(64, hidden_size)
    texts = rng.integers(0, runtime.vocab_size, (8, (hidden_size + 200) // 8 + 1)).tolist()
    span = measure_runtime(runtime, texts, hidden_size=hidden_size, extra=spare)
    report(f"rank {span.rank}, gap {span.gap}, largest error of unseen log-ratios {span.error_nats} nats")
    prompts = instruction_prompts(sizes.prompts, seed=SEED)
    compressor = LogprobCompressor(runtime.vocab_size, hidden_size, extra=min(100, hidden_size), seed=SEED)
    seen = kept_trajectories(runtime, [render(p) for p in prompts], compressor.tokens.tolist(), max(steps), folder=kept)
    report(f"trajectories of {len(seen)} prompts")
    cut = len(prompts) - sizes.test
    train, test, hidden = seen.of(slice(None, cut)), seen.of(slice(cut, None)), prompts[cut:]
    plain, text = Undefended(), TextOnly()

    def trained(name: str, defence: Any, at: int, shift: int = 0) -> tuple[Inverter, Recovery]:
        inverter = Inverter(replace(sizes.config, shift=shift)).fit(defence.returned(train.first(at)), prompts[:cut])
        found = recovery(hidden, inverter.recover(defence.returned(test.first(at))))
        report(f"{name}: exact match {found.exact:.3f}, word F1 {found.word_f1:.3f}, loss {inverter.losses_[-1]:.3f}")
        return inverter, found

    by_steps, inverters = {}, {}
    for at in steps:
        inverters[at], by_steps[at] = trained(f"T = {at}", plain, at)
    longest = inverters[max(steps)]
    others = {f"text, T = {max(steps)}": trained("text only", text, max(steps))[1]}
    top = TopTokensOnly(5)
    others[f"{top.name}, T = {max(steps)}"] = trained(top.name, top, max(steps))[1]
    for decimals in (2, 0):
        rounded = RoundedLogprobs(decimals)
        found = recovery(hidden, longest.recover(rounded.returned(test.first(max(steps)))))
        others[f"{rounded.name}, T = {max(steps)}"] = found
    swapped = recovery(
        hidden, longest.recover(plain.returned(test.first(max(steps)).of(np.roll(np.arange(len(test)), 1))))
    )
    extension = None
    if sizes.longer:
        short, first = trained("T = 8, shifted", plain, 8, max(steps) - 8)
        more = recovery(hidden, short.recover(plain.returned(test.first(max(steps)))))
        extension = (first, more)
    figures, checks, said = figures_of(span, hidden_size, by_steps, others, swapped, extension)
    return conclude(
        "pils",
        title="PILS: hidden prompts from sequences of log-probabilities",
        claim=(
            "The log-probabilities of several steps of an answer give a hidden prompt away far more often than those "
            "of one step, or the text alone; they are a linear image of the hidden state, so that few hold all."
        ),
        paper_figure="exact recovery of hidden prompts 2 to 3.5 times the previous best; in one case from 17 to 60 %",
        ours=said,
        figures=figures,
        checks=checks,
        samples=(
            f"{cut} prompts of {len(PROMPT_TEMPLATES)} templates for training, {len(hidden)} other combinations for "
            f"the test; greedy answers of {max(steps)} tokens, {compressor.size} log-ratios a step; inverters of "
            f"{sizes.config.encoder_layers} + {sizes.config.decoder_layers} layers of width {sizes.config.width}, "
            f"{sizes.config.epochs} passes over the data, all trained alike"
        ),
        intervals="95 %: Wilson for shares, percentile bootstrap over prompts (paired) for differences, fixed seed",
        full=full,
        models=sources,
        threads=threads,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Open prompts: the grammar is small, so that shares of exact matches say nothing about prompts at large.",
            "T5-base trained on a million prompts; transfer to other models; system messages.",
            "The earlier inverter of one step over the whole vocabulary: T = 1 here is this inverter with one step.",
        ],
    )


def figures_of(
    span: ExposureReport, hidden_size: int, by_steps: dict[int, Recovery], others: dict[str, Recovery],
    swapped: Recovery, extension: tuple[Recovery, Recovery] | None,
) -> tuple[list[Figure], list[Check], str]:  # fmt: skip
    of, n = "hidden prompts", swapped.n

    def exact(subject: str, found: Recovery) -> list[Figure]:
        return [
            share_figure(subject, "exact match", sum(found.hits), found.n, unit="share of prompts", of=of),
            Figure(subject=subject, quantity="word F1", value=found.word_f1, unit="F1", n=found.n, of=of,
                   note="mean over prompts"),
        ]  # fmt: skip

    figures: list[Figure] = []
    for at, found in by_steps.items():
        figures += exact(f"log-probabilities, T = {at}", found)
    for name, found in others.items():
        figures += exact(name, found)
    figures += exact("log-probabilities of another prompt", swapped)
    few, many = by_steps[min(by_steps)], by_steps[max(by_steps)]
    text = others[f"text, T = {max(by_steps)}"]
    for name, other in ((f"T = {max(by_steps)} less T = {min(by_steps)}", few), ("log-probabilities less text", text)):
        gains = [float(a) - float(b) for a, b in zip(many.hits, other.hits, strict=True)]
        figures.append(ratio_figure(name, "exact match, difference", gains, unit="share of prompts", of=of))
    if extension is not None:
        gains = [float(b) - float(a) for a, b in zip(extension[0].hits, extension[1].hits, strict=True)]
        figures.append(
            ratio_figure("trained on T = 8, reads 16 less 8", "exact match, difference", gains, unit="share of prompts",
                         of=of)
        )  # fmt: skip
    whole = "one model, all vectors"
    figures += [
        Figure(subject="log-ratios", quantity="rank", value=float(span.rank or 0), unit="dimensions", n=1, of="models",
               note=whole),
        Figure(subject="log-ratios", quantity="fall behind the rank", value=float(span.gap or 0), unit="factor", n=1,
               of="models", note=whole),
    ]  # fmt: skip
    if span.error_nats is not None:
        figures.append(
            Figure(subject="log-ratios", quantity="largest error of unseen ones", value=span.error_nats, unit="nats",
                   n=1, of="models", note=whole)
        )  # fmt: skip
    for name, spec in (
        ("top 20 with bias", EndpointSpec("top", 20, True)),
        ("chosen token with bias", EndpointSpec("chosen", 0, True)),
        ("text with bias", EndpointSpec("text", 0, True)),
    ):
        calls = exposed(spec, hidden_size).calls_per_vector
        assert calls is not None
        figures.append(
            Figure(subject=name, quantity="calls for a whole vector", value=calls, unit="calls", n=1, of="endpoints",
                   note="arithmetic")
        )  # fmt: skip
    ordered = [by_steps[at].exact for at in sorted(by_steps)]
    first, last = min(by_steps), max(by_steps)
    checks = [
        Check(statement=f"exact match: {LEAST_RATIO} times T = {first} less T = {last}",
              value=LEAST_RATIO * few.exact - many.exact, bound=0.0, unit="share of prompts"),
        Check(statement=f"exact match at T = {last}, least that counts", value=0.05 - many.exact, bound=0.0,
              unit="share of prompts"),
        Check(statement="exact match falls by at most this from one T to the next",
              value=max(a - b for a, b in pairwise(ordered)), bound=0.0, unit="share of prompts"),
        Check(statement="text alone less log-probabilities, exact match", value=text.exact - many.exact, bound=0.0,
              unit="share of prompts"),
        Check(statement="log-probabilities of another prompt, exact match", value=swapped.exact, bound=0.02,
              unit="share of prompts"),
        Check(statement="rank of the log-ratios less the hidden size", value=abs((span.rank or 0) - hidden_size),
              bound=0.0, unit="dimensions"),
    ]  # fmt: skip
    said = (
        f"exact match of {n} hidden prompts: " + ", ".join(f"T = {at} {r.exact:.0%}" for at, r in by_steps.items())
        + f"; from the text alone {text.exact:.0%}; log-ratios of {hidden_size + 64} tokens span {span.rank} dimensions"
    )  # fmt: skip
    return figures, checks, said


def measure(options: argparse.Namespace) -> Evidence:
    import torch

    import likely

    torch.set_num_threads(options.threads)
    with likely.load("smollm2", runtime="native", dtype="file", threads=options.threads) as lm:
        config = InverterConfig(epochs=18, batch=32, warmup=50, dropout=0.2)
        sizes = Sizes(10000, 1000, config, longer=True) if options.full else Sizes(1600, 200, config)
        return study(
            lm.runtime, lambda prompt: lm.render([{"role": "user", "content": prompt}]).tokens,
            lm.runtime.shape.hidden, sizes, kept=options.kept, sources=[model_source("smollm2")], full=options.full,
            threads=options.threads, report=report,
        )  # fmt: skip


def main() -> Evidence | None:
    parser = arguments(full="10,000 prompts", threads="threads of the model and of torch", kept="pils")
    return run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
