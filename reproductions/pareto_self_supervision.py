"""Pareto optimal self-supervision: do rules, fused without labels, tell which answers of a model are wrong?

Two tasks with labelling rules that people wrote: SMS spam (73 rules) and TREC question types (68 rules, 6 classes).  A
small language model answers by the likelihood of the labels after a few worked examples (sentences that the rules were
written from).  A harmonizer learns from its answers and the rules' votes on unlabelled texts; its risk is judged on
other texts against what the model alone says of its certainty.  Then the riskiest fifth is asked again.

  python reproductions/pareto_self_supervision.py           300 texts of each task, gemma3
  python reproductions/pareto_self_supervision.py --full    all test texts, more unlabelled ones, both small models

Scores are kept as they come; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from study import arguments, conclude, data_sources, model_source, run_script, run_study

import likely
from likely.data import find_path, load_records
from likely.evidence import Check, Evidence, Figure, Source
from likely.io.hashes import fingerprint
from likely.io.jsonl import chunked
from likely.io.kept import KeptValues
from likely.uncertainty.types import option_scores
from likely.weak_supervision.harmonizer import Harmonizer
from likely.weak_supervision.labelling_rules import LabelingFunction, Votes, read_rules
from likely.weak_supervision.reasking import POLICIES, Example, LabelTask, budget_threshold, reask
from likely.weak_supervision.risk import risk_quality

BUDGET, SAMPLES, RESAMPLES, CHUNK = 0.2, 10, 500, 32
QUALITIES = (
    ("AUROC", "auroc", "0..1"), ("ECE", "ece", "probability"), ("R² of 10 bins", "r2", "R²"),
    ("errors in the riskiest tenth", "top_decile", "error rate"),
)  # fmt: skip
CONTENT_FREE = ("N/A", "...", "[text]")
NAMES = {"sms-spam": "SMS", "trec": "TREC"}
CLASSES = {
    "sms-spam": ("ham", "spam"),
    "trec": ("description", "entity", "abbreviation", "human", "location", "numeric"),
}
ASKED = {
    "sms-spam": ("Decide for each text message whether it is spam or normal.", ("normal", "spam"), "Message", 4),
    "trec": (
        "Say what kind of thing the answer to each question is.",
        ("explanation", "thing", "abbreviation", "person", "place", "number"), "Question", 2,
    ),
}  # fmt: skip

Array = NDArray[np.float64]


class Kept:
    """Scores of prompts; those of earlier runs are read from a file, whose seconds this run does not count."""

    def __init__(self, path: Path, model: str):
        self.model, self._values = model, KeptValues(path)
        self.earlier = self._values.earlier

    def scores(self, lm: Any, prompts: Sequence[str], labels: Sequence[str]) -> Array:
        """(N, K) log p(label | prompt), nats."""
        keys = [fingerprint("\0".join([self.model, prompt, *labels]), 64) for prompt in prompts]
        text = dict(zip(keys, prompts, strict=True))
        for some in chunked(self._values.missing(keys), CHUNK):
            found = option_scores(lm, [text[key] for key in some], labels).logprobs
            self._values.add(dict(zip(some, found.tolist(), strict=True)))
        return np.array([self._values[key] for key in keys]).reshape(len(keys), len(labels))


@dataclass(frozen=True)
class Case:
    """A task ready to be run.

    train  unlabelled texts that the harmonizer learns from; the model answers the first `answered` of them
    near   further unlabelled texts, drawn like the test texts;  test, labels: what is judged
    """

    name: str
    task: LabelTask
    rules: Sequence[LabelingFunction]
    train: Sequence[str]
    answered: int
    near: Sequence[str]
    test: Sequence[str]
    labels: NDArray[np.int64]


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def case(name: str, *, test: int, answered: int, near: int) -> Case:
    """near, test: how many texts of the test file are taken unlabelled, and how many are judged.

    No text that is judged is shown or learned from, whatever the files repeat.
    """
    classes = CLASSES[name]
    instruction, labels, noun, each = ASKED[name]
    rng = np.random.default_rng(0)
    records = list(load_records(name, "test"))
    order = rng.permutation(len(records))
    judged = [records[i] for i in order[:test]]
    taken = {plain(r["text"]) for r in records}
    seen = {plain(r["text"]) for r in judged}
    others = [records[i]["text"] for i in order[test : test + near] if plain(records[i]["text"]) not in seen]
    lines = list(load_records(name, "rules"))
    pools = []
    for label in classes:
        pool = sorted({r["exemplar"] for r in lines if r["label"] == label})
        pool = [text for text in pool if plain(text) not in taken]
        pools.append([pool[i] for i in rng.permutation(len(pool))[:each]])
    examples = tuple(Example(p[i], k) for i in range(each) for k, p in enumerate(pools) if i < len(p))
    train = [r["text"] for r in load_records(name, "train")]
    train = [train[i] for i in rng.permutation(len(train)) if plain(train[i]) not in seen]
    rules = read_rules(find_path(name, "rules"), classes, fast=True)  # known patterns
    truth = np.array([classes.index(r["label"]) for r in judged])
    task = LabelTask(instruction, labels, noun, examples)
    return Case(name, task, rules, train, answered, others, [r["text"] for r in judged], truth)


# --- one task ---------------------------------------------------------------------------------------------------------


class Repaired:
    """The model with what it answers to texts without content divided out (Zhao et al. 2021, arXiv:2102.09690)."""

    def __init__(self, lm: Any, kept: Kept, bias: Array, labels: Sequence[str]):
        self.lm, self.kept, self.bias, self.labels = lm, kept, bias, labels

    def logits(self, prompts: Sequence[str]) -> Array:
        return self.kept.scores(self.lm, prompts, self.labels) - self.bias

    def score_pairs(self, pairs: Sequence[tuple[str, str]], *, progress: Any = None) -> list[Any]:
        """As `Model.score_pairs`, for `reask`: pairs come as all labels of one prompt after another."""
        z = self.logits([prompt for prompt, _ in pairs[:: len(self.labels)]])
        return [_Value(float(v)) for v in z.ravel()]


@dataclass(frozen=True)
class _Value:
    sequence_logprob: float

    @property
    def token_logprobs(self) -> list[float]:
        return [self.sequence_logprob]


def softmax(z: Array) -> Array:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def own_risks(p: Array, answers: NDArray[np.int64]) -> dict[str, Array]:
    """What the model alone says of its certainty, each (N,): higher is riskier."""
    rng = np.random.default_rng(0)
    drawn = (rng.random((len(p), SAMPLES, 1)) > p.cumsum(axis=1)[:, None, :-1]).sum(axis=2)
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1) / np.log(p.shape[1])
    return {
        "option entropy": np.clip(entropy, 0, 1),
        "1 − probability": 1 - p.max(axis=1),
        "sample disagreement": (drawn != answers[:, None]).mean(axis=1),
    }


def interval(statistic: Callable[[NDArray[np.int64]], float], n: int) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of row numbers: percentile bootstrap, resamples without a value left out."""
    rng = np.random.default_rng(0)
    draws = [np.arange(n), *(rng.integers(n, size=n) for _ in range(RESAMPLES))]
    return ends(np.array([statistic(rows) for rows in draws]))


def ends(values: Array) -> tuple[float, float, float]:
    """(the first value, low, high): percentiles of the others, those that are not finite left out."""
    value, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (value, value)
    return value, float(min(low, value)), float(max(high, value))


def figure(subject: str, quantity: str, found: tuple[float, float, float], unit: str, n: int) -> Figure:
    value, low, high = found
    return Figure(subject=subject, quantity=quantity, value=value, unit=unit, n=n, of="texts", low=low, high=high)


def risk_figures(subject: str, risk: Array, wrong: NDArray[np.int64], *, ranks_only: bool = False) -> list[Figure]:
    """AUROC, errors in the riskiest tenth, and unless ranks_only ECE and R², with intervals from the same resamples."""
    rng, n = np.random.default_rng(0), len(risk)
    draws = [np.arange(n), *(rng.integers(n, size=n) for _ in range(RESAMPLES))]
    found = [risk_quality(risk[rows], wrong[rows]) for rows in draws]
    made = []
    for quantity, name, unit in QUALITIES:
        if ranks_only and name in ("ece", "r2"):
            continue
        values = np.array([getattr(one, name) for one in found])
        if np.isfinite(values[0]):
            made.append(figure(subject, quantity, ends(values), unit, n))
    return made


def fitted(texts: Sequence[str], votes: Votes, seed: int = 0) -> Harmonizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sources left out are expected among 70 rules
        return Harmonizer(votes.classes, seed=seed).fit(texts, votes)


def run_case(lm: Any, model: str, work: Case, kept: Kept) -> tuple[list[Figure], list[Check], str]:
    """All figures of one task and one model."""
    name = f"{NAMES[work.name]}, {model}"
    task, labels, n = work.task, work.task.labels, len(work.test)
    bias = kept.scores(lm, [task.prompt(text) for text in CONTENT_FREE], labels).mean(axis=0)
    repaired = Repaired(lm, kept, bias, labels)
    asked = [*work.train[: work.answered], *work.near]
    first = repaired.logits([task.prompt(text) for text in asked]).argmax(axis=1)
    z = repaired.logits([task.prompt(text) for text in work.test])
    p, answers = softmax(z), z.argmax(axis=1)
    wrong = (answers != work.labels).astype(np.int64)

    def votes_of(texts: Sequence[str], given: NDArray[np.int64]) -> Votes:
        return Votes.of(work.rules, texts, CLASSES[work.name]).with_answers(given)

    silent = np.full(len(work.train) - work.answered, -1)
    pool = [*work.train, *work.near]
    votes = votes_of(pool, np.concatenate([first[: work.answered], silent, first[work.answered :]]))
    harmonizer = fitted(pool, votes)
    fused = harmonizer.predict_proba(work.test)
    zeta = harmonizer.polar(work.test, answers).values
    ruled = votes_of(work.test, answers)
    shares = Votes(ruled.matrix[:, 1:], ruled.names[1:], ruled.classes).shares()
    risks = own_risks(p, answers)
    figures = [figure(f"{name}: answers", "accuracy", interval(lambda r: 1 - wrong[r].mean(), n), "share", n)]
    right = (fused.argmax(axis=1) == work.labels).astype(float)
    figures.append(figure(f"{name}: harmonizer", "accuracy", interval(lambda r: right[r].mean(), n), "share", n))
    majority = (shares.argmax(axis=1) == work.labels).astype(float)
    figures.append(
        figure(f"{name}: majority of the rules", "accuracy", interval(lambda r: majority[r].mean(), n), "share", n)
    )
    figures += risk_figures(f"{name}: POLAR", zeta, wrong)
    for kind, risk in risks.items():
        figures += risk_figures(f"{name}: {kind}", risk, wrong, ranks_only=kind == "option entropy")
    against = 1 - shares[np.arange(n), answers]
    figures += risk_figures(f"{name}: rules that disagree", against, wrong)
    if work.near:
        alone = fitted(work.train, Votes(votes.matrix[: len(work.train)], votes.names, votes.classes))
        shifted = alone.polar(work.test, answers).values
        figures += risk_figures(f"{name}: POLAR, training file only", shifted, wrong)
    best, margin = advantage(zeta, risks, wrong)
    r2 = risk_quality(zeta, wrong).r2
    checks = [
        Check(statement=f"{name}: AUROC of POLAR exceeds the best of what the model alone says ({best}) by 0.05",
              value=-margin, bound=-0.05, unit="AUROC, negated"),
        Check(statement=f"{name}: R² of error rate on POLAR over 10 bins is above 0.7", value=-r2, bound=-0.7,
              unit="R², negated"),
    ]  # fmt: skip
    again, gains, line = second_answers(name, repaired, work, answers, zeta, fused)
    figures += again
    checks += gains
    polar_auroc = risk_quality(zeta, wrong).auroc
    said = (
        f"{name}: accuracy {1 - wrong.mean():.1%}; AUROC of POLAR {polar_auroc:.2f}, {margin:+.2f} against {best}; "
        f"R² {r2:.2f}; {line}"
    )
    return figures, checks, said


def advantage(zeta: Array, risks: dict[str, Array], wrong: NDArray[np.int64]) -> tuple[str, float]:
    """(the best risk that the model alone gives, AUROC of zeta less its AUROC)."""
    each = {kind: risk_quality(risk, wrong).auroc for kind, risk in risks.items()}
    best = max(each, key=lambda kind: each[kind])
    return best, risk_quality(zeta, wrong).auroc - each[best]


def second_answers(
    name: str, lm: Any, work: Case, answers: NDArray[np.int64], zeta: Array, fused: Array
) -> tuple[list[Figure], list[Check], str]:
    """Accuracy on a chosen fifth before and after, by policy: the riskiest fifth and a random one."""
    figures, gained = [], {}
    changes: dict[tuple[str, str], Array] = {}  # (N,), NaN where a text was not asked again
    random = np.random.default_rng(1).permutation(len(zeta)) / len(zeta)
    for which, risk in (("riskiest fifth", zeta), ("random fifth", random)):
        for policy in POLICIES:
            found = reask(
                lm, work.task, work.test, answers, risk, threshold=budget_threshold(risk, BUDGET), policy=policy,
                rules=work.rules, fused=fused,
            )  # fmt: skip
            rows = np.flatnonzero(found.chosen)
            before = (answers[rows] == work.labels[rows]).astype(np.float64)
            after = (found.answers[rows] == work.labels[rows]).astype(np.float64)
            change = after - before
            gained[which, policy] = change.mean()
            changes[which, policy] = np.full(len(zeta), np.nan)
            changes[which, policy][rows] = change
            subject = f"{name}: {which}, {policy}"
            for quantity, values in (("before", before), ("after", after), ("gain", change)):
                measured = interval(lambda r, v=values: v[r].mean(), len(rows))
                figures.append(figure(subject, quantity, measured, "share of right answers", len(rows)))
    checks = [
        Check(statement=f"{name}: {policy} on the riskiest fifth raises accuracy there by 5 points",
              value=-gained["riskiest fifth", policy], bound=-0.05, unit="share, negated")
        for policy in ("evidence", "override")
    ]  # fmt: skip
    for policy in ("evidence", "override"):
        risky, other = changes["riskiest fifth", policy], changes["random fifth", policy]
        lead = interval(lambda r, a=risky, b=other: np.nanmean(a[r]) - np.nanmean(b[r]), len(zeta))
        figures.append(
            figure(f"{name}: riskiest less random fifth, {policy}", "gain", lead, "share of right answers", len(zeta))
        )
        checks.append(
            Check(statement=f"{name}: {policy} gains more where the risk is highest than on random texts (lower end of "
                  "the paired difference, negated)", value=-lead[1], bound=0.0, unit="share")
        )  # fmt: skip
    said = ", ".join(f"{policy} {gained['riskiest fifth', policy]:+.1%}" for policy in POLICIES)
    other = f"{gained['random fifth', 'evidence']:+.1%}"
    return figures, checks, f"on the riskiest fifth {said}, on a random one evidence {other}"


# --- together ---------------------------------------------------------------------------------------------------------


def counted(work: Case) -> str:
    near = f" and {len(work.near)} others of the test file" if work.near else ""
    return (
        f"{NAMES[work.name]}: {len(work.test)} test texts; unlabelled {len(work.train)} training texts "
        f"({work.answered} of them answered by the model){near}"
    )


def study(
    models: Sequence[tuple[str, Any, Kept]], cases: Sequence[Case], *, full: bool, sources: Sequence[Source],
    data: Sequence[Source] = (), report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    """models: name, model, and where its scores are kept."""
    started = time.perf_counter()
    figures: list[Figure] = []
    checks: list[Check] = []
    said = []
    earlier = max(kept.earlier for _, _, kept in models)
    for model, lm, kept in models:
        for work in cases:
            more, bounds, line = run_case(lm, model, work, kept)
            figures += more
            checks += bounds
            said.append(line)
            report(line)
    return conclude(
        "pareto_self_supervision",
        title="Pareto optimal self-supervision: harmonizer, POLAR score, dynamic prompting",
        claim=(
            "A small model that fuses a language model's answers with labelling rules, without labels, gives risks "
            "that follow the true error rate; asking the risky answers again, with the rules as evidence, mends them."
        ),
        paper_figure=(
            "Risk scores highly correlated with the true error rate on biomedical and general relation extraction; "
            "re-asking by them lifts GPT-3 past the best weak supervision and GPT-4 past the best supervised results "
            "(abstract)"
        ),
        ours="; ".join(said),
        figures=figures,
        checks=checks,
        samples="; ".join(map(counted, cases)),
        intervals="95 %, percentile bootstrap over test texts, 500 resamples, fixed seed; "
        "the harmonizer is not refitted",
        full=full,
        models=sources,
        data=data,
        seconds=time.perf_counter() - started,
        not_shown=[
            "GPT-3 and GPT-4, the relation extraction tasks (CDR, ChemProt, SemEval), and the BERT encoders of the "
            "paper: the encoder here is TF-IDF with one hidden layer.",
            "TREC's training file has lost the first word of its questions (who, how ...), on which most rules rest. "
            "The harmonizer therefore also learns from unlabelled test questions that are not judged; the rows "
            '"training file only" show it without.',
            "The prompt's wording was chosen on a few labelled texts (45 SMS of the validation file, 40 TREC questions "
            "of the test file, of which some are judged here, too).",
            "Samples are drawn from the model's probabilities of the labels, not written by it.",
            "Snorkel's label model and WeaSEL as baselines.",
            *([f"Seconds of {earlier} prompts, whose scores an earlier run had kept."] if earlier else []),
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    if options.full:
        sizes = {"sms-spam": (500, 1500, 0), "trec": (300, 1500, 200)}
    elif options.quick:
        sizes = {"sms-spam": (40, 40, 0), "trec": (40, 40, 40)}
    else:
        sizes = {"sms-spam": (300, 300, 0), "trec": (300, 300, 200)}
    cases = [case(name, test=n, answered=answered, near=near) for name, (n, answered, near) in sizes.items()]
    names = ("gemma3", "smollm2") if options.full else ("gemma3",)
    sources = [model_source(name) for name in names]
    files = [(name, f"{part}.jsonl.gz") for name in CLASSES for part in ("rules", "train", "test")]
    with ExitStack() as opened:
        models = [
            (name, opened.enter_context(likely.load(name, runtime="native", threads=1)),
             Kept(options.kept, source.sha256))
            for name, source in zip(names, sources, strict=True)
        ]  # fmt: skip
        return study(models, cases, full=options.full, sources=sources, data=data_sources(files))


def main() -> None:
    parser = arguments(
        full="all test texts, more unlabelled ones, both models", quick="40 texts of each task",
        kept="pareto_scores.jsonl",
    )  # fmt: skip
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
