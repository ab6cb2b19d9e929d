"""Block quantisation of keys: does sorting channels by the norms of W_k make 4-bit keys in blocks as good as claimed?

SmolLM2-135M-Instruct (head size 64, 3 KV heads, 30 layers) on WikiText-2: KL to the same model with fp32 keys, where
keys are kept as 4- or 3-bit mantissas with one exponent per block of n channels, in the model's order and sorted.
Controls: a block as wide as the head and rotary pairs that stay half a head apart, where a sort can do nothing;
outliers that are injected into keys without changing the function, which a sort must confine to their own blocks.

  python reproductions/block_quantization.py           2,048 tokens for the forms of the claim, 1,024 for the others
  python reproductions/block_quantization.py --full    8,400 and 2,048 tokens, a text of 8,192 tokens (half an hour)
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import (
    RunningModel,
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

from likely.compression.architecture import DecoderMap, open_module
from likely.compression.block_float.permutation import pair_order
from likely.compression.block_float.scores import Score, k_sort, v_sort, weight_norms
from likely.compression.block_float.sorting import KSort, Layout
from likely.compression.calibration_set import CalibrationSet, calibration_set
from likely.compression.evaluate import RememberedRows, compare_rows, log_softmax
from likely.evidence import Check, Evidence, Figure, Source
from likely.io.hashes import fingerprint
from likely.io.whole_file import write_whole_file
from likely.metrics.bootstrap import bootstrap_ratio
from likely.runtimes.protocol import Want, Work
from likely.runtimes.torch.runtime import TorchRuntime
from likely.tokenizers.protocol import Tokenizer

DATA, CALIBRATION = "wikitext2:test", "wikitext2:valid"
FILES = (("wikitext2", "test"), ("wikitext2", "valid"))
LEAST_GAIN = 0.15  # of KL, by the sort
SAME = 0.01  # relative difference of two KLs that are the same but for rounding errors that flip a code
NO_LOSS = 0.02  # of perplexity, relative
PAIRS, FACTOR = 16, 30.0  # injected outliers per head
TAIL = 256  # tokens that are scored at the end of the long text
LONG = "bfp12/bfp16"  # keys and values of the long text
OTHERS, HALVES = "half-split pairs", "halves"


@dataclass(frozen=True)
class Form:
    """How keys (and values) are kept. sort: a score, "halves" for the control, or None; headline: measured in full."""

    name: str
    kv: str
    sort: Score | str | None = None
    layout: Layout = "table"
    headline: bool = False
    injected: bool = False
    values: bool = False  # sort values, too


FORMS = (
    Form("n=64, unsorted", "bfp12n64/f32", headline=True),
    Form("n=64, weight norm", "bfp12n64/f32", "weight", headline=True),
    Form("n=32, unsorted", "bfp12/f32", headline=True),
    Form("n=32, weight norm", "bfp12/f32", "weight", headline=True),
    Form("n=16, unsorted", "bfp12n16/f32", headline=True),
    Form("n=16, weight norm", "bfp12n16/f32", "weight", headline=True),
    Form("n=32, best", "bfp12/f32", "best"),
    Form("n=32, rms of keys", "bfp12/f32", "rms"),
    Form("n=32, interleaved pairs", "bfp12/f32", "weight", "pairs"),
    Form(f"n=32, {OTHERS}", "bfp12/f32", HALVES),
    Form("n=32, 3 bits, unsorted", "bfp11/f32"),
    Form("n=32, 3 bits, weight norm", "bfp11/f32", "weight"),
    Form("n=32, BFP16 keys", "bfp16/f32"),
    Form("n=32, keys and values", "bfp12", "weight", values=True),
    Form("n=32, BFP12 keys, BFP16 values", "bfp12/bfp16", "weight", values=True),
    Form("outliers, n=32, unsorted", "bfp12/f32", injected=True),
    Form("outliers, n=32, weight norm", "bfp12/f32", "weight", injected=True),
)


@dataclass
class Measured:
    """Of one form, per window: mean KL, ln of the ratio of perplexities, ln of the model's perplexity."""

    kl: list[float] = field(default_factory=list)
    log_ratio: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    bytes_per_token: int = 0
    tokens: int = 0

    @property
    def perplexity(self) -> float:
        return float(np.exp(np.mean(self.reference) + np.mean(self.log_ratio)))


Keep = Callable[[str, str, Callable[[], dict[str, Any]]], dict[str, Any]]


def keep_in(folder: Path | None) -> tuple[Keep, list[float]]:
    """(name, what it was measured on, how) -> the numbers, from the folder where they are there already; and a list of
    the seconds that each measurement took."""
    seconds: list[float] = []

    def kept(name: str, digest: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = (folder or Path()) / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{digest[:12]}.json"
        if folder is not None and path.is_file():
            record = json.loads(path.read_text())
        else:
            started = time.perf_counter()
            numbers = make()
            record = {"seconds": time.perf_counter() - started, "numbers": numbers}
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write_whole_file(path, json.dumps(record).encode())
        seconds.append(record["seconds"])
        found: dict[str, Any] = record["numbers"]
        return found

    return kept, seconds


def inject_outliers(decoder: DecoderMap, pairs: int = PAIRS, factor: float = FACTOR) -> None:
    """Some rotary pairs of each head: rows of W_k times `factor`, of W_q divided by it, so that q·k is unchanged."""
    half = decoder.head_dim // 2
    chosen = np.linspace(0, half - 1, pairs).round().astype(int)
    within = np.concatenate([chosen, chosen + half])
    with torch.no_grad():
        for block in decoder.blocks:
            for linear, heads, by in ((block.k, decoder.kv_heads, factor), (block.q, decoder.heads, 1 / factor)):
                rows = torch.from_numpy((np.arange(heads)[:, None] * decoder.head_dim + within).ravel())
                linear.weight[rows] *= by
                if linear.bias is not None:
                    linear.bias[rows] *= by


def sort_of(form: Form, decoder: DecoderMap, calibration: CalibrationSet) -> KSort:
    if form.sort == HALVES:
        return KSort([pair_order(weight_norms(decoder, block), rope="halves") for block in decoder.blocks])
    return k_sort(decoder, score=form.sort, layout=form.layout, calibration=calibration)  # type: ignore[arg-type]


def prepared(form: Form, source: torch.nn.Module, calibration: CalibrationSet) -> TorchRuntime:
    """A runtime over a copy of the model, its outliers injected and channels sorted as the form says."""
    module = copy.deepcopy(source)
    decoder = DecoderMap.of(module)
    if form.injected:
        inject_outliers(decoder)
    if form.sort is not None:
        sort_of(form, decoder, calibration).apply(decoder)
    if form.values:
        v_sort(decoder).apply(decoder)
    return TorchRuntime(module, revision=form.name, kv_dtype=form.kv, tokens_held=16384)


def measure_forms(
    module: torch.nn.Module,
    tokenizer: Tokenizer,
    data: CalibrationSet,
    others: int,
    calibration: CalibrationSet,
    keep: Keep,
    say: Callable[[str], None] = report,
) -> dict[str, Measured]:
    """Every form on the windows of `data`, those that are no headline on the first `others`."""
    windows = [replace(data, input_ids=data.input_ids[n : n + 1]) for n in range(len(data))]
    remembered: list[RememberedRows] = []
    found: dict[str, Measured] = {}

    def run(form: Form) -> dict[str, Any]:
        if not remembered:
            reference = RunningModel(TorchRuntime(module, revision="reference"), tokenizer)
            remembered.extend(RememberedRows(reference, window) for window in windows)
        runtime = prepared(form, module, calibration)
        reports = [rows.compare(RunningModel(runtime, tokenizer)) for rows in remembered[: chosen(form)]]
        return asdict(Measured(
            kl=[r.kl for r in reports],
            log_ratio=[r.log_ratio for r in reports],
            reference=[float(np.log(r.reference_perplexity)) for r in reports],
            bytes_per_token=runtime.kv_bytes_per_token,
            tokens=sum(r.tokens for r in reports),
        ))  # fmt: skip

    def chosen(form: Form) -> int:
        return len(windows) if form.headline else others

    try:
        for form in FORMS:
            on = fingerprint(f"{data.digest} {calibration.digest} {chosen(form)} {form}".encode())
            one = found[form.name] = Measured(**keep(form.name, on, lambda form=form: run(form)))
            say(f"{form.name}: KL {np.mean(one.kl):.4f}, perplexity {one.perplexity:.2f}, {one.tokens} tokens")
    finally:
        for rows in remembered:
            rows.close()
    return found


@dataclass(frozen=True)
class LongText:
    """One text of `length` tokens: KL of each of its last tokens, and what its keys and values take."""

    length: int
    kl: list[float]
    bytes_of: dict[str, int]


def long_text(module: torch.nn.Module, tokens: np.ndarray, kv: str, tail: int = TAIL) -> LongText:
    """The last `tail` tokens after all others, with the keys and values of the whole text kept in `kv` and in fp32."""
    rows, kept = [], {}
    sorted_copy = copy.deepcopy(module)
    decoder = DecoderMap.of(sorted_copy)
    k_sort(decoder).apply(decoder)
    v_sort(decoder).apply(decoder)
    for form, model in ((None, module), (kv, sorted_copy)):
        runtime = TorchRuntime(model, revision="long", kv_dtype=form, tokens_held=len(tokens))
        sequence = runtime.open()
        runtime.forward([Work(sequence, tokens[:-tail], want=Want.NONE)])
        [output] = runtime.forward([Work(sequence, tokens[-tail:], want=Want.ALL)])
        assert output.logits is not None
        rows.append(log_softmax(output.logits[:-1]))
        kept[form or "f32"] = runtime.kv_bytes_per_token * sequence.length
        runtime.close(sequence)
    return LongText(len(tokens), compare_rows(rows[0], rows[1], tokens[len(tokens) - tail + 1 :]).kl.tolist(), kept)


def study(
    module: torch.nn.Module,
    tokenizer: Tokenizer,
    data: CalibrationSet,
    others: int,
    calibration: CalibrationSet,
    long: np.ndarray,
    *,
    full: bool,
    models: list[Source],
    sources: list[Source],
    keep: Path | None = None,
    say: Callable[[str], None] = report,
) -> Evidence:
    kept, seconds = keep_in(keep)
    found = measure_forms(module, tokenizer, data, others, calibration, kept, say)
    plain = float(np.exp(np.mean(found["n=32, unsorted"].reference)))
    text = LongText(**kept("long text", fingerprint(long.tobytes()), lambda: asdict(long_text(module, long, LONG))))
    kl = {name: float(np.mean(one.kl)) for name, one in found.items()}

    def ratio(top: str, bottom: str) -> float:
        n = min(len(found[top].kl), len(found[bottom].kl))
        return float(np.sum(found[top].kl[:n]) / np.sum(found[bottom].kl[:n]))

    loss = float(np.exp(np.mean(found["n=32, weight norm"].log_ratio)) - 1)
    checks = [
        Check(statement=f"{n}: KL sorted by weight norm over KL unsorted", bound=1 - LEAST_GAIN, unit="ratio",
              value=ratio(f"{n}, weight norm", f"{n}, unsorted"))
        for n in ("n=32", "n=16")
    ]  # fmt: skip
    checks += [
        Check(statement="n=64, the head size: relative change of KL by the sort", unit="ratio", bound=SAME,
              value=abs(ratio("n=64, weight norm", "n=64, unsorted") - 1)),
        Check(statement="sorted n=32 less unsorted n=32", unit="nats", bound=0.0,
              value=kl["n=32, weight norm"] - kl["n=32, unsorted"]),
        Check(statement="unsorted n=16 less sorted n=32", unit="nats", bound=0.0,
              value=kl["n=16, unsorted"] - kl["n=32, weight norm"]),
        Check(statement="perplexity with BFP12 keys, n=32, sorted, less the model's, relative", bound=NO_LOSS,
              value=loss, unit="ratio"),
        Check(statement=f"control: {OTHERS}, n=32: relative change of KL by the sort", unit="ratio", bound=SAME,
              value=abs(ratio(f"n=32, {OTHERS}", "n=32, unsorted") - 1)),
        Check(statement="injected outliers: KL sorted over KL unsorted", unit="ratio", bound=0.5,
              value=ratio("outliers, n=32, weight norm", "outliers, n=32, unsorted")),
    ]  # fmt: skip
    held = text.bytes_of
    return conclude(
        "block_quantization",
        title="Accurate Block Quantization: block formats and K-sort for the KV cache",
        claim="Keys in block floating point take half the memory without significant loss once their channels are "
        "sorted by the norms of W_k, at no cost when the model runs.",
        paper_figure="K cache about 2x smaller (BFP12 against BFP16) on Llama-2-7B, WikiText-2; no gain at n=128, the "
        "head size, gains at n=64 and n=32",
        ours=f"BFP12 keys, n=32: the sort takes KL from {kl['n=32, unsorted']:.3f} to "
        f"{kl['n=32, weight norm']:.3f} nats (unsorted n=16: {kl['n=16, unsorted']:.3f}), at n=16 to "
        f"{kl['n=16, weight norm']:.3f}; perplexity {plain:.2f} becomes {plain * (1 + loss):.2f} ({loss:+.1%}); sorted "
        f"by the rms of keys instead, KL is {ratio('n=32, rms of keys', 'n=32, unsorted'):.2f} of no sort's, by the "
        f"best of four orders per head {ratio('n=32, best', 'n=32, unsorted'):.2f}; BFP16 keys: "
        f"{kl['n=32, BFP16 keys']:.4f}; with injected outliers the sort takes KL from "
        f"{kl['outliers, n=32, unsorted']:.2f} to {kl['outliers, n=32, weight norm']:.2f}; a text of {text.length} "
        f"tokens keeps {held[LONG] / 2**20:.0f} MiB of keys (BFP12) and values (BFP16) instead of "
        f"{held['f32'] / 2**20:.0f} MiB in fp32",
        figures=_figures(found, text, plain),
        checks=checks,
        samples=f"{found['n=32, unsorted'].tokens} tokens of WikiText-2 test for the forms of the claim, "
        f"{found['n=32, best'].tokens} for the others, in windows of {data.input_ids.shape[1]}; {calibration.tokens} "
        "tokens of the validation text for scores that look at keys",
        intervals="95 %, percentile bootstrap over windows; of the long text over its last tokens",
        not_shown=[
            "Llama-2-7B and head size 128: this model is 50 times smaller, and loses more.",
            "Speed: attention reads floats again, since no kernel here multiplies blocks. Storage is what is saved.",
            "Queries in BFP16: they stay fp32 here.",
            "Gemma 3, with heads of 256 and norms of keys: that its logits stay is tested, what rounding does is not.",
            *([] if full else ["A text of 8,192 tokens, and as many for each form of the claim: --full."]),
        ],
        full=full, seconds=sum(seconds), models=models, data=sources,
    )  # fmt: skip


def _figures(found: dict[str, Measured], text: LongText, plain: float) -> list[Figure]:
    figures = []
    for name, one in found.items():
        n = len(one.kl)
        figures.append(ratio_figure(name, "mean KL", one.kl, unit="nats", of="windows"))
        change = np.array(one.log_ratio)
        low, high = bootstrap_ratio(change.tolist(), [1.0] * n, resamples=2000)
        figures.append(figure_with(
            name, "perplexity over the model's", float(np.exp(change.mean())), np.exp([low, high]), unit="ratio", n=n,
            of="windows",
        ))  # fmt: skip
        figures.append(Figure(
            subject=name, quantity="keys and values", value=one.bytes_per_token, unit="bytes per token", n=1,
            of="model", note="counted",
        ))  # fmt: skip
    for form in FORMS:
        base = f"{form.name.rsplit(', ', 1)[0]}, unsorted"
        if base in found and form.name != base:
            n, quantity = len(found[form.name].kl), "KL over that of no sort, same tokens"
            figures.append(ratio_figure(
                form.name, quantity, found[form.name].kl, found[base].kl[:n], unit="ratio", of="windows"
            ))  # fmt: skip
    figures.append(ratio_figure(
        f"text of {text.length} tokens, BFP12 keys, BFP16 values", "mean KL", text.kl, unit="nats", of="tokens"
    ))  # fmt: skip
    for kv, size in text.bytes_of.items():
        figures.append(Figure(
            subject=f"text of {text.length} tokens, {kv}", quantity="keys and values, whole text", value=size / 2**20,
            unit="MiB", n=text.length, of="tokens", note="counted",
        ))  # fmt: skip
    figures.append(Figure(
        subject="the model, fp32 keys", quantity="perplexity", value=plain, unit="tokens",
        n=len(found["n=32, unsorted"].kl), of="windows", note="the same tokens for all forms of the claim",
    ))  # fmt: skip
    return figures


def measure(options: argparse.Namespace) -> Evidence:
    torch.set_num_threads(options.threads)
    _, module, tokenizer = open_module("smollm2")
    windows, others = (33, 8) if options.full else (8, 4)
    data = calibration_set(DATA, tokenizer, windows=windows, length=256)
    calibration = calibration_set(CALIBRATION, tokenizer, windows=1, length=384)
    long: Any = calibration_set(DATA, tokenizer, windows=1, length=8192 if options.full else 2048).input_ids[0]
    return study(
        module, tokenizer, data, others, calibration, long, full=options.full,
        models=[model_source("smollm2")], sources=data_sources(FILES), keep=options.kept,
    )  # fmt: skip


def main() -> None:
    parser = arguments(
        full="8,400 tokens for the forms of the claim, a text of 8,192 tokens", threads="of the processor"
    )
    parser.add_argument("--kept", type=Path, help="folder where numbers are kept and read from the next time")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
