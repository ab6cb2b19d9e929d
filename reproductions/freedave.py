"""FreeDave: are the answers of a diffusion model the same with drafts, and how many calls does it take?

Two tiny models, trained here on 4x4 Sudoku and on addition with its work; puzzles that they have not seen.  Static
decoding of one token a step is the reference.  Against it: FreeDave with 2, 4 and 8 drafts, also inside blocks and
sampled with keyed noise; static decoding of 2 and 4 tokens a step; threshold decoding; and leaving off at a fixed step,
after as many calls as FreeDave takes.

  python reproductions/freedave.py            2 seeds of each model
  python reproductions/freedave.py --full     4 seeds, more puzzles
  python reproductions/freedave.py --quick    tiny, no result is written
  python reproductions/freedave.py --timing   wall time of single puzzles too
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from diffusion_tasks import END, TASKS, ExitAt, pooled, predictor, puzzles, size_and_cells, source, steps_with_mean
from shared_steps import Cells
from study import arguments, conclude, figure_with, ratio_figure, run_script, run_study, share_figure

from likely.bench import interleaved, speedup
from likely.decoding.diffusion import ConfidenceThreshold, DiffusionOutput, FreeDave, Predictor, diffusion_generate
from likely.evidence import Check, Evidence, Figure, Source
from likely.training.diffusion.tiny import DEFAULTS, TinySettings

NAME = "freedave"
STATIC, BLOCKS, SAMPLED, EXIT = "static, 1 a step", "static, blocks", "static, sampled", "fixed exit"
DRAFTS, THRESHOLDS = (2, 4, 8), (0.8, 0.9, 0.95, 0.99)
OURS = "FreeDave, 4 drafts"
LEAST = 1.8  # times fewer calls than static decoding


@dataclass(frozen=True)
class Size:
    seeds: tuple[int, ...]
    puzzles: dict[str, int]
    timed: int
    rounds: int
    settings: dict[str, TinySettings]


SMOKE = Size(
    (1,), {"sudoku": 4, "addition": 3}, 1, 2,
    {name: TinySettings(steps=2, width=16, layers=1, heads=2, batch=4) for name in TASKS},
)  # fmt: skip
QUICK = Size((1, 2), {"sudoku": 150, "addition": 100}, 8, 5, {name: DEFAULTS[name] for name in TASKS})
FULL = Size((1, 2, 3, 4), {"sudoku": 400, "addition": 300}, 20, 7, {name: DEFAULTS[name] for name in TASKS})


def ways(length: int) -> dict[str, dict[str, Any]]:
    """Settings of every way of decoding but the fixed exit."""
    block = {"block_length": 8}
    found: dict[str, dict[str, Any]] = {STATIC: {}, BLOCKS: block, SAMPLED: {"temperature": 0.7}}
    found |= {f"static, {n} a step": {"steps": length // n} for n in (2, 4)}
    found |= {f"FreeDave, {k} drafts": {"accelerator": FreeDave(k)} for k in DRAFTS}
    found["FreeDave, blocks"] = block | {"accelerator": FreeDave(4)}
    found["FreeDave, across blocks"] = block | {"accelerator": FreeDave(4, across_blocks=True)}
    found["FreeDave, sampled"] = {"temperature": 0.7, "accelerator": FreeDave(4)}
    found |= {f"threshold {t:g}": {"schedule": ConfidenceThreshold(t)} for t in THRESHOLDS}
    found["threshold 0.99 with 4 drafts"] = {"schedule": ConfidenceThreshold(0.99), "accelerator": FreeDave(4)}
    return found


def reference(way: str) -> str:
    """The static decoding that a way must equal, or is compared with."""
    if "blocks" in way:
        return BLOCKS
    return SAMPLED if "sampled" in way else STATIC


def decoded(model: Predictor, name: str, count: int, seed: int) -> dict[str, dict[str, Any]]:
    """Way -> of each puzzle: right, same as the reference (answer, order), calls; canvases of all."""
    given = puzzles(name, count, 1000 + seed)
    length, outputs = given.length, dict[str, DiffusionOutput]()
    run = partial(diffusion_generate, model, given.prompts, length=length, seed=seed)
    for way, settings in ways(length).items():
        outputs[way] = run(**settings)
    at = steps_with_mean(float(outputs[OURS].row_calls.mean()), count)
    outputs[EXIT] = run(stop=ExitAt(at, length))
    found = {}
    for way, out in outputs.items():
        of = outputs[reference(way)]
        found[way] = {
            "right": given.right(out.answers),
            "same": (out.answers == of.answers).all(axis=1).tolist(),
            "same order": (out.order == of.order).all(axis=1).tolist(),
            "calls": out.row_calls.tolist(),
            "canvases": out.branch_calls,
            "tokens": int((of.answers != END).sum()),
        }
    return found


def timed(model: Predictor, name: str, size: Size) -> dict[str, list[float]]:
    """Seconds a round of single puzzles, by way, interleaved."""
    given = puzzles(name, size.timed, 5000)
    auto = FreeDave("auto")

    def one_by_one(settings: Mapping[str, Any]) -> None:
        for prompt in given.prompts:
            diffusion_generate(model, prompt, length=given.length, **settings)

    chosen = {way: ways(given.length)[way] for way in (STATIC, OURS, "threshold 0.99")} | {
        "FreeDave, as many as pay": {"accelerator": auto}
    }
    runs = {way: partial(one_by_one, settings) for way, settings in chosen.items()}
    return {way: timing.seconds for way, timing in interleaved(runs, rounds=size.rounds, warmup=2).items()}


# --- the study --------------------------------------------------------------------------------------------------------


def figures_of(name: str, cells: Sequence[Mapping[str, Any]]) -> list[Figure]:
    figures = []
    for way in cells[0]:
        right, same, calls = (pooled(cells, way, what) for what in ("right", "same", "calls"))
        subject = f"{name}: {way}"
        n = len(right)
        figures.append(share_figure(subject, "right", int(right.sum()), n, unit="share of puzzles", of="puzzles"))
        figures.append(share_figure(subject, "same", int(same.sum()), n, unit="share of puzzles", of="puzzles"))
        figures.append(ratio_figure(subject, "calls", calls, unit="calls per puzzle", of="puzzles"))
        canvases = sum(cell[way]["canvases"] for cell in cells) / n
        figures.append(Figure(subject=subject, quantity="canvases", value=canvases, unit="canvases per puzzle", n=n,
                              of="puzzles", note="a total, without an interval"))  # fmt: skip
        if way.startswith("FreeDave"):
            figures.append(ratio_figure(subject, "times fewer calls", pooled(cells, reference(way), "calls"), calls,
                                        unit="ratio", of="puzzles"))  # fmt: skip
    return figures


def checks_of(name: str, cells: Sequence[Mapping[str, Any]]) -> list[Check]:
    drafted = [way for way in cells[0] if way.startswith("FreeDave")]
    other = max(1 - pooled(cells, way, "same").mean() for way in drafted)
    more = max(int((pooled(cells, way, "calls") - pooled(cells, reference(way), "calls")).max()) for way in drafted)
    fewer = pooled(cells, STATIC, "calls").sum() / pooled(cells, OURS, "calls").sum()
    right = {way: float(pooled(cells, way, "right").mean()) for way in cells[0]}
    return [
        Check(statement=f"{name}: answers that differ from static decoding's, worst way of drafting", bound=0.0,
              value=float(other), unit="share of puzzles"),
        Check(statement=f"{name}: calls more than static decoding's, worst puzzle and way", bound=0.0,
              value=float(more), unit="calls"),
        Check(statement=f"{name}: calls of {OURS} over static decoding's", value=1 / fewer, bound=1 / LEAST,
              unit="ratio"),
        Check(statement=f"{name}: right by a fixed exit after as many calls, less by {OURS}", bound=0.0,
              value=right[EXIT] - right[OURS], unit="share of puzzles"),
        Check(statement=f"{name}: right by 4 tokens a step, less by {OURS}", bound=0.0,
              value=right["static, 4 a step"] - right[OURS], unit="share of puzzles"),
    ]  # fmt: skip


def timing_figures(name: str, seconds: Mapping[str, list[float]], puzzles: int) -> list[Figure]:
    from likely.bench import Timing

    figures = []
    slow = Timing(STATIC, seconds[STATIC])
    for way, values in seconds.items():
        ms = [1e3 * value / puzzles for value in values]
        figures.append(figure_with(f"{name}: {way}", "ms per puzzle", float(np.median(ms)), (min(ms), max(ms)),
                                   unit="ms", n=len(ms), of="rounds", note="smallest and largest round"))  # fmt: skip
        if way != STATIC:
            ratio = speedup(Timing(way, values), slow)
            figures.append(figure_with(f"{name}: {way}", "times as fast", ratio.median, (ratio.low, ratio.high),
                                       unit="ratio", n=ratio.rounds, of="rounds"))  # fmt: skip
    return figures


def study(size: Size, cells: Cells, *, full: bool, timing: bool = False, threads: int = 1) -> Evidence:
    started = time.process_time()
    figures: list[Figure] = []
    checks: list[Check] = []
    said, models = [], list[Source]()
    for name in TASKS:
        found = []
        for seed in size.seeds:
            model, folder = predictor(name, seed, size.settings[name])
            models.append(source(folder))
            measure_it = partial(decoded, model, name, size.puzzles[name], seed)
            found.append(cells.value(f"{name} {seed}", measure_it))
        figures += figures_of(name, found)
        checks += checks_of(name, found)
        calls = {way: pooled(found, way, "calls").mean() for way in (STATIC, OURS, "threshold 0.99")}
        right = {way: pooled(found, way, "right").mean() for way in (STATIC, OURS, "threshold 0.99")}
        said.append(
            f"{name}: {pooled(found, OURS, 'same').mean():.1%} of answers identical, {calls[OURS]:.1f} calls instead "
            f"of {calls[STATIC]:.0f} ({calls[STATIC] / calls[OURS]:.2f} times fewer), {right[OURS]:.1%} right; "
            f"threshold decoding at 0.99: {calls['threshold 0.99']:.1f} calls, "
            f"{pooled(found, 'threshold 0.99', 'same').mean():.1%} identical, {right['threshold 0.99']:.1%} right"
        )
        if timing:
            model, _ = predictor(name, size.seeds[0], size.settings[name])
            seconds = cells.value(f"timing {name} {threads}", partial(timed, model, name, size))
            figures += timing_figures(name, seconds, size.timed)
    return conclude(
        NAME,
        title="FreeDave: lossless parallel decoding of diffusion language models",
        claim=(
            "Drafts from the model's own present predictions, verified by the next call, give exactly the answers of "
            "decoding one token at a time, from fewer calls."
        ),
        paper_figure=(
            "throughput up to 2.83 or 3.78 times, by the version of the abstract, without degradation; models of 4B to "
            "8B on mathematics and code"
        ),
        ours="; ".join(said),
        figures=figures,
        checks=checks,
        samples=(
            f"{len(size.seeds)} models a task of {size.settings['sudoku'].width} dimensions, trained here for "
            f"{size.settings['sudoku'].steps} and {size.settings['addition'].steps} steps; of each "
            f"{size.puzzles['sudoku']} grids and {size.puzzles['addition']} sums that were held out; fp32, one block "
            f"unless it says blocks (of 8)"
        ),
        intervals="95 %: Wilson for shares, percentile bootstrap over puzzles for calls and their ratios",
        full=full,
        models=models,
        threads=threads,
        seconds=time.process_time() - started,
        not_shown=[
            "LLaDA-8B, Dream-7B and block-diffusion models of 4B to 8B; mathematics and code.",
            *([] if timing else ["Wall time: --timing measures it."]),
            "Numbers other than fp32: near ties may then differ between one canvas and several in a call.",
            "seconds are of the processor, not of the clock, and of the cells that this run measured.",
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence | None:
    size, cells = size_and_cells(options, quick=QUICK, smoke=SMOKE, full=FULL)
    return study(size, cells, full=options.full, timing=options.timing, threads=options.threads)


def main() -> None:
    parser = arguments(full="more seeds and puzzles", quick="tiny", threads="of torch", kept=f"studies/{NAME}.jsonl")
    parser.add_argument("--timing", action="store_true", help="measure wall time of single puzzles")
    parser.set_defaults(threads=1)
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
