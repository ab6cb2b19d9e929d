"""The native runtime against llama.cpp, transformers and OpenVINO: many positions, long prompts and batches in one run.

What is timed, of each runtime in every round, in another order each time, after one call of the same that is not:

  positions   n new positions of one text that holds 512 tokens; every row goes through the head, its best token is read
  sequences   one token of each of n texts that hold 512 tokens each: batched decoding
  prefill     512 tokens of a new text, the last row

Quality of each on the same weights is in benchmarks/results/native_quality.json; llama.cpp runs in the packaged
format and in Q8_0, whose KL from the fp32 model is below .01, and the faster of the two is compared with, column by
column.  The floor of a column is what the int8 weights and the products of their codes take at the bandwidth and the
peak that are measured beside it.

OpenVINO runs in its own environment: --openvino PYTHON names an interpreter that can import openvino_genai.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import protocol
from openvino_peer import OpenVino

import likely
from likely.bench.timing import Ratio, Timing, interleaved, speedup
from likely.data import load_records
from likely.errors import LikelyError
from likely.models.catalog import find_model
from likely.models.convert import convert
from likely.runtimes.machine import cores
from likely.runtimes.native.build import library
from likely.runtimes.native.library import INT8
from likely.runtimes.protocol import Runtime, Want, Work
from likely.runtimes.rows import log_softmax
from likely.tokenizers.protocol import begin

CONTEXT, PREFILL = 512, 512
POSITIONS, SEQUENCES = (1, 2, 4, 8, 16, 32, 64), (8, 16)
TARGETS = {"positions 4": 2, "positions 16": 3, "positions 64": 4, "positions 1": 0.9, "prefill 512": 3,
           "sequences 8": 2, "sequences 16": 2}  # fmt: skip
PREFILL_OVER_OPENVINO = 1.5
WARMUP = 1  # rounds
Columns = dict[str, Callable[[], object]]


# --- what a runtime of ours is asked ----------------------------------------------------------------------------------


class Shapes:
    """The calls of every column on one runtime."""

    def __init__(self, runtime: Runtime):
        self.runtime, self._rng = runtime, np.random.default_rng(0)
        self._texts = [runtime.open() for _ in range(max(SEQUENCES))]
        for text in self._texts:
            runtime.forward([Work(text, self._tokens(CONTEXT), want=Want.NONE)])

    def _tokens(self, n: int) -> np.ndarray:
        return self._rng.integers(3, 20_000, n)

    def positions(self, n: int) -> None:
        text = self._texts[0]
        self.runtime.forward([Work(text, self._tokens(n), want=Want(rows="all", top=1))])
        self.runtime.truncate(text, CONTEXT)

    def sequences(self, n: int) -> None:
        work = [Work(text, self._tokens(1), want=Want(rows="all", top=1)) for text in self._texts[:n]]
        self.runtime.forward(work)
        for text in self._texts[:n]:
            self.runtime.truncate(text, CONTEXT)

    def prefill(self) -> None:
        text = self.runtime.open()
        self.runtime.forward([Work(text, self._tokens(PREFILL), want=Want(rows="last", top=1))])
        self.runtime.close(text)

    def columns(self) -> Columns:
        return {
            **{f"positions {n}": partial(self.positions, n) for n in POSITIONS},
            **{f"sequences {n}": partial(self.sequences, n) for n in SEQUENCES},
            f"prefill {PREFILL}": self.prefill,
        }


# --- floors -----------------------------------------------------------------------------------------------------------


def bandwidth() -> float:
    """Bytes per second that all threads together read from memory: the best of several passes."""
    parts = [np.ones(2**27, np.uint8) for _ in range(cores())]
    timings = interleaved({"read": lambda: _together([p.max for p in parts])}, rounds=40)
    return sum(p.nbytes for p in parts) / min(timings["read"].seconds)


def peak() -> float:
    """int8 multiplications per second of all threads together, on weights that stay in the second caches: the best."""
    lib, rng, outputs = library(), np.random.default_rng(0), 3072
    panels = lib.pack(INT8, rng.standard_normal((outputs, 512)).astype(np.float32))
    x = rng.standard_normal((96, 512)).astype(np.float32)
    with lib.team(cores()) as team:
        timing = interleaved({"multiply": lambda: team.multiply(INT8, x, panels, outputs)}, rounds=2000, warmup=10)
    return x.size * outputs / min(timing["multiply"].seconds)


def _together(jobs: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def floor_ms(column: str, lm: Any, bytes_per_s: float, products_per_s: float) -> float:
    """Milliseconds below which weights, keys and values cannot be read, or int8 weights multiplied, here."""
    shape = lm.runtime.shape
    what, n = column.split()
    held = {"sequences": CONTEXT * int(n), "prefill": int(n)}.get(what, CONTEXT)  # tokens whose keys are read
    read = lm.runtime.weights_bytes + held * lm.runtime.kv_bytes_per_token
    head = shape.vocab_size * shape.hidden
    layers = lm.runtime.weights_bytes / (2112 / 2048) - head
    rows = 1 if what == "prefill" else int(n)
    return 1e3 * max(read / bytes_per_s, (layers * int(n) + head * rows) / products_per_s)


# --- one model --------------------------------------------------------------------------------------------------------


def runtimes(model: str, folder: Path, quick: bool) -> dict[str, Any]:
    """name -> a loaded model."""
    held = CONTEXT * (max(SEQUENCES) + 2) + 128
    # at its fastest: blocks of any size, so that its rows depend on how work is cut
    llama: dict[str, Any] = {"runtime": "llamacpp", "threads": cores(), "context": held, "invariant": False}
    found = {
        "native int8": likely.load(model, runtime="native", threads=cores(), context=held),
        "native bf16": likely.load(model, runtime="native", dtype="bfloat16", threads=cores(), context=held),
        "llama.cpp packaged": likely.load(model, **llama),
    }
    if quick:
        return found
    q8 = folder / f"{model}-q8_0.gguf"
    convert(find_model(model), q8, to="q8_0", verify=False)
    return found | {
        "native fp32": likely.load(model, runtime="native", dtype="float32", threads=cores(), context=held),
        "llama.cpp Q8_0": likely.load(str(q8), **llama),
        "transformers bf16": likely.load(model, runtime="torch", dtype="bfloat16", threads=cores(), context=held),
    }


def kl_of_openvino(openvino: OpenVino, reference: Any, folder: Path) -> float:
    """Mean KL(fp32 || OpenVINO), nats, over 512 tokens of wikitext2's test text."""
    rows = islice(load_records("wikitext2", "wiki.test.raw.gz"), 60)
    tokens = begin(reference.tokenizer, reference.tokenizer.encode("".join(row["text"] for row in rows)))[:PREFILL]
    openvino.ask(what="logits", tokens=tokens, to=str(folder / "logits.npy"))
    theirs = np.load(folder / "logits.npy", mmap_mode="r")
    text, kl = reference.runtime.open(), []
    for at in range(0, len(tokens), 32):
        work = Work(text, np.array(tokens[at : at + 32]), want=Want.ALL)
        p = log_softmax(reference.runtime.forward([work])[0].logits)
        q = log_softmax(theirs[at : at + 32])
        kl += (np.exp(p, dtype=np.float64) * (p - q.astype(np.float64))).sum(-1).tolist()
    reference.runtime.close(text)
    return float(np.mean(kl))


def measure(model: str, *, rounds: int, quick: bool, python: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        loaded = runtimes(model, folder, quick)
        openvino, why_not = None, "no --openvino was given"
        if python:
            try:
                openvino = OpenVino(python, find_model(model), folder / "openvino", CONTEXT)
            except LikelyError as error:
                why_not = str(error)
        shapes = {name: Shapes(lm.runtime).columns() for name, lm in loaded.items()}
        names = list(next(iter(shapes.values())))
        columns = {name: _column(name, {e: c[name] for e, c in shapes.items()}, openvino, rounds) for name in names}
        record = {
            "model": model,
            "features": library().features(),
            "weights_bytes": {name: getattr(lm.runtime, "weights_bytes", None) for name, lm in loaded.items()},
            "columns": {name: _row(name, timings) for name, timings in columns.items()},
        }
        record = with_floors(record, loaded["native int8"])
        if openvino and "native fp32" in loaded:
            record["kl_of_openvino_nats"] = kl_of_openvino(openvino, loaded["native fp32"], folder)
        if openvino is None:
            record["openvino_not_measured"] = why_not
        for lm in loaded.values():
            lm.close()
        if openvino:
            openvino.close()
    gc.collect()
    return record


def with_floors(record: dict[str, Any], lm: Any) -> dict[str, Any]:
    """The record with floors by the bandwidth and the peak as they are now; lm: its model in native int8."""
    bytes_per_s, products_per_s = bandwidth(), peak()
    for name, row in record["columns"].items():
        row["floor_ms"] = floor_ms(name, lm, bytes_per_s, products_per_s)
        row["times_floor"] = row["milliseconds"]["native int8"][0] / row["floor_ms"]
    return record | {"bandwidth_gb_per_s": bytes_per_s / 1e9, "int8_peak_gops": products_per_s / 1e9}


def _column(name: str, runs: Columns, openvino: OpenVino | None, rounds: int) -> dict[str, Timing]:
    """All runtimes once in each of `rounds` rounds; OpenVINO times itself, without the way to its process."""
    few = rounds if name not in ("positions 32", "positions 64") else max(3, rounds // 2)
    peer = None if name.startswith("sequences") else openvino
    every = {**runs, **({"OpenVINO": partial(peer.call, name)} if peer else {})}
    timings = interleaved(every, rounds=few, warmup=WARMUP, settled=True)
    if peer:
        timings["OpenVINO"] = peer.timing(WARMUP)
    print(name, {e: f"{1e3 * t.median_s:.2f}" for e, t in timings.items()}, flush=True)
    return timings


def _row(name: str, timings: dict[str, Timing]) -> dict[str, Any]:
    ours = timings["native int8"]
    rivals = [t for e, t in timings.items() if e.startswith("llama.cpp")]
    best = min(rivals, key=lambda t: t.median_s)
    ratios: dict[str, Ratio] = {"llama.cpp, faster format": speedup(ours, best)}
    ratios |= {e: speedup(ours, t) for e, t in timings.items() if not e.startswith(("native int8", "llama.cpp"))}
    return {
        "milliseconds": {e: [1e3 * t.median_s, *(1e3 * s for s in t.interval_s())] for e, t in timings.items()},
        "faster_llamacpp": best.name,
        "speedup_of_native_int8": {e: asdict(r) for e, r in ratios.items()},
        "target": TARGETS.get(name),
    }


def main() -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--model", choices=("smollm2", "gemma3"), action="append")
    extra.add_argument("--floors", action="store_true", help="measure bandwidth and peak alone, for the kept figures")
    extra.add_argument("--openvino", help="python of an environment with openvino_genai")
    chosen, rest = extra.parse_known_args()
    options = protocol.arguments(__doc__, rest)
    if chosen.floors:
        kept = json.loads((protocol.RESULTS / "native.json").read_text())
        models = []
        for model in kept["models"]:
            with likely.load(model["model"], runtime="native", threads=cores()) as lm:
                models.append(with_floors(model, lm))
        record = {"threads": kept["threads"], "context": CONTEXT, "models": models}
        protocol.write("native", record, quick=options.quick)
        return
    record = {
        "threads": cores(),
        "context": CONTEXT,
        "models": [
            measure(m, rounds=2 if options.quick else options.rounds, quick=options.quick, python=chosen.openvino)
            for m in chosen.model or ("smollm2", "gemma3")
        ],
    }
    protocol.write("native", record, quick=options.quick or bool(chosen.model))


if __name__ == "__main__":
    main()
