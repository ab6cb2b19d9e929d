"""ATTS: does a conformal p-value hold the take-over rate, does nobody wait, and does the score find bad drafts?

(a) Rate.  SmolLM2 writes turns of GSM8K solutions, Gemma scores them (another tokenizer), 8 chains of a question and 8
more that calibrate it.  Rejected shares beside nominal ones: marginal (all calibration chains) and conditional (those
of the question), in the first round and later, with the first round's scores and with the same round's.
(b) Asynchrony.  The package's driver on a virtual clock with simulated models, against rounds with barriers.
(c) The score.  Closed-book questions: AUROC of the target's mean log-probability of a draft for its being right, and
accuracy at an equal share of take-overs: conformal, random, the worst B of each question (synchronous).

  python reproductions/atts.py            36 questions, turns of 16 tokens, 2 rounds
  python reproductions/atts.py --full     300 questions, turns of 48 tokens, 3 rounds (hours)

What the models wrote for (a) and (c) is kept in the cache folder: a run that was stopped goes on where it ended.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from atts_simulation import Setting, Times, compare
from closed_book import Question, questions
from numpy.typing import NDArray
from study import (
    arguments,
    conclude,
    data_sources,
    figure_with,
    model_source,
    ratio_figure,
    report,
    run_script,
    run_study,
)

import likely
from likely.calibration.conformal import conformal_pvalue
from likely.data import load_records
from likely.evidence import Check, Evidence, Figure, Source
from likely.io.hashes import cache_dir, fingerprint
from likely.io.jsonl import Line, Results, read_lines
from likely.lm.model import Model
from likely.metrics.bootstrap import resampled_rows
from likely.metrics.grading import same_text
from likely.metrics.ranking import auroc
from likely.serving.scaling import ATTS, client_of

Floats = NDArray[np.float64]
RATES = (0.2, 0.4, 0.6)
NOMINAL = 0.4  # at which the chains were made
SHARES = (0.25, 0.5, 0.75)  # of the 8 chains of a question: 2, 4, 6 take-overs
WITHIN = 0.05
RESAMPLES = 1000
LONGEST_QUESTION = 200  # characters


@dataclass(frozen=True)
class Size:
    """questions: of (a);  longest: most characters of one;  asked: of each task of (c);  simulated: questions of (b)"""

    questions: int
    longest: int
    rounds: int
    tokens: int
    samples: int = 8
    asked: int = 60
    simulated: int = 24


QUICK = Size(36, LONGEST_QUESTION, 2, 16, asked=40)
FULL = Size(300, 10**6, 3, 48, asked=150, simulated=100)


def gsm8k(size: Size) -> list[str]:
    rows = (row["question"] for row in load_records("gsm8k"))
    return [question for question in rows if len(question) <= size.longest][: size.questions]


# --- (a) the rate -----------------------------------------------------------------------------------------------------


def rate_rows(draft: Model, target: Model, asked: Sequence[str], size: Size, rows: Path | None) -> list[dict[str, Any]]:
    """Per question the target's scores by round (from 0): {"calibration": [[...], ...], "chains": [[...], ...]}."""
    header = {
        "kind": "atts", "samples": size.samples, "rounds": size.rounds, "tokens": size.tokens, "rate": NOMINAL,
        "models": [draft.info.sha256, target.info.sha256],
    }  # fmt: skip
    if rows is not None:
        rows.parent.mkdir(parents=True, exist_ok=True)
        with Results(rows, header) as results:
            _fill(draft, target, asked, size, results)
        found = [line.record for line in read_lines(rows) if line.record.get("line", 0) in range(1, len(asked) + 1)]
        return sorted(found, key=lambda row: row["line"])
    made: list[dict[str, Any]] = []
    _solve(draft, target, list(enumerate(asked, 1)), size, made.append)
    return made


def _fill(draft: Model, target: Model, asked: Sequence[str], size: Size, results: Results) -> None:
    lines = [Line(number, {}, fingerprint(question)) for number, question in enumerate(asked, 1)]
    todo = [(line.number, asked[line.number - 1]) for line in lines if not results.is_done(line, "gsm8k")]
    _solve(draft, target, todo, size, lambda row: results.write([row]))


def _solve(
    draft: Model, target: Model, todo: Sequence[tuple[int, str]], size: Size, write: Callable[[dict[str, Any]], None]
) -> None:
    async def work() -> None:
        system = ATTS(
            client_of(draft), client_of(target), samples=size.samples, rounds=size.rounds, draft_tokens=size.tokens,
            target_tokens=size.tokens, reject_rate=NOMINAL, calibration="each",
        )  # fmt: skip
        try:
            for number, question in todo:
                gate = await system.calibrate([question])
                chains = await system.solve(question)
                by_round: list[list[float]] = [[] for _ in range(size.rounds)]
                for chain in chains.chains:
                    for turn in chain.turns:
                        by_round[turn.round - 1].append(turn.mean_logprob)
                calibration = [gate.scores.scores(n + 1).tolist() for n in range(size.rounds)]
                write({"line": number, "input": fingerprint(question), "calibration": calibration, "chains": by_round})
        finally:
            await system.close()

    if todo:
        asyncio.run(work())


def rejected(scores: Sequence[Floats], calibration: Sequence[Floats], rate: float, seed: int = 0) -> list[Floats]:
    """Per question 1 for each score that is rejected; calibration: of each question, or one for all."""
    rng = np.random.default_rng(seed)
    arrays = list(calibration) * (len(scores) if len(calibration) == 1 else 1)
    return [
        (conformal_pvalue(s, c, rng=rng) > 1 - rate).astype(float) if len(s) and len(c) else np.empty(0)
        for s, c in zip(scores, arrays, strict=True)
    ]


def rate_figure(subject: str, rate: float, found: Sequence[Floats]) -> Figure:
    """The realised rate, with an interval over questions."""
    return ratio_figure(
        subject, f"rejected, nominal {rate:g}", [float(r.sum()) for r in found], [float(len(r)) for r in found],
        unit="share of drafts", of="questions", resamples=RESAMPLES,
    )  # fmt: skip


def rates(rows: Sequence[dict[str, Any]]) -> tuple[list[Figure], list[Check], str]:
    def of(what: str, numbers: range) -> list[Floats]:
        return [np.array([s for n in numbers for s in row[what][n]], np.float64) for row in rows]

    rounds = len(rows[0]["chains"])
    first, later = range(1), range(1, rounds)
    half = len(rows) // 2
    chains, own = of("chains", first), of("calibration", first)
    pooled = np.concatenate(own)
    ways: dict[str, tuple[list[Floats], list[Floats]]] = {
        "marginal, round 1": (chains, [pooled]),
        "marginal from other questions, round 1": (chains[half:], [np.concatenate(own[:half])]),
        "conditional, round 1": (chains, own),
        "marginal, later rounds, scores of round 1": (of("chains", later), [pooled]),
        "conditional, later rounds, scores of round 1": (of("chains", later), own),
    }
    figures, checks, said = [], [], []
    for subject, (scores, calibration) in ways.items():
        found = {rate: rejected(scores, calibration, rate) for rate in RATES}
        figures += [rate_figure(subject, rate, rows_) for rate, rows_ in found.items()]
        realised = {rate: float(np.concatenate(rows_).mean()) for rate, rows_ in found.items()}
        if subject in ("marginal, round 1", "conditional, round 1"):
            worst = max(abs(value - rate) for rate, value in realised.items())
            checks.append(
                Check(statement=f"{subject}: largest |realised - nominal| rate", value=worst, bound=WITHIN,
                      unit="share of drafts")
            )  # fmt: skip
        shown = ", ".join(f"{realised[rate]:.2f}" for rate in RATES)
        if "other" not in subject:
            said.append(f"{subject} {shown}")
    # each later round against its own scores
    for name, pool in (("marginal", True), ("conditional", False)):
        found = {rate: [] for rate in RATES}
        for n in later:
            scores, known = of("chains", range(n, n + 1)), of("calibration", range(n, n + 1))
            for rate in RATES:
                found[rate] += rejected(scores, [np.concatenate(known)] if pool else known, rate)
        subject = f"{name}, later rounds, scores of the same round"
        figures += [rate_figure(subject, rate, rows_) for rate, rows_ in found.items()]
        shown = ", ".join(f"{np.concatenate(found[rate]).mean():.2f}" for rate in RATES)
        said.append(f"{subject} {shown}")
    nominal = ", ".join(f"{rate:g}" for rate in RATES)
    return figures, checks, f"rejected shares (nominal {nominal}): {'; '.join(said)}"


# --- (b) nobody waits -------------------------------------------------------------------------------------------------


def simulations(count: int) -> tuple[list[Figure], list[Check], str]:
    sizes = [(4, 2), (4, 8), (16, 2), (16, 8), (64, 8)]
    settings = [Setting(m, r, slots, 0.8) for m, r in sizes for slots in ((m, m), (16, 4))]
    found = compare(settings, count)
    figures = []
    for setting, rows in found.items():
        slots = "a slot for each" if setting.slots == (setting.samples,) * 2 else "16 and 4 slots"
        subject = f"m={setting.samples}, R={setting.rounds}, {slots}"
        for quantity, top, bottom, unit in (
            ("barrier / asynchronous", [t.barrier_s for t in rows], [t.asynchronous_s for t in rows], "times"),
            ("T_sync", [t.waiting_s for t in rows], [t.barrier_s for t in rows], "share of a chain's time"),
        ):
            figures.append(ratio_figure(subject, quantity, top, bottom, unit=unit, of="simulated questions"))

    def ratio(m: int, r: int, slots: tuple[int, int]) -> float:
        rows: list[Times] = found[Setting(m, r, slots, 0.8)]
        return sum(t.barrier_s for t in rows) / sum(t.asynchronous_s for t in rows)

    free = {(m, r): ratio(m, r, (m, m)) for m, r in sizes}
    steps = [free[16, 8] - free[4, 8], free[64, 8] - free[16, 8], free[4, 8] - free[4, 2], free[16, 8] - free[16, 2]]
    checks = [
        Check(statement="m=16, R=8: barrier / asynchronous is at least 1.5, a slot for each", value=-free[16, 8],
              bound=-1.5, unit="-times"),
        Check(statement="m=16, R=8: barrier / asynchronous is at least 1.5, 16 and 4 slots",
              value=-ratio(16, 8, (16, 4)), bound=-1.5, unit="-times"),
        Check(statement="the ratio grows with m at R=8 and with R at m=4 and 16 (smallest step, negated)",
              value=-min(steps), bound=0.0, unit="-times"),
    ]  # fmt: skip
    return (
        figures,
        checks,
        (
            f"on a virtual clock barriers take {free[16, 8]:.2f} times as long at m=16, R=8 ({free[4, 2]:.2f} at m=4, "
            f"R=2; {free[64, 8]:.2f} at m=64, R=8; {ratio(64, 8, (16, 4)):.2f} there with 16 and 4 slots)"
        ),
    )


# --- (c) the score ----------------------------------------------------------------------------------------------------


@dataclass
class Drafts:
    """Of each question (N) and draft (m): the target's mean log-probability, whether it is right, and whether the
    target's own answer in its place is."""

    scores: Floats
    right: Floats
    target_right: Floats


FIELDS = ("scores", "right", "target_right")  # of Drafts


def drafts(draft: Model, target: Model, task: str, asked: Sequence[Question], samples: int) -> Drafts:
    options: dict[str, Any] = {"n": samples, "temperature": 0.8, "max_tokens": 8, "stop": "\n", "drafter": None}
    prompts = [question.prompt(task) for question in asked]
    texts, replies = ([[s.text for s in group] for group in lm.generate(prompts, **options)] for lm in (draft, target))
    pairs = sorted({(p, t) for p, group in zip(prompts, texts, strict=True) for t in group if t})
    known = dict(zip(pairs, (s.mean_logprob for s in target.score_pairs(pairs)), strict=True))

    def right(groups: Sequence[Sequence[str]]) -> Floats:
        rows = zip(groups, asked, strict=True)
        return np.array([[any(same_text(t, a) for a in q.answers) for t in g] for g, q in rows], np.float64)

    floor = min(known.values()) - 1.0  # an empty draft ends a chain: it counts as the worst
    scores = [[known.get((p, t), floor) for t in group] for p, group in zip(prompts, texts, strict=True)]
    return Drafts(np.array(scores, np.float64), right(texts), right(replies))


def kept_drafts(
    draft: Model, target: Model, tasks: Sequence[str], size: Size, rows: Path | None
) -> dict[str, Drafts]:  # fmt: skip
    """`drafts` of each task, from the file beside `rows` where it has them."""
    file = rows.with_suffix(".drafts.jsonl") if rows is not None else None
    header = {
        "kind": "atts_drafts", "asked": size.asked, "samples": size.samples, "tasks": list(tasks),
        "models": [draft.info.sha256, target.info.sha256],
    }  # fmt: skip
    if file is None:
        return {task: drafts(draft, target, task, questions(task, size.asked), size.samples) for task in tasks}
    file.parent.mkdir(parents=True, exist_ok=True)
    with Results(file, header) as results:
        for number, task in enumerate(tasks, 1):
            if not results.is_done(Line(number, {}, task), "tasks"):
                made = drafts(draft, target, task, questions(task, size.asked), size.samples)
                results.write(
                    [{"line": number, "input": task, **{name: value.tolist() for name, value in vars(made).items()}}]
                )
    records = {line.record["input"]: line.record for line in read_lines(file) if "line" in line.record}
    return {task: Drafts(**{name: np.array(records[task][name]) for name in FIELDS}) for task in tasks}


def taken_over(found: Drafts, share: float, seed: int = 0) -> dict[str, Floats]:
    """(N, m) of 0 and 1 by policy; the conformal one calibrates on the other questions, the last on none."""
    n, m = found.scores.shape
    rng, conformal = np.random.default_rng(seed), np.empty((n, m))
    for i in range(n):
        others = np.delete(found.scores, i, axis=0).ravel()
        conformal[i] = conformal_pvalue(found.scores[i], others, rng=rng) > 1 - share
    jitter = found.scores + rng.random((n, m)) * 1e-9  # equal scores: any of them
    ranks = jitter.argsort(axis=1).argsort(axis=1)
    return {"conformal": conformal, "worst B of each question": (ranks < round(share * m)).astype(float)}


def accuracy_of(found: Drafts, over: Floats) -> Floats:
    """(N,) share of right chains where the target's answer replaces what was taken over."""
    return (over * found.target_right + (1 - over) * found.right).mean(axis=1)


def random_accuracy(found: Drafts, over: Floats) -> Floats:
    """(N,) expected of as many take-overs in all, at random."""
    share = over.mean()
    return share * found.target_right.mean(axis=1) + (1 - share) * found.right.mean(axis=1)


def auroc_figure(subject: str, found: Drafts) -> Figure:
    """Over all drafts, with an interval over questions."""
    n, values = len(found.scores), []
    for block in resampled_rows(n, resamples=RESAMPLES):
        for rows in block:
            right = found.right[rows].ravel()
            if 0 < right.sum() < len(right):
                values.append(auroc(found.scores[rows].ravel(), right))
    value = auroc(found.scores.ravel(), found.right.ravel())
    return figure_with(subject, "AUROC", value, np.quantile(values, [0.025, 0.975]), unit="AUROC", n=n, of="questions")


def usefulness(found: dict[str, Drafts]) -> tuple[list[Figure], list[Check], str]:
    figures, checks, said = [], [], []
    for task, one in found.items():
        figure = auroc_figure(task, one)
        figures.append(figure)
        for who, right in (("drafts", one.right), ("target", one.target_right)):
            figures.append(
                ratio_figure(f"{task}: {who}", "accuracy", right.mean(axis=1), unit="share of chains", of="questions")
            )
        accuracy = f"{one.right.mean():.2f} of drafts and {one.target_right.mean():.2f} of the target's answers right"
        said.append(f"{task}: AUROC {figure.value:.2f} ({accuracy})")
    task, one = next(iter(found.items()))
    checks.append(
        Check(statement=f"{task}: lower end of the AUROC's interval is above 0.5", value=-(figures[0].low or 0.0),
              bound=-0.5, unit="-AUROC")
    )  # fmt: skip
    for share in SHARES:
        policies = taken_over(one, share)
        gains = {name: accuracy_of(one, over) - random_accuracy(one, over) for name, over in policies.items()}
        for name, over in policies.items():
            subject = f"{task}: {name}, share {share:g}"
            gain = ratio_figure(subject, "accuracy less random", gains[name], unit="share of chains", of="questions")
            figures += [
                ratio_figure(subject, "accuracy", accuracy_of(one, over), unit="share of chains", of="questions"),
                ratio_figure(subject, "taken over", over.mean(axis=1), unit="share of chains", of="questions"),
                gain,
            ]
            if (name, share) == ("conformal", 0.5):
                checks.append(
                    Check(
                        statement=f"{task}: conformal take-over of half of the chains is above a random one",
                        value=-(gain.low or 0.0), bound=0.0, unit="-share of chains",
                    )
                )  # fmt: skip
        if share == 0.5:
            said.append(
                f"half of the chains taken over, accuracy above random: conformal {gains['conformal'].mean():+.3f}, "
                f"worst B of each question {gains['worst B of each question'].mean():+.3f}"
            )
    return figures, checks, "; ".join(said)


# --- the study --------------------------------------------------------------------------------------------------------


def study(
    open_draft: Callable[[], Model], open_target: Callable[[], Model], asked: Sequence[str], size: Size, *,
    tasks: Sequence[str] = ("capitals", "opposites"), rows: Path | None = None, full: bool = True,
    sources: Sequence[Source] = (), data: Sequence[Source] = (), threads: int = 1,
    report: Callable[[str], None] = report,
) -> Evidence:  # fmt: skip
    started, resumed = time.perf_counter(), rows is not None and rows.exists()
    b = simulations(size.simulated)
    report(b[2])
    with open_draft() as draft, open_target() as target:
        c = usefulness(kept_drafts(draft, target, tasks, size, rows))
        report(c[2])
        scored = rate_rows(draft, target, asked, size, rows)
    a = rates(scored)
    report(a[2])
    drafted = sum(len(s) for row in scored for s in row["chains"])
    return conclude(
        "atts",
        title="ATTS: asynchronous test-time scaling by conformal prediction",
        claim=(
            "A conformal p-value of the target's mean log-probability, held against calibration scores alone, takes a "
            "controlled share of drafts over without ranking chains, so that no chain waits for another."
        ),
        paper_figure=(
            "Up to 56.7x speed-up in test-time scaling and 4.14x throughput, with accurate control of the rejection "
            "rate and no loss of accuracy; 1.5B/70B reaches o3-mini (high) on AIME"
        ),
        ours="; ".join(text for _, _, text in (a, b, c)),
        figures=[figure for part in (a, b, c) for figure in part[0]],
        checks=[check for part in (a, b, c) for check in part[1]],
        samples=(
            f"(a) {len(scored)} GSM8K questions of at most {size.longest} characters, {size.samples} chains and "
            f"{size.samples} calibration chains each, {size.rounds} rounds of {size.tokens} tokens, {drafted} drafts; "
            f"(b) {size.simulated} simulated questions, log-normal turns (sigma 0.8); (c) {size.asked} questions of "
            f"each task, {size.samples} drafts and {size.samples} answers of the target, temperature 0.8"
        ),
        intervals="95 %, percentile bootstrap over questions, fixed seed; in (a) with the calibration held",
        full=full,
        models=sources,
        data=data,
        threads=threads,
        seconds=time.perf_counter() - started,
        not_shown=[
            "AIME, models of 1.5B to 70B, wall time and throughput on GPUs: the paper's headline figures.",
            "Accuracy on GSM8K: turns are too few and models too small to solve it.",
            f"Histories of later rounds are those of chains taken over at {NOMINAL:g}, held question by question.",
            "How far the rate of one calibration set may be off: for 8 scores Beta(3.6, 5.4), a standard deviation of "
            "0.15; questions of one set differ, so that a marginal calibration on few other questions is off, too.",
            *(["Seconds: they are those of the last part of a run that was stopped."] if resumed else []),
            "(c) replaces a draft by an answer of the target, since answers of a word or two cannot be continued.",
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence | None:
    size = FULL if options.full else QUICK

    def opened(name: str) -> Callable[[], Model]:
        return lambda: likely.load(name, runtime="native", threads=options.threads)  # type: ignore[return-value]

    return study(
        opened("smollm2"), opened("gemma3"), gsm8k(size), size,
        rows=cache_dir() / "atts" / f"{'full' if options.full else 'short'}.jsonl", full=options.full,
        sources=[model_source("smollm2"), model_source("gemma3")],
        data=data_sources([("gsm8k", None)]), threads=options.threads,
    )  # fmt: skip


def main() -> Evidence | None:
    parser = arguments(full="300 questions, turns of 48 tokens", threads="threads of each model")
    parser.description = (__doc__ or "").splitlines()[0]
    return run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
