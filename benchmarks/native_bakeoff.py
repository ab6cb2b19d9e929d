"""How one call of a small decoder is run on a CPU: the same forward through torch, compilers, other engines and ours.

SmolLM2-135M with 512 kept tokens; 1, 4, 16 and 64 new positions with all rows through the head, and 512 from nothing
with the last row alone.  A variant has a process of its own, and rounds go from process to process.  Each is held to
the logits of the dequantised model in fp32: a fast graph that is wrong is seen to be wrong.

--only NAMES measures some (semicolons between), and the others keep what is in the results file; --make makes, in
--folder, what is made once (packages, converted graphs) and measures nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import gzip
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import protocol
from native_bakeoff_tables import CAPACITY, Shape

from likely.metrics.bootstrap import median_interval
from likely.runtimes.machine import cores

POSITIONS = (1, 4, 16, 64)
CONTEXT = 512
CALLS = {1: 7, 4: 7, 16: 5, 64: 3}  # timed calls of a round, of which the median counts; one more comes before them
ROUNDS = 12
QUIET = 0.05  # share of the processors that other programs may take in a round that counts as quiet
GUARD = 64  # new tokens per call of the whole text
KL_ALLOWED = 2 * 0.0042  # nats per token: twice llama.cpp's Q8_0, which is what an int8 engine is held to


class Decoder(Protocol):
    def extend(self, tokens: list[int], past: int, *, last: bool) -> np.ndarray:
        """Tokens (T,) after the first `past` kept ones -> fp32 logits (T, V), or (1, V) of the last."""


@dataclass
class Held:
    """A decoder on one text: the calls that are timed."""

    decoder: Decoder
    text: list[int]
    context: int = CONTEXT

    def step(self, positions: int) -> np.ndarray:
        new = self.text[self.context : self.context + positions]
        return self.decoder.extend(new, self.context, last=False)

    def prefill(self) -> np.ndarray:
        return self.decoder.extend(self.text[: self.context], 0, last=True)


# --- variants: each builds a decoder from the folder of weights ------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """compiler  "none", "where it is made" (what is made can be given away), or "at the user's"
    libraries    imported before memory is first read
    made         the file that `make` writes, once
    model        False: the products alone, without a model's logits
    """

    build: Callable[[Path], Decoder]
    libraries: tuple[str, ...] = ("torch",)
    compiler: str = "none"
    make: Callable[[Path], None] | None = None
    made: str | None = None
    model: bool = True


def eager(folder: Path, *, kind: str) -> Decoder:
    from native_bakeoff_torch import KINDS, Caller, Lean, Weights

    weights = Weights.load(folder / "weights.pt")
    return Caller(Lean(weights, KINDS[kind]), weights.shape, KINDS[kind].dtype, CAPACITY)


def compiled(folder: Path, *, kind: str) -> Decoder:
    from native_bakeoff_torch import KINDS, Caller, Compiled, Lean, Weights

    weights = Weights.load(folder / "weights.pt")
    return Caller(Compiled(Lean(weights, KINDS[kind])), weights.shape, KINDS[kind].dtype, CAPACITY)


def linears(folder: Path, *, kind: str) -> Decoder:
    from native_bakeoff_torch import KINDS, Lean, LinearsAlone, Weights

    return LinearsAlone(Lean(Weights.load(folder / "weights.pt"), KINDS[kind]))


def make_aoti(folder: Path) -> None:
    from native_bakeoff_portable import make_aoti as make

    make(folder)


def aoti(folder: Path) -> Decoder:
    from native_bakeoff_torch import BF16, Caller, Packaged

    return Caller(Packaged(folder / "aoti-bf16.pt2", shape_of(folder)), shape_of(folder), BF16, CAPACITY)


def make_openvino(folder: Path, *, int8: bool) -> None:
    from native_bakeoff_portable import make_openvino as make

    make(folder, int8=int8)


def openvino(folder: Path, *, file: str) -> Decoder:
    from native_bakeoff_graphs import of_openvino

    return of_openvino(folder / file, shape_of(folder), CAPACITY)


def make_onnx(folder: Path) -> None:
    from native_bakeoff_portable import make_onnx as make

    make(folder)


def onnxruntime(folder: Path) -> Decoder:
    from native_bakeoff_graphs import of_onnxruntime

    return of_onnxruntime(folder / "onnx-int8.onnx", shape_of(folder), CAPACITY)


def runtime(folder: Path, **options: Any) -> Decoder:
    from native_bakeoff_frame import OfRuntime

    return OfRuntime(**options)


def make_native(folder: Path, *, dtype: str) -> None:
    """Compile the C++ and pack the weights, in a cache of the bake-off's own."""
    native(folder, dtype=dtype)
    (folder / f"native-{dtype}").touch()


def native(folder: Path, *, dtype: str) -> Decoder:
    os.environ["LIKELY_CACHE"] = str(folder / f"cache-{dtype}")
    return runtime(folder, runtime="native", dtype=dtype, context=1024)


def transformers(folder: Path) -> Decoder:
    from native_bakeoff_frame import OfTransformers

    return OfTransformers()


def _lean(kind: str) -> Variant:
    return Variant(lambda folder: eager(folder, kind=kind))


def _compiled(kind: str) -> Variant:
    return Variant(lambda folder: compiled(folder, kind=kind), compiler="at the user's")


def _linears(kind: str) -> Variant:
    return Variant(lambda folder: linears(folder, kind=kind), model=False)


def _openvino(name: str, int8: bool) -> Variant:
    file = f"openvino-{name}.xml"
    return Variant(
        lambda folder: openvino(folder, file=file), ("openvino",), make=lambda folder: make_openvino(folder, int8=int8),
        made=file,
    )  # fmt: skip


def _native(dtype: str) -> Variant:
    return Variant(
        lambda folder: native(folder, dtype=dtype), ("likely",), "at the user's",
        lambda folder: make_native(folder, dtype=dtype), f"native-{dtype}",
    )  # fmt: skip


VARIANTS: Mapping[str, Variant] = {
    "linears alone, int8": _linears("int8 per token"),
    "linears alone, bf16": _linears("bf16 packed"),
    "lean, fp32": _lean("fp32"),
    "lean, bf16": _lean("bf16"),
    "lean, bf16 packed": _lean("bf16 packed"),
    "lean, int8 per token": _lean("int8 per token"),
    "lean, int8 per call": _lean("int8 per call"),
    "lean, int8 in one call": _lean("int8 in one call"),
    "compiled layer, bf16 packed": _compiled("bf16 packed"),
    "compiled layer, int8 per token": _compiled("int8 per token"),
    "AOTInductor, bf16": Variant(aoti, compiler="where it is made", make=make_aoti, made="aoti-bf16.pt2"),
    "OpenVINO, bf16": _openvino("bf16", int8=False),
    "OpenVINO, int8": _openvino("int8", int8=True),
    "ONNX Runtime, int8": Variant(onnxruntime, ("onnxruntime",), make=make_onnx, made="onnx-int8.onnx"),
    "native, int8": _native("int8"),
    "native, bf16": _native("bfloat16"),
    "transformers, bf16": Variant(transformers, ("torch", "transformers")),
    "llama.cpp, Q4_1": Variant(lambda folder: runtime(folder, runtime="llamacpp", context=1024), ("llama_cpp",)),
}
NOTES = {
    "lean, int8 in one call": "torch.ops.quantized.linear_dynamic: one scale of activations for all rows of a call",
    "AOTInductor, bf16": "one position is computed as two: the package's sizes start at 2",
}


# --- what all share: weights, the text, its logits in fp32 -----------------------------------------------------------


def prepare(folder: Path) -> None:
    """weights.pt, shape.json, text.json and reference.npy (T, V), unless they are there."""
    if (folder / "reference.npy").exists():
        return
    import torch
    from native_bakeoff_torch import Weights

    from likely.data import find_path
    from likely.models.catalog import find_model
    from likely.runtimes.torch.gguf_module import load_gguf
    from likely.tokenizers.gguf import tokenizer_from_gguf

    path = find_model("smollm2")
    module = load_gguf(path, dtype=torch.float32, device=torch.device("cpu"))
    weights = Weights.of(module)
    weights.save(folder / "weights.pt")
    (folder / "shape.json").write_text(json.dumps(weights.shape.__dict__))
    raw = gzip.decompress(find_path("wikitext2", "wiki.test.raw.gz").read_bytes()).decode()
    text = [int(t) for t in tokenizer_from_gguf(path).encode(raw[:8000])[:CAPACITY]]
    (folder / "text.json").write_text(json.dumps(text))
    with torch.no_grad():
        np.save(folder / "reference.npy", module(torch.tensor([text])).logits[0].numpy())


def shape_of(folder: Path) -> Shape:
    return Shape(**json.loads((folder / "shape.json").read_text()))


# --- what is measured ------------------------------------------------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    total: np.ndarray = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    return shifted - np.log(total).astype(np.float32)


def compare(logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """(R, V) each: KL of `logits` from the reference in nats, share of rows with another top token, largest gap."""
    if logits.shape != reference.shape or not np.isfinite(logits).all():
        raise ValueError(f"logits of shape {logits.shape} where {reference.shape} finite ones were expected")
    p, q = log_softmax(reference), log_softmax(logits)
    divergence = (np.exp(p) * (p - q)).sum(-1)
    return {
        "kl_mean": float(divergence.mean()),
        "kl_max": float(divergence.max()),
        "flips": float((p.argmax(-1) != q.argmax(-1)).mean()),
        "max_abs": float(np.abs(logits - reference).max()),
    }


def guard(held: Held, reference: np.ndarray, positions: Sequence[int], chunk: int = GUARD) -> dict[str, Any]:
    """The whole text in calls of `chunk` tokens against the reference (T, V), and the mean KL of each timed call."""
    text, context = held.text, held.context
    parts = [held.decoder.extend(text[at : at + chunk], at, last=False).copy() for at in range(0, len(text), chunk)]
    whole = compare(np.concatenate(parts), reference)
    calls = {"prefill": compare(held.prefill(), reference[context - 1 : context])["kl_mean"]}
    for n in positions:
        calls[str(n)] = compare(held.step(n), reference[context : context + n])["kl_mean"]
    return {"rows": len(text), **whole, "kl_of_timed_calls": calls}


def one_round(held: Held, calls: Mapping[int, int] = CALLS) -> dict[str, float]:
    """Seconds of a call at each number of positions, and of prefill."""
    found = {}
    held.prefill()
    started = time.perf_counter()
    held.prefill()
    found["prefill"] = time.perf_counter() - started
    for n, count in calls.items():
        seconds = []
        for _ in range(count + 1):
            started = time.perf_counter()
            held.step(n)
            seconds.append(time.perf_counter() - started)
        found[str(n)] = float(np.median(seconds[1:]))
    return found


def resident_mb() -> float:
    """Memory of this process, after giving back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- a process per variant -------------------------------------------------------------------------------------------


class Worker:
    """The other end of `serve`; a word out, a line of JSON back. ValueError with the reason where it fails."""

    def __init__(self, name: str, folder: Path):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--folder", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise ValueError((self._errors.read().strip().splitlines() or ["it ended without a word"])[-1])
        reply: dict[str, Any] = json.loads(line)
        if "failed" in reply:
            raise ValueError(reply["failed"])
        return reply

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def serve(name: str, folder: Path) -> None:
    """Answer the words of a Worker; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    held: list[Held] = []
    for line in sys.stdin:
        try:
            reply = _answer(line.strip(), VARIANTS[name], folder, held)
        except Exception as error:  # whatever a library raises is this variant's result
            text = str(error).strip().splitlines()
            reply = {"failed": f"{type(error).__name__}: {text[0] if text else ''}"[:300]}
        print(json.dumps(reply), file=replies, flush=True)


def _answer(word: str, variant: Variant, folder: Path, held: list[Held]) -> dict[str, Any]:
    if word == "make":
        assert variant.make is not None
        started = time.perf_counter()
        variant.make(folder)
        return {"make_s": time.perf_counter() - started}
    if word == "build":
        for library in variant.libraries:
            importlib.import_module(library)
        if "torch" in variant.libraries:
            import torch

            torch.set_num_threads(cores())
        before = resident_mb()
        started = time.perf_counter()
        held.append(Held(variant.build(folder), json.loads((folder / "text.json").read_text())))
        built = time.perf_counter()
        held[0].prefill()
        for n in POSITIONS:
            held[0].step(n)
        ready = time.perf_counter()
        graphs = getattr(getattr(held[0].decoder, "_forward", None), "graphs", None)
        return {
            "build_s": built - started, "first_calls_s": ready - built, "libraries_mb": before,
            "growth_mb": resident_mb() - before, **({} if graphs is None else {"graphs_compiled": graphs}),
        }  # fmt: skip
    if word == "guard":
        return guard(held[0], np.load(folder / "reference.npy", mmap_mode="r"), POSITIONS)
    if word == "round":
        return one_round(held[0])
    raise ValueError(f"unknown word {word}")


def make(names: Sequence[str], folder: Path) -> dict[str, str]:
    """Make what is not there yet, one after another; {name: why it could not be made}."""
    failed = {}
    for name in names:
        variant = VARIANTS[name]
        if variant.made is None or (folder / f"{variant.made}.json").exists():
            continue
        worker = Worker(name, folder)
        try:
            found = worker.ask("make")
            (folder / f"{variant.made}.json").write_text(json.dumps(found))
            print(f"{name}: made in {found['make_s']:.0f} s", flush=True)
        except ValueError as error:
            failed[name] = str(error)
            print(f"{name}: not made: {error}", flush=True)
        finally:
            worker.end()
    return failed


def measure(names: Sequence[str], folder: Path, *, rounds: int, most_seconds: float = 600) -> dict[str, Any]:
    """{name: its entry of the results}: one that fails holds the reason, and no figures."""
    ends = time.perf_counter() + most_seconds
    found: dict[str, Any] = {name: {"not_measured": reason} for name, reason in make(names, folder).items()}
    workers: dict[str, Worker] = {}
    for name in names:
        if name in found:
            continue
        variant, worker = VARIANTS[name], Worker(name, folder)
        entry: dict[str, Any] = {"compiler": variant.compiler}
        if variant.made:
            entry |= json.loads((folder / f"{variant.made}.json").read_text())
        try:
            entry |= worker.ask("build")
            if variant.model:
                entry["guard"] = worker.ask("guard")
                entry["quality"] = entry["guard"]["kl_mean"] <= KL_ALLOWED
        except ValueError as error:
            found[name] = {"not_measured": str(error)}
            worker.end()
            print(f"{name}: not measured: {error}", flush=True)
            continue
        workers[name], found[name] = worker, entry
    seconds: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in workers}
    while any(quiet_rounds(done) < rounds for done in seconds.values()):
        if time.perf_counter() > ends and all(seconds.values()):
            break
        for name, worker in workers.items():
            before = busy_ticks(worker.pid)
            one = worker.ask("round")
            seconds[name].append((others_share(before, busy_ticks(worker.pid)), one))
    for name, worker in workers.items():
        worker.end()
        # the rounds in which other programs took least
        best = sorted(seconds[name], key=lambda pair: pair[0])[: max(rounds, quiet_rounds(seconds[name]))]
        found[name]["calls"] = {key: summary([one[key] for _, one in best]) for key in best[0][1]}
        found[name]["rounds_done"] = len(seconds[name])
        found[name]["others_share"] = {"median": float(np.median([s for s, _ in best])), "most": best[-1][0]}
        found[name]["beside"] = [other for other in workers if other != name]
        if name in NOTES:
            found[name]["note"] = NOTES[name]
        print(line(name, found[name]), flush=True)
    return found


def busy_ticks(pid: int) -> tuple[float, float]:
    """Ticks of the processors so far: by other processes than this one, and in all."""
    values = [float(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    own = sum(float(v) for v in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
    return sum(values) - values[3] - values[4] - own, sum(values)


def others_share(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Share of all processors that programs other than the one measured took meanwhile."""
    return max(0.0, (after[0] - before[0]) / max(after[1] - before[1], 1.0))


def quiet_rounds(done: Sequence[tuple[float, dict[str, float]]]) -> int:
    return sum(share < QUIET for share, _ in done)


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    low, high = median_interval(seconds)
    return {
        "median_ms": 1e3 * float(np.median(seconds)), "low_ms": 1e3 * low, "high_ms": 1e3 * high,
        "least_ms": 1e3 * min(seconds), "most_ms": 1e3 * max(seconds), "rounds": len(seconds),
    }  # fmt: skip


def line(name: str, entry: Mapping[str, Any]) -> str:
    if "not_measured" in entry:
        return f"{name:32} not measured: {entry['not_measured']}"
    calls = " ".join(f"{entry['calls'][key]['median_ms']:7.1f}" for key in ("1", "4", "16", "64", "prefill"))
    kl = f"{entry['guard']['kl_mean']:.4f}" if "guard" in entry else "-"
    start = entry["build_s"] + entry["first_calls_s"]
    share = entry["others_share"]["median"]
    return (
        f"{name:32} {calls} ms (others {share:.0%})  KL {kl}  start {start:5.1f} s  +{entry['growth_mb']:.0f} MB  "
        f"compiler: {entry['compiler']}"
    )


def chosen(text: str | None) -> list[str]:
    """Names of variants that begin with one of the words."""
    if text is None:
        return list(VARIANTS)
    words = [word.strip() for word in text.split(";")]
    for word in words:
        if not any(name.startswith(word) for name in VARIANTS):
            raise SystemExit(f'no variant is called "{word}" (there are: {"; ".join(VARIANTS)})')
    return [name for name in VARIANTS if any(name.startswith(word) for word in words)]


def stored() -> dict[str, Any]:
    path = protocol.RESULTS / "native_bakeoff.json"
    return json.loads(path.read_text())["variants"] if path.exists() else {}


def main() -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--only", help="beginnings of names, semicolons between them")
    extra.add_argument("--folder", type=Path, help="where what is made once stays (default: a temporary one)")
    extra.add_argument("--seconds", type=float, default=600.0, help="start no round after so many (default: 600)")
    extra.add_argument("--make", action="store_true", help="make only")
    extra.add_argument("--worker", help=argparse.SUPPRESS)
    mine, rest = extra.parse_known_args()
    if mine.worker:
        serve(mine.worker, mine.folder)
        return
    options = protocol.arguments(__doc__.splitlines()[0], ["--rounds", str(ROUNDS), *rest])
    names = chosen(mine.only)
    with tempfile.TemporaryDirectory() as scratch:
        folder = mine.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        if mine.make:
            make(names, folder)
            return
        found = measure(names, folder, rounds=2 if options.quick else options.rounds, most_seconds=mine.seconds)
    kept = {} if options.quick else stored()
    order = [name for name in VARIANTS if name in found or name in kept]
    record = {
        "model": "SmolLM2-135M-Instruct, Q4_1 as packaged; every variant but llama.cpp from its dequantised weights",
        "context": CONTEXT,
        "threads": cores(),
        "kl_allowed": KL_ALLOWED,
        "variants": {name: found.get(name) or kept[name] for name in order},
    }
    protocol.write("native_bakeoff", record, quick=options.quick)


if __name__ == "__main__":
    main()
