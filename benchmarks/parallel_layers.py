"""Attentions of neighbouring layers at the same time on two cores: what does a step of a draft model gain?

A Llama of random weights, one new token behind a context, torch fp32.  The ordinary alternative is torch with two
threads in every matrix product of the whole model.  A step without attentions is timed, too, so that the gain can be
compared with the critical path: per group of N layers on two cores ceil(N / 2) attentions, and what is no attention.

  python benchmarks/parallel_layers.py            width 2,048, 8 layers
  python benchmarks/parallel_layers.py --quick    width 128
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import protocol

from likely.bench.timing import interleaved, speedup
from likely.decoding.drafting.layers.plans import groups_of
from likely.runtimes.protocol import LayerPlan, Want, Work

CONTEXT = 256
CORES = 2
SIZES = (2, 4)


def plans_of(layers: int) -> dict[str, tuple[LayerPlan | None, int, bool]]:
    """Name -> (plan, threads of torch, whether attentions of a group run in threads of their own)."""
    every = frozenset(range(layers))
    found: dict[str, tuple[LayerPlan | None, int, bool]] = {
        "whole model, 1 thread": (None, 1, False),
        "whole model, 2 threads of torch": (None, CORES, False),
        "without attentions, 1 thread": (LayerPlan(skip_attention=every), 1, False),
    }
    for size in SIZES:
        plan = groups_of(size, layers, first=0, last=0)
        found[f"groups of {size}, one after the other"] = (plan, 1, False)
        found[f"groups of {size}, 2 at the same time"] = (plan, 1, True)
    return found


def measure(make: Callable[[int], Any], *, rounds: int, context: int = CONTEXT) -> dict[str, Any]:
    """Seconds of a step under each plan.  make(attention_threads) -> a TorchRuntime of the same weights."""
    import torch

    torch.set_num_threads(1)
    runtimes = {threads: make(threads) for threads in (1, CORES)}
    layers = runtimes[1].capabilities.layers
    tokens = np.random.default_rng(0).integers(0, runtimes[1].vocab_size, context + 1)
    held, rows = {}, {}
    for threads, runtime in runtimes.items():
        held[threads] = runtime.open()
        runtime.forward([Work(held[threads], tokens[:-1], want=Want.NONE)])

    def run(name: str, plan: LayerPlan | None, threads: int, apart: bool) -> None:
        runtime, sequence = runtimes[CORES if apart else 1], held[CORES if apart else 1]
        torch.set_num_threads(threads)
        work = Work(sequence, tokens[-1:], np.array([-1]), layers=plan)
        rows[name] = runtime.forward([work])[0].logits
        runtime.commit([(sequence, [])])

    plans = plans_of(layers)
    timings = interleaved(
        {name: lambda name=name, how=how: run(name, *how) for name, how in plans.items()}, rounds=rounds, settled=True
    )
    torch.set_num_threads(1)
    whole = timings["whole model, 1 thread"]
    attention = whole.median_s - timings["without attentions, 1 thread"].median_s
    predicted, same = {}, {}
    for size in SIZES:
        depth = sum(-(-len(group) // CORES) for group in groups_of(size, layers, first=0, last=0).parallel)
        predicted[str(size)] = whole.median_s / (whole.median_s - attention * (1 - depth / layers))
        pair = [rows[f"groups of {size}, {how}"] for how in ("one after the other", "2 at the same time")]
        same[str(size)] = bool(np.array_equal(*pair))
    return {
        "layers": layers,
        "context": context,
        "median_ms": {name: 1e3 * timing.median_s for name, timing in timings.items()},
        "attention_share": attention / whole.median_s,
        "faster_than_1_thread": {
            name: asdict(speedup(timing, whole)) for name, timing in timings.items() if "without" not in name
        },
        "predicted_by_critical_path": predicted,
        "same_bits": same,
    }


def main() -> None:
    options = protocol.arguments((__doc__ or "").splitlines()[0])
    sys.path.insert(0, str(Path(__file__).parents[1] / "reproductions"))
    from easyspec import wide_runtime

    from likely.runtimes.torch.runtime import TorchRuntime

    width, layers = (128, 4) if options.quick else (2048, 8)
    module = wide_runtime(width, layers).module

    def make(threads: int) -> TorchRuntime:
        return TorchRuntime(module, tokens_held=1024, revision="random", attention_threads=threads)

    record = measure(make, rounds=2 if options.quick else max(options.rounds, 15))
    protocol.write("parallel_layers", {"width": width, **record}, quick=options.quick)


if __name__ == "__main__":
    main()
