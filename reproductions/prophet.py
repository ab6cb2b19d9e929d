"""Prophet: how early does a diffusion model know its answer, and what does stopping there cost?

The tiny models of freedave.py, on puzzles that they have not seen.  First the curves: the share of answers that are
already right, or already the final ones, after each fraction of the steps; positions committed by confidence or at
random, with and without "The answer is" in its place from the beginning.  Then stopping: with the published thresholds,
with thresholds fitted to change at most 2 % of answers, after half of the steps, at a fixed step (after as many calls
on average as with the fitted thresholds), and threshold decoding.

  python reproductions/prophet.py            2 seeds of each model
  python reproductions/prophet.py --full     4 seeds, more puzzles
  python reproductions/prophet.py --quick    tiny, no result is written
  python reproductions/prophet.py --plot F   curves as a picture (.png, .svg, .pdf), too
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diffusion_tasks import TASKS, ExitAt, Puzzles, pooled, predictor, puzzles, size_and_cells, source, steps_with_mean
from shared_steps import Cells
from study import arguments, conclude, ratio_figure, run_script, run_study, share_figure

from likely.decoding.diffusion import (
    ConfidenceThreshold,
    ConvergenceRecorder,
    FreeDave,
    Predictor,
    Prophet,
    convergence_curve,
    diffusion_generate,
    draw_convergence,
    fit_thresholds,
)
from likely.decoding.diffusion.proposal import Confidence
from likely.evidence import Check, Evidence, Figure, Source
from likely.training.diffusion.tiny import DEFAULTS, TinySettings

NAME = "prophet"
STATIC, HALF, PUBLISHED, FITTED, EXIT = (
    "static, 1 a step", "static, half of the steps", "Prophet, published thresholds", "Prophet, fitted thresholds",
    "fixed exit",
)  # fmt: skip
THRESHOLDS = (0.9, 0.99)
CONFIDENCE, RANDOM, SUFFIX = "by confidence", "at random", ", with suffix"
EPSILON, DELTA = 0.02, 0.1
MOST_STEPS, MOST_LOST = 0.5, 0.02  # of the steps, of accuracy
FRACTIONS = np.arange(1, 17) / 16


@dataclass(frozen=True)
class Size:
    seeds: tuple[int, ...]
    judged: dict[str, int]
    fitted: int  # puzzles whose traces the thresholds are fitted to
    epsilon: float
    settings: dict[str, TinySettings]


SMOKE = Size(
    (1,), {"sudoku": 6, "addition": 4}, 10, 0.4,
    {name: TinySettings(steps=2, width=16, layers=1, heads=2, batch=4) for name in TASKS},
)  # fmt: skip
QUICK = Size((1, 2), {"sudoku": 300, "addition": 150}, 800, EPSILON, {name: DEFAULTS[name] for name in TASKS})
FULL = Size((1, 2, 3, 4), {"sudoku": 600, "addition": 400}, 1600, EPSILON, {name: DEFAULTS[name] for name in TASKS})


def as_published(given: Puzzles, **how: Any) -> Prophet:
    """The mean gap of the answer's place where it has one, else of all that is masked."""
    return Prophet(region=given.span, **how) if given.suffix else Prophet(**how)


def smallest(given: Puzzles, **how: Any) -> Prophet:
    """The smallest gap of all that is masked: no uncertain position hides behind certain ones."""
    return Prophet(aggregate="min", **how)


def curves(model: Predictor, name: str, count: int, seed: int) -> dict[str, Any]:
    """Condition -> shares decided and right at each fraction; whether each puzzle is at half of the steps."""
    given = puzzles(name, count, 1000 + seed)
    found = {}
    conditions: dict[str, tuple[Confidence, dict[int, int]]] = {
        CONFIDENCE: ("probability", {}), RANDOM: ("random", {})
    }  # fmt: skip
    if given.suffix:
        conditions |= {how + SUFFIX: (proposal, given.suffix) for how, (proposal, _) in conditions.items()}
    for condition, (proposal, pinned) in conditions.items():
        recorder = ConvergenceRecorder(answer=given.span)
        out = diffusion_generate(
            model, given.prompts, length=given.length, proposal=proposal, pinned=pinned, stop=recorder, seed=seed
        )
        traces = recorder.traces(out)
        begin = out.answers.copy()

        def is_right(number: int, tokens: np.ndarray, whole: np.ndarray = begin) -> bool:
            answer = whole[number].copy()
            answer[slice(*given.span)] = tokens
            return given.is_right(number, answer)

        same = [trace.same for trace in traces]
        right = [trace.right(partial(is_right, number)) for number, trace in enumerate(traces)]
        half = [-(-len(row) // 2) - 1 for row in same]
        found[condition] = {
            "same": convergence_curve(same, FRACTIONS).tolist(),
            "right": convergence_curve(right, FRACTIONS).tolist(),
            "same at half": [bool(row[at]) for row, at in zip(same, half, strict=True)],
            "right at half": [bool(row[at]) for row, at in zip(right, half, strict=True)],
            "right at end": [bool(row[-1]) for row in right],
            "stable from": [trace.stable_from / len(trace.gaps) for trace in traces],
        }
    return found


def stopped(model: Predictor, name: str, size: Size, seed: int) -> dict[str, Any]:
    """Way -> of each puzzle: right, changed against static decoding, steps; and what was fitted."""
    given, known = puzzles(name, size.judged[name], 1000 + seed), puzzles(name, size.fitted, 2000 + seed)
    length = given.length
    decode = partial(diffusion_generate, model, length=length, pinned=given.suffix)
    fitted = {}
    for way, rule in ((FITTED, smallest), (f"{FITTED}, mean", as_published)):
        recorder = ConvergenceRecorder(rule(given), given.span)
        traces = recorder.traces(decode(known.prompts, stop=recorder))
        fitted[way] = fit_thresholds(traces, epsilon=size.epsilon, delta=DELTA)
    run = partial(decode, given.prompts)
    static = run()
    stop = smallest(given, thresholds=fitted[FITTED].thresholds)
    outputs = {
        STATIC: static,
        HALF: run(steps=int(static.steps[0]) // 2),
        PUBLISHED: run(stop=as_published(given)),
        f"{PUBLISHED}, smallest gap": run(stop=smallest(given)),
        FITTED: run(stop=stop),
        f"{FITTED}, FreeDave": run(stop=stop, accelerator=FreeDave(4)),
        f"{FITTED}, mean": run(stop=as_published(given, thresholds=fitted[f"{FITTED}, mean"].thresholds)),
    }
    outputs |= {f"threshold {t:g}": run(schedule=ConfidenceThreshold(t)) for t in THRESHOLDS}
    steps = steps_with_mean(float(outputs[FITTED].row_calls.mean()), len(given.prompts))
    outputs[EXIT] = run(stop=ExitAt(steps, int(static.steps[0])))
    span = slice(*given.span)
    found: dict[str, Any] = {
        way: {
            "right": given.right(out.answers),
            "changed": (out.answers[:, span] != static.answers[:, span]).any(axis=1).tolist(),
            "calls": out.row_calls.tolist(),
        }
        for way, out in outputs.items()
    }
    return {"ways": found, "fitted": {way: one.thresholds for way, one in fitted.items()}}


# --- the study --------------------------------------------------------------------------------------------------------


def curve_part(name: str, cells: Sequence[dict[str, Any]]) -> tuple[list[Figure], list[Check], str]:
    figures: list[Figure] = []
    shares = {}
    for condition in cells[0]:
        subject = f"{name}: {condition}"
        for what in ("same at half", "right at half", "right at end"):
            values = pooled(cells, condition, what)
            shares[condition, what] = float(values.mean())
            figures.append(share_figure(subject, what, int(values.sum()), len(values), unit="share of puzzles",
                                        of="puzzles"))  # fmt: skip
        figures.append(ratio_figure(subject, "stable from", pooled(cells, condition, "stable from"),
                                    unit="fraction of the steps", of="puzzles"))  # fmt: skip
    best = CONFIDENCE + SUFFIX if CONFIDENCE + SUFFIX in cells[0] else CONFIDENCE
    checks = [
        Check(statement=f"{name}: answers that are not yet final after half of the steps, {best}",
              value=1 - shares[best, "same at half"], bound=0.5, unit="share of puzzles"),
    ]  # fmt: skip
    if best != CONFIDENCE:
        checks.append(
            Check(statement=f"{name}: final after half of the steps, without the suffix less with it, at random",
                  value=shares[RANDOM, "same at half"] - shares[RANDOM + SUFFIX, "same at half"], bound=0.0,
                  unit="share of puzzles")
        )  # fmt: skip
    return figures, checks, f"{name}: {shares[best, 'same at half']:.1%} final after half of the steps"


def stop_part(name: str, cells: Sequence[dict[str, Any]]) -> tuple[list[Figure], list[Check], str]:
    ways = [cell["ways"] for cell in cells]
    figures: list[Figure] = []
    right, calls, changed = {}, {}, {}
    for way in ways[0]:
        subject = f"{name}: {way}"
        of_way = {what: pooled(ways, way, what) for what in ("right", "changed", "calls")}
        n = len(of_way["right"])
        right[way], changed[way] = float(of_way["right"].mean()), float(of_way["changed"].mean())
        calls[way] = float(of_way["calls"].mean())
        for what in ("right", "changed"):
            figures.append(share_figure(subject, what, int(of_way[what].sum()), n, unit="share of puzzles",
                                        of="puzzles"))  # fmt: skip
        figures.append(ratio_figure(subject, "calls", of_way["calls"], unit="calls per puzzle", of="puzzles"))
        if way != STATIC:
            lost = pooled(ways, STATIC, "right").astype(float) - of_way["right"]
            figures.append(ratio_figure(subject, "accuracy lost", lost, unit="share of puzzles", of="puzzles"))
    n = len(pooled(ways, FITTED, "changed"))
    lower = share_figure(name, "changed", int(changed[FITTED] * n + 0.5), n, unit="1", of="puzzles").low or 0.0
    checks = [
        Check(statement=f"{name}: calls with fitted thresholds over static decoding's", bound=MOST_STEPS,
              value=calls[FITTED] / calls[STATIC], unit="ratio"),
        Check(statement=f"{name}: accuracy lost with fitted thresholds", value=right[STATIC] - right[FITTED],
              bound=MOST_LOST, unit="share of puzzles"),
        Check(statement=f"{name}: answers changed by fitted thresholds, lower end of the interval", value=lower,
              bound=EPSILON, unit="share of puzzles"),
        Check(statement=f"{name}: right by a fixed exit after as many calls, less by fitted thresholds",
              value=right[EXIT] - right[FITTED], bound=0.0, unit="share of puzzles"),
    ]  # fmt: skip
    said = (
        f"{calls[FITTED]:.1f} of {calls[STATIC]:.0f} calls with fitted thresholds ({right[FITTED]:.1%} right, static "
        f"{right[STATIC]:.1%}; {calls[f'{FITTED}, FreeDave']:.1f} with FreeDave), {calls[PUBLISHED]:.1f} with the "
        f"published ones ({right[PUBLISHED]:.1%}), a fixed exit after as many {right[EXIT]:.1%}, half of the steps "
        f"{right[HALF]:.1%}, threshold 0.99 {calls['threshold 0.99']:.1f} calls ({right['threshold 0.99']:.1%})"
    )
    return figures, checks, said


def draw(path: Path, cells: dict[str, list[dict[str, Any]]]) -> None:
    """The mean curve over seeds of every task and condition."""
    shown = {
        f"{name}: {condition}": (FRACTIONS, np.mean([cell[condition]["same"] for cell in found], axis=0))
        for name, found in cells.items()
        for condition in found[0]
    }
    draw_convergence(shown, what="share of answers that are final").savefig(path)


def study(size: Size, cells: Cells, *, full: bool, plot: Path | None = None, threads: int = 1) -> Evidence:
    started = time.process_time()
    figures: list[Figure] = []
    checks: list[Check] = []
    said, models = [], list[Source]()
    shown = {}
    for name in TASKS:
        of_curves, of_stops = [], []
        for seed in size.seeds:
            model, folder = predictor(name, seed, size.settings[name])
            models.append(source(folder))
            of_curves.append(
                cells.value(f"{name} curves {seed}", partial(curves, model, name, size.judged[name], seed))
            )
            of_stops.append(cells.value(f"{name} stops {seed}", partial(stopped, model, name, size, seed)))
        shown[name] = of_curves
        parts = curve_part(name, of_curves), stop_part(name, of_stops)
        figures += [figure for part in parts for figure in part[0]]
        checks += [check for part in parts for check in part[1]]
        said.append(", ".join(part[2] for part in parts))
    if plot is not None:
        draw(plot, shown)
    return conclude(
        NAME,
        title="Prophet: diffusion language models know the answer before decoding",
        claim=(
            "Most answers are final long before the last step; the gap between the two most likely tokens tells when, "
            "and stopping there costs next to no accuracy."
        ),
        paper_figure=(
            "97 % (GSM8K) and 99 % (MMLU) of answers right after half of the steps; up to 3.4 times fewer steps, "
            "LLaDA-8B and Dream-7B"
        ),
        ours="; ".join(said),
        figures=figures,
        checks=checks,
        samples=(
            f"{len(size.seeds)} models a task, those of freedave.py; of each {size.judged['sudoku']} grids and "
            f"{size.judged['addition']} sums that were held out; thresholds fitted to {size.fitted} others for at most "
            f"{size.epsilon:.0%} changed answers, delta {DELTA:g}; they look at the "
            f'smallest gap of what is masked; in addition "The answer is" is given, but for the curves that say not'
        ),
        intervals="95 %: Wilson for shares, percentile bootstrap over puzzles for calls and differences",
        full=full,
        models=models,
        threads=threads,
        seconds=time.process_time() - started,
        not_shown=[
            "LLaDA-8B and Dream-7B; GSM8K, MMLU and the paper's other tasks.",
            "Wall time: a step is one call, whatever stops it.",
            "seconds are of the processor, not of the clock, and of the cells that this run measured.",
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence | None:
    size, cells = size_and_cells(options, quick=QUICK, smoke=SMOKE, full=FULL)
    return study(size, cells, full=options.full, plot=options.plot, threads=options.threads)


def main() -> None:
    parser = arguments(full="more seeds and puzzles", quick="tiny", threads="of torch", kept=f"studies/{NAME}.jsonl")
    parser.add_argument("--plot", type=Path, help="file of a picture of the curves")
    parser.set_defaults(threads=1)
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
