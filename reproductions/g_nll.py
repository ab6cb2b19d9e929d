"""G-NLL: does the likelihood of the one greedy answer tell right from wrong as well as ten samples do?

(a) A small transformer is trained on answers whose law is known, so that all its texts can be listed: how does each
estimator order the inputs, against 1 − max p and against the true probability that the greedy answer is wrong?
(b) SmolLM2 and Gemma answer closed-book questions (capitals, opposites, sums) after three examples: AUROC of each
estimator for the greedy answer being right, and what it costs in generated tokens.

  python reproductions/g_nll.py            100 questions of each kind
  python reproductions/g_nll.py --quick    a smoke run of 10, not written
  python reproductions/g_nll.py --full     all of them (about 200 to 300)
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from closed_book import TASKS, Question, questions
from numpy.typing import NDArray
from scipy.stats import spearmanr
from study import arguments, conclude, figure_with, model_source, run_script, run_study

import likely
from likely.evidence import Check, Evidence, Figure, Source
from likely.lm.model import Model
from likely.metrics.bootstrap import interval
from likely.metrics.grading import same_number, same_text
from likely.metrics.intervals import wilson
from likely.metrics.ranking import auroc
from likely.models.load import ModelInfo
from likely.runtimes.toy import CharTokenizer
from likely.uncertainty.planner import gather
from likely.uncertainty.table import estimate
from likely.uncertainty.types import Gathered

SAMPLES = 10
GREEDY = ("g_nll", "mean_nll")
SAMPLED = (
    "predictive_entropy", "ln_predictive_entropy", "discrete_semantic_entropy", "semantic_entropy",
)  # fmt: skip
METHODS = (*GREEDY, *SAMPLED)
RESAMPLES = 1000
TIE = 1e-6
FEW = 10  # right answers, or wrong ones: with fewer an AUROC is noise

# --- (a) a language that can be listed --------------------------------------------------------------------------------

LETTERS = "abcdef"
LONGEST = 5  # tokens of an answer, its end included
Law = dict[str, float]


def languages(count: int, seed: int) -> dict[str, Law]:
    """For each of `count` inputs (three letters) the law of its answers: 1 to 6 of them, from even to lopsided."""
    rng = np.random.default_rng(seed)
    inputs = ["".join(t) for t in itertools.product(LETTERS, repeat=3)]
    rng.shuffle(inputs)
    out = {}
    for name in inputs[:count]:
        answers: set[str] = set()
        size = rng.integers(1, 7)
        while len(answers) < size:
            answers.add("".join(rng.choice(list(LETTERS), rng.integers(1, LONGEST))))
        law = rng.dirichlet(np.full(len(answers), rng.choice([0.3, 1.0, 5.0])))
        out[name] = dict(zip(sorted(answers), law.tolist(), strict=True))
    return out


def train(laws: dict[str, Law], *, steps: int, seed: int = 0) -> Model:
    """A Llama of two layers that learns these laws from draws."""
    import torch
    import transformers

    from likely.runtimes.torch.runtime import TorchRuntime

    torch.set_num_threads(1)
    tokenizer = CharTokenizer(LETTERS, add_bos=True)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = transformers.LlamaForCausalLM(config)
    rows, weights = [], []
    for name, law in laws.items():
        for answer, p in law.items():
            ids = [tokenizer.bos_id, *tokenizer.encode(name), *tokenizer.encode(answer), tokenizer.eos_id]
            rows.append(ids + [-100] * (4 + LONGEST - len(ids)))
            weights.append(p)
    table = torch.tensor(rows)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        batch = table[torch.multinomial(torch.tensor(weights), 128, replacement=True, generator=generator)]
        logits = module(input_ids=batch.clamp_min(0)).logits
        loss = torch.nn.functional.cross_entropy(logits[:, 3:-1].flatten(0, 1), batch[:, 4:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Model(TorchRuntime(module), tokenizer, ModelInfo("small", "small", "torch", "float32", "0", "chars", False))


def most_likely(lm: Model, name: str) -> float:
    """max_y p(y | input) over every text of at most five tokens (one without an end counts as cut), by enumeration."""
    import torch

    tokenizer: Any = lm.tokenizer
    others = [t for t in range(tokenizer.vocab_size) if t != tokenizer.eos_id]
    prefixes = torch.tensor(list(itertools.product(others, repeat=LONGEST - 1)))
    head = torch.tensor([tokenizer.bos_id, *tokenizer.encode(name)]).expand(len(prefixes), -1)
    with torch.no_grad():
        logits = lm.runtime.module(input_ids=torch.cat([head, prefixes], 1)).logits[:, 3:]  # type: ignore[attr-defined]
    law = logits.double().log_softmax(-1)  # (7^4, 5, V)
    best, path = -np.inf, torch.zeros(len(prefixes), dtype=torch.double)
    for at in range(LONGEST):
        here = path[:, None] + law[:, at]
        best = max(best, float(here[:, tokenizer.eos_id].max()))
        if at == LONGEST - 1:
            best = max(best, float(here.max()))
        else:
            path = here.gather(1, prefixes[:, at : at + 1])[:, 0]
    return float(np.exp(best))


def rank_correlation(a: Any, b: Any) -> float:
    """Spearman's ρ; NaN where one of the two does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def enumerable(count: int, steps: int) -> tuple[list[Figure], list[Check], str]:
    """Part (a)."""
    laws = languages(count, 0)
    lm = train(laws, steps=steps)
    names = list(laws)
    gathered = gather(lm, names, needs=[*METHODS, "m_nll"], samples=SAMPLES, max_tokens=LONGEST, beams=4)
    found = estimate(gathered, [*METHODS, "m_nll"])
    error = np.array([1 - laws[n].get(t, 0.0) for n, t in zip(names, gathered.texts("greedy").texts, strict=True)])
    unsure = np.array([1 - most_likely(lm, name) for name in names])
    figures = []
    for quantity, truth in (("ρ with 1 − max p", unsure), ("ρ with the true error", error)):
        for name, values in found.items():
            figures.append(_figure(f"enumerable: {name}", quantity, rank_correlation, -values.certainty, truth))
    rho = {(f.subject, f.quantity): f.value for f in figures}
    least = float((found["g_nll"].values + np.log1p(-unsure)).min())
    g, pe = (rho[f"enumerable: {m}", "ρ with 1 − max p"] for m in ("g_nll", "predictive_entropy"))
    checks = [
        Check(statement="enumerable: Spearman's ρ of G-NLL with 1 − max p is above 0.95", value=-g, bound=-0.95,
              unit="-ρ"),
        Check(statement=f"enumerable: that of the predictive entropy of {SAMPLES} samples is below 0.9", value=pe,
              bound=0.9, unit="ρ"),
        Check(statement="enumerable: G-NLL is never below the exact −log max p (largest shortfall)", value=-least,
              bound=1e-4, unit="nats"),
    ]  # fmt: skip
    said = (
        f"on a language that can be listed, ρ with 1 − max p is {g:.3f} for G-NLL and {pe:.3f} for the predictive "
        f"entropy of {SAMPLES} samples; with the true error "
        f"{rho['enumerable: g_nll', 'ρ with the true error']:.3f} and "
        f"{rho['enumerable: predictive_entropy', 'ρ with the true error']:.3f}"
    )
    return figures, checks, said


def _figure(subject: str, quantity: str, metric: Callable[..., float], *arrays: NDArray) -> Figure:
    ends = interval(metric, *arrays, resamples=RESAMPLES)
    unit = "Spearman's ρ" if metric is rank_correlation else "AUROC"
    of = "inputs" if metric is rank_correlation else "questions"
    return figure_with(subject, quantity, metric(*arrays), ends, unit=unit, n=len(arrays[0]), of=of)


# --- (b) closed-book questions ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """One model on one kind of questions.

    certainty  per method (N,), higher is surer;  correct (N,);  tokens: generated, (greedy, samples)
    """

    certainty: dict[str, NDArray[np.float64]]
    correct: NDArray[np.int64]
    tokens: tuple[int, int]

    @property
    def told_apart(self) -> bool:
        """Whether there are right and wrong answers."""
        return 0 < int(self.correct.sum()) < len(self.correct)


def is_right(task: str, text: str, question: Question) -> bool:
    same = same_number if task == "sums" else same_text
    return any(same(text, answer) for answer in question.answers)


def answer(lm: Any, task: str, asked: Sequence[Question]) -> Answered:
    gathered: Gathered = gather(
        lm, [q.prompt(task) for q in asked], needs=METHODS, samples=SAMPLES, max_tokens=12, stop="\n",
        shown=[q.question for q in asked],
    )  # fmt: skip
    greedy, samples = gathered.texts("greedy"), gathered.texts("samples")
    return Answered(
        {name: u.certainty for name, u in estimate(gathered, METHODS).items()},
        np.array([int(is_right(task, text, q)) for text, q in zip(greedy.texts, asked, strict=True)]),
        (int(greedy.lengths.sum()), int(samples.lengths.sum())),
    )


def mean_auroc(found: Sequence[Answered], method: str, rows: Sequence[NDArray[np.int64]] | None = None) -> float:
    """Mean over kinds of questions and models; rows: which questions of each."""
    taken = rows or [np.arange(len(f.correct)) for f in found]
    return float(np.mean([auroc(f.certainty[method][r], f.correct[r]) for f, r in zip(found, taken, strict=True)]))


def resampled(found: Sequence[Answered], of: Callable[[Sequence[NDArray[np.int64]]], float]) -> tuple[float, float]:
    """95 % percentile bootstrap over the questions of each kind; resamples in which all are right or wrong are out."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES):
        rows = [rng.integers(0, len(f.correct), len(f.correct)) for f in found]
        if all(0 < f.correct[r].sum() < len(r) for f, r in zip(found, rows, strict=True)):
            values.append(of(rows))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def compared(answered: dict[str, Answered]) -> tuple[list[Figure], list[Check], str]:
    """Part (b) from what was answered, per "model: kind"."""
    figures, usable = [], {name: f for name, f in answered.items() if f.told_apart}
    for name, found in answered.items():
        n = len(found.correct)
        figures.append(
            Figure(
                subject=f"{name}: greedy answers", quantity="accuracy", value=float(found.correct.mean()), unit="share",
                n=n, of="questions",
                **dict(zip(("low", "high"), wilson(int(found.correct.sum()), n), strict=True)),
            )
        )  # fmt: skip
        if name in usable:
            for method in METHODS:
                figures.append(_figure(f"{name}: {method}", "AUROC", auroc, found.certainty[method], found.correct))
    if not usable:
        raise ValueError("in no set are some answers right and some wrong: nothing to tell apart")
    every = list(usable.values())
    total = sum(len(f.correct) for f in every)
    means = {method: mean_auroc(every, method) for method in METHODS}
    for method in METHODS:
        ends = resampled(every, lambda rows, m=method: mean_auroc(every, m, rows))  # type: ignore[misc]
        subject = f"mean of {len(every)} sets: {method}"
        figures.append(figure_with(subject, "AUROC", means[method], ends, unit="AUROC", n=total, of="questions"))
    best = max(SAMPLED, key=lambda m: means[m])
    for other in dict.fromkeys((best, "ln_predictive_entropy")):

        def gain(rows: Sequence[NDArray[np.int64]], other: str = other) -> float:
            return mean_auroc(every, "g_nll", rows) - mean_auroc(every, other, rows)

        value, ends = means["g_nll"] - means[other], resampled(every, gain)
        subject = f"mean of {len(every)} sets: G-NLL less {other}"
        figures.append(figure_with(subject, "AUROC", value, ends, unit="AUROC", n=total, of="questions"))
    greedy, sampled = (sum(f.tokens[i] for f in answered.values()) for i in (0, 1))
    figures.append(
        Figure(
            subject="generated tokens", quantity="greedy / samples", value=greedy / sampled, unit="times", n=sampled,
            of="tokens", note="a count, not an estimate",
        )
    )  # fmt: skip
    checks = [
        Check(statement=f"the best sampling estimator ({best}) is at most 0.02 above G-NLL in mean AUROC",
              value=means[best] - means["g_nll"], bound=0.02, unit="AUROC"),
        Check(statement="the length-normalised predictive entropy is below G-NLL in mean AUROC",
              value=means["ln_predictive_entropy"] - means["g_nll"], bound=-TIE, unit="AUROC"),
        Check(statement="G-NLL generates at most an eighth of the samples' tokens", value=greedy / sampled, bound=0.125,
              unit="times"),
    ]  # fmt: skip
    said = (
        f"mean AUROC over {len(every)} sets of questions: G-NLL {means['g_nll']:.3f}, best of {SAMPLES} samples "
        f"({best}) {means[best]:.3f}, length-normalised predictive entropy {means['ln_predictive_entropy']:.3f}, "
        f"at {greedy / sampled:.3f} times the generated tokens"
    )
    return figures, checks, said


def caveats(figures: Sequence[Figure]) -> list[str]:
    """What the figures themselves say against leaning on them."""
    out = []
    for figure in figures:
        right = round(figure.value * figure.n)
        if figure.quantity == "accuracy" and 0 < min(right, figure.n - right) < FEW:
            out.append(
                f"{figure.subject}: {right} of {figure.n} are right, too few for its AUROC, which weighs as much in "
                f"the mean as the others."
            )
        if " less " in figure.subject and figure.low is not None and figure.low <= 0:
            out.append(f"{figure.subject}: the sign is not certain, the interval holds 0.")
    return out


# --- together ---------------------------------------------------------------------------------------------------------


def study(
    models: dict[str, Callable[[], Any]],
    *,
    count: int | None,
    full: bool,
    sources: Sequence[Source],
    inputs: int = 150,
    steps: int = 800,
    report: Callable[[str], None] = print,
) -> Evidence:
    """Both parts; models: how each is opened."""
    started = time.perf_counter()
    figures, checks, said = enumerable(inputs, steps)
    report(said)
    answered = {}
    for name, opened in models.items():
        with opened() as lm:
            for task in TASKS:
                answered[f"{name}: {task}"] = found = answer(lm, task, questions(task, count))
                report(
                    f"{name}: {task}: {found.correct.mean():.0%} of {len(found.correct)} right, {found.tokens} tokens"
                )
    more, bounds, line = compared(answered)
    report(line)
    checks += bounds
    left_out = [name for name, f in answered.items() if not f.told_apart]
    return conclude(
        "g_nll",
        title="Rethinking Uncertainty Estimation in NLG (G-NLL)",
        claim=(
            "The negative log-likelihood of the one greedy answer tells right answers from wrong ones as well as "
            "estimators that need ten samples."
        ),
        paper_figure="State of the art across models and tasks with a single output sequence (stated without a number)",
        ours=f"{said}; {line}",
        figures=[*figures, *more],
        checks=checks,
        samples=f"{inputs} inputs of the enumerable language; "
        + ", ".join(f"{len(f.correct)} {name}" for name, f in answered.items())
        + f"; {SAMPLES} samples each at temperature 1",
        intervals=f"95 %, percentile bootstrap over inputs or questions, {RESAMPLES} resamples, fixed seed; "
        "accuracies: Wilson",
        full=full,
        models=sources,
        data=[],
        seconds=time.perf_counter() - started,
        not_shown=[
            "The paper's models of 7 to 70 billion parameters and its data sets.",
            "Semantic entropy with a model of entailment: here answers are one meaning if their words or their value "
            "are the same, which suits answers of a word or two.",
            *caveats(more),
            *([f"AUROC where all answers are right or all wrong: {', '.join(left_out)}."] if left_out else []),
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    names = ("smollm2", "gemma3")
    size = {"count": 10, "inputs": 20, "steps": 100} if options.quick else {"count": None if options.full else 100}
    return study(
        {name: partial(likely.load, name, runtime="llamacpp", threads=1) for name in names}, full=options.full,
        sources=[model_source(name) for name in names], **size,
    )  # fmt: skip


def main() -> None:
    run_study(arguments(full="all questions", quick="a smoke run: 10 questions of each kind"), measure)


if __name__ == "__main__":
    run_script(main)
