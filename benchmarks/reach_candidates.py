"""Controls evaluated per second: one tree on the native runtime, and the plain batched forward of transformers.

A step of GCG: 64 controls of k tokens that differ from one another in one place, in front of a state of 8 or 32 tokens;
wanted are the loss of a target and the most likely token.  Native: what they share from the left is computed once, in
int8 and in the file's own codes.  torch: the module's own forward in float32 over a batch of whole texts, the logits of
the last row alone where the module allows it.  All on the same number of threads.

  python benchmarks/reach_candidates.py             SmolLM2
  python benchmarks/reach_candidates.py --quick     a smoke run; its figures are not kept
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import protocol
import torch

from likely.audit.reach import CandidateTest, ReachProblem
from likely.bench.timing import interleaved, speedup
from likely.models.catalog import find_model
from likely.models.load import load_local
from likely.runtimes.machine import cores

MODEL, CANDIDATES, TARGET = "smollm2", 64, 3.0  # times torch
LENGTHS, STATES = (4, 8), (8, 32)


def controls(k: int, vocab: int, *, seed: int = 0) -> np.ndarray:
    """(CANDIDATES, k): one control with one token exchanged, as GCG proposes them."""
    rng = np.random.default_rng(seed)
    found = np.tile(rng.integers(0, vocab, k), (CANDIDATES, 1))
    found[np.arange(CANDIDATES), rng.integers(0, k, CANDIDATES)] = rng.integers(0, vocab, CANDIDATES)
    return found


def batched(module: Any, problem: ReachProblem, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(losses, most likely tokens) by transformers alone."""
    texts = torch.tensor([problem.text(row) for row in rows.tolist()])
    with torch.inference_mode():
        logits = module(input_ids=texts, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        return -logits.log_softmax(-1)[:, problem.target[0]].numpy(), logits.argmax(-1).numpy()


def measured(k: int, state: int, calls: dict[str, Any], module: Any, vocab: int, *, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(state)
    problem = ReachProblem(tuple(rng.integers(0, vocab, state).tolist()), (int(rng.integers(vocab)),))
    rows = controls(k, vocab)
    tests = {name: CandidateTest(runtime, problem) for name, runtime in calls.items()}
    ways: dict[str, Callable[[], object]] = {name: partial(test, rows) for name, test in tests.items()}
    ways["torch"] = partial(batched, module, problem, rows)
    losses, tops = batched(module, problem, rows)
    agree = {name: float(np.mean(test(rows).first == tops)) for name, test in tests.items()}
    error = {name: float(np.abs(test(rows).losses - losses).max()) for name, test in tests.items()}
    tokens = {name: test.tokens // 2 for name, test in tests.items()}
    times = interleaved(ways, rounds=rounds)
    ratios = {name: speedup(times[name], times["torch"]) for name in tests}
    row = {
        "k": k,
        "state": state,
        "candidates_per_s": {name: CANDIDATES / t.median_s for name, t in times.items()},
        "times_torch": {name: [r.median, r.low, r.high] for name, r in ratios.items()},
        "tokens": tokens | {"torch": int(rows.size + CANDIDATES * state)},
        "same_top_token": agree,
        "largest_loss_difference_nats": error,
    }
    print(row, flush=True)
    return row


def main(argv: list[str] | None = None) -> None:
    options = protocol.arguments(__doc__.splitlines()[0], argv)
    threads = 1 if options.quick else cores()
    rounds = 1 if options.quick else options.rounds
    path = str(find_model(MODEL))
    native = {
        f"native {dtype}": load_local(path, runtime="native", dtype=dtype, threads=threads).runtime
        for dtype in ("int8", "file")
    }
    reference: Any = load_local(path, runtime="torch", dtype="float32", threads=threads).runtime
    sizes = [(4, 8)] if options.quick else [(k, state) for k in LENGTHS for state in STATES]
    rows = [measured(k, state, native, reference.module, reference.vocab_size, rounds=rounds) for k, state in sizes]
    record = {
        "model": MODEL, "threads": threads, "candidates": CANDIDATES, "rounds": rounds, "target_times_torch": TARGET,
        "rows": rows,
    }  # fmt: skip
    protocol.write("reach_candidates", record, quick=options.quick)


if __name__ == "__main__":
    main()
