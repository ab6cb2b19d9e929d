"""CopySpec: how many tokens a call of the target yields when repeated text is copied, replayed on recorded answers.

Greedy answers of Qwen2.5-7B and 32B to MT-Bench and MT-Redundant, and three-round self-correction on GSM8K, from the
paper's repository.  The rounds of a copying drafter depend on the text alone, so they are computed here as they would
have been with the large models, up to the tokenizer (SmolLM2's).  Wall-clock times are not part of this script.

  python reproductions/copyspec.py           every fourth question
  python reproductions/copyspec.py --full    all of them
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from study import arguments, conclude, data_sources, model_source, ratio_figure, run_script, run_study

import likely
from likely.data import load_records
from likely.decoding.drafting.composite import FirstOf
from likely.decoding.drafting.lookup import CopySource, PromptLookup
from likely.decoding.drafting.ngram.drafter import NgramModel
from likely.decoding.drafting.protocol import DraftSource
from likely.decoding.drafting.replay import RecordedAnswer, Replayed, Rounds, replay_all
from likely.evidence import Check, Evidence, Figure, Source

Render = Callable[[list[dict[str, str]]], list[int]]
Encode = Callable[[str], list[int]]
FILES = (("mt-redundant", "answers.jsonl.gz"), ("gsm8k-selfcorrect", "traces.jsonl.gz"))
NAMES = {"qwen2.5-7b": "Qwen2.5-7B", "qwen2.5-32b": "Qwen2.5-32B"}
FIRST, PLAIN, REDUNDANT = "first turn", "second turn, MT-Bench", "second turn, MT-Redundant"
SECOND_TURN, THIRD_TURN, BEST_CATEGORY = 3.08, 2.66, 2.5
ASKED = (
    "{question}\n\nWrite a Python program in a code block that solves the problem and prints the answer.",
    "Go over your code again and look for faults that would lead to a wrong answer. Change nothing if there are none.",
    "Give the code that you now believe to be right. Keep the first version if it is.",
)
RESAMPLES = 2000


# --- the recorded answers -------------------------------------------------------------------------------------------


def turns(rows: Sequence[Mapping[str, Any]], render: Render, encode: Encode) -> list[RecordedAnswer]:
    """Both turns of every recorded pair, the recorded first answer as history; group: model|what|category|question.

    Both sets ask the same first question, which counts once.
    """
    traces = []
    for row in rows:
        redundant = row["set"] == "mt-redundant"
        history: list[dict[str, str]] = []
        for turn, (question, answer) in enumerate(zip(row["turns"], row["answers"], strict=True)):
            history.append({"role": "user", "content": question})
            if turn or not redundant:
                what = (REDUNDANT if redundant else PLAIN) if turn else FIRST
                group = "|".join((NAMES[row["model"]], what, row["category"], str(row["question_id"])))
                traces.append(RecordedAnswer(render(history), encode(answer), group))
            history.append({"role": "assistant", "content": answer})
    return traces


def corrections(rows: Sequence[Mapping[str, Any]], render: Render, encode: Encode) -> list[RecordedAnswer]:
    """The three rounds of every record; group: round|record."""
    traces = []
    for number, row in enumerate(rows):
        history: list[dict[str, str]] = []
        for turn, (asked, answer) in enumerate(zip(ASKED, row["rounds"], strict=True)):
            text = answer.removesuffix("<|im_end|>")
            history.append({"role": "user", "content": asked.format(question=row["question"])})
            traces.append(RecordedAnswer(render(history), encode(text), f"round {turn + 1}|{number}"))
            history.append({"role": "assistant", "content": text})
    return traces


def chosen(run: Replayed, traces: Sequence[RecordedAnswer], *words: str) -> list[Rounds]:
    """Rounds of the traces whose group has all these words, in an order that is the same for each turn."""
    found = [
        (trace.group.split("|")[-1], trace.group, rounds)
        for trace, rounds in zip(traces, run.rounds, strict=True)
        if set(words) <= set(trace.group.split("|"))
    ]
    return [rounds for _, _, rounds in sorted(found, key=lambda item: (item[1].split("|")[0], item[0]))]


# --- statistics -----------------------------------------------------------------------------------------------------


def sums(rounds: Sequence[Rounds]) -> NDArray[np.float64]:
    """(2, N) tokens and calls of each answer."""
    return np.array([[r.tokens for r in rounds], [len(r.accepted) for r in rounds]], np.float64)


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float, float]:
    """Tokens per call of `one` minus `other` (both (2, N), answers of the same questions), with its paired bootstrap
    interval over questions."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, one.shape[1], (RESAMPLES, one.shape[1]))
    value = one[0].sum() / one[1].sum() - other[0].sum() / other[1].sum()
    a, b = one[:, picks].sum(axis=2), other[:, picks].sum(axis=2)
    low, high = np.quantile(a[0] / a[1] - b[0] / b[1], [0.025, 0.975])
    return float(value), min(float(low), float(value)), max(float(high), float(value))


def figures_of(subject: str, rounds: Sequence[Rounds]) -> list[Figure]:
    tokens, calls = sums(rounds)
    drafted, kept = ([sum(getattr(r, name)) for r in rounds] for name in ("proposed", "accepted"))
    found = [("tokens per call", "tokens", tokens, calls), ("drafted per call", "tokens", drafted, calls)]
    if any(drafted):
        found.append(("accepted", "share of drafted tokens", kept, drafted))
    return [
        ratio_figure(subject, quantity, top, bottom, unit=unit, of="answers", resamples=RESAMPLES)
        for quantity, unit, top, bottom in found
    ]


def gap(subject: str, quantity: str, found: tuple[float, float, float], n: int) -> Figure:
    value, low, high = found
    return Figure(subject=subject, quantity=quantity, value=value, unit="tokens", n=n, of="answers", low=low, high=high)


def quarters(rounds: Sequence[Rounds]) -> NDArray[np.float64]:
    """(4, 2, N) tokens and calls of each answer by the quarter of the answer in which a call begins."""
    found = np.zeros((4, 2, len(rounds)))
    for i, one in enumerate(rounds):
        place = 0
        for kept in one.accepted:
            quarter = 4 * place // one.tokens
            found[quarter, :, i] += kept + 1, 1
            place += kept + 1
    return found


def below(statement: str, value: float, unit: str = "tokens per call") -> Check:
    return Check(statement=statement, value=value, bound=0.0, unit=unit)


# --- the parts ------------------------------------------------------------------------------------------------------


def by_turn(traces: Sequence[RecordedAnswer]) -> tuple[list[Figure], list[Check], float]:
    """(a) Turns, models, categories; and which occurrence to copy.  Also gives the best category's tokens per call."""
    runs = replayed(
        {
            "copy": CopySource,
            "copy, last occurrence": lambda: CopySource(occurrence="last"),
            "copy, gram 5": lambda: CopySource(gram=5),
            "prompt lookup": PromptLookup,
        },
        traces,
    )
    copy, figures, checks = runs["copy"], [], []
    models = sorted({trace.group.split("|")[0] for trace in traces}, reverse=True)
    for model in models:
        parts = {what: chosen(copy, traces, model, what) for what in (FIRST, PLAIN, REDUNDANT)}
        for what, rounds in parts.items():
            figures += figures_of(f"{model}, {what}", rounds)
        for later, earlier in ((REDUNDANT, PLAIN), (PLAIN, FIRST), (REDUNDANT, FIRST)):
            _, _, high = difference(sums(parts[earlier]), sums(parts[later]))
            checks.append(below(f"{model}: {earlier} minus {later}, upper end of the 95 % interval", high))
    categories = sorted({trace.group.split("|")[2] for trace in traces})
    by_category = {}
    for category in categories:
        rounds = chosen(copy, traces, REDUNDANT, category)
        figures += figures_of(f"{category}, {REDUNDANT}", rounds)
        tokens, calls = sums(rounds).sum(axis=1)
        by_category[category] = float(tokens / calls)
    name, best = max(by_category.items(), key=lambda item: item[1])
    for bound in (BEST_CATEGORY, SECOND_TURN):
        checks.append(below(f"{bound} minus the best category ({name}) of {REDUNDANT}", bound - best))
    reference = chosen(copy, traces, REDUNDANT)
    for other in ("copy, last occurrence", "copy, gram 5", "prompt lookup"):
        rounds = chosen(runs[other], traces, REDUNDANT)
        found = difference(sums(rounds), sums(reference))
        figures += figures_of(f"{other}, {REDUNDANT}", rounds)
        figures.append(gap(f"{other}, {REDUNDANT}", "minus copy", found, len(rounds)))
    return figures, checks, best


def by_round(traces: Sequence[RecordedAnswer]) -> tuple[list[Figure], list[Check]]:
    """(b) Self-correction: tokens per call in rounds 1 to 3, which also is (c), growth with the turns before."""
    run = replayed({"copy": CopySource}, traces)["copy"]
    parts = [chosen(run, traces, f"round {i}") for i in (1, 2, 3)]
    figures = [f for i, rounds in enumerate(parts, 1) for f in figures_of(f"self-correction, round {i}", rounds)]
    checks = []
    for i in (0, 1):
        _, _, high = difference(sums(parts[i]), sums(parts[i + 1]))
        checks.append(
            below(f"self-correction: round {i + 1} minus round {i + 2}, upper end of the 95 % interval", high)
        )
    tokens, calls = sums(parts[2]).sum(axis=1)
    checks.append(below(f"{THIRD_TURN} minus round 3 of self-correction", THIRD_TURN - float(tokens / calls)))
    return figures, checks


def by_place(traces: Sequence[RecordedAnswer]) -> tuple[list[Figure], list[Check]]:
    """(c) Growth of the context within an answer: tokens per call by quarter of the answer."""
    run = replayed({"copy": CopySource}, traces)["copy"]
    figures, checks = [], []
    for what in (FIRST, REDUNDANT):
        found = quarters(chosen(run, traces, what))
        for i, (tokens, calls) in enumerate(found):
            subject = f"{what}, quarter {i + 1} of the answer"
            figures.append(
                ratio_figure(
                    subject, "tokens per call", tokens, calls, unit="tokens", of="answers", resamples=RESAMPLES
                )
            )
        _, _, high = difference(found[0], found[3])
        checks.append(below(f"{what}: quarter 1 minus quarter 4 of the answer, upper end of the 95 % interval", high))
    return figures, checks


def together(traces: Sequence[RecordedAnswer], vocab_size: int) -> tuple[list[Figure], list[Check]]:
    """(e) Copy, and where it has nothing an n-gram model of the text, against either alone."""
    second = [trace for trace in traces if REDUNDANT in trace.group.split("|")]
    runs = replayed(
        {
            "n-gram model": lambda: NgramModel(vocab_size),
            "copy, then n-gram model": lambda: FirstOf(CopySource(), NgramModel(vocab_size)),
            "copy": CopySource,
        },
        second,
    )
    figures = [
        figure
        for name, run in runs.items()
        if name != "copy"
        for figure in figures_of(f"{name}, {REDUNDANT}", chosen(run, second, REDUNDANT))
    ]
    both = sums(chosen(runs["copy, then n-gram model"], second, REDUNDANT))
    checks = []
    for name in ("copy", "n-gram model"):
        alone = sums(chosen(runs[name], second, REDUNDANT))
        value, low, high = difference(alone, both)
        figures.append(gap(f"{name} minus both together", "difference", (value, low, high), both.shape[1]))
        checks.append(below(f"{name} alone minus copy, then n-gram model: upper end of the 95 % interval", high))
    return figures, checks


def replayed(sources: Mapping[str, Callable[[], DraftSource]], traces: Sequence[RecordedAnswer]) -> dict[str, Replayed]:
    return {name: runs[0] for name, runs in replay_all(sources, traces).items()}


def study(
    turn_traces: Sequence[RecordedAnswer],
    round_traces: Sequence[RecordedAnswer],
    vocab_size: int,
    *,
    full: bool,
    models: Sequence[Source],
    data: Sequence[Source],
    report: Callable[[str], None] = print,
) -> Evidence:
    started = time.perf_counter()
    figures, checks, best = by_turn(turn_traces)
    report("turns and categories done")
    more: list[tuple[list[Figure], list[Check]]] = [by_round(round_traces), by_place(turn_traces)]
    report("rounds and quarters done; the n-gram model takes longest")
    more.append(together(turn_traces, vocab_size))
    for found, held in more:
        figures += found
        checks += held
    value = {f.subject: f.value for f in figures if f.quantity == "tokens per call"}
    names = [name for name in NAMES.values() if f"{name}, {PLAIN}" in value]
    ours = "; ".join(
        f"{name} {value[f'{name}, {PLAIN}']:.2f} (MT-Bench) to {value[f'{name}, {REDUNDANT}']:.2f} (MT-Redundant)"
        for name in names
    )
    quarter = [value[f"{REDUNDANT}, quarter {i} of the answer"] for i in (1, 4)]
    rounds = ", ".join(f"{value[f'self-correction, round {i}']:.2f}" for i in (1, 2, 3))
    return conclude(
        "copyspec",
        title="CopySpec: speculative copy-and-paste",
        claim=(
            "Copying what followed the last tokens earlier pays where answers repeat: more on the second turn than on "
            "the first, most where the second turn asks for a variation, and more as the context grows."
        ),
        paper_figure=(
            f"up to {SECOND_TURN}x on the second turn of select MT-Redundant categories, 2.35x on CNN/DM, "
            f"{THIRD_TURN}x on the third turn of GSM8K self-correction (wall-clock)"
        ),
        ours=(
            f"tokens per call on the second turn: {ours}; best category {best:.2f}; self-correction rounds {rounds}; "
            f"from the first to the last quarter of a redundant second answer {quarter[0]:.2f} to {quarter[1]:.2f}. "
            f"Tokens per call are the ceiling of a speed-up, which is what the paper states"
        ),
        figures=figures,
        checks=checks,
        samples=(
            f"{len(turn_traces)} answers of two models to MT-Bench and MT-Redundant, {len(round_traces)} answers of "
            f"GSM8K self-correction; gram 3, at most 10 copied tokens"
        ),
        intervals=f"95 %, percentile bootstrap over answers (differences: paired by question), {RESAMPLES} resamples, "
        "fixed seed",
        full=full,
        models=models,
        data=data,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Wall-clock speed: on this scale it is part of the speculation benchmark (benchmarks/), on small models.",
            "The target's own tokenizer: answers are split by SmolLM2's, which changes where copies begin and end.",
            "Three of the paper's five models, CNN/DM, HumanEval; CopySpec on top of a draft model (+49 %).",
            "The user turns of self-correction are in our words; only they differ from the recorded conversations.",
            "The best category is the best of eight: its figure is biased upwards.",
            "Answers of the two models to one question count as two where they are pooled, as if independent.",
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    pairs, programs = (list(load_records(*file)) for file in FILES)
    if not options.full:
        kept = set(sorted({row["question_id"] for row in pairs})[::4])
        pairs, programs = [row for row in pairs if row["question_id"] in kept], programs[::4]
    with likely.load("smollm2") as lm:
        parts = [
            make(rows, lambda messages: lm.render(messages).tokens, lm.tokenizer.encode)
            for make, rows in ((turns, pairs), (corrections, programs))
        ]
        vocab_size = lm.runtime.vocab_size
    tokenizer = model_source("smollm2", part="its tokenizer")
    return study(*parts, vocab_size, full=options.full, models=[tokenizer], data=data_sources(FILES))


def main() -> None:
    run_study(arguments(full="all questions instead of every fourth"), measure)


if __name__ == "__main__":
    run_script(main)
