"""What each engine and weight format does to a model's distribution, against the same weights in fp32.

The reference is transformers in fp32 on the packaged file's weights.  On prose (wikitext2) and on code (HumanEval),
windows of 512 positions each: the mean KL(reference || candidate) in nats, the share of positions whose most likely
token changes ("flips"), and the perplexity of both on the same next tokens.  All candidates see a piece of text before
the next piece is read, so one pass of the reference serves them all, and no more than a piece's logits are in memory.

  python benchmarks/native_quality.py                          6 windows of each text, both models
  python benchmarks/native_quality.py --full                  24 windows
  python benchmarks/native_quality.py --only native-int8       one candidate, added to the results that are there

Not measured: OpenVINO GenAI, whose pipelines return texts and no rows of logits.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import protocol
from numpy.typing import NDArray

import likely
from likely.data import find_set, load_records
from likely.errors import LikelyError
from likely.metrics.bootstrap import bootstrap_ratio
from likely.models.catalog import find_model
from likely.models.convert import FILE_TYPE, convert
from likely.runtimes.machine import cores, machine
from likely.runtimes.protocol import Runtime, Want, Work
from likely.runtimes.protocol import Sequence as Held
from likely.tokenizers.protocol import Tokenizer, begin

MODELS = ("smollm2", "gemma3")
TEXTS = (("wikitext2", "wiki.test.raw.gz"), ("humaneval", "problems.jsonl.gz"))
POSITIONS = 512  # of one window
CONTEXT = 1024  # tokens held: one window and some room
PIECE_BYTES = 128 * 2**20  # of log-probabilities of one piece of a window
QUANTISED_BY_LLAMA_CPP = {"q4_0": 2, "q5_1": 9}  # its numbers of file types that likely does not write
NOT_MEASURED = {"openvino-genai": "its pipelines return texts and no rows of logits"}

Rows = NDArray[np.float64]  # (T, V)


# --- quantities -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A candidate against the reference on T positions.

    divergence  KL(reference || candidate) of the next token's distribution, nats
    flipped     whether the most likely token differs
    theirs      the reference's log-probability of the token that followed, and ours the candidate's
    """

    divergence: NDArray[np.float64]  # (T,)
    flipped: NDArray[np.bool_]  # (T,)
    theirs: NDArray[np.float64]  # (T,)
    ours: NDArray[np.float64]  # (T,)


def log_softmax(logits: NDArray[np.floating]) -> Rows:
    """(T, V) natural logarithms, in fp64."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def compare(reference: Rows, candidate: Rows, following: NDArray[np.int64]) -> Compared:
    """Both (T, V) log-probabilities; following (T,) the token that came after each position."""
    if reference.shape != candidate.shape:
        raise ValueError(f"rows of shape {candidate.shape} against the reference's {reference.shape}")
    divergence = np.einsum("tv,tv->t", np.exp(reference), reference - candidate)
    if not np.isfinite(divergence).all():
        raise ValueError("a divergence is not finite: some logits are NaN or infinite")
    at = np.arange(len(following))
    flipped = reference.argmax(axis=1) != candidate.argmax(axis=1)
    return Compared(divergence, flipped, reference[at, following], candidate[at, following])


def join(parts: Iterable[Compared]) -> Compared:
    """The positions of several pieces after each other."""
    found = list(parts)
    fields = ("divergence", "flipped", "theirs", "ours")
    return Compared(*(np.concatenate([getattr(part, name) for part in found]) for name in fields))


def summary(windows: Sequence[Compared]) -> dict[str, Any]:
    """Means over all positions, each with a 95 % interval over resampled windows (positions of a text hang together).

    log_perplexity_ratio  mean of reference − candidate log-probability of the text, so > 0 where the candidate is worse
    largest_difference    of the log-probability of a token of the text, without an interval
    """
    positions = [len(window.divergence) for window in windows]

    def mean(name: str, values: Sequence[NDArray], scale: float = 1.0) -> dict[str, float]:
        sums = [scale * float(v.sum()) for v in values]
        low, high = bootstrap_ratio(sums, positions)
        return {name: sum(sums) / sum(positions), f"{name}_low": low, f"{name}_high": high}

    whole = join(windows)
    return {
        "positions": sum(positions),
        **mean("kl_nats", [w.divergence for w in windows]),
        **mean("flips_percent", [w.flipped for w in windows], 100.0),
        "perplexity": math.exp(-whole.ours.mean()),
        "perplexity_reference": math.exp(-whole.theirs.mean()),
        **mean("log_perplexity_ratio", [w.theirs - w.ours for w in windows]),
        "largest_difference_nats": float(np.abs(whole.theirs - whole.ours).max()),
    }


# --- running ----------------------------------------------------------------------------------------------------------


def windows_of(tokenizer: Tokenizer, text: str, count: int, positions: int) -> list[NDArray[np.int64]]:
    """`count` windows of positions + 1 tokens that follow each other in the text; each begins as the model wants it."""
    front = begin(tokenizer, [])
    size = positions + 1 - len(front)
    ids = tokenizer.encode(text)
    if len(ids) < count * size:
        raise ValueError(f"the text has {len(ids)} tokens; {count} windows need {count * size}")
    return [np.array([*front, *ids[i * size : (i + 1) * size]], np.int64) for i in range(count)]


def rows_of(runtime: Runtime, sequence: Held, tokens: NDArray[np.int64]) -> Rows:
    """(T, V) log-probabilities after each of T tokens, which the sequence then holds."""
    [output] = runtime.forward([Work(sequence, tokens, want=Want.ALL)])
    assert output.logits is not None
    return log_softmax(output.logits)


def run_window(
    reference: Runtime, candidates: Mapping[str, Runtime], tokens: NDArray[np.int64], piece: int
) -> dict[str, Compared]:
    """One window of T + 1 tokens: T positions, `piece` at a time on the reference and then on each candidate."""
    found: dict[str, list[Compared]] = {name: [] for name in candidates}
    with ExitStack() as stack:

        def opened(runtime: Runtime) -> Held:
            sequence = runtime.open()
            stack.callback(runtime.close, sequence)
            return sequence

        theirs, ours = opened(reference), {name: opened(runtime) for name, runtime in candidates.items()}
        bounds = [*range(0, len(tokens) - 1, piece), len(tokens) - 1]
        for start, stop in pairwise(bounds):
            rows = rows_of(reference, theirs, tokens[start:stop])
            for name, runtime in candidates.items():
                candidate = rows_of(runtime, ours[name], tokens[start:stop])
                found[name].append(compare(rows, candidate, tokens[start + 1 : stop + 1]))
    return {name: join(parts) for name, parts in found.items()}


def measure(
    reference: Runtime, candidates: Mapping[str, Runtime], windows: Sequence[NDArray[np.int64]], vocab_size: int
) -> dict[str, dict[str, Any]]:
    """A summary of each candidate over the windows of one text."""
    piece = max(1, PIECE_BYTES // (8 * vocab_size))
    runs = [run_window(reference, candidates, window, piece) for window in windows]
    return {name: summary([run[name] for run in runs]) for name in candidates}


# --- candidates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What a candidate is opened from: a model by name, the folder for files that are made, threads."""

    model: str
    work: Path
    threads: int


def packaged(place: Place) -> likely.Model:
    return likely.load(place.model, runtime="llamacpp", context=CONTEXT, threads=place.threads)


def converted(format: str, place: Place) -> likely.Model:
    return likely.load(str(made_file(format, place)), runtime="llamacpp", context=CONTEXT, threads=place.threads)


def torch_bfloat16(place: Place) -> likely.Model:
    return likely.load(place.model, runtime="torch", dtype="bfloat16", context=CONTEXT, threads=place.threads)


def native(dtype: str, place: Place) -> likely.Model:
    return likely.load(place.model, runtime="native", dtype=dtype, context=CONTEXT, threads=place.threads)


NATIVE = {"int8": "int8", "bf16": "bfloat16", "fp32": "float32", "file": "file", "int4": "int4"}
CANDIDATES: dict[str, Callable[[Place], likely.Model]] = {
    "llamacpp-packaged": packaged,
    **{f"llamacpp-{name}": partial(converted, name) for name in ("f32", "f16", "bf16", "q8_0", "q5_1", "q4_0")},
    "torch-bf16": torch_bfloat16,
    **{f"native-{name}": partial(native, dtype) for name, dtype in NATIVE.items()},
}


def made_file(format: str, place: Place) -> Path:
    """The packaged weights in another format, by way of F32; made once in the folder."""
    target, whole = (place.work / f"{place.model}-{kind}.gguf" for kind in (format, "f32"))
    if not whole.exists():
        convert(find_model(place.model), whole, to="f32", verify=False)
    if target.exists():
        return target
    if format in FILE_TYPE:
        convert(whole, target, to=format, verify=False)
        return target
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = QUANTISED_BY_LLAMA_CPP[format], place.threads
    partly = target.with_suffix(".partial")
    if llama_cpp.llama_model_quantize(str(whole).encode(), str(partly).encode(), ctypes.byref(settings)):
        raise LikelyError(f"llama.cpp could not write {place.model} as {format}")
    return partly.replace(target)


def open_candidates(stack: ExitStack, place: Place, names: Sequence[str]) -> dict[str, likely.Model]:
    """Those that this installation has; a line for each of the others."""
    found = {}
    for name in names:
        try:
            found[name] = stack.enter_context(CANDIDATES[name](place))
        except LikelyError as error:
            print(f"{place.model}, {name}: not measured ({error})")
    return found


# --- results ----------------------------------------------------------------------------------------------------------


def text_of(name: str, file: str) -> str:
    if name == "humaneval":
        return "\n\n".join(row["prompt"] + row["canonical_solution"] for row in load_records(name, file))
    return "".join(row["text"] for row in load_records(name, file))


def quality_of(place: Place, names: Sequence[str], *, count: int, positions: int) -> dict[str, Any]:
    """Rows of one model: candidate -> text -> figures, each with what it was measured on."""
    model = place.model
    with ExitStack() as stack:
        oracle = likely.load(model, runtime="torch", dtype="float32", context=CONTEXT, threads=place.threads)
        lm = stack.enter_context(oracle)
        candidates = open_candidates(stack, place, names)
        rows: dict[str, Any] = {}
        for text, file in TEXTS if candidates else ():
            windows = windows_of(lm.tokenizer, text_of(text, file)[: 8 * count * positions], count, positions)
            runtimes = {name: candidate.runtime for name, candidate in candidates.items()}
            for name, found in measure(lm.runtime, runtimes, windows, lm.tokenizer.vocab_size).items():
                print(line(model, name, text, found), flush=True)
                rows.setdefault(name, _circumstances(candidates[name]))[text] = found
        return {"sha256": lm.info.sha256, "rows": rows}


def _circumstances(lm: likely.Model) -> dict[str, Any]:
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine().line(),
        "sha256": lm.info.sha256,
        "dtype": lm.info.dtype,
    }


def line(model: str, name: str, text: str, found: Mapping[str, Any]) -> str:
    return (
        f"{model}, {name}, {text}: KL {found['kl_nats']:.5f} [{found['kl_nats_low']:.5f}, {found['kl_nats_high']:.5f}] "
        f"nats, flips {found['flips_percent']:.2f} % [{found['flips_percent_low']:.2f}, "
        f"{found['flips_percent_high']:.2f}], perplexity {found['perplexity']:.3f} (reference "
        f"{found['perplexity_reference']:.3f}), largest difference {found['largest_difference_nats']:.2g} nats"
    )


def demands(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is demanded of the native runtime, for those rows of one model that are there."""
    found = []

    def demand(statement: str, value: float, bound: float) -> None:
        found.append({"demand": statement, "value": value, "bound": bound, "holds": value <= bound})

    for text, _ in TEXTS:
        if {"native-int8", "llamacpp-q8_0"} <= rows.keys():
            ours, theirs = rows["native-int8"][text], rows["llamacpp-q8_0"][text]
            demand(f"{text}: int8 KL at most twice Q8_0's", ours["kl_nats"], 2 * theirs["kl_nats"])
            bound = 1.5 * theirs["flips_percent"]
            demand(f"{text}: int8 flips at most 1.5 times Q8_0's", ours["flips_percent"], bound)
        if "native-fp32" in rows:
            value = rows["native-fp32"][text]["largest_difference_nats"]
            demand(f"{text}: fp32 within 1e-4 nats on every token", value, 1e-4)
    return found


def earlier_record(target: Path, count: int, positions: int, *, whole: bool) -> dict[str, Any]:
    """The results that are there, to add to; {} where there are none, or where a whole run replaces others."""
    earlier = json.loads(target.read_text()) if target.exists() else {}
    if not earlier or (earlier["windows"], earlier["positions"]) == (count, positions):
        return earlier
    if not whole:
        raise SystemExit(
            f"{target.name} is of {earlier['windows']} windows of {earlier['positions']} positions, this run of "
            f"{count} of {positions}: their rows cannot stand beside each other"
        )
    return {}


def merged(earlier: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the earlier one's rows of other candidates and models; rows of other weights go."""
    models = {**earlier.get("models", {}), **record["models"]}
    for model, new in record["models"].items():
        old = earlier.get("models", {}).get(model, new)
        held = {**(old["rows"] if old["sha256"] == new["sha256"] else {}), **new["rows"]}
        rows = {name: held[name] for name in CANDIDATES if name in held}
        models[model] = {"sha256": new["sha256"], "rows": rows, "demands": demands(rows)}
    return {**record, "models": models}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a smoke run; its figures are not kept")
    size.add_argument("--full", action="store_true", help="24 windows of each text instead of 6")
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both")
    parser.add_argument("--only", choices=list(CANDIDATES), nargs="+", help="these candidates; other rows stay")
    parser.add_argument("--work", type=Path, help="a folder for converted models, which are kept there")
    parser.add_argument("--threads", type=int, default=cores())
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    print(machine().line())
    count, positions = (1, 64) if options.quick else (24 if options.full else 6, POSITIONS)
    target = protocol.RESULTS / "native_quality.json"
    whole = options.model == "both" and not options.only

    def earlier() -> dict[str, Any]:
        return {} if options.quick else earlier_record(target, count, positions, whole=whole)

    earlier()  # what cannot be added is refused before it is measured
    names = options.only or list(CANDIDATES)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for model in MODELS if options.model == "both" else (options.model,):
            found = quality_of(Place(model, work, options.threads), names, count=count, positions=positions)
            record = {
                "reference": "transformers fp32, weights of the packaged file",
                "windows": count,
                "positions": positions,
                "texts": {name: find_set(name).find(file).sha256 for name, file in TEXTS},
                "intervals": "95 %, percentile bootstrap over windows",
                "not_measured": NOT_MEASURED,
                "models": {model: found},
            }
            record = merged(earlier(), record)
            for demand in record["models"][model]["demands"]:
                print(f"{model}, {demand['demand']}: {'holds' if demand['holds'] else 'missed'}")
            protocol.write("native_quality", record, quick=options.quick)


if __name__ == "__main__":
    main()
