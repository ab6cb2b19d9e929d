"""Outliers and calibration sets: does the text that a quantiser looks at matter, and when?

KL(original ‖ quantised) per token of SmolLM2-135M, as it is and with outliers injected into its norms (a rewrite that
changes no logit): 6 channels of each layer made 50 times as large, those whose ranges differ most between two texts.
Methods that look at calibration text are calibrated on several texts, each drawn twice; the spread between texts
stands beside the spread between draws.  Then what the activations of SmolLM2 and Gemma 3 look like.

  python reproductions/outliers_and_calibration.py          3 texts of 1,024 tokens, 512 of WikiText-2 to judge on,
                                                            GPTQ on the original alone, no AWQ
  python reproductions/outliers_and_calibration.py --full   9 texts of 4,096 tokens, 4,096 of WikiText-2 and of MBPP to
                                                            judge on, GPTQ of 3 and 4 bits and AWQ on both models
  python reproductions/outliers_and_calibration.py --quick  two texts, one draw, a few hundred tokens; not written
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from study import arguments, conclude, data_sources, model_source, report, run_script, run_study

from likely.compression.architecture import DecoderMap
from likely.compression.calibration_set import CalibrationSet, calibration_set
from likely.compression.statistics import (
    ActivationStats,
    agreement_table,
    divergent_channels,
    records_of,
    summarise,
)
from likely.compression.study import (
    CellFile,
    LikelihoodEvaluation,
    SetEffect,
    StudyGrid,
    StudyMethod,
    StudyModel,
    StudyRow,
    recommendation,
    run_grid,
    set_effects,
)
from likely.compression.study.effects import LEVEL
from likely.compression.transforms.scaling import inject_outliers, logits_of
from likely.evidence import Check, Evidence, Figure, Source

NAME = "outliers_and_calibration"
ORIGINAL, INJECTED = "SmolLM2-135M", "SmolLM2-135M with injected outliers"
GPTQ, SMOOTH, STATIC, DYNAMIC = "gptq:w3g64", "smoothquant:w8a8", "rtn:w8a8-static", "rtn:w8a8"
APART = ("wikitext2:valid", "mbpp:train")  # injected outliers are where these two differ most
CHANNELS, BETA = 6, 50.0
UNCHANGED, SPREAD, CATASTROPHE, HALF, TENTH = 1e-4, 0.3, 2.0, 0.5, 0.1
KINDS = ("attention", "o", "mlp", "down")


@dataclass(frozen=True)
class Size:
    """What is varied, and how much is read."""

    methods: Mapping[str, Sequence[str]]  # by model
    calibrations: Sequence[str]
    ranges: Sequence[str]  # texts whose activations are compared
    evaluations: Sequence[str]
    draws: int
    windows: int
    length: int
    judged: tuple[int, int]  # windows, tokens of each
    looked: tuple[int, int]  # of each text whose activations are compared


ACTIVATIONS = (DYNAMIC, STATIC, SMOOTH)
SMOKE = Size({ORIGINAL: ("rtn:w3g64", STATIC), INJECTED: (STATIC,)}, ("wikitext2:valid", "random_punctuation"),
             ("wikitext2:valid", "mbpp:train"), ("wikitext2:test",), 1, 2, 64, (2, 64), (2, 64))  # fmt: skip
QUICK = Size(
    {ORIGINAL: ("rtn:w3g64", *ACTIVATIONS, GPTQ), INJECTED: ("rtn:w3g64", *ACTIVATIONS)},
    ("c4_sample", "mbpp:train", "random_punctuation"),
    ("wikitext2:valid", "c4_sample", "mbpp:train", "udhr:fra", "udhr:hin", "random_punctuation", "random_tokens",
     "bos_only"),
    ("wikitext2:test",), 2, 8, 128, (4, 128), (2, 64),
)  # fmt: skip
ALL = ("rtn:w3g64", "rtn:w4g64", GPTQ, "gptq:w4g64", "awq:w4g64", *ACTIVATIONS)
FULL = Size(
    {ORIGINAL: ALL, INJECTED: ALL},
    ("wikitext2:valid", "c4_sample", "tinyshakespeare", "mbpp:train", "udhr:fra", "udhr:hin", "random_punctuation",
     "random_tokens", "bos_only"),
    QUICK.ranges, ("wikitext2:test", "mbpp:test"), 2, 8, 512, (8, 512), (4, 512),
)  # fmt: skip
FILES = (("wikitext2", "valid"), ("wikitext2", "test"), ("c4_sample", None), ("mbpp", "train"), ("udhr", None))


def injected(model: StudyModel, sets: Sequence[CalibrationSet], channels: int = CHANNELS) -> tuple[StudyModel, float]:
    """The model with outliers where two sets differ most, and by how much its logits moved, as a share of the range."""
    one, other = (ActivationStats.collect(DecoderMap.of(model.module), chosen.input_ids) for chosen in sets)
    module = copy.deepcopy(model.module)
    inject_outliers(DecoderMap.of(module), beta=BETA, chosen=divergent_channels(one, other, channels))
    before, after = (logits_of(m, sets[0].input_ids[:1]) for m in (model.module, module))
    moved = float((after - before).abs().max() / before.abs().max())
    return StudyModel(INJECTED, module, model.tokenizer, model.source), moved


def grid_figures(rows: Sequence[StudyRow]) -> list[Figure]:
    """Mean KL over draws for each model, method, text and evaluation; beside them the draws and errors over windows."""
    cells: dict[tuple[str, str, str], list[StudyRow]] = {}
    for row in rows:
        subject = f"{row.model}, {row.method}" + (f" on {row.calibration}" if row.calibration else "")
        cells.setdefault((subject, row.evaluation, row.calibration or ""), []).append(row)
    figures = []
    for (subject, evaluation, _), found in cells.items():
        kls = [float(row.numbers["kl"] or 0) for row in found]
        errors = [float(row.numbers["kl_se"] or 0) for row in found]
        draws = f"draws: {', '.join(f'{kl:.3g}' for kl in kls)}; " if len(kls) > 1 else ""
        figures.append(
            Figure(subject=subject, quantity=f"KL, {evaluation}", value=float(np.mean(kls)), unit="nats per token",
                   n=len(kls), of="draws", note=f"{draws}standard error over windows {max(errors):.2g}")
        )  # fmt: skip
    return figures


def effect_figures(effects: Sequence[SetEffect]) -> list[Figure]:
    figures = []
    for effect in effects:
        subject = f"{effect.model}, {effect.method}, {effect.evaluation}"
        if effect.sensitivity is not None and effect.split is not None:
            chance = "unknown" if effect.by_chance is None else f"{effect.by_chance:.2g}"
            p = "unknown" if effect.split.p is None else f"{effect.split.p:.2g}"
            figures.append(
                Figure(subject=subject, quantity="sensitivity", value=effect.sensitivity, unit="share of the mean",
                       n=len(effect.texts), of="texts", note=f"by draws alone {chance}; F test p {p}")
            )  # fmt: skip
        if effect.nonsense is not None:
            figures.append(
                Figure(subject=subject, quantity="nonsense over best", value=effect.nonsense, unit="times",
                       n=len(effect.means), of="texts", note="means over draws")
            )  # fmt: skip
    return figures


def outlier_figures(name: str, stats: Mapping[str, ActivationStats]) -> tuple[list[Figure], list[Figure]]:
    """Of each kind of input the largest magnitudes at first tokens and at others; and how far ranges transfer to the
    first text from the others."""
    main = next(iter(stats))
    layers = stats[main].layers
    ranges, transfer = [], []
    for line in summarise(records_of(stats[main], main)):
        if line.input not in KINDS:
            continue
        subject = f"{name}, inputs of {line.input}, {main}"
        for quantity, value, note in (
            ("largest, first token", line.first, "over layers"), ("largest, others", line.rest, "over layers"),
            ("kurtosis", line.kurtosis, "median over layers, first tokens left out"),
        ):  # fmt: skip
            ranges.append(Figure(subject=subject, quantity=quantity, value=value, unit="activation", n=layers,
                                 of="layers", note=note))  # fmt: skip
    rest = agreement_table({t: s for t, s in stats.items() if t != main}, {main: stats[main]}, first=False)
    whole = agreement_table({t: s for t, s in stats.items() if t != main}, {main: stats[main]})
    for inner, outer in zip(rest, whole, strict=True):
        if inner.input not in KINDS:
            continue
        subject = f"{name}, {inner.calibrated} for {main}"
        notes = (
            "median over layers, first tokens left out",
            f"median over layers; at most {outer.saturation:.1e} of the values saturate in a layer",
        )
        for quantity, value, note in zip(
            ("Spearman of channels", "range"), (inner.spearman, outer.range_ratio), notes, strict=True
        ):
            transfer.append(Figure(subject=subject, quantity=f"{quantity}, {inner.input}", value=value, unit="ratio",
                                   n=layers, of="layers", note=note))  # fmt: skip
    return ranges, transfer


def effect_of(effects: Sequence[SetEffect], model: str, method: str, evaluation: str) -> SetEffect | None:
    wanted = (model, method, evaluation)
    return next((e for e in effects if (e.model, e.method, e.evaluation) == wanted), None)


def checks_of(rows: Sequence[StudyRow], effects: Sequence[SetEffect], moved: float, sinks: Mapping[str, float],
              on: str) -> list[Check]:  # fmt: skip
    """What section 4.6 of the specification expects, as inequalities; those whose cells were measured."""
    checks = [_check("injection: largest change of a logit, share of the range", moved, UNCHANGED)]

    def kl(model: str, method: str) -> float | None:
        found = [row.numbers["kl"] for row in rows if (row.model, row.method, row.evaluation) == (model, method, on)]
        return float(np.mean([value for value in found if value is not None])) if found else None

    for method in (GPTQ, "awq:w4g64", SMOOTH):
        if (effect := effect_of(effects, ORIGINAL, method, on)) and effect.sensitivity is not None:
            checks.append(_check(f"original, {method}: sensitivity to the text", effect.sensitivity, SPREAD))
    for method in ("awq:w4g64", SMOOTH):
        if (effect := effect_of(effects, ORIGINAL, method, on)) and effect.nonsense is not None:
            checks.append(_check(f"original, {method}: nonsense over the best text", effect.nonsense, CATASTROPHE))
    if (effect := effect_of(effects, ORIGINAL, GPTQ, on)) and effect.nonsense:
        checks.append(_check(f"original, {GPTQ}: the best text over nonsense", 1 / effect.nonsense, 1.0))
    for statement, pair in (
        (f"{STATIC}: KL of the original over that of the injected model", ((ORIGINAL, STATIC), (INJECTED, STATIC))),
        (f"injected: KL of {SMOOTH} over that of {STATIC}", ((INJECTED, SMOOTH), (INJECTED, STATIC))),
    ):
        top, bottom = (kl(*cell) for cell in pair)
        if top is not None and bottom:
            checks.append(_check(statement, top / bottom, HALF))
    for method in (STATIC, SMOOTH, GPTQ):
        plain, grown = (effect_of(effects, model, method, on) for model in (ORIGINAL, INJECTED))
        if plain and grown and plain.sensitivity is not None and grown.sensitivity:
            statement = f"{method}: sensitivity of the original over that of the injected model"
            checks.append(_check(statement, plain.sensitivity / grown.sensitivity, HALF))
    effect = effect_of(effects, INJECTED, STATIC, on)
    if effect is not None and effect.split is not None and effect.split.p is not None:
        checks.append(_check(f"injected, {STATIC}: p of the texts' effect beside that of draws", effect.split.p, LEVEL))
    for name, share in sinks.items():
        checks.append(_check(f"{name}: largest input of down at other tokens over that at first ones", share, TENTH))
    return checks


def _check(statement: str, value: float, bound: float) -> Check:
    return Check(statement=statement, value=value, bound=bound, unit="ratio")


def study(
    model: StudyModel, size: Size, *, others: Mapping[str, Callable[[], StudyModel]], cells: CellFile,
    sources: Sequence[Source], data: Sequence[Source], full: bool, threads: int = 1,
    say: Callable[[str], None] = report,
) -> Evidence:  # fmt: skip
    """others: models whose activations are looked at beside the first one's."""
    count, length = size.looked

    def looked(of: StudyModel, names: Sequence[str]) -> list[CalibrationSet]:
        return [calibration_set(name, of.tokenizer, windows=count, length=length) for name in names]

    changed, moved = injected(model, looked(model, APART), min(CHANNELS, model.module.config.hidden_size // 4))
    say(f"outliers injected; logits moved by {moved:.2g} of their range")
    evaluations = [LikelihoodEvaluation(name, *size.judged) for name in size.evaluations]
    rows: list[StudyRow] = []
    for one in (changed, model):
        grid = StudyGrid(
            [StudyMethod.parse(name) for name in size.methods[one.name]], size.calibrations, evaluations,
            draws=size.draws, windows=size.windows, length=size.length,
        )  # fmt: skip
        rows = run_grid([one], grid, cells=cells, said=say) + rows
    effects, started = set_effects(rows), time.process_time()
    figures, transfer, sinks = [*grid_figures(rows), *effect_figures(effects)], [], {}
    openers = {model.name: lambda: model, changed.name: lambda: changed, **others}
    for name, opened in openers.items():
        one = opened()
        chosen = looked(one, APART if name == changed.name else size.ranges)
        stats = {text.name: ActivationStats.collect(DecoderMap.of(one.module), text.input_ids) for text in chosen}
        say(f"{name}: activations on {len(stats)} texts")
        ranges, moves = outlier_figures(name, stats)
        figures, transfer = figures + ranges, transfer + moves
        if name != changed.name:
            largest = {f.quantity: f.value for f in ranges if "inputs of down" in f.subject}
            sinks[name] = largest["largest, others"] / largest["largest, first token"]
    on = size.evaluations[0]
    return conclude(
        NAME,
        title="Outliers and calibration sets: does the calibration text matter?",
        claim=(
            "OPT 6.7B suffers from outliers and from the choice of calibration set; modern models (Llama 2 and 3, "
            "Command-R, Mistral) hardly do: their activations are stable."
        ),
        paper_figure="OPT 6.7B deteriorates with varying calibration sets; Mistral 7B is nearly immune (abstract)",
        ours=recommendation([e for e in effects if e.evaluation == on]).replace("\n", " "),
        figures=[*figures, *transfer],
        checks=checks_of(rows, effects, moved, sinks, on),
        samples=(
            f"{size.judged[0] * size.judged[1]} tokens of {', '.join(size.evaluations)} in windows of "
            f"{size.judged[1]}; calibrated on {size.windows} x {size.length} tokens of "
            f"{', '.join(size.calibrations)}, {size.draws} draw(s) each"
        ),
        intervals="none: the spread over draws, and of windows, stands in each note",
        full=full,
        models=sources,
        data=data,
        threads=threads,
        seconds=cells.seconds_used + time.process_time() - started,
        not_shown=[
            "OPT itself, models of 7B to 35B, zero-shot accuracies: the mechanism and its direction, on 135M.",
            *(() if full else (
                "AWQ, 4 bits, GPTQ on the injected model, other languages and MBPP to judge on: --full.",
                "Two real texts drawn twice give the F test 1 and 2 degrees of freedom: only large effects are seen.",
            )),
            "seconds are of the processor, not of the clock.",
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence:
    torch.set_num_threads(options.threads)
    size = FULL if options.full else SMOKE if options.quick else QUICK
    model = StudyModel.open("smollm2")
    model.name = ORIGINAL
    path = None if options.quick else options.kept
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    files = (*FILES, ("tinyshakespeare", None)) if options.full else FILES
    with CellFile(path) as cells:
        return study(
            model, size, others={} if options.quick else {"Gemma-3-270M": lambda: StudyModel.open("gemma3-270m")},
            cells=cells, sources=[model_source("smollm2"), model_source("gemma3-270m")], data=data_sources(files),
            full=options.full, threads=options.threads,
        )  # fmt: skip


def main() -> None:
    parser = arguments(
        full="the whole grid", quick="two texts, few tokens", threads="of torch", kept=f"studies/{NAME}.jsonl"
    )
    parser.set_defaults(threads=1)
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
