"""SuffixDecoding: do repetitive requests need fewer calls as the memory grows, and does its length adapt?

Replay, without a model: what a drafter of fixed drafts keeps depends on the text alone, so tokens per call are exact
for any model that writes these answers (tokens of SmolLM2); the time of a call is not part of it.

  text-to-sql       gold SQL to questions over eleven schemas, in random order: the memory of earlier answers
  gsm8k-selfcorrect third rounds of a model that corrects its own program; mt-redundant: second turns of two models:
                    the length of drafts, against prompt lookup and CopySpec
  udhr              what people wrote: a German declaration in English, article by article; and mt-bench, first
                    turns of one model: the controls

  python reproductions/suffix_decoding.py          160 questions in 3 orders, some of the others
  python reproductions/suffix_decoding.py --full   everything, 10 orders
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from study import (
    arguments,
    conclude,
    data_sources,
    figure_with,
    model_source,
    ratio_figure,
    run_script,
    run_study,
)

import likely
from likely.data import load_records
from likely.decoding.drafting.lookup import CopySource, PromptLookup
from likely.decoding.drafting.protocol import DraftSource
from likely.decoding.drafting.replay import RecordedAnswer, Replayed, Rounds, replay
from likely.decoding.drafting.suffix.drafter import SuffixMemory
from likely.evidence import Check, Evidence, Figure, Source

FILES = (
    ("text-to-sql", "questions.jsonl.gz"),
    ("text-to-sql", "schemas.jsonl"),
    ("gsm8k-selfcorrect", "traces.jsonl.gz"),
    ("mt-redundant", "answers.jsonl.gz"),
    ("udhr", "udhr.jsonl.gz"),
)
ALL, OWN = "suffix, with earlier answers", "suffix, own text only"
COPY, LOOKUP = "CopySpec", "prompt lookup"
MOST = 64  # drafted tokens per call, for drafters that choose their length themselves
USUAL = 10  # and for those that do not
FACTORS = (0.5, 1.0, 2.0, 4.0)
WIDER = 2.0  # the factor that the comparison with prompt lookup is made at beside the default
RESAMPLES = 2000
ENOUGH, LESS_WASTE, NEAR_ONE, RARELY = 1.4, 0.5, 1.25, 0.1

Make = Callable[[], DraftSource]
OTHERS: dict[str, tuple[Make, int]] = {
    OWN: (partial(SuffixMemory, scope="request"), MOST),
    COPY: (CopySource, USUAL),
    LOOKUP: (PromptLookup, USUAL),
}


# --- texts ------------------------------------------------------------------------------------------------------------


def sql_traces(lm: likely.Model) -> list[RecordedAnswer]:
    """Schema and question; the gold query."""
    schemas = {row["db"]: row["ddl"] for row in load_records(*FILES[1])}
    rows = load_records(*FILES[0])
    return [_trace(lm, f"{schemas[row['db']]}\n-- {row['question']}\n", row["sql"]) for row in rows]


def correction_traces(lm: likely.Model) -> list[RecordedAnswer]:
    """The third round after the first two; the words of the user's turns are ours."""
    turns = (
        "Write a Python program in a code block that solves the problem and prints the answer.",
        "Go over the code again and look for faults. Change nothing if there are none.",
        "Give the code that you now believe to be right. Keep the first version if it is.",
    )
    found = []
    for row in load_records(*FILES[2]):
        first, second, third = (text.replace("<|im_end|>", "") for text in row["rounds"])
        asked = [f"{row['question']}\n{turns[0]}", first, turns[1], second, turns[2]]
        found.append(_chat_trace(lm, asked, third))
    return found


def redundant_traces(lm: likely.Model) -> list[RecordedAnswer]:
    """Second turns that ask for a variation of the first answer."""
    rows = [row for row in load_records(*FILES[3]) if row["set"] == "mt-redundant"]
    return [_chat_trace(lm, [r["turns"][0], r["answers"][0], r["turns"][1]], r["answers"][1]) for r in rows]


def first_traces(lm: likely.Model) -> list[RecordedAnswer]:
    """First turns of one model, which have nothing to vary (two models' answers to a question are alike)."""
    rows = [row for row in load_records(*FILES[3]) if row["set"] == "mt-bench" and row["model"] == "qwen2.5-7b"]
    return [_chat_trace(lm, [r["turns"][0]], r["answers"][0]) for r in rows]


def translation_traces(lm: likely.Model) -> list[RecordedAnswer]:
    """The Universal Declaration of Human Rights from German into English, an article each, by people."""
    texts = {row["lang"]: articles(row["text"]) for row in load_records(*FILES[4])}
    pairs = zip(texts["deu_1996"], texts["eng"], strict=True)
    return [_chat_trace(lm, [f"Translate German to English: {german}"], english) for german, english in pairs]


def articles(text: str) -> list[str]:
    """What stands after each heading Article N or Artikel N."""
    return [part.strip() for part in re.split(r"^Arti(?:cle|kel) [0-9]+$", text, flags=re.M)[1:]]


def _trace(lm: likely.Model, prompt: str, answer: str) -> RecordedAnswer:
    return RecordedAnswer(lm.encode_prompt(prompt), _ended(lm, answer), ended=True)


def _chat_trace(lm: likely.Model, turns: Sequence[str], answer: str) -> RecordedAnswer:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return RecordedAnswer(lm.render(messages).tokens, _ended(lm, answer), ended=True)


def _ended(lm: likely.Model, answer: str) -> list[int]:
    end = lm.tokenizer.eos_id
    return [*lm.tokenizer.encode(answer), *([] if end is None else [end])]


# --- replays ----------------------------------------------------------------------------------------------------------


def run(source: DraftSource, traces: Sequence[RecordedAnswer], budget: int, name: str = "") -> Replayed:
    """One source on traces, in order."""
    rounds = [replay(source, trace.prompt, trace.answer, budget=budget, ended=trace.ended) for trace in traces]
    return Replayed(name, budget, rounds)


@dataclass(frozen=True)
class Halves:
    """A drafter over several orders of the same questions: per order and question, what a call achieved.

    rounds[s][t]  of question t in order s;  late (S, T): whether it came in the second half there
    """

    rounds: list[list[Rounds]]
    late: NDArray[np.bool_]

    def per_question(self, of: Callable[[Rounds], int], half: bool) -> NDArray[np.int64]:
        """(T,) summed over the orders in which the question came in that half."""
        values = np.array([[of(r) for r in row] for row in self.rounds])
        return (values * (self.late == half)).sum(axis=0)

    def tau(self, half: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens and calls per question."""
        return self.per_question(lambda r: r.tokens, half), self.per_question(lambda r: len(r.accepted), half)

    def growth(self) -> NDArray[np.float64]:
        """(S,) τ of the second half less τ of the first, in each order."""
        grown = []
        for row, late in zip(self.rounds, self.late, strict=True):
            tokens, calls = np.array([r.tokens for r in row]), np.array([len(r.accepted) for r in row])
            grown.append(tokens[late].sum() / calls[late].sum() - tokens[~late].sum() / calls[~late].sum())
        return np.array(grown)


def in_orders(traces: Sequence[RecordedAnswer], orders: Sequence[NDArray[np.int64]]) -> dict[str, Halves]:
    """Each drafter over the orders; those that remember nothing are run once."""
    n = len(traces)
    late = np.zeros((len(orders), n), bool)
    for s, order in enumerate(orders):
        late[s, order[n // 2 :]] = True
    remembered: list[list[Rounds]] = []
    for order in orders:
        source, row = SuffixMemory(), {}
        for t in order.tolist():
            row[t] = replay(source, traces[t].prompt, traces[t].answer, budget=MOST, ended=traces[t].ended)
        remembered.append([row[t] for t in range(n)])
    found = {ALL: Halves(remembered, late)}
    for name, (make, budget) in OTHERS.items():
        found[name] = Halves([run(make(), traces, budget).rounds] * len(orders), late)
    return found


# --- figures ----------------------------------------------------------------------------------------------------------


def ratio(subject: str, quantity: str, top: Sequence, bottom: Sequence, unit: str, of: str) -> Figure:
    """Σ top / Σ bottom with an interval over the pairs."""
    return ratio_figure(subject, quantity, top, bottom, unit=unit, of=of)


def figures_of(subject: str, found: Replayed, of: str) -> list[Figure]:
    tokens, calls = [r.tokens for r in found.rounds], [len(r.accepted) for r in found.rounds]
    kept, drafted = [sum(r.accepted) for r in found.rounds], [sum(r.proposed) for r in found.rounds]
    tau = ratio(subject, "τ", tokens, calls, "tokens per call", of)
    return [tau, *drafting(subject, kept, drafted, calls, of)]


def drafting(subject: str, kept: Sequence, drafted: Sequence, calls: Sequence, of: str) -> list[Figure]:
    """What was drafted per call, and the share of it that was kept (texts without a draft say nothing of that)."""
    figures = [ratio(subject, "drafted", drafted, calls, "tokens per call", of)]
    used = [(k, d) for k, d in zip(kept, drafted, strict=True) if d]
    if used:
        figures.append(ratio(subject, "kept", *zip(*used, strict=True), "share of drafted tokens", of))
    return figures


def memory_part(traces: Sequence[RecordedAnswer], orders: int) -> tuple[list[Figure], list[Check], str]:
    """(a) What earlier answers are worth."""
    rng = np.random.default_rng(0)
    found = in_orders(traces, [rng.permutation(len(traces)) for _ in range(orders)])
    figures = []
    for name, halves in found.items():
        for half, label in ((False, "τ, first half"), (True, "τ, second half")):
            figures.append(ratio(f"SQL: {name}", label, *halves.tau(half), "tokens per call", "questions"))
        drafted = halves.per_question(lambda r: sum(r.proposed), True)
        kept = halves.per_question(lambda r: sum(r.accepted), True)
        figures += drafting(f"SQL: {name}", kept.tolist(), drafted.tolist(), halves.tau(True)[1].tolist(), "questions")
    # the same tokens on both sides, so the ratio of τ is that of the calls
    gain = ratio(
        "SQL: earlier answers over own text only", "τ, second half, ratio", found[OWN].tau(True)[1],
        found[ALL].tau(True)[1], "times", "questions",
    )  # fmt: skip
    figures.append(gain)
    for name in (ALL, OWN):
        grown = found[name].growth()
        figures.append(
            Figure(
                subject=f"SQL: {name}", quantity="τ, growth", value=float(grown.mean()), unit="tokens per call",
                n=orders, of="orders", note=f"mean over orders, which share their questions; {grown.min():+.2f} to "
                f"{grown.max():+.2f}",
            )
        )  # fmt: skip
    memory = SuffixMemory()
    run(memory, traces, MOST)
    figures += figures_of("SQL: the same requests once more", run(memory, traces, MOST), "questions")
    checks = [
        Check(
            statement=f"text-to-sql: τ without earlier answers over τ with them, second half (at least {ENOUGH} times)",
            value=1 / gain.value, bound=1 / ENOUGH, unit="ratio",
        ),
        Check(
            statement="text-to-sql: orders in which τ does not grow from the first to the second half",
            value=float((found[ALL].growth() <= 0).mean()), bound=RARELY, unit="share of orders",
        ),
    ]  # fmt: skip
    first, second = (float(np.divide(*map(np.sum, found[ALL].tau(half)))) for half in (False, True))
    return figures, checks, f"text-to-sql {first:.2f} → {second:.2f} tokens per call, {gain.value:.2f}x own text only"


def tau_lead(ours: Replayed, theirs: Replayed) -> tuple[float, tuple[float, float]]:
    """τ of one drafter less that of another on the same answers, with a paired interval over answers."""
    rng = np.random.default_rng(0)
    tokens, mine, others = (
        np.array([f(r) for r in found.rounds], np.float64)
        for found, f in (
            (ours, lambda r: r.tokens), (ours, lambda r: len(r.accepted)), (theirs, lambda r: len(r.accepted)),
        )
    )  # fmt: skip
    picks = rng.integers(0, len(tokens), (RESAMPLES, len(tokens)))
    drawn = tokens[picks].sum(1) / mine[picks].sum(1) - tokens[picks].sum(1) / others[picks].sum(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(tokens.sum() / mine.sum() - tokens.sum() / others.sum()), (float(low), float(high))


def length_part(sets: Mapping[str, Sequence[RecordedAnswer]]) -> tuple[list[Figure], list[Check], str]:
    """(b) How many drafted tokens the adaptive length saves, and what its factor does."""
    figures, checks, said = [], [], []
    for label, traces in sets.items():
        found = {name: run(make(), traces, budget) for name, (make, budget) in OTHERS.items()}
        found[ALL] = run(SuffixMemory(), traces, MOST)
        for name in (OWN, ALL, COPY, LOOKUP):
            figures += figures_of(f"{label}: {name}", found[name], "answers")
        ours, theirs = found[OWN], found[LOOKUP]
        checks.append(
            Check(
                statement=f"{label}: τ of prompt lookup over τ of suffix, own text only",
                value=theirs.tokens_per_call / ours.tokens_per_call, bound=1.0, unit="ratio",
            )
        )  # fmt: skip
        checks.append(
            Check(
                statement=f"{label}: drafted in vain per emitted token, suffix (own text only) over prompt lookup",
                value=(ours.drafted - ours.accepted) / (theirs.drafted - theirs.accepted),
                bound=LESS_WASTE, unit="ratio",
            )
        )  # fmt: skip
        said.append(f"{label} τ {ours.tokens_per_call:.2f}, kept {ours.acceptance_rate or 0:.0%} (prompt lookup "
                    f"{theirs.tokens_per_call:.2f}, {theirs.acceptance_rate or 0:.0%})")  # fmt: skip
        wider = run(SuffixMemory(scope="request", spec_factor=WIDER), traces, MOST)
        lead = tau_lead(wider, theirs)
        figures.append(
            figure_with(
                f"{label}: {OWN}, factor {WIDER:g}", "τ over prompt lookup's", *lead, unit="tokens per call",
                n=len(traces), of="answers",
            )
        )  # fmt: skip
        checks += [
            Check(
                statement=f"factor {WIDER:g}, {label}: τ of prompt lookup less that of suffix, own text only, upper "
                "end of the paired interval",
                value=-lead[1][0], bound=0.0, unit="tokens per call",
            ),
            Check(
                statement=f"factor {WIDER:g}, {label}: drafted in vain per emitted token, suffix over prompt lookup",
                value=(wider.drafted - wider.accepted) / (theirs.drafted - theirs.accepted), bound=LESS_WASTE,
                unit="ratio",
            ),
        ]  # fmt: skip
        fits = [run(SuffixMemory(scope="request", spec_factor=a), traces, MOST) for a in FACTORS]
        for factor, fit in zip(FACTORS, fits, strict=True):
            if factor != 1.0:
                figures += figures_of(f"{label}: {OWN}, factor {factor:g}", fit, "answers")
        taus, rates = [f.tokens_per_call for f in fits], [f.acceptance_rate or 0.0 for f in fits]
        checks.append(
            Check(
                statement=f"{label}: steps of the factor {FACTORS} at which τ falls or the kept share rises",
                value=float(((np.diff(taus) < 0) | (np.diff(rates) > 0)).sum()), bound=0, unit="steps",
            )
        )  # fmt: skip
    return figures, checks, "; ".join(said)


def control_part(controls: Mapping[str, Sequence[RecordedAnswer]]) -> tuple[list[Figure], list[Check], str]:
    """(d) Texts that should repeat little."""
    figures, checks, said = [], [], []
    for label, traces in controls.items():
        found = run(SuffixMemory(), traces, MOST)
        figures += figures_of(f"{label}: {ALL}", found, "answers")
        figures += figures_of(f"{label}: {LOOKUP}", run(PromptLookup(), traces, USUAL), "answers")
        checks.append(
            Check(
                statement=f"{label}: τ of suffix with earlier answers stays near 1", value=found.tokens_per_call,
                bound=NEAR_ONE, unit="tokens per call",
            )
        )  # fmt: skip
        said.append(f"{label} {found.tokens_per_call:.2f}")
    return figures, checks, ", ".join(said)


def study(
    sql: Sequence[RecordedAnswer],
    sets: Mapping[str, Sequence[RecordedAnswer]],
    controls: Mapping[str, Sequence[RecordedAnswer]],
    *,
    orders: int,
    full: bool,
    models: Sequence[Source],
    data: Sequence[Source] = (),
    report: Callable[[str], None] = print,
) -> Evidence:
    """All parts on given texts."""
    started = time.perf_counter()
    figures: list[Figure] = []
    checks: list[Check] = []
    said = []
    for part in (partial(memory_part, sql, orders), partial(length_part, sets), partial(control_part, controls)):
        some, bounds, line = part()
        figures += some
        checks += bounds
        said.append(line)
        report(line)
    answers = sum(map(len, (*sets.values(), *controls.values())))
    return conclude(
        "suffix_decoding",
        title="SuffixDecoding",
        claim=(
            "On repetitive requests, suffix trees over earlier answers and the request's own text emit more tokens per "
            "call the more they have seen, and drafts whose length follows the match waste few tokens."
        ),
        paper_figure=(
            "Up to 5.3 times faster on agentic benchmarks (SWE-Bench, text-to-SQL); 2.8 times faster than EAGLE-2/3, "
            "1.9 times faster than Token Recycling"
        ),
        ours="; ".join(said),
        figures=figures,
        checks=checks,
        samples=f"{len(sql)} SQL questions in {orders} orders, {answers} answers of models and of people",
        intervals="95 %, percentile bootstrap over questions or answers, 2000 resamples, fixed seed",
        full=full,
        models=models,
        data=data,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Seconds: the replay counts calls of the target, and positions in them, not their time. likely bench "
            "speculation measures it on a machine (drafters suffix and lookup, text the same as without).",
            "The paper's own workloads (SWE-Bench agents, its text-to-SQL pipeline) and models.",
            "EAGLE-2/3 and Token Recycling: no comparison.",
            "That drafts cost nothing where they fail: τ near 1 is necessary for it, not enough.",
            "A text that nothing repeats: the declaration says everyone has the right to ... in most of its articles.",
            "The SQL answers are the data set's reference queries, one per question, not a model's.",
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    full = options.full
    with likely.load("smollm2", threads=1) as lm:
        sql = sql_traces(lm)[: None if full else 160]
        sets = {"self-correction": correction_traces(lm), "redundant turns": redundant_traces(lm)}
        if not full:
            sets = {label: traces[:16] for label, traces in sets.items()}
        controls = {
            "human translation": translation_traces(lm),
            "first turns": first_traces(lm)[: None if full else 16],
        }
    return study(
        sql, sets, controls, orders=10 if full else 3, full=full, data=data_sources(FILES),
        models=[model_source("smollm2", part="its tokenizer")],
    )  # fmt: skip


def main() -> None:
    run_study(arguments(full="all texts, 10 orders"), measure)


if __name__ == "__main__":
    run_script(main)
