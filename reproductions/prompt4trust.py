"""Prompt4Trust: do hints chosen by reinforcement make the confidence that a model states an honest one?

(a) Simulated model: its accuracy depends on how hard a question is, and what it states on the style of the hint.  A
policy trained by GRPO on the paper's reward must find the honest style for each kind of question; one that is rewarded
for right answers alone must not.
(b) SmolLM2 answers multiple-choice questions and states a confidence; a policy chooses one of ten hints by features of
the question.  Against no hint, a fixed hint, and the one hint that was best in training; then the same hints on Gemma.

  python reproductions/prompt4trust.py           60 questions to learn from, 120 to test
  python reproductions/prompt4trust.py --full   300 and 500, and a LoRA writer of hints

Answers are kept (--kept): a stopped run goes on from there.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from study import arguments, conclude, data_sources, figure_with, model_source, report, run_script, run_study

import likely
from likely.data import load_records
from likely.evidence import Check, Evidence, Figure, Source
from likely.metrics.bins import ece
from likely.metrics.bootstrap import interval
from likely.metrics.checks import Floats
from likely.metrics.proper import brier_binary
from likely.prompting.hints.bandit import HintBandit
from likely.prompting.hints.downstream import ChoiceQuestion, Downstream, Stated, hint_features
from likely.prompting.hints.reward import confidence_reward
from likely.prompting.hints.writer import WriterSettings, train_hint_writer

BINS = 10
RESAMPLES = 1000
TIE = 1e-6  # what is equal is not below
FIXED = "Think step by step, and do not be over-confident."
HINTS = (
    "",
    FIXED,
    "Be careful.",
    "Many such questions are harder than they look.",
    "If two answers seem possible, you can not be sure.",
    "Most people get this wrong.",
    "This one is easy, be bold.",
    "Compare every answer with the question before you choose.",
    "Ask yourself what a teacher of science would say.",
    "Guessing is fine, but then say that you guess.",
)
NONE, BEST, POLICY = "no hint", "the hint that was best in training", "policy"
FILES = (("arc-easy", "calibration.jsonl.gz"), ("arc-easy", "test.jsonl.gz"))


# --- a model that is known --------------------------------------------------------------------------------------------

STYLES = ("plain", "bold", "careful", "doubting")
ACCURACY = np.array([  # of easy, middling and hard questions, by style of the hint; bold is right most often
    [0.80, 0.91, 0.90, 0.85],
    [0.60, 0.74, 0.72, 0.70],
    [0.30, 0.42, 0.36, 0.40],
])  # fmt: skip
STATED = np.array([  # honest: careful where it is easy, doubting elsewhere
    [0.95, 0.995, 0.90, 0.50],
    [0.90, 0.995, 0.45, 0.70],
    [0.85, 0.995, 0.60, 0.40],
])  # fmt: skip


def simulated(steps: int, seed: int, *, accuracy_only: bool = False) -> tuple[float, float, float]:
    """(ECE of the learned policy on new questions, ECE without a hint, share of honest choices)"""
    rng = np.random.default_rng(seed)

    def world(n: int) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
        """features, kind, and whether the answer is right under each style (n, 4)"""
        kind = rng.integers(3, size=n)
        features = np.eye(3)[kind] + rng.normal(0, 0.1, (n, 3))
        return features, kind, (rng.random((n, 1)) < ACCURACY[kind]).astype(np.int64)

    features, kind, right = world(2000)

    def rewards(questions: NDArray[np.int64], hints: NDArray[np.int64]) -> Floats:
        outcome = right[questions, hints]
        if accuracy_only:
            return outcome.astype(np.float64)
        return confidence_reward(outcome, STATED[kind[questions], hints])

    policy = HintBandit(STYLES, seed=seed).fit(features, rewards, steps=steps)
    features, kind, right = world(20_000)
    rows, chosen = np.arange(len(kind)), policy.choose(features)
    honest = np.abs(STATED[kind, chosen] - ACCURACY[kind, chosen]) < 0.01
    return (
        ece(STATED[kind, chosen], right[rows, chosen], bins=BINS),
        ece(STATED[kind, 0], right[:, 0], bins=BINS),
        float(honest.mean()),
    )


def mechanism(steps: int, seeds: int) -> tuple[list[Figure], list[Check]]:
    learned = np.array([simulated(steps, seed) for seed in range(seeds)])
    paid = np.array([simulated(steps, seed, accuracy_only=True) for seed in range(seeds)])
    figures = []
    for subject, values in (
        ("simulated model, reward of the paper", learned[:, 0]),
        ("simulated model, reward for right answers alone", paid[:, 0]),
        ("simulated model, no hint", learned[:, 1]),
    ):
        figures.append(
            Figure(
                subject=subject,
                quantity="ECE",
                value=float(values.mean()),
                unit="share",
                n=seeds,
                of="seeds",
                low=float(values.min()),
                high=float(values.max()),
                note="smallest and largest of the seeds",
            )
        )
    checks = [
        Check(
            statement="simulated: ECE of the learned policy", value=float(learned[:, 0].max()), bound=0.03, unit="share"
        ),
        Check(
            statement="simulated: a reward for right answers alone leaves the ECE high (0.06 less what it is)",
            value=0.06 - float(paid[:, 0].min()), bound=0.0, unit="share",
        ),
    ]  # fmt: skip
    return figures, checks


# --- models that are real ---------------------------------------------------------------------------------------------


def questions_of(file: tuple[str, str], count: int) -> list[ChoiceQuestion]:
    return [ChoiceQuestion.of(record) for record in islice(load_records(*file), count)]


@dataclass(frozen=True)
class Learned:
    """hints of each policy for the test questions; training: mean reward of every hint."""

    chosen: dict[str, list[str]]
    training: Floats


def learn(
    model: Downstream, train: Sequence[ChoiceQuestion], test: Sequence[ChoiceQuestion], steps: int, report: Any
) -> Learned:
    table = np.stack([model.stated(train, [hint] * len(train)).rewards() for hint in HINTS], axis=1)
    report(f"{len(train)} questions, {len(HINTS)} hints: {model.asked} prompts asked")
    policy = HintBandit(HINTS, seed=0, beta=0.01).fit(
        hint_features(train, model.stated(train, [""] * len(train))), lambda q, h: table[q, h], steps=steps
    )
    numbers = policy.choose(hint_features(test, model.stated(test, [""] * len(test))))
    best = HINTS[int(table.mean(axis=0).argmax())]
    chosen = {
        NONE: [""] * len(test), "fixed hint": [FIXED] * len(test), BEST: [best] * len(test),
        POLICY: [HINTS[i] for i in numbers],
    }  # fmt: skip
    return Learned(chosen, table.mean(axis=0))


def measured(
    name: str, model: Downstream, test: Sequence[ChoiceQuestion], hints: dict[str, list[str]]
) -> dict[str, Stated]:
    return {policy: model.stated(test, chosen) for policy, chosen in hints.items()}


METRICS: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": lambda confidence, correct: float(np.mean(correct)),
    "ECE": lambda confidence, correct: ece(confidence, correct, bins=BINS),
    "Brier": brier_binary,
}


def figures_of(name: str, found: dict[str, Stated], resamples: int) -> list[Figure]:
    figures = []
    for policy, stated in found.items():
        for quantity, metric in METRICS.items():
            arrays = stated.confidence, stated.correct
            ends, n = interval(metric, *arrays, resamples=resamples), len(stated.correct)
            figures.append(
                figure_with(f"{name}, {policy}", quantity, metric(*arrays), ends, unit="share", n=n, of="questions")
            )
    return figures


def gain(found: dict[str, Stated], over: str, resamples: int) -> tuple[float, float, float]:
    """Brier of the policy less that of `over`, on the same questions: (difference, low, high)."""

    def squared(stated: Stated) -> Floats:
        return (stated.confidence - stated.correct) ** 2

    gaps = squared(found[POLICY]) - squared(found[over])
    rng = np.random.default_rng(0)
    means = gaps[rng.integers(len(gaps), size=(resamples, len(gaps)))].mean(axis=1)
    return float(gaps.mean()), *(float(v) for v in np.quantile(means, (0.025, 0.975)))


def names_an_option(hint: str, choices: Sequence[str]) -> bool:
    """Whether a hint names a letter of an option ("B", "option c") or holds the text of one, and may give it away."""
    letters = "".join(chr(65 + i) for i in range(len(choices)))
    # "A" before a word is an article
    if re.search(rf"\b[{letters[1:]}]\b(?!['’])|\(A\)|\bA\b(?=\s*(?:[.,;:)]|$))", hint):
        return True
    if re.search(rf"\b(?:option|choice|answer)\s+(?:is\s+)?\(?[{letters.lower()}](?![\w' ])", hint, re.IGNORECASE):
        return True
    said = _plain(hint)
    return any(_plain(choice) in said for choice in choices if choice.strip())


def _plain(text: str) -> str:
    words = " ".join(re.findall(r"[^\W_]+", text.lower()))
    return f" {words} "


def study(
    models: dict[str, Any], train: Sequence[ChoiceQuestion], test: Sequence[ChoiceQuestion], *, steps: int, seeds: int,
    resamples: int, full: bool, sources: Sequence[Source], data: Sequence[Source], kept: Path | None,
    writer_steps: int = 0, threads: int = 1, report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    """models  the one that the policy learns from, then those that only get its hints"""
    started = time.perf_counter()
    figures, checks = mechanism(steps, seeds)
    report(f"mechanism: {checks[0].value:.3f} after {time.perf_counter() - started:.0f} s")
    first, *others = models
    asked = {name: Downstream(lm, kept and kept / f"{name}.jsonl") for name, lm in models.items()}
    learned = learn(asked[first], train, test, steps, report)
    if writer_steps:
        learned.chosen["LoRA writer"] = written(asked[first], train, test, writer_steps, report)
    said = []
    for name in (first, *others):
        found = measured(name, asked[name], test, learned.chosen)
        figures += figures_of(name, found, resamples)
        for over in (NONE, "fixed hint"):
            value, low, high = gain(found, over, resamples)
            subject, n = f"{name}, policy less {over}", len(test)
            figures.append(figure_with(subject, "Brier", value, (low, high), unit="share", n=n, of="questions"))
            checks.append(
                Check(
                    statement=f"{name}: Brier of the policy below that of {over}, upper end of the interval",
                    value=high,
                    bound=-TIE,
                    unit="share",
                )
            )
        losses = {p: METRICS["ECE"](s.confidence, s.correct) for p, s in found.items()}
        right = {p: float(s.correct.mean()) for p, s in found.items()}
        checks.append(
            Check(
                statement=f"{name}: the policy's accuracy is lower than that without a hint by at most 2 points",
                value=right[NONE] - right[POLICY],
                bound=0.02,
                unit="share",
            )
        )
        said.append(
            f"{name}: ECE {losses[NONE]:.3f} without a hint, {losses['fixed hint']:.3f} with the fixed one, "
            f"{losses[POLICY]:.3f} by the policy; accuracy {right[NONE]:.2f}, {right['fixed hint']:.2f}, "
            f"{right[POLICY]:.2f}"
        )
    prompts = sum(one.asked for one in asked.values())
    leaks = np.mean([names_an_option(h, q.choices) for h, q in zip(learned.chosen[POLICY], test, strict=True)])
    figures.append(
        Figure(
            subject="hints of the policy that name an option",
            quantity="share",
            value=float(leaks),
            unit="share",
            n=len(test),
            of="questions",
            note="counted; hints come from a fixed list",
        )
    )
    return conclude(
        "prompt4trust",
        title="Prompt4Trust: hints that make a stated confidence honest",
        claim=(
            "Hints chosen by reinforcement with a reward for honest confidence lower the calibration error of what a "
            "frozen model states, without loss of accuracy, and carry over to another model."
        ),
        paper_figure="Better calibration and accuracy on PMC-VQA (medical images), carrying over to larger models; the "
        "abstract gives no numbers",
        ours="simulated model: "
        f"ECE {figures[0].value:.3f} by the policy, {figures[1].value:.3f} if only right answers are rewarded, "
        f"{figures[2].value:.3f} without a hint; " + "; ".join(said),
        figures=figures,
        checks=checks,
        samples=f"{len(train)} questions of ARC-Easy to learn from, {len(test)} to test, {len(HINTS)} hints; "
        f"{seeds} seeds of the simulated model, 20,000 new questions each",
        intervals="95 %: percentile bootstrap over test questions, fixed seed; simulated: range over seeds",
        full=full,
        models=sources,
        data=data,
        threads=threads,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Images, medicine, and models that write their confidence themselves: models this small state numbers "
            "without meaning, so the stated confidence is read as the law over ten per cent to ninety.",
            "Hints that a trained writer makes up: this run chooses from a list."
            if not writer_steps
            else "Long training of the writer of hints: it saw a few dozen groups.",
            "Larger downstream models than Gemma-3-270M.",
            f"Answers that were kept from an earlier run are not in the seconds ({prompts} prompts were asked in this "
            "one).",
        ],
    )


def written(
    model: Downstream,
    train: Sequence[ChoiceQuestion],
    test: Sequence[ChoiceQuestion],
    steps: int,
    report: Callable[[str], None],
) -> list[str]:
    """Hints of a LoRA writer (SmolLM2 itself) for the test questions."""

    def rewards(numbers: Sequence[int], hints: Sequence[str]) -> Floats:
        return model.stated([train[i] for i in numbers], hints).rewards()

    with likely.load("smollm2", runtime="torch", dtype="float32") as lm:
        writer = train_hint_writer(
            lm, train, rewards, steps=steps, settings=WriterSettings(),
            progress=lambda step, reward: report(f"writer, step {step}: reward {reward:.3f}"),
        )  # fmt: skip
        return writer.write(test)


def measure(options: argparse.Namespace) -> Evidence:
    learn_from, tested, steps = (300, 500, 300) if options.full else (6, 6, 20) if options.quick else (60, 120, 200)
    names = ("smollm2",) if options.quick else ("smollm2", "gemma3")
    with ExitStack() as opened:
        models = {
            name: opened.enter_context(likely.load(name, runtime="llamacpp", threads=options.threads)) for name in names
        }
        return study(
            models, questions_of(FILES[0], learn_from), questions_of(FILES[1], tested), steps=steps,
            seeds=2 if options.quick else 5, resamples=100 if options.quick else RESAMPLES, full=options.full,
            sources=[model_source(name) for name in names], data=data_sources(FILES), kept=options.kept,
            writer_steps=40 if options.full else 0, threads=options.threads, report=report,
        )  # fmt: skip


def main() -> None:
    parser = arguments(
        full="300 questions to learn from, 500 to test, a LoRA writer", quick="a smoke run: 6 and 6 questions",
        threads="of the runtime", kept="prompt4trust",
    )  # fmt: skip
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
