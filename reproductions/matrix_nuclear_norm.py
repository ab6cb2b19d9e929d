"""Matrix nuclear norm: does it follow model size, does it say what compression lost, and how much faster is it?

Size: four widths of one small language model, three seeds, trained alike on Tiny Shakespeare; MNN / N of held-out text
at a length below every width and at one above some, beside random states of the same shape.
Compression: SmolLM2-135M rounded to 3 to 8 bits, |change of MNN / N| beside KL per token; and rotated, which hardly
changes the likelihoods.
Speed (with --timing, on a machine that does nothing else): the metric alone against matrix entropy as published (a
singular value decomposition of d x d) and by the eigenvalues of the smaller Gram matrix.

  python reproductions/matrix_nuclear_norm.py            size and compression
  python reproductions/matrix_nuclear_norm.py --timing   the same and speed
  python reproductions/matrix_nuclear_norm.py --full     more windows, widths up to 512; with --timing d = 4,096, too
  python reproductions/matrix_nuclear_norm.py --quick    tiny, no result is written
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from shared_steps import Cells
from study import arguments, conclude, data_sources, figure_with, model_source, run_script, run_study
from tiny_pair import WINDOW, make_tokenizer, texts

from likely.audit.spectral import matrix_entropy, matrix_nuclear_norm, measure_spectra, normalized
from likely.bench.timing import interleaved, refuse_busy
from likely.compression import compress
from likely.compression.calibration_set import calibration_set
from likely.compression.evaluate import RememberedRows
from likely.evidence import Check, Evidence, Figure, Source
from likely.metrics.bootstrap import bootstrap_ratio
from likely.runtimes.torch.runtime import TorchRuntime
from likely.training.loop import train

NAME = "matrix_nuclear_norm"
SHORT, LONG = "below every width", "above some widths"
ROTATED, THREE = "rotation:w8g64", "rtn:w3g64"
LEAST_SPEEDUP = 8.0
QUANTITIES = ("mnn_per_token", "mnn_relative", "entropy", "effective_rank")


@dataclass(frozen=True)
class Size:
    """How much is trained, read and timed."""

    widths: Sequence[int]
    seeds: int
    steps: int
    layers: int
    lengths: Mapping[str, int]  # tokens of a window
    held: int  # windows
    variants: Sequence[str]
    judged: tuple[int, int]  # windows, tokens of each
    timed: Sequence[tuple[int, int]] = ()  # (N, d)
    rounds: int = 5


ROUNDED = ("rtn:w8g64", "rtn:w5g64", "rtn:w4g64", THREE)
SMOKE = Size((32, 64), 1, 3, 1, {SHORT: 16, LONG: 48}, 2, ("rtn:w4g32", "rtn:w3g32"), (2, 24), ((16, 32),), 2)
QUICK = Size((32, 64, 128, 256), 3, 80, 2, {SHORT: 32, LONG: 128}, 32, (*ROUNDED, ROTATED), (4, 256),
             tuple((n, d) for d in (576, 2048) for n in (128, 512, 2048)))  # fmt: skip
FULL = Size((32, 64, 128, 256, 512), 3, 600, 4, {SHORT: 32, LONG: 128}, 128,
            (*ROUNDED, "rtn:w4g32", "rtn:w3g32", ROTATED), (32, 256),
            tuple((n, d) for d in (576, 2048, 4096) for n in (128, 512, 2048)), 5)  # fmt: skip


# --- model size -------------------------------------------------------------------------------------------------------


@cache
def _ids() -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the training text and of the one held out."""
    tokenizer = make_tokenizer(texts()[0], 512)
    train, held = (np.array(tokenizer.encode(text).ids, np.int64) for text in texts())
    return train, held


def small_model(width: int, size: Size, train_on: np.ndarray, seed: int) -> Any:
    """A Llama model of this width after `steps` steps of 8 windows of 128 tokens, in fp32."""
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=512, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=size.layers,
            num_attention_heads=max(2, width // 64), max_position_embeddings=512, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        module = transformers.LlamaForCausalLM(config)
    rng = np.random.default_rng(seed)
    starts = (rng.integers(0, len(train_on) - WINDOW - 1, 8) for _ in range(size.steps))
    batches = (torch.from_numpy(np.stack([train_on[i : i + WINDOW + 1] for i in at])) for at in starts)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3 if width < 128 else 1.5e-3, betas=(0.9, 0.98))
    train(batches, lambda rows: nats_per_token(module, rows), optimiser, clip=1.0)
    return module.eval()


def nats_per_token(module: Any, rows: Any) -> Any:
    """Mean -log p of the tokens 1.. of rows (B, T)."""
    import torch

    logits = module(input_ids=rows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def trained_spectra(width: int, seed: int, size: Size) -> dict[str, Any]:
    """Loss and spectra per window of one model, at both lengths."""
    import torch

    train_on, held = _ids()
    module = small_model(width, size, train_on, seed)
    runtime = TorchRuntime(module, revision=f"width {width}")
    longest = max(size.lengths.values())
    windows = held[: size.held * longest].reshape(size.held, longest)
    with torch.no_grad():
        loss = float(nats_per_token(module, torch.from_numpy(windows)))
    found: dict[str, Any] = {"loss": loss}
    for name, length in size.lengths.items():
        [spectra] = measure_spectra(_Model(runtime), [row[:length].tolist() for row in windows], tokens=length)
        found[name] = {q: [getattr(text, q) for text in spectra.texts] for q in QUANTITIES}
    return found


@dataclass(frozen=True)
class _Model:
    runtime: TorchRuntime


def random_mnn(width: int, length: int, draws: int = 16) -> float:
    """Mean MNN / N of Gaussian states of this shape: what the shape alone does."""
    rng = np.random.default_rng(0)
    return float(np.mean([matrix_nuclear_norm(rng.normal(size=(length, width))) / length for _ in range(draws)]))


def size_part(size: Size, cells: Cells) -> tuple[list[Figure], list[Check], str]:
    figures, checks, said = [], [], []
    runs = {
        (width, seed): cells.value(
            f"size {width} {seed}", lambda width=width, seed=seed: trained_spectra(width, seed, size)
        )
        for width in size.widths
        for seed in range(size.seeds)
    }
    for where, length in size.lengths.items():
        means, random = {}, {width: random_mnn(width, length) for width in size.widths}
        for width in size.widths:
            ours = [runs[width, seed] for seed in range(size.seeds)]
            subject = f"width {width}, N = {length}"
            for quantity in QUANTITIES:
                by_window = np.mean([run[where][quantity] for run in ours], 0)
                figures.append(
                    figure_with(subject, quantity.replace("_", " "), by_window.mean(),
                                bootstrap_ratio(by_window.tolist(), [1.0] * len(by_window)), unit="1",
                                n=len(by_window), of=f"windows, mean of {size.seeds} seeds")
                )  # fmt: skip
            figures.append(Figure(subject=subject, quantity="random states", value=random[width], unit="1", n=16,
                                  of="draws", note="mean MNN / N of Gaussian matrices of this shape"))  # fmt: skip
            losses = [run["loss"] for run in ours]
            figures.append(Figure(subject=subject, quantity="held-out loss", value=float(np.mean(losses)),
                                  unit="nats per token", n=size.seeds, of="seeds",
                                  note=f"from {min(losses):.3f} to {max(losses):.3f}"))  # fmt: skip
            means[width] = [float(np.mean(run[where]["mnn_per_token"])) for run in ours]
        steps = [means[b][s] / means[a][s] for a, b in pairwise(size.widths) for s in range(size.seeds)]
        checks.append(Check(statement=f"size, N {where} ({length}): MNN / N of the next width over that of a width, "
                                      f"largest of {len(steps)}",
                            value=max(steps), bound=1.0, unit="ratio"))  # fmt: skip
        first, last = size.widths[0], size.widths[-1]
        said.append(
            f"N = {length}: MNN / N from {np.mean(means[first]):.3f} (width {first}) to {np.mean(means[last]):.3f} "
            f"(width {last}), random states {random[first]:.3f} to {random[last]:.3f}"
        )
    return figures, checks, "; ".join(said)


# --- compression ------------------------------------------------------------------------------------------------------


def variant_numbers(model: str, variant: str, windows: np.ndarray, rows: RememberedRows | None) -> dict[str, Any]:
    """Spectra per window of a variant ("": as it is), and its KL where there are rows to compare with."""
    method, _, scheme = variant.partition(":")
    if variant:
        extra = {"rounding": "rtn", "calibration": "python_stdlib"} if method == "rotation" else {}
        lm: Any = compress(model, method=method, scheme=scheme, windows=1, length=32, **extra)
    else:
        from likely.models.load import load_local

        lm = load_local(model, runtime="torch")
    [spectra] = measure_spectra(lm, windows.tolist(), tokens=windows.shape[1])
    found: dict[str, Any] = {q: [getattr(text, q) for text in spectra.texts] for q in QUANTITIES}
    if rows is not None:
        compared = rows.compare(lm)
        found |= {"kl": compared.kl, "kl_se": compared.kl_se}
    lm.runtime.shutdown()
    return found


def compression_part(
    model: str, size: Size, cells: Cells, data: str = "wikitext2:test"
) -> tuple[list[Figure], list[Check], str]:
    from likely.models.load import load_local

    count, length = size.judged
    remembered: list[RememberedRows] = []
    loaded = load_local(model, runtime="torch")
    text = calibration_set(data, loaded.tokenizer, windows=count, length=length)

    def measured(variant: str) -> dict[str, Any]:
        if variant and not remembered:
            remembered.append(RememberedRows(loaded, text))
        return variant_numbers(model, variant, text.input_ids, remembered[0] if variant else None)

    original = cells.value(f"variant original {data}", lambda: measured(""))
    found = {v: cells.value(f"variant {v} {data}", lambda v=v: measured(v)) for v in size.variants}
    for rows in remembered:
        rows.close()
    loaded.runtime.shutdown()
    base, figures, moved = np.array(original["mnn_per_token"]), [], {}
    for quantity in QUANTITIES:
        figures.append(_over_windows("original", quantity.replace("_", " "), original[quantity]))
    for variant, numbers in found.items():
        change = np.array(numbers["mnn_per_token"]) - base
        moved[variant] = abs(float(change.mean()))
        figures.append(_over_windows(variant, "change of MNN / N", change))
        for quantity in QUANTITIES:
            figures.append(_over_windows(variant, quantity.replace("_", " "), numbers[quantity]))
        error = 1.96 * (numbers["kl_se"] or 0.0)
        figures.append(figure_with(variant, "KL", numbers["kl"], (numbers["kl"] - error, numbers["kl"] + error),
                                   unit="nats per token", n=count, of="windows"))  # fmt: skip
    rounded = [v for v in found if v.startswith("rtn")]
    rank = float(spearmanr([moved[v] for v in rounded], [found[v]["kl"] for v in rounded]).statistic)
    figures.append(Figure(subject="rounded variants", quantity="Spearman of |change of MNN / N| with KL", value=rank,
                          unit="1", n=len(rounded), of="variants", note="few variants: no interval"))  # fmt: skip
    checks, said = [], f"Spearman of |change of MNN / N| with KL over {len(rounded)} roundings {rank:.2f}"
    if ROTATED in found and THREE in found:
        checks = [
            Check(statement="rotated to 8 bits: KL over that of 3 bits", bound=0.1, unit="ratio",
                  value=found[ROTATED]["kl"] / found[THREE]["kl"]),
            Check(statement="|change of MNN / N| by 3 bits over that by a rotation to 8 bits",
                  value=moved[THREE] / moved[ROTATED], bound=1.0, unit="ratio"),
        ]  # fmt: skip
        said += (
            f"; a rotation to 8 bits (KL {found[ROTATED]['kl']:.4f}) moves MNN / N by {moved[ROTATED]:.4f}, rounding "
            f"to 3 bits (KL {found[THREE]['kl']:.2f}) by {moved[THREE]:.4f}"
        )
    return figures, checks, said


def _over_windows(subject: str, quantity: str, values: Sequence[float] | np.ndarray) -> Figure:
    numbers = [float(v) for v in values]
    return figure_with(subject, quantity, np.mean(numbers), bootstrap_ratio(numbers, [1.0] * len(numbers)), unit="1",
                       n=len(numbers), of="windows")  # fmt: skip


# --- speed ------------------------------------------------------------------------------------------------------------


def published_entropy(states: np.ndarray) -> float:
    """Matrix entropy by a singular value decomposition of the d x d matrix, as in the official code."""
    unit = normalized(states)
    shares = np.linalg.svd(unit.T @ unit / len(unit), compute_uv=False)
    shares = shares[shares > 1e-15]
    return float(-(shares * np.log(shares)).sum() / math.log(unit.shape[1]))


def timing_part(size: Size, cells: Cells, *, measured: bool) -> tuple[list[Figure], list[Check], str]:
    """Seconds of the metric alone; only cells that are there, or that may be measured now."""
    figures, ratios = [], {}
    for tokens, width in size.timed:

        def time_it(tokens: int = tokens, width: int = width) -> dict[str, list[float]]:
            states = np.random.default_rng(0).normal(size=(tokens, width))
            ways: dict[str, Callable[[], object]] = {
                "MNN": lambda: matrix_nuclear_norm(states),
                "entropy, smaller Gram matrix": lambda: matrix_entropy(states),
                "entropy, as published": lambda: published_entropy(states),
            }
            rounds = size.rounds if width < 4096 else 1
            return {k: t.seconds for k, t in interleaved(ways, rounds=rounds, warmup=int(width < 4096)).items()}

        if not measured:
            continue
        seconds = cells.value(f"timing {tokens} {width}", time_it)
        for way, values in seconds.items():
            figures.append(figure_with(f"N = {tokens}, d = {width}", f"ms, {way}", 1e3 * float(np.median(values)),
                                       (1e3 * min(values), 1e3 * max(values)), unit="ms", n=len(values), of="rounds",
                                       note="smallest and largest round"))  # fmt: skip
        for way in ("entropy, as published", "entropy, smaller Gram matrix"):
            each = np.array(seconds[way]) / np.array(seconds["MNN"])
            figures.append(figure_with(f"N = {tokens}, d = {width}", f"times of MNN, {way}", float(np.median(each)),
                                       (each.min(), each.max()), unit="ratio", n=len(each), of="rounds",
                                       note="smallest and largest round"))  # fmt: skip
            ratios[way, tokens, width] = float(np.median(each))
    published = [r for (way, *_), r in ratios.items() if way.endswith("published")]
    if not published:
        return [], [], "speed not measured (--timing)"
    smaller = [r for (way, *_), r in ratios.items() if not way.endswith("published")]
    checks = [Check(statement="speed: 1 over how many times faster MNN is than matrix entropy as published, worst case",
                    value=1 / min(published), bound=1 / LEAST_SPEEDUP, unit="ratio")]  # fmt: skip
    said = (
        f"MNN alone is {min(published):.0f} to {max(published):.0f} times faster than matrix entropy as published, "
        f"{min(smaller):.1f} to {max(smaller):.0f} times than by the smaller Gram matrix"
    )
    return figures, checks, said


def study(
    model: str, size: Size, cells: Cells, *, full: bool, timing: bool, sources: Sequence[Source] = (),
    files: Sequence[Source] = (), data: str = "wikitext2:test", threads: int = 1,
) -> Evidence:  # fmt: skip
    started = time.process_time()
    parts = [
        size_part(size, cells),
        compression_part(model, size, cells, data),
        timing_part(size, cells, measured=timing),
    ]
    count, length = size.judged
    return conclude(
        NAME,
        title="Matrix nuclear norm",
        claim=(
            "The sum of the largest column norms of normalised hidden states stands in for their nuclear norm: it "
            "falls with model size as matrix entropy does, and is many times cheaper."
        ),
        paper_figure="8 to 24 times faster than matrix entropy on Cerebras-GPT 111M to 6.7B (abstract)",
        ours="; ".join(said for _, _, said in parts),
        figures=[figure for figures, _, _ in parts for figure in figures],
        checks=[check for _, checks, _ in parts for check in checks],
        samples=(
            f"size: {size.held} windows of held-out Tiny Shakespeare, {size.seeds} seeds, {size.layers} layers, "
            f"{size.steps} steps of 8 x 128 tokens; compression: {count} windows of {length} tokens of {data}"
        ),
        intervals="95 %: percentile bootstrap over windows (KL: standard error over windows); timings: all rounds",
        full=full,
        models=sources,
        data=files,
        threads=threads,
        seconds=time.process_time() - started,
        not_shown=[
            "Cerebras-GPT, Pythia, rankings of models of different families.",
            "End to end the gain is small: a forward pass costs far more than either metric.",
            *(() if timing else ("Speed: run it with --timing on a machine that does nothing else.",)),
            "seconds are of the processor, not of the clock, and of the cells that this run measured.",
        ],
        command=f"python reproductions/{NAME}.py{' --full' * full}{' --timing' * timing}",
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence:
    import torch

    torch.set_num_threads(options.threads)
    if options.timing and not options.quick:
        refuse_busy()
    size = FULL if options.full else SMOKE if options.quick else QUICK
    settings = json.loads(json.dumps({**asdict(size), "timed": None}))
    cells = Cells(options.kept, settings)
    files = data_sources((("wikitext2", "test"), ("tinyshakespeare", None)))
    return study(
        "smollm2", size, cells, full=options.full, timing=options.timing, sources=[model_source("smollm2")],
        files=files, threads=options.threads,
    )  # fmt: skip


def main() -> None:
    parser = arguments(full="the whole study", quick="tiny", threads="of torch", kept=f"studies/{NAME}.jsonl")
    parser.add_argument("--timing", action="store_true", help="measure speed, too, on a machine that does nothing else")
    parser.set_defaults(threads=1)
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
