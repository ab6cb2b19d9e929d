"""Guided generation: does a form hold, what does it cost, how does it distort, and what does it save?

(a) JSON for function schemas, greedy: how often the text is valid, without a form, with one, and with one that closes
    within the token budget.
(b) The engine's share (masks, states) of the time of a guided step.
(c) Yes, no or maybe: the law of masked texts, of importance sampling and of sequential Monte Carlo, against the model's
    own law given the choices, which is enumerated.
(d) Tokens that follow from the form alone, and the time with and without drafting them.

  python reproductions/guided_base.py           20 schemas, 3 questions, 4 seeds
  python reproductions/guided_base.py --full   100 schemas, 12 questions, 8 seeds
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import guided_choices
import numpy as np
from function_schemas import FILE, Case, cases, follows, holds, share
from study import (
    arguments,
    conclude,
    data_sources,
    model_source,
    ratio_figure,
    report,
    run_script,
    run_study,
    share_figure,
)

import likely
from likely.decoding.constraint import Constraint
from likely.evidence import Check, Evidence, Figure, Source
from likely.guided.form import make_form
from likely.guided.settings import FormSettings
from likely.io.kept import KeptValues
from likely.runtimes.machine import cores

MODELS = ("smollm2", "gemma3")
PARTICLES = 64
RESAMPLES = 2000
ENGINE = "engine's time / time of a step"


# --- what a constraint costs, and what it saves -----------------------------------------------------------------------


@dataclass(eq=False)
class Timed:
    """A constraint and the seconds spent in it, those of its copies included; `drafts=False` hides what it forces."""

    inner: Constraint
    drafts: bool = True
    clock: list[float] = field(default_factory=lambda: [0.0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            self.clock[0] += time.perf_counter() - started

    def allowed(self, remaining: int | None = None) -> Any:
        return self._timed(self.inner.allowed, remaining)

    def permits(self, token: int) -> bool:
        return self._timed(self.inner.permits, token)

    def advance(self, token: int) -> None:
        self._timed(self.inner.advance, token)

    def rollback(self, n: int) -> None:
        self._timed(self.inner.rollback, n)

    def forced(self) -> list[int]:
        return self._timed(self.inner.forced) if self.drafts else []

    def fork(self) -> Timed:
        return Timed(self._timed(self.inner.fork), self.drafts, self.clock)


def text_of(lm: likely.Model, case: Case) -> str:
    """The prompt as the model sees it."""
    if lm.template is None:
        return f"{case.prompt}\n\nJSON:\n"
    return lm.render([{"role": "user", "content": case.prompt}]).text


# --- the four parts ---------------------------------------------------------------------------------------------------


def validity(lm: likely.Model, name: str, asked: Sequence[Case], max_tokens: int) -> tuple[list[Figure], list[Check]]:
    """(a) Greedy texts, batched."""
    texts = [text_of(lm, case) for case in asked]
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens, "drafter": None}
    plain = lm.generate(texts, **options)
    flags: dict[str, list[bool]] = {
        "no form, the whole text": [follows(g.text, c.schema) for g, c in zip(plain, asked, strict=True)],
        "no form, the first object in it": [holds(g.text, c.schema) for g, c in zip(plain, asked, strict=True)],
    }
    cut = 0
    for arm, closes in (("form", False), ("form that closes within the budget", True)):
        made = [
            lm.generate(text, schema=case.schema, close_on_budget=closes, **options)
            for text, case in zip(texts, asked, strict=True)
        ]
        flags[arm] = [follows(g.text, c.schema) for g, c in zip(made, asked, strict=True)]
        if not closes:
            cut = sum(not g.complete for g in made)
            wrong = sum(bool(g.complete) and not valid for g, valid in zip(made, flags[arm], strict=True))
    figures = []
    for arm, found in flags.items():
        valid, n = share(found)
        figures.append(share_figure(f"{name}, {arm}", "valid", valid, n, unit="share of texts", of="schemas"))
    figures.append(
        share_figure(f"{name}, form", "cut by max_tokens", cut, len(asked), unit="share of texts", of="schemas")
    )
    open_valid, n = share(flags["no form, the whole text"])
    closed_invalid = flags["form that closes within the budget"].count(False)
    bounds = (
        ("valid texts without a form", open_valid / n, 0.6, "share of texts"),
        ("whole texts of a form that are invalid", wrong, 0, "texts"),
        ("invalid texts of a form that closes within the budget", closed_invalid, 0, "texts"),
    )
    checks = [Check(statement=f"{name}: {what}", value=v, bound=b, unit=unit) for what, v, b, unit in bounds]
    return figures, checks


def costs(lm: likely.Model, name: str, asked: Sequence[Case], max_tokens: int) -> tuple[list[Figure], list[Check]]:
    """(b) and (d): greedy, one text at a time; with and without drafts of forced tokens, in turn."""
    engine: list[float] = []
    whole: list[float] = []
    forced: list[int] = []
    tokens: list[int] = []
    seconds: dict[bool, list[float]] = {True: [], False: []}
    same = 0
    for number, case in enumerate(asked):
        text = text_of(lm, case)
        form = make_form(schema=case.schema, settings=FormSettings())
        options: dict[str, Any] = {"temperature": 0.0, "drafter": None}
        made = {}
        for drafts in (True, False) if number % 2 else (False, True):
            timed = Timed(lm.guide.constraint(form), drafts)
            started = time.perf_counter()
            lm.generate(text, max_tokens=1, **options)
            prefill_s = time.perf_counter() - started
            started = time.perf_counter()
            made[drafts] = lm.generate(text, max_tokens=max_tokens, constraint=timed, **options)
            spent = time.perf_counter() - started - prefill_s
            seconds[drafts].append(spent)
            if not drafts:
                engine.append(timed.clock[0])
                whole.append(spent)
        forced.append(made[True].accepted)
        tokens.append(len(made[True].token_ids or ()))
        same += made[True].token_ids == made[False].token_ids
    ratios = {
        (ENGINE, "share"): (engine, whole),
        ("forced tokens", "share of tokens"): (forced, tokens),
        ("time with drafts of forced tokens / without", "ratio"): (seconds[True], seconds[False]),
    }
    subject = f"{name}, form that closes within the budget"
    figures = [
        ratio_figure(subject, quantity, top, bottom, unit=unit, of="schemas", resamples=RESAMPLES)
        for (quantity, unit), (top, bottom) in ratios.items()
    ]
    figures.append(
        share_figure(
            subject, "same text with drafts of forced tokens", same, len(asked), unit="share of texts", of="schemas"
        )
    )
    return figures, [
        Check(
            statement=f"{name}: the engine's share of the time of a guided step", value=sum(engine) / sum(whole),
            bound=0.02, unit="share",
        ),
        Check(
            statement=f"{name}: time with drafts of forced tokens / without, upper end of the 95 % interval",
            value=figures[2].high or 0.0, bound=1.0, unit="ratio",
        ),
    ]  # fmt: skip


def distortion(
    lm: likely.Model, name: str, questions: Sequence[str], seeds: int, particles: int
) -> tuple[list[Figure], list[Check]]:
    """(c) Total variation from the enumerated law, per question."""
    found = [guided_choices.measure(lm, q, seeds=seeds, particles=particles) for q in questions]
    distances = {arm: np.array([m.distance(arm) for m in found]) for arm in found[0].laws}
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(found), (RESAMPLES, len(found)))

    def interval(values: np.ndarray) -> tuple[float, float, float]:
        low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
        mean = float(values.mean())
        return mean, min(float(low), mean), max(float(high), mean)

    figures = []
    for arm, values in distances.items():
        mean, low, high = interval(values)
        subject = f"{name}, {arm}" if arm.startswith("local") else f"{name}, {arm}, {particles} particles"
        figures.append(
            Figure(
                subject=subject, quantity="total variation", value=mean, unit="probability", n=len(found),
                of="questions", low=low, high=high,
            )
        )  # fmt: skip
    checks = []
    for arm in ("importance", "smc"):
        _, _, high = interval(distances[arm] - distances["local, exact"])
        checks.append(
            Check(
                statement=f"{name}: total variation of {arm} less that of masking: upper end of the 95 % interval",
                value=high, bound=0.0, unit="probability",
            )
        )  # fmt: skip
    return figures, checks


# --- the study --------------------------------------------------------------------------------------------------------


def study(
    models: dict[str, likely.Model],
    asked: Sequence[Case],
    *,
    max_tokens: int,
    questions: Sequence[str],
    seeds: int,
    particles: int = PARTICLES,
    full: bool,
    sources: Sequence[Source],
    data: Sequence[Source],
    kept: Path | None = None,
    report: Callable[[str], None] = print,
) -> Evidence:
    """kept  folder in which every part is kept as soon as it is done, so that a stopped run goes on from there"""
    started = time.perf_counter()
    done = KeptValues(None if kept is None else kept / "parts.jsonl")
    found: dict[tuple[str, str], tuple[list[Figure], list[Check]]] = {}
    parts = {  # what is timed comes first, for all models
        "costs": lambda lm, name: costs(lm, name, asked[: max(5, len(asked) // 4)], max_tokens),
        "validity": lambda lm, name: validity(lm, name, asked, max_tokens),
        "choices": lambda lm, name: distortion(lm, name, questions, seeds, particles),
    }
    for part, run in parts.items():
        for name, lm in models.items():
            key = f"{name}-{part}-{len(asked)}-{max_tokens}-{len(questions)}-{seeds}-{particles}"
            if key not in done:
                done.add({key: [[one.model_dump() for one in ones] for ones in run(lm, name)]})
            found[name, part] = [Figure(**f) for f in done[key][0]], [Check(**c) for c in done[key][1]]
            report(f"{name}: {part} done after {time.perf_counter() - started:.0f} s")
    figures = [f for name in models for part in ("validity", "costs", "choices") for f in found[name, part][0]]
    checks = [c for name in models for part in ("validity", "costs", "choices") for c in found[name, part][1]]
    value = {(f.subject, f.quantity): f.value for f in figures}
    ours = []
    for name in models:
        closed = f"{name}, form that closes within the budget"
        ours.append(
            f"{name}: valid {value[f'{name}, no form, the whole text', 'valid']:.0%} without a form, "
            f"{value[closed, 'valid']:.0%} with one; the engine takes "
            f"{value[closed, ENGINE]:.1%} of a step; total variation "
            f"{value[f'{name}, local, exact', 'total variation']:.3f} by masking, "
            f"{value[f'{name}, smc, {particles} particles', 'total variation']:.3f} by smc"
        )
    return conclude(
        "guided_base",
        title="Guided generation: does the form hold, what does it cost, what does it distort?",
        claim=(
            "A form is held by every text that is not cut, and by every text where it closes within the budget; masks "
            "take under 2 % of a step; weighting by the masses of the masks brings the law of a choice nearer to the "
            "model's own; drafting forced tokens saves time."
        ),
        paper_figure=None,
        ours="; ".join(ours),
        figures=figures,
        checks=checks,
        samples=(
            f"{len(asked)} function schemas (greedy, at most {max_tokens} tokens), a quarter of them timed; "
            f"{len(questions)} questions of yes, no or maybe, {seeds} seeds of {particles} particles"
        ),
        intervals=f"95 %: Wilson for shares of texts, else percentile bootstrap over schemas or questions, {RESAMPLES} "
        "resamples, fixed seed",
        full=full,
        models=sources,
        data=data,
        threads=cores(),
        seconds=time.perf_counter() - started,
        not_shown=[
            "Whether a form makes answers righter or wronger: validity is of form only, on models that are too small "
            "for the task.",
            "Models above 270M parameters, where the same masks are a smaller share of a step.",
            "Laws over long texts: the choices are few tokens long, so that the exact law can be enumerated. Whether "
            "64 particles are enough for a long text is told by its effective sample size only.",
            "The laws of importance sampling and smc are averages of normalised weights over seeds; their noise is "
            "part of the distance shown.",
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence:
    count, questions, seeds = (100, 12, 8) if options.full else (3, 1, 1) if options.quick else (20, 3, 4)
    with ExitStack() as opened:
        models = {
            name: opened.enter_context(likely.load(name, runtime="llamacpp", threads=options.threads))
            for name in MODELS
        }
        return study(
            models, cases(count), max_tokens=32 if options.quick else 128,
            questions=guided_choices.QUESTIONS[:questions], seeds=seeds, full=options.full,
            sources=[model_source(name) for name in MODELS], data=data_sources([FILE]), kept=options.kept,
            report=report,
        )  # fmt: skip


def main() -> None:
    parser = arguments(
        full="100 schemas, 12 questions, 8 seeds", quick="a smoke run: 3 schemas, 1 question, 1 seed",
        threads="of the runtime; what is timed wants all cores",
    )  # fmt: skip
    parser.add_argument("--kept", type=Path, help="folder of the parts that are done: a stopped run goes on from there")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
