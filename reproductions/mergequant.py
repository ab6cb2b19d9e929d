"""MergeQuant: do static activation codes for each channel, folded into norms and weights, keep the likelihoods?

SmolLM2-135M with 8- and 4-bit activations and weights (one scale for each output row).  What the norms feed is rounded
in different ways: one static scale, one scale for each token, one for each channel that no kernel could use
("unfolded", a bound), and MergeQuant's parts; o and down always for each token.  KL(original ‖ quantised) per token.

  python reproductions/mergequant.py           1,024 tokens to calibrate on, 2,048 of WikiText-2 to compare on
  python reproductions/mergequant.py --full    16,384 and 8,192, also 4,096 of C4, all parts at 8 bits, and a model with
                                               outliers injected into the norms
  python reproductions/mergequant.py --quick   a few hundred tokens, one pair of bits; not written
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from study import (
    RunningModel,
    arguments,
    conclude,
    data_sources,
    model_source,
    ratio_figure,
    report,
    run_script,
    run_study,
)

from likely.compression.architecture import DecoderMap, open_module
from likely.compression.calibration_set import CalibrationSet, calibration_set
from likely.compression.evaluate import RememberedRows
from likely.compression.mergequant.merged import fit_steps
from likely.compression.mergequant.method import MergeQuant, merged_scheme, use_integer_products
from likely.compression.quantisers.activations import QuantLinear, code_range
from likely.compression.quantisers.walk import BlockWalk, replace_linear
from likely.compression.quantized import round_to_nearest
from likely.compression.transforms.scaling import inject_outliers, logits_of
from likely.evidence import Check, Evidence, Figure, Source
from likely.models.catalog import find_model
from likely.runtimes.torch.runtime import TorchRuntime
from likely.tokenizers.protocol import Tokenizer

TENSOR, TOKEN, UNFOLDED = "one static scale", "one scale for each token", "static channels, unfolded"
QSM, CLIPPED, SPLIT, ALL, GPTQ = "QSM", "QSM + clipping", "QSM + split", "QSM + split + clipping", "all, GPTQ"
PLAIN = MergeQuant(reconstruct=None, clip=False, rounding="rtn")
VARIANTS: dict[str, MergeQuant] = {
    QSM: PLAIN,
    CLIPPED: replace(PLAIN, clip=True),
    SPLIT: replace(PLAIN, reconstruct="split"),
    ALL: replace(PLAIN, reconstruct="split", clip=True),
    GPTQ: MergeQuant(),
}
WAYS = (TENSOR, TOKEN, UNFOLDED, *VARIANTS)
FEWER = (TENSOR, TOKEN, UNFOLDED, QSM, ALL)
Grid = dict[tuple[int, int], Sequence[str]]  # bits of weights and activations -> ways
QUICK_GRID: Grid = {(4, 4): WAYS}
GRID: Grid = {(8, 8): FEWER, (4, 4): WAYS}
FULL_GRID: Grid = {(8, 8): WAYS, (4, 8): WAYS, (4, 4): WAYS}
FILES = (("wikitext2", "valid"), ("wikitext2", "test"), ("c4_sample", None))
NEAR, HALF = 1.5, 0.5  # the spec's bounds on ratios of KL
SAME = 1e-4  # share of the logits' range by which integer products may differ from simulated ones


def baseline(decoder: DecoderMap, calibration: CalibrationSet, way: str, w_bits: int, a_bits: int) -> None:
    """Rounds to nearest; what the norms feed has static or dynamic scales, o and down one for each token."""
    walk = BlockWalk(decoder, calibration.input_ids)
    for number in range(len(walk)):
        for stage in walk.stages(number):
            scale: Any = None
            if len(stage.parts) > 1 and way == TENSOR:
                scale = stage.inputs.abs().max() / code_range(a_bits)[1]
            elif len(stage.parts) > 1 and way == UNFOLDED:
                scale = fit_steps(stage.inputs, a_bits)
            for part in stage.parts:
                linear = stage.block.linears()[part]
                rounded = round_to_nearest(linear.weight.detach().numpy(), merged_scheme(w_bits)).dequantize()
                with torch.no_grad():
                    linear.weight.copy_(torch.from_numpy(rounded))
                replace_linear(stage.block, part, QuantLinear(linear, a_bits, scale))


def quantise(
    module: torch.nn.Module, calibration: CalibrationSet, way: str, w_bits: int, a_bits: int
) -> tuple[torch.nn.Module, float | None]:
    """A copy rounded in one way; and how far its logits are from those by integer products, where it is static."""
    quantised = copy.deepcopy(module)
    decoder = DecoderMap.of(quantised)
    if way not in VARIANTS:
        baseline(decoder, calibration, way, w_bits, a_bits)
        return quantised, None
    codes = replace(VARIANTS[way], w_bits=w_bits, a_bits=a_bits).fit(decoder, calibration)
    if way != ALL:
        return quantised, None
    ids = calibration.input_ids[:1, :128]
    simulated = logits_of(quantised, ids)
    integers = copy.deepcopy(quantised)
    use_integer_products(DecoderMap.of(integers), codes)
    return quantised, float((logits_of(integers, ids) - simulated).abs().max() / simulated.abs().max())


def study(
    modules: Mapping[str, torch.nn.Module], tokenizer: Tokenizer, calibration: CalibrationSet,
    evaluations: Sequence[CalibrationSet], *, grid: Grid = GRID,
    sources: Sequence[Source] = (), data: Sequence[Source] = (), threads: int = 1, full: bool = False,
    said: Callable[[str], None] = report,
) -> Evidence:  # fmt: skip
    """Every way at every pair of bits on every model; the first model and evaluation set are those of the checks."""
    started = time.perf_counter()
    kls: dict[tuple[str, str, int, int, str], list[float]] = {}  # of each window
    apart: dict[tuple[int, int], float] = {}
    for label, module in modules.items():
        # a copy: the runtime gives a module's attention another implementation
        reference = RunningModel(TorchRuntime(copy.deepcopy(module), revision="original"), tokenizer)
        remembered = [RememberedRows(reference, data) for data in evaluations]
        del reference
        for (w_bits, a_bits), ways in grid.items():
            for way in ways:
                quantised, difference = quantise(module, calibration, way, w_bits, a_bits)
                if difference is not None and label == next(iter(modules)):
                    apart[w_bits, a_bits] = difference
                candidate = RunningModel(TorchRuntime(quantised, revision=way), tokenizer)
                for rows in remembered:
                    found = [float(w.kl.mean()) for w in rows.windows(candidate)]
                    kls[label, rows.data.name, w_bits, a_bits, way] = found
                    said(f"{label}, {rows.data.name}, w{w_bits}a{a_bits}, {way}: KL {np.mean(found):.4f}")
                del quantised, candidate
        for rows in remembered:
            rows.close()
    figures = [
        ratio_figure(f"{label}, {on}, w{w}a{a}: {way}", "KL", found, unit="nats per token", of="windows")
        for (label, on, w, a, way), found in kls.items()
    ]
    first, on = next(iter(modules)), evaluations[0].name

    def ratio(w: int, a: int, top: str, bottom: str) -> Figure:
        pair = kls[first, on, w, a, top], kls[first, on, w, a, bottom]
        return ratio_figure(f"w{w}a{a}: {top} over {bottom}", "ratio of KL", *pair, unit="ratio", of="windows")

    checks, ours = [], []
    for (w, a), ways in grid.items():
        mean = {way: float(np.mean(kls[first, on, w, a, way])) for way in ways}
        others = [way for way in ways if way != TENSOR]
        worst = max(others, key=lambda way: mean[way])
        ours.append(f"w{w}a{a}: KL " + ", ".join(f"{mean[way]:.3g} ({way})" for way in ways))
        if a == 8:
            figures += [near := ratio(w, a, ALL, TOKEN), highest := ratio(w, a, worst, TENSOR)]
            checks.append(_check(f"w{w}a{a}: KL of the worst other way over one static scale's", highest.value, 1.0))
            checks.append(_check(f"w{w}a{a}: KL of {ALL} over one scale for each token's", near.value, NEAR))
        else:
            figures += [half := ratio(w, a, ALL, TENSOR), split := ratio(w, a, SPLIT, QSM)]
            checks.append(_check(f"w{w}a{a}: KL of {ALL} over one static scale's", half.value, HALF))
            checks.append(
                _check(f"w{w}a{a}: KL of {SPLIT} over QSM's, upper end of the interval", split.high or split.value, 1.0)
            )
        checks.append(
            _check(f"w{w}a{a}: largest difference of logits by integer products, share of range", apart[w, a], SAME)
        )
    count = evaluations[0]
    return conclude(
        "mergequant",
        title="MergeQuant: static per-channel quantisation folded into norms and weights",
        claim=(
            "Quantisation steps of activation channels can be folded into norms and weights, so that 4-bit activations "
            "need no scale at run time and lose little; splitting channels with large steps is what makes it work."
        ),
        paper_figure="W4A4, Llama-2-70B: 1.3 points of zero-shot accuracy below FP16; Llama-2-7B: up to 2.06x",
        ours="; ".join(ours),
        figures=figures,
        checks=checks,
        samples=(
            f"{count.tokens} tokens of {on} in {len(count)} windows (others: "
            f"{', '.join(f'{e.tokens} of {e.name}' for e in evaluations[1:]) or 'none'}), calibrated on "
            f"{calibration.tokens} tokens of {calibration.name}"
        ),
        intervals="95 %, bootstrap over windows, paired for ratios, fixed seed",
        full=full,
        models=sources,
        data=data,
        threads=threads,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Speed: no kernel runs here; integer products are compared with simulated ones in their numbers alone.",
            "Models of 7B and more, zero-shot accuracies, the low-rank compensation of the paper.",
            "How the paper chooses thresholds and ratios: these are the defaults here.",
        ],
    )


def _check(statement: str, value: float, bound: float) -> Check:
    share = "share" in statement
    return Check(statement=statement, value=value, bound=bound, unit="share of range" if share else "ratio")


def measure(options: argparse.Namespace) -> Evidence:
    torch.set_num_threads(options.threads)
    _, module, tokenizer = open_module(find_model("smollm2"))
    windows, length = (32, 512) if options.full else (2, 128) if options.quick else (4, 256)
    calibration = calibration_set("wikitext2:valid", tokenizer, windows=windows, length=length)
    sizes = (
        [("wikitext2:test", 16, 512), ("c4_sample", 8, 512)]
        if options.full
        else [("wikitext2:test", 2 if options.quick else 8, length)]
    )
    evaluations = [calibration_set(name, tokenizer, windows=n, length=t) for name, n, t in sizes]
    modules = {"SmolLM2-135M": module}
    if options.full:
        modules["with outliers"] = copy.deepcopy(module)
        inject_outliers(DecoderMap.of(modules["with outliers"]), channels=6, beta=50)
    return study(
        modules, tokenizer, calibration, evaluations,
        grid=FULL_GRID if options.full else QUICK_GRID if options.quick else GRID,
        sources=[model_source("smollm2")], data=data_sources(FILES if options.full else FILES[:2]),
        threads=options.threads, full=options.full,
    )  # fmt: skip


def main() -> None:
    parser = arguments(
        full="more tokens, C4, and injected outliers", quick="few tokens, w4a4 alone", threads="of torch"
    )
    parser.set_defaults(threads=1)
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
