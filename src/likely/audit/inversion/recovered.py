"""How much of hidden prompts comes back from a model that you run: trajectories, inverters, defences, one report.

The report and the kept arrays hold no prompt and no recovered text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from likely.audit.inversion.compress import LogprobCompressor
from likely.audit.inversion.exposure import hidden_size_of
from likely.audit.inversion.inverter import InverterConfig
from likely.audit.inversion.saved import SavedInverter
from likely.audit.inversion.train import DefencePrice, Inverter, Recovery, price_defences, recovery
from likely.audit.inversion.trajectories import DEFENCES, Defence, Trajectories, Undefended, collect_trajectories
from likely.audit.report import AuditReport, Finding
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.whole_file import replacing
from likely.runtimes.protocol import Runtime

RARE = 0.05  # share of recovered prompts above which something should be done
PART = 200  # prompts of one file of trajectories, and at most so many are decoded again after a kill


@dataclass(frozen=True)
class RecoveryPlan:
    """steps: of an answer that the inverter reads, and those it is compared at;  test: share of held-out prompts."""

    steps: int = 16
    compared: tuple[int, ...] = (1, 16)
    test: float = 0.2
    config: InverterConfig = field(default_factory=InverterConfig)
    defences: tuple[Defence, ...] = DEFENCES
    seed: int = 0


def kept_trajectories(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[int],
    steps: int,
    *,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Trajectories:
    """`collect_trajectories` of all prompts; parts that lie in `folder` are not computed again.

    A part's name is a digest of model, tokens, steps and its prompts, whose text is not stored.
    """
    parts = []
    for start in range(0, len(prompts), PART):
        some = prompts[start : start + PART]
        digest = fingerprint([runtime.revision, list(map(int, tokens)), steps, [list(map(int, p)) for p in some]])
        path = None if folder is None else folder / f"{digest[:24]}.npz"
        if path is not None and path.is_file():
            with np.load(path, allow_pickle=False) as held:
                parts.append(Trajectories(held["selected"], held["top_ids"], held["top_logprobs"]))
            progress(len(some))
            continue
        found = collect_trajectories(runtime, some, tokens, steps, progress=progress)
        if path is not None:
            with replacing(path) as file:
                np.savez(file, selected=found.selected, top_ids=found.top_ids, top_logprobs=found.top_logprobs)
        parts.append(found)
    return Trajectories(*(np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])))


def audit_recovery(
    runtime: Runtime,
    texts: Sequence[str],
    render: Callable[[str], Sequence[int]],
    plan: RecoveryPlan,
    *,
    header: Mapping[str, Any],
    folder: Path | None = None,
    save_to: Path | None = None,
    progress: Callable[[int], None] = lambda n: None,
    report: Callable[[str], None] = lambda line: None,
) -> AuditReport:
    """Train on some of the prompts, recover the others: at each number of steps, and against each defence.

    render   a hidden prompt -> the token ids that the model reads
    save_to  where the inverter that reads all steps is kept (see `SavedInverter`), for `recover_with`
    """
    texts = list(dict.fromkeys(texts))
    cut = len(texts) - max(1, round(plan.test * len(texts)))
    if cut < 2:
        raise DataError(f"{len(texts)} different prompts are too few to train on and to test: give some hundred")
    order = np.random.default_rng(plan.seed).permutation(len(texts)).tolist()
    mixed = [texts[i] for i in order]
    width = hidden_size_of(runtime)
    extra = max(0, min(100, runtime.vocab_size - width - 1))
    compressor = LogprobCompressor(runtime.vocab_size, width, extra=extra, seed=plan.seed)
    seen = kept_trajectories(
        runtime, [render(text) for text in mixed], compressor.tokens.tolist(), plan.steps, folder=folder,
        progress=progress,
    )  # fmt: skip
    train, test = seen.of(slice(None, cut)), seen.of(slice(cut, None))
    known, hidden = mixed[:cut], mixed[cut:]
    by_steps: dict[int, Recovery] = {}
    longest = None
    for steps in sorted({*plan.compared, plan.steps}):
        inverter = Inverter(plan.config).fit(Undefended().returned(train.first(steps)), known)
        by_steps[steps] = recovery(hidden, inverter.recover(Undefended().returned(test.first(steps))))
        report(f"T = {steps}: exact match {by_steps[steps].exact:.3f} of {len(hidden)}")
        longest = inverter
    if save_to is not None and longest is not None:
        tokens = tuple(map(int, compressor.tokens))
        SavedInverter(longest, runtime.revision, tokens, plan.steps).save(save_to)
    prices = price_defences(
        train, known, test, hidden, plan.config, defences=plan.defences, trained=longest, report=report
    )
    return recovery_report(by_steps, prices, trained_on=cut, header=header)


def recover_with(
    saved: SavedInverter,
    runtime: Runtime,
    texts: Sequence[str],
    render: Callable[[str], Sequence[int]],
    *,
    header: Mapping[str, Any],
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> AuditReport:
    """Recover prompts by an inverter that was trained before; every prompt is a test, and nothing is trained."""
    saved.check_model(runtime.revision)
    if not texts:
        raise DataError("there are no prompts to recover")
    seen = kept_trajectories(
        runtime, [render(text) for text in texts], saved.tokens, saved.steps, folder=folder, progress=progress
    )
    found = recovery(texts, saved.inverter.recover(Undefended().returned(seen)))
    prices = [DefencePrice(Undefended().name, found, found, 0.0)]
    return recovery_report({saved.steps: found}, prices, trained_on=None, header=header)


def recovery_report(
    by_steps: Mapping[int, Recovery], prices: Sequence[DefencePrice], *, trained_on: int | None,
    header: Mapping[str, Any],
) -> AuditReport:  # fmt: skip
    """Recovery by steps, and each defence priced in recovery and in what honest clients lose.

    trained_on  prompts that the inverter was trained on here; None: it was trained before
    """
    findings = []
    for steps, found in by_steps.items():
        findings += _of(f"log-probabilities of {steps} steps", found)
    for price in prices[1:]:
        findings += _of(f"defence: {price.name}", price.prepared)
        if price.unprepared is not None:
            findings.append(
                Finding(f"defence: {price.name}", "exact match of an attacker who does not know of it",
                        price.unprepared.exact, price.unprepared.low, price.unprepared.high, "share of prompts",
                        price.unprepared.n)
            )  # fmt: skip
        findings.append(
            Finding(f"defence: {price.name}", "error of the chosen token's log-probability", price.error_nats,
                    unit="nats", n=price.prepared.n, note="clients get none")
        )  # fmt: skip
    best, least = by_steps[max(by_steps)], min(prices, key=lambda price: price.prepared.exact)
    verdicts = [
        f"{best.exact:.0%} of {best.n} hidden prompts come back letter by letter from {max(by_steps)} steps of "
        "log-probabilities" + (f", {by_steps[min(by_steps)].exact:.0%} from {min(by_steps)}." if len(by_steps) > 1
                               else "."),
    ]  # fmt: skip
    if least.name != Undefended().name:
        lost = "honest clients get no log-probabilities" if least.error_nats is None else (
            f"honest clients read log-probabilities that are off by {least.error_nats:.3f} nats"
        )  # fmt: skip
        verdicts.append(f"The defence that leaves least is {least.name}: {least.prepared.exact:.0%}; {lost}.")
    return AuditReport(
        "Inversion: hidden prompts from log-probabilities",
        "How many hidden prompts does an attacker recover who trains on prompts like them?",
        verdicts,
        findings,
        {**header, "trained_on": "other prompts, before" if trained_on is None else trained_on},
        caveats=(
            "Prompts of the same kind as those it was trained on: prompts of other kinds are recovered less.",
            "A small inverter: one that is trained for days on more prompts recovers more.",
        ),
        reading=(
            "Exact match is the share of hidden prompts that come back letter by letter, word F1 how many of their "
            "words do (between 0 and 1). 0 is best for who hides a prompt. Recovery from text alone is what cannot be "
            "avoided; what lies above it is the price of showing log-probabilities.",
            "A defence helps where its exact match is clearly lower, against an attacker who knows of it; its cost is "
            "the error that honest clients read.",
        ),
        advice=(
            ["Treat prompts as readable by whoever sees the log-probabilities of their answers: no secrets in them.",
             *([f"If that cannot be, return less: {least.name} leaves {least.prepared.exact:.0%}."]
               if least.name != Undefended().name else [])]
            if best.low > RARE
            else ["Nothing for prompts like these, as far as an inverter of this size shows."]
            if best.high < RARE
            else [f"Give more prompts: from {best.n} it is not clear whether more than {RARE:.0%} come back."]
        ),
    )  # fmt: skip


def _of(subject: str, found: Recovery) -> list[Finding]:
    return [
        Finding(subject, "exact match", found.exact, found.low, found.high, "share of prompts", found.n),
        Finding(subject, "word F1", found.word_f1, n=found.n),
    ]
