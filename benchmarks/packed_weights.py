"""The native runtime and llama.cpp on the same 4-bit file: calls of one and of many positions, memory, time to load.

The file has the shape of a Llama of 1.1B (or 8B) parameters and random weights, and is made here, in a folder that goes
again: Q4_0 as random codes, Q4_K by llama.cpp's own quantiser (its mixture "Q4_K_M").

  positions   n new positions of one text that holds some tokens; every row goes through the head, its best is read
  sequences   one token of each of n texts: batched decoding
  prefill     so many tokens of a new text, the last row

Runtimes take turns, in another order in every round.  llama.cpp runs at its fastest: blocks of any size, weights
repacked where it does that.  OpenVINO (--openvino PYTHON, an interpreter that can import openvino_genai) makes its own
int4 of the same file; its pipeline refuses a vocabulary of made-up words, so the graph that it has written is called by
itself: every row has logits, and texts are not batched.  Memory and times to load are of processes of their own: memory
that is a process's alone, and pages of files that others could share; the native runtime loads twice, since it packs a
file once.

  python benchmarks/packed_weights.py
  python benchmarks/packed_weights.py --shape 8b --kind q4_0 --column "positions 1" --column "positions 4" --rounds 3
      some minutes, 10 GB of disk: whether 8B load and decode within 24 GB

Figures of processors with AVX-512 VNNI have a file of their own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import protocol
from openvino_peer import OpenVino

from likely.bench.timing import Timing, interleaved, speedup
from likely.errors import LikelyError
from likely.formats.writing import GgufWriter, encode_pair, f32, number_array, string_array, tensor_bytes, u32
from likely.io.hashes import cache_dir
from likely.runtimes.llamacpp.runtime import LlamaCppRuntime
from likely.runtimes.machine import cores
from likely.runtimes.native.build import library
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.protocol import Runtime, Want, Work

CONTEXT, PREFILL, TEXT = 256, 512, 32  # tokens held, of a prefill, and of each text of a batch
POSITIONS, SEQUENCES = (1, 4, 16), (8,)
TARGETS = {"positions 1": 1.3, "positions 4": 3, "positions 16": 4.5, "prefill 512": 3}
MOST_BYTES, MOST_LOAD = 1.1, 2.0  # times the file, times llama.cpp's seconds
MOST_MEMORY = 24e9  # of a process with 8B
Q4_K_M = 15  # llama.cpp's number of the mixture


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int


SHAPES = {
    "1b": Shape(22, 2048, 32, 4, 5632, 32000),
    "8b": Shape(32, 4096, 32, 8, 14336, 128256),
    "tiny": Shape(2, 256, 4, 2, 512, 512),
}


# --- a file -----------------------------------------------------------------------------------------------------------


def make_file(path: Path, shape: Shape, kind: str, seed: int = 0) -> Path:
    """A Llama of random weights: "q4_0" or "q4_k"."""
    if kind == "q4_0":
        write_random(path, shape, "Q4_0", "Q4_0", seed)
        return path
    import llama_cpp

    whole = path.with_suffix(".q8_0")
    write_random(whole, shape, "Q8_0", "Q8_0", seed)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.allow_requantize = Q4_K_M, cores(), True
    if llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), ctypes.byref(settings)):
        raise LikelyError(f"llama.cpp could not write {path} as {kind}")
    whole.unlink()
    return path


def write_random(path: Path, s: Shape, kind: str, head: str, seed: int) -> None:
    rng, dim = np.random.default_rng(seed), s.hidden // s.heads
    kv = s.kv_heads * dim
    tensors = {"token_embd.weight": ((s.vocab, s.hidden), head)}
    for i in range(s.layers):
        sizes = {"attn_q": (s.hidden, s.hidden), "attn_k": (kv, s.hidden), "attn_v": (kv, s.hidden),
                 "attn_output": (s.hidden, s.hidden), "ffn_gate": (s.mlp, s.hidden), "ffn_up": (s.mlp, s.hidden),
                 "ffn_down": (s.hidden, s.mlp)}  # fmt: skip
        tensors |= {f"blk.{i}.{name}.weight": (size, kind) for name, size in sizes.items()}
        tensors |= {f"blk.{i}.{name}.weight": ((s.hidden,), "F32") for name in ("attn_norm", "ffn_norm")}
    tensors |= {"output_norm.weight": ((s.hidden,), "F32"), "output.weight": ((s.vocab, s.hidden), head)}
    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(f"w{i}" for i in range(s.vocab - 259))]
    pairs: dict[str, Any] = {
        "general.architecture": "llama", "general.name": "random",
        "llama.context_length": u32(2048), "llama.embedding_length": u32(s.hidden), "llama.block_count": u32(s.layers),
        "llama.feed_forward_length": u32(s.mlp), "llama.attention.head_count": u32(s.heads),
        "llama.attention.head_count_kv": u32(s.kv_heads), "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.dimension_count": u32(dim), "llama.vocab_size": u32(s.vocab), "general.file_type": u32(2),
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": string_array(words),
        "tokenizer.ggml.scores": number_array([0.0] * s.vocab, 6),
        "tokenizer.ggml.token_type": number_array([2, 3, 3, *[6] * 256, *[1] * (s.vocab - 259)], 5),
    }  # fmt: skip
    listed = [(name, size, own) for name, (size, own) in tensors.items()]
    with path.open("wb") as file:
        writer = GgufWriter(file, [encode_pair(key, value) for key, value in pairs.items()], listed)
        for _, size, own in listed:
            writer.begin_tensor()
            for piece in random_pieces(size, own, rng):
                writer.write(piece)
        writer.close()


def random_pieces(size: tuple[int, ...], kind: str, rng: np.random.Generator) -> Iterator[bytes]:
    """Norms of 1; matrices of about 1 / sqrt(inputs), some rows at a time."""
    if kind == "F32":
        yield np.ones(size, np.float32).tobytes()
        return
    row, std = tensor_bytes(size[1:], kind), size[1] ** -0.5
    block, spread = (18, 4.6) if kind == "Q4_0" else (34, 74.0)
    scale = np.array([std / spread], np.float16).view(np.uint8)
    for at in range(0, size[0], 1024):
        rows = rng.integers(0, 256, (min(1024, size[0] - at), row // block, block), dtype=np.uint8)
        rows[..., :2] = scale
        yield rows.tobytes()


# --- what is timed ----------------------------------------------------------------------------------------------------


def open_native(path: Path, dtype: str | None = None) -> Runtime:
    return NativeRuntime(path, dtype=dtype or "file", threads=cores(), tokens_held=4096)


def open_llamacpp(path: Path) -> Runtime:
    return LlamaCppRuntime(path, context=2048, sequences=16, threads=cores(), invariant=False)


class Calls:
    """The calls of every column on one runtime."""

    def __init__(self, runtime: Runtime):
        self.runtime, self._rng = runtime, np.random.default_rng(0)
        self._texts = [runtime.open() for _ in range(max(SEQUENCES))]
        for i, text in enumerate(self._texts):
            runtime.forward([Work(text, self._tokens(TEXT if i else CONTEXT), want=Want.NONE)])

    def _tokens(self, n: int) -> np.ndarray:
        return self._rng.integers(3, self.runtime.vocab_size, n)

    def positions(self, n: int) -> None:
        text = self._texts[0]
        self.runtime.forward([Work(text, self._tokens(n), want=Want(rows="all", top=1))])
        self.runtime.truncate(text, CONTEXT)

    def sequences(self, n: int) -> None:
        lengths = [text.length for text in self._texts[:n]]
        self.runtime.forward([Work(text, self._tokens(1), want=Want(rows="all", top=1)) for text in self._texts[:n]])
        for text, length in zip(self._texts[:n], lengths, strict=True):
            self.runtime.truncate(text, length)

    def prefill(self) -> None:
        text = self.runtime.open()
        self.runtime.forward([Work(text, self._tokens(PREFILL), want=Want(rows="last", top=1))])
        self.runtime.close(text)

    def columns(self) -> dict[str, Callable[[], object]]:
        return {
            **{f"positions {n}": partial(self.positions, n) for n in POSITIONS},
            **{f"sequences {n}": partial(self.sequences, n) for n in SEQUENCES},
            f"prefill {PREFILL}": self.prefill,
        }


_LOADED = """
import json, sys, time
sys.path.insert(0, sys.argv[3])
import packed_weights as benchmark
from pathlib import Path
imported = time.perf_counter()
runtime = getattr(benchmark, sys.argv[1])(Path(sys.argv[2]))
from likely.runtimes.protocol import Want, Work
runtime.forward([Work(runtime.open(), benchmark.np.arange(3, 8), want=Want(rows="last", top=1))])
seconds = time.perf_counter() - imported
lines = Path("/proc/self/status").read_text().splitlines()
kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile", "VmHWM"))}
print(json.dumps({"seconds": seconds, **{name: 1024 * size for name, size in kib.items()},
                  "kv_bytes_per_token": getattr(runtime, "kv_bytes_per_token", None)}))
"""


def load(how: str, path: Path) -> dict[str, Any]:
    """Seconds to a first token, and bytes, of a process that opens the file and computes one call."""
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, how, str(path), str(Path(__file__).parent)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def own_cache(folder: Path) -> AbstractContextManager[object]:
    """Packed weights of random models are nobody's: they go with the folder, where the compiled library stands, too."""
    library()  # compiled before anything is timed
    (folder / "native").mkdir(parents=True)
    for compiled in (cache_dir() / "native").glob("*.so"):
        shutil.copy2(compiled, folder / "native")
    return patch.dict(os.environ, {"LIKELY_CACHE": str(folder)})


def measure(
    shape: str, kind: str, *, rounds: int, only: Sequence[str] | None = None, openvino: str | None = None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        stack.enter_context(own_cache(Path(scratch) / "cache"))
        path = make_file(Path(scratch) / f"{shape}.gguf", SHAPES[shape], kind)
        os.utime(path, (time.time() - 3600,) * 2)  # the digest of a file that has just changed is not kept
        loads = {"native, first": load("open_native", path), "native": load("open_native", path),
                 "llama.cpp": load("open_llamacpp", path)}  # fmt: skip
        print(json.dumps({"shape": shape, "kind": kind, "loads": loads}), flush=True)
        opened = {"native": open_native(path), "llama.cpp": open_llamacpp(path)}
        for runtime in opened.values():
            stack.callback(runtime.shutdown)  # type: ignore[attr-defined]
        calls = {name: Calls(runtime).columns() for name, runtime in opened.items()}
        other = OpenVino(openvino, path, Path(scratch) / "openvino", CONTEXT, pipeline=False) if openvino else None
        if other:
            stack.callback(other.close)
        columns: dict[str, Any] = {}
        for column in only or calls["native"]:
            few = max(2, rounds // 2) if column.startswith("prefill") else rounds
            runs = {name: own[column] for name, own in calls.items()}
            peer = None if column.startswith("sequences") else other
            if peer:
                runs["OpenVINO"] = partial(peer.call, column)
            timings = interleaved(runs, rounds=few, warmup=1, settled=True)
            if peer:
                timings["OpenVINO"] = peer.timing(warmup=1)
            columns[column] = _row(column, timings)
            print(json.dumps({"shape": shape, "kind": kind, "column": column, **columns[column]}), flush=True)
        native: Any = opened["native"]
        return {
            "shape": shape, "kind": kind, "file_bytes": path.stat().st_size, "weights": native.weights_format,
            "weights_bytes": native.weights_bytes, "kv_bytes_per_token": native.kv_bytes_per_token, "loads": loads,
            "columns": columns, "demands": demands(path.stat().st_size, native.weights_bytes, loads, columns),
        }  # fmt: skip


def _row(column: str, timings: dict[str, Timing]) -> dict[str, Any]:
    row = {
        "milliseconds": {name: [1e3 * t.median_s, *(1e3 * s for s in t.interval_s())] for name, t in timings.items()},
        "speedup": asdict(speedup(timings["native"], timings["llama.cpp"])),
        "target": TARGETS.get(column),
    }
    if "OpenVINO" in timings:
        row["over_openvino"] = asdict(speedup(timings["native"], timings["OpenVINO"]))
    return row


def demands(
    file_bytes: int, weights_bytes: int, loads: dict[str, Any], columns: dict[str, Any]
) -> list[dict[str, Any]]:
    """What was asked for, what was found, whether it holds."""
    found = [(f"{name}: times as fast as llama.cpp", row["speedup"]["median"], row["target"], True)
             for name, row in columns.items() if row["target"]]  # fmt: skip
    found += [
        ("bytes of packed weights over the file's", weights_bytes / file_bytes, MOST_BYTES, False),
        (
            "seconds to load over llama.cpp's",
            loads["native"]["seconds"] / loads["llama.cpp"]["seconds"],
            MOST_LOAD,
            False,
        ),
    ]
    if file_bytes > 2**32:
        found.append(("largest memory of a process, bytes", loads["native, first"]["VmHWM"], MOST_MEMORY, False))
    return [
        {"demand": what, "value": value, "bound": bound, "holds": value >= bound if least else value <= bound}
        for what, value, bound, least in found
    ]


def main() -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--shape", choices=SHAPES, default="1b")
    extra.add_argument("--kind", choices=("q4_0", "q4_k"), action="append")
    names = [*(f"positions {n}" for n in POSITIONS), *(f"sequences {n}" for n in SEQUENCES), f"prefill {PREFILL}"]
    extra.add_argument("--column", choices=names, action="append", help="these calls alone")
    extra.add_argument("--openvino", metavar="PYTHON", help="interpreter that can import openvino_genai")
    chosen, rest = extra.parse_known_args()
    options = protocol.arguments(__doc__, rest)
    print("native library:", " ".join(library().features()) or "plain")
    shape, rounds = ("tiny", 2) if options.quick else (chosen.shape, options.rounds)
    models = [
        measure(shape, kind, rounds=rounds, only=chosen.column, openvino=chosen.openvino)
        for kind in chosen.kind or ("q4_0", "q4_k")
    ]
    record = {"threads": cores(), "context": CONTEXT, "features": library().features(), "models": models}
    if chosen.shape == "1b" and (chosen.column or chosen.kind):  # a part, which must not take the place of the whole
        print(json.dumps(record, indent=1))
        return
    ending = "_vnni" * ("avx512_vnni" in record["features"]) + "_8b" * (chosen.shape == "8b")
    protocol.write(f"packed_weights{ending}", record, quick=options.quick)


if __name__ == "__main__":
    main()
