"""Supervised and self-ensembled in-context learning: is a model that is asked in several ways better calibrated?

With 32 labelled examples, SmolLM2 answers without (ZSL) and with demonstrations (ICL), and after LoRA fine-tuning
without (SFT) and with them (SICL).  Each is asked as single prompts and as ensembles whose members differ in their
demonstrations (Var-IC), templates (Var-Prompt) or both (Var-Both), combined by vote, mean and max.

  python reproductions/self_ensembling.py           ensembles of 4, 60 test items of each task
  python reproductions/self_ensembling.py --full    ensembles of 5, 300 items, longer training
  python reproductions/self_ensembling.py --quick   a look in a minute; writes no result

Adapters and scores are kept (--keep): a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from question_prompts import MESSAGES, QUESTIONS, message_pool, question_pool
from study import arguments, conclude, data_sources, figure_with, model_source, report, run_script, run_study

import likely
from likely.data import load_records
from likely.evidence import Check, Evidence, Figure, Source
from likely.metrics.bins import ece, ece_floor
from likely.metrics.checks import Floats, Ints
from likely.prompting.ensembles.combining import Combination, combine_members
from likely.prompting.ensembles.demonstrations import FewShotTask, record_fingerprint
from likely.prompting.ensembles.ensemble import EnsembleSpec, SelfEnsemble, Vary, tuning_pairs
from likely.prompting.selection.scoring import score_pool
from likely.prompting.templates import PromptPool, Template
from likely.training.answers import train_lora

KINDS: dict[str, tuple[Vary, ...]] = {
    "Var-IC": ("demos",), "Var-Prompt": ("template",), "Var-Both": ("demos", "template"),
}  # fmt: skip
METHODS = {"ZSL": (False, False), "ICL": (False, True), "SFT": (True, False), "SICL": (True, True)}  # tuned, shown
SINGLE = "single"
HOW: tuple[Combination, ...] = ("vote", "mean", "max")
FILES = tuple((name, f"{split}.jsonl.gz") for name in ("trec", "sms-spam") for split in ("train", "test"))
LONGEST = 80  # characters of a text that a prompt shows
BINS = 10
TIE = 1e-9


@dataclass(frozen=True)
class Plan:
    """Sizes: examples to learn from, ensembles, demonstrations; training of SFT and of SICL (steps, pairs a step)."""

    examples: int = 32
    size: int = 4
    shots: int = 4
    sft: tuple[int, int] = (30, 8)
    sicl: tuple[int, int] = (16, 4)
    lr: float = 1e-3
    resamples: int = 200


@dataclass(frozen=True)
class Problem:
    """A task with what is asked of it; labels (N,)."""

    task: FewShotTask
    inputs: list[dict[str, Any]]
    labels: Ints


def problem(pool: PromptPool, name: str, classes: Sequence[str], examples: int, tests: int) -> Problem:
    """Examples: the first of each class of the training set in turn.  Tests: spread over the test set."""

    def records(split: str) -> list[dict[str, Any]]:
        return [
            {"text": r["text"][:LONGEST].strip(), "label": classes.index(r["label"])}
            for r in load_records(name, f"{split}.jsonl.gz")
        ]

    by_class: list[list[dict[str, Any]]] = [[] for _ in classes]
    for record in records("train"):
        by_class[record["label"]].append(record)
    share = [examples // len(classes) + (k < examples % len(classes)) for k in range(len(classes))]
    shown = [record for some, count in zip(by_class, share, strict=True) for record in some[:count]]
    known = {record_fingerprint(record, pool) for record in shown}
    every = [r for r in records("test") if record_fingerprint(r, pool) not in known]
    asked = every[:: max(1, len(every) // tests)][:tests]
    return Problem(FewShotTask(pool, tuple(shown)), asked, np.array([r["label"] for r in asked]))


def problems(plan: Plan, tests: int) -> dict[str, Problem]:
    return {
        "questions": problem(question_pool(plan.size), "trec", QUESTIONS, plan.examples, tests),
        "messages": problem(message_pool(), "sms-spam", MESSAGES, plan.examples, tests),
    }


# --- what the model says ----------------------------------------------------------------------------------------------


@contextmanager
def learned(lm: Any, name: str, method: str, one: Problem, plan: Plan, keep: Path) -> Iterator[tuple[Any, str]]:
    """(the model as the method has it, a name of what was learned); the model is as before afterwards."""
    tuned, shown = METHODS[method]
    if not tuned:
        yield lm, "none"
        return
    steps, batch = plan.sicl if shown else plan.sft
    rounds = -(-steps * batch // len(one.task.examples))
    pairs = tuning_pairs(one.task, shots=plan.shots if shown else 0, rounds=rounds, templates=plan.size)
    adapter = train_lora(
        lm, pairs, steps=steps, batch=batch, lr=plan.lr, precision="bfloat16", folder=keep / f"{name}-{method}"
    )
    with adapter.attached() as changed:
        yield changed, f"{method} {adapter.recipe['pairs']} {steps} x {batch}, lr {plan.lr}"


def asked_in_all_ways(lm: Any, one: Problem, method: str, plan: Plan, **options: Any) -> dict[str, NDArray[np.float64]]:
    """Per kind of ensemble the members' probabilities (E, N, K); a prompt that two of them share is scored once."""
    shown = METHODS[method][1]
    kinds = KINDS if shown else {"Var-Prompt": KINDS["Var-Prompt"]}
    ensembles = {
        kind: SelfEnsemble(lm, one.task, EnsembleSpec(vary=vary, size=plan.size, shots=plan.shots if shown else 0))
        for kind, vary in kinds.items()
    }
    different: dict[tuple[str, str], Template] = {}
    for ensemble in ensembles.values():
        for template in ensemble.pool:
            different.setdefault((template.prefix, template.source), template)
    pool = PromptPool(
        tuple(Template(f"prompt {i}", t.source, t.choices, prefix=t.prefix) for i, t in enumerate(different.values()))
    )
    probs = score_pool(lm, pool, one.inputs, content_free=(), chunk=len(one.inputs), **options).probs()
    place = {key: i for i, key in enumerate(different)}
    return {kind: probs[[place[t.prefix, t.source] for t in ensemble.pool]] for kind, ensemble in ensembles.items()}


# --- what is measured -------------------------------------------------------------------------------------------------


def measured(members: Floats, labels: Ints) -> dict[tuple[str, str], float]:
    """By (single or combination, quantity): accuracy and ECE of the answer; single: means over the members."""
    each = [combine_members(members[e : e + 1], "mean") for e in range(len(members))]
    out = {
        (SINGLE, "accuracy"): float(np.mean([(one.answers == labels).mean() for one in each])),
        (SINGLE, "ECE"): float(np.mean([ece(one.confidence, one.answers == labels, bins=BINS) for one in each])),
    }
    for how in HOW:
        found = combine_members(members, how)
        out[how, "accuracy"] = float((found.answers == labels).mean())
        out[how, "ECE"] = float(ece(found.confidence, found.answers == labels, bins=BINS))
    return out


def floor_of(members: Floats, labels: Ints, resamples: int) -> float:
    """Mean over the members of the ECE that their confidences would show on these items if they were exact."""
    each = [combine_members(members[e : e + 1], "mean") for e in range(len(members))]
    floors = [ece_floor(one.confidence, one.answers == labels, bins=BINS, resamples=resamples) for one in each]
    return float(np.mean([found.floor for found in floors]))


Table = dict[tuple[str, str, str], float]  # (method kind, single or combination, quantity)


def table(cells: Mapping[str, Floats], labels: Ints) -> Table:
    return {(cell, *key): value for cell, members in cells.items() for key, value in measured(members, labels).items()}


def resampled(cells: Mapping[str, Floats], labels: Ints, resamples: int) -> list[Table]:
    """The table on test items drawn anew, the same for all cells."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(labels), len(labels)) for _ in range(resamples)]
    return [table({cell: members[:, rows] for cell, members in cells.items()}, labels[rows]) for rows in draws]


def mean_over(tables: Sequence[Table], who: str, quantity: str, method: str = "") -> float:
    """Mean over tasks and cells (of one method, if it is named)."""
    return float(
        np.mean([v for t in tables for (cell, w, q), v in t.items()
                 if w == who and q == quantity and cell.startswith(method)])
    )  # fmt: skip


def _figure(subject: str, quantity: str, value: float, draws: Sequence[float], n: int) -> Figure:
    unit = {"accuracy": "share of items", "ECE": "ECE"}.get(quantity, "times")
    ends = np.quantile(draws, [0.025, 0.975])
    return figure_with(subject, quantity, value, ends, unit=unit, n=n, of="test items")


def compared(
    found: Mapping[str, tuple[Mapping[str, Floats], Ints]], resamples: int
) -> tuple[list[Figure], list[Check], str]:
    """found: per task the members' probabilities by "METHOD KIND", and the labels."""
    figures, tables, again = [], [], []
    for name, (cells, labels) in found.items():
        tables.append(table(cells, labels))
        again.append(resampled(cells, labels, resamples))
        for (cell, who, quantity), value in tables[-1].items():
            draws = [one[cell, who, quantity] for one in again[-1]]
            figures.append(_figure(f"{name}: {cell}, {who}", quantity, value, draws, len(labels)))
    turns = [list(turn) for turn in zip(*again, strict=True)]
    total = sum(len(labels) for _, labels in found.values())
    means: dict[tuple[str, str], float] = {}
    for who in (SINGLE, *HOW):
        for quantity in ("accuracy", "ECE"):
            value = means[who, quantity] = mean_over(tables, who, quantity)
            draws = [mean_over(turn, who, quantity) for turn in turns]
            figures.append(_figure(f"mean of all: {who}", quantity, value, draws, total))
    for how in HOW:
        draws = [mean_over(turn, how, "ECE") / mean_over(turn, SINGLE, "ECE") for turn in turns]
        ratio = means[how, "ECE"] / means[SINGLE, "ECE"]
        figures.append(_figure(f"mean of all: {how}", "ECE / that of single prompts", ratio, draws, total))
    zsl, sft = (mean_over(tables, SINGLE, "accuracy", method) for method in ("ZSL", "SFT"))
    sft_ece = mean_over(tables, SINGLE, "ECE", "SFT")
    exact = float(
        np.mean([floor_of(members, labels, resamples) for cells, labels in found.values()
                 for cell, members in cells.items() if cell.startswith("SFT")])
    )  # fmt: skip
    figures.append(
        Figure(subject=f"mean of all SFT: {SINGLE}", quantity="ECE if exact", value=exact, unit="ECE", n=total,
               of="test items", note="ECE if exact: the mean ECE that exact confidences would show on as many items")
    )  # fmt: skip
    checks = [
        Check(statement="combined by max, the mean ECE is at most four fifths of that of single prompts",
              value=means["max", "ECE"] / means[SINGLE, "ECE"], bound=0.8, unit="times"),
        Check(statement="and the mean accuracy at most one point lower",
              value=means[SINGLE, "accuracy"] - means["max", "accuracy"], bound=0.01, unit="share of items"),
        Check(statement="combined by max, the mean ECE is not above that of vote and mean",
              value=means["max", "ECE"] - min(means["vote", "ECE"], means["mean", "ECE"]), bound=TIE, unit="ECE"),
        Check(statement="fine-tuning (SFT) raises the accuracy of single prompts over that without examples (ZSL)",
              value=zsl - sft, bound=-TIE, unit="share of items"),
        Check(statement="while their ECE stays 0.05 or more above what exact confidences would show",
              value=exact - sft_ece, bound=-0.05, unit="-ECE"),
    ]  # fmt: skip
    said = (
        "mean ECE over tasks, ways of learning and kinds of ensembles: single prompts "
        + ", ".join(f"{means[who, 'ECE']:.3f} ({who})" for who in (SINGLE, *HOW)).replace(f" ({SINGLE})", "")
        + "; mean accuracy "
        + ", ".join(f"{means[who, 'accuracy']:.3f} ({who})" for who in (SINGLE, *HOW))
        + f"; single prompts from {zsl:.3f} (ZSL) to {sft:.3f} (SFT) accuracy, the latter with an ECE of {sft_ece:.3f} "
        f"({exact:.3f} if exact)"
    )
    return figures, checks, said


# --- together ---------------------------------------------------------------------------------------------------------


def study(
    lm: Any,
    some: Mapping[str, Problem],
    plan: Plan,
    keep: Path,
    *,
    full: bool,
    sources: Sequence[Source],
    data: Sequence[Source] = (),
    report: Callable[[str], None] = print,
) -> Evidence:
    started = time.perf_counter()
    keep.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[dict[str, Floats], Ints]] = {}
    for name, one in some.items():
        cells: dict[str, Floats] = {}
        for method in METHODS:
            with learned(lm, name, method, one, plan, keep) as (changed, what):
                ways = asked_in_all_ways(
                    changed, one, method, plan, cache=keep / f"{name}-{method}.npz",
                    origin={"model": sources[0].sha256, "learned": what},
                )  # fmt: skip
            for kind, members in ways.items():
                cells[f"{method} {kind}"] = members
                parts = measured(members, one.labels)
                line = ", ".join(f"{w} {q} {v:.3f}" for (w, q), v in parts.items())
                report(f"{time.perf_counter() - started:5.0f} s  {name}: {method} {kind}: {line}")
        found[name] = cells, one.labels
    figures, checks, said = compared(found, plan.resamples)
    return conclude(
        "self_ensembling",
        title="Supervised and self-ensembled in-context learning",
        claim=(
            "With little data every way of learning is miscalibrated; asking one model in several ways and combining "
            "the answers by their largest probability calibrates it at equal or better accuracy."
        ),
        paper_figure="self-ensembles of SFT and ICL are better calibrated at comparable or better performance, with "
        "combination by the largest probability recommended (in words; tables by model and task)",
        ours=said,
        figures=figures,
        checks=checks,
        samples=", ".join(f"{len(one.labels)} {name}" for name, one in some.items())
        + f"; {plan.examples} labelled examples, {plan.shots} demonstrations, ensembles of {plan.size}; LoRA of rank "
        f"8: {plan.sft[0]} steps of {plan.sft[1]} pairs (SFT), {plan.sicl[0]} of {plan.sicl[1]} (SICL)",
        intervals=f"95 %, percentile bootstrap over test items, {plan.resamples} resamples, fixed seed; noise raises "
        "an ECE, whose interval may lie above it",
        full=full,
        models=sources,
        data=data,
        seconds=time.perf_counter() - started,
        not_shown=[
            "The paper's models, larger by far, and its tasks.",
            f"Texts longer than {LONGEST} characters are cut, and training is a few dozen steps of one learning rate.",
            "One draw of the labelled examples and one training: the intervals hold test items alone.",
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    if options.full:
        name, plan, tests = "full", Plan(size=5, shots=6, sft=(200, 16), sicl=(200, 16)), 300
    elif options.quick:
        name, plan, tests = "quick", Plan(size=2, shots=2, sft=(2, 2), sicl=(1, 2), resamples=20), 8
    else:
        name, plan, tests = "default", Plan(), 60
    source = model_source("smollm2")
    with likely.load("smollm2", runtime="torch", threads=1) as lm:
        return study(
            lm, problems(plan, tests), plan, options.kept / name, full=options.full, sources=[source],
            data=data_sources(FILES), report=report,
        )  # fmt: skip


def main() -> None:
    parser = arguments(full="more members, items, steps", quick="few of them", kept="self_ensembling")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
