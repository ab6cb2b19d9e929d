"""What the formats of cached keys and values do to a model's distribution on the native runtime, and their bytes.

The reference is the native runtime in fp32 with keys and values in fp32, on the packaged file's weights; candidates
have the same weights and another format, "sorted" with the channels of each head sorted by the norms of W_k and W_v.
Windows of 512 positions of wikitext2: the mean KL(reference || candidate) in nats, the share of positions whose most
likely token changes, and perplexities.  Nothing is timed: short formats are decoded before use, which saves no time.

  python benchmarks/kv_formats.py                      4 windows, both models
  python benchmarks/kv_formats.py --model gemma3 --only q8_0 bfp16  these; other rows of as many windows stay
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import native_quality as quality
import protocol

import likely
from likely.compression.block_float import load_block_float
from likely.data import find_set
from likely.lm import Model
from likely.runtimes.machine import machine

TEXT, FILE = "wikitext2", "wiki.test.raw.gz"
TOKENS = 8192  # whose keys and values are counted
FORMATS = ("bf16", "f16", "q8_0", "bfp16", "bfp12/bfp16", "bfp12")
SORTED = ("bfp12/bfp16", "bfp12")


NAMES = (*FORMATS, *(f"{kv}, sorted" for kv in SORTED))


def candidates(model: str, names: Sequence[str], threads: int, stack: ExitStack) -> dict[str, Model]:
    """Name of a format -> the model with it."""
    found = {}
    for name in names:
        kv, _, by_norms = name.partition(", ")
        sort: Any = "weight" if by_norms else None
        loaded = load_block_float(
            model, kv, sort=sort, runtime="native", dtype="float32", context=quality.CONTEXT, threads=threads
        )
        gc.collect()  # the module whose channels were sorted
        found[name] = stack.enter_context(Model(loaded.runtime, loaded.tokenizer, loaded.info))
    return found


def rows_of(model: str, names: Sequence[str], windows: int, positions: int, threads: int) -> dict[str, Any]:
    with ExitStack() as stack:
        lm = stack.enter_context(
            likely.load(
                model, runtime="native", dtype="float32", kv_dtype="f32", context=quality.CONTEXT, threads=threads
            )
        )
        others = candidates(model, names, threads, stack)
        texts = quality.windows_of(
            lm.tokenizer, quality.text_of(TEXT, FILE)[: 8 * windows * positions], windows, positions
        )
        found = quality.measure(
            lm.runtime, {name: other.runtime for name, other in others.items()}, texts, lm.tokenizer.vocab_size
        )
        bytes_of = {"f32": lm.info.kv_bytes_per_token, **{n: o.info.kv_bytes_per_token for n, o in others.items()}}
        for name, row in found.items():
            print(quality.line(model, name, TEXT, row), flush=True)
        return {
            "sha256": lm.info.sha256,
            "windows": windows,
            "positions": positions,
            "kv_bytes_per_token": bytes_of,
            f"bytes_of_{TOKENS}_tokens": {name: TOKENS * size for name, size in bytes_of.items()},
            "rows": found,
        }


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new rows, and those of other formats that were measured on the same weights and windows."""
    if any(old.get(key) != new[key] for key in ("sha256", "windows", "positions")):
        return new
    fields = {key: {**old[key], **new[key]} for key in new if isinstance(new[key], dict)}
    return {**new, **fields, "rows": {name: fields["rows"][name] for name in NAMES if name in fields["rows"]}}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures are not kept")
    parser.add_argument("--model", choices=[*quality.MODELS, "both"], default="both")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--only", choices=NAMES, nargs="+", help="these formats")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    print(machine().line())
    windows, positions = (1, 64) if options.quick else (options.windows, quality.POSITIONS)
    target = Path(protocol.RESULTS / "kv_formats.json")
    for model in quality.MODELS if options.model == "both" else (options.model,):
        found = rows_of(model, options.only or NAMES, windows, positions, options.threads)
        earlier = {} if options.quick or not target.exists() else json.loads(target.read_text())["models"]
        record = {
            "reference": "native fp32, keys and values in fp32, weights of the packaged file",
            "text": TEXT,
            "text_sha256": find_set(TEXT).find(FILE).sha256,
            "intervals": "95 %, percentile bootstrap over windows",
            "models": {**earlier, model: merged(earlier.get(model, {}), found)},
        }
        protocol.write("kv_formats", record, quick=options.quick)


if __name__ == "__main__":
    main()
