"""A step of B texts that share their first P tokens, on the native runtime: what is shared read once, and apart.

Forks of one text of P tokens go on for 32 tokens each; then one token of each is evaluated in one call, again and again
at the same place.  The same model is opened twice: pieces of work put together (the default), and each attended for
itself; logits are the same bits, which is checked here too.  Beside the milliseconds stand the columns that attention
reads, which no machine changes.  P of 256 to 4,096, B of 1 to 32; keys and values in bf16, and in q8_0, where a block
that is read once is decoded once.

  python benchmarks/shared_prefix.py             SmolLM2, int8
  python benchmarks/shared_prefix.py --quick     a smoke run; its figures are not kept
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import protocol

from likely.bench.timing import interleaved, speedup
from likely.models.catalog import find_model
from likely.runtimes.machine import cores
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.protocol import Output, Sequence, Want, Work

MODEL, SUFFIX = "smollm2", 32
BATCHES, PREFIXES, FORMATS = (1, 4, 16, 32), (256, 1024, 4096), ("bf16", "q8_0")


def opened(kv: str, together: bool, held: int, threads: int) -> NativeRuntime:
    return NativeRuntime(
        find_model(MODEL), dtype="int8", kv_dtype=kv, group_prefixes=together, tokens_held=held, threads=threads
    )


def forks(runtime: NativeRuntime, prefix: int, batch: int) -> list[Sequence]:
    """Texts of `prefix` tokens in common and SUFFIX of their own."""
    rng = np.random.default_rng(prefix)
    vocab, root = runtime.vocab_size - 8, runtime.open()
    runtime.forward([Work(root, rng.integers(0, vocab, prefix), want=Want.NONE)])
    found: list[Sequence] = [runtime.fork(root) for _ in range(batch)]
    runtime.forward([Work(s, rng.integers(0, vocab, SUFFIX), want=Want.NONE) for s in found])
    runtime.close(root)
    return found


def step(runtime: NativeRuntime, texts: list[Sequence], want: Want) -> list[Output]:
    """One token of each text, which is dropped again."""
    outputs = runtime.forward([Work(s, np.array([i + 5]), want=want) for i, s in enumerate(texts)])
    for s in texts:
        runtime.truncate(s, s.length - 1)
    return outputs


def measured(kv: str, prefix: int, batch: int, *, rounds: int, threads: int, repeats: int) -> dict[str, Any]:
    runtimes = {
        name: opened(kv, name == "together", prefix + batch * (SUFFIX + 1) + 64, threads)
        for name in ("together", "apart")
    }
    try:
        texts = {name: forks(runtime, prefix, batch) for name, runtime in runtimes.items()}
        columns, rows = {}, {}
        for name, runtime in runtimes.items():
            before = runtime.columns_read()
            rows[name] = np.stack([o.logits[0] for o in step(runtime, texts[name], Want.LAST) if o.logits is not None])
            columns[name] = runtime.columns_read() - before

        def run(name: str) -> None:
            for _ in range(repeats):
                step(runtimes[name], texts[name], Want(rows="last", top=1))

        times = interleaved({name: partial(run, name) for name in runtimes}, rounds=rounds)
        ratio = speedup(times["together"], times["apart"])
    finally:
        for runtime in runtimes.values():
            runtime.shutdown()
    row = {
        "kv": kv,
        "prefix": prefix,
        "batch": batch,
        "same_bits": bool(np.array_equal(rows["together"], rows["apart"])),
        "columns": columns,
        "ms": {name: 1000 * t.median_s / repeats for name, t in times.items()},
        "intervals_ms": {name: [1000 * s / repeats for s in t.interval_s()] for name, t in times.items()},
        "speedup": [ratio.median, ratio.low, ratio.high],
    }
    print(
        f"{kv}, {prefix} tokens shared, {batch} texts: {row['ms']['together']:.2f} ms, apart {row['ms']['apart']:.2f}, "
        f"{ratio}; columns {columns['together']:,}, apart {columns['apart']:,}; "
        f"{'same bits' if row['same_bits'] else 'OTHER BITS'}",
        flush=True,
    )
    return row


def main(argv: list[str] | None = None) -> None:
    options = protocol.arguments(__doc__.splitlines()[0], argv)
    batches, prefixes, repeats = ((1, 4), (256,), 1) if options.quick else (BATCHES, PREFIXES, 8)
    threads = 1 if options.quick else cores()
    rounds = 1 if options.quick else options.rounds
    rows = [
        measured(kv, prefix, batch, rounds=rounds, threads=threads, repeats=repeats)
        for kv in FORMATS
        for prefix in prefixes
        for batch in batches
    ]
    record = {"model": MODEL, "dtype": "int8", "threads": threads, "suffix": SUFFIX, "rounds": rounds, "rows": rows}
    protocol.write("shared_prefix", record, quick=options.quick)


if __name__ == "__main__":
    main()
