"""300 ARC-Easy questions x 4 answers: likely (torch fp32) against lm-evaluation-harness (--model hf, fp32).

Items per second at batch size 1 and at the best of several batch sizes; the numbers must agree to 1e-4 nats; and how
much memory scoring takes beyond weights and cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import protocol

from likely.bench.timing import interleaved, speedup
from likely.data import load_records
from likely.runtimes.machine import cores


def questions(count: int) -> list[tuple[str, list[str]]]:
    four = [r for r in load_records("arc-easy", "test") if len(r["choices"]) == 4][:count]
    return [(f"Question: {r['question']}\nAnswer:", [f" {c}" for c in r["choices"]]) for r in four]


def main() -> None:
    options = protocol.arguments(__doc__.splitlines()[0])
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    import likely
    from likely.models.catalog import find_model
    from likely.models.convert import convert

    torch.set_num_threads(cores())
    items = questions(20 if options.quick else 300)
    pairs = [(prompt, answer) for prompt, answers in items for answer in answers]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "smollm2"
        convert(find_model("smollm2"), target, to="safetensors", verify=False)
        memory = peak_memory(str(target), pairs)
        lm = likely.load(str(target), runtime="torch", dtype="float32")
        instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        harness = HFLM(pretrained=str(target), dtype="float32", device="cpu", batch_size=1)

        def theirs(batch: int, part: slice = slice(None), softmax: torch.dtype | None = None) -> list[float]:
            harness.batch_size_per_gpu, harness.softmax_dtype = batch, softmax
            return [value for value, _ in harness.loglikelihood(instances[part], disable_tqdm=True)]

        def ours(part: slice = slice(None)) -> list[float]:
            return [s.sequence_logprob for s in lm.score_pairs(pairs[part])]

        # each round takes its own fifth of the questions, so that all are seen once
        fifth = len(pairs) // options.rounds
        parts = [slice(i * fifth, (i + 1) * fifth) for i in range(options.rounds)]
        trial = {}
        for size in (4, 16, 64):
            started = time.perf_counter()
            theirs(size, parts[0])
            trial[size] = time.perf_counter() - started
        best = min(trial, key=lambda size: trial[size])
        found: list[float] = []
        names = ("likely", "lm_eval batch 1", f"lm_eval batch {best}")
        rounds = {name: iter(parts) for name in names}
        runs = {
            names[0]: lambda: found.extend(ours(next(rounds[names[0]]))),
            names[1]: lambda: theirs(1, next(rounds[names[1]])),
            names[2]: lambda: theirs(best, next(rounds[names[2]])),
        }
        ours(parts[0])
        timings = interleaved(runs, rounds=options.rounds, warmup=0)
        one, top = speedup(timings[names[0]], timings[names[1]]), speedup(timings[names[0]], timings[names[2]])
        # their softmax in fp64: torch's in fp32 is off by 1e-5 nats a token, always to one side
        exact = theirs(best, slice(0, len(found)), torch.float64)
        difference = max(abs(a - b) for a, b in zip(found, exact, strict=True))
    print(
        f"against batch 1: {one}; against its best batch size {best}: {top}; largest difference {difference:.2e} nats"
    )
    protocol.write(
        "score_arc",
        {
            "questions": len(items),
            "answers": len(pairs),
            "ratio_batch_1": asdict(one),
            "ratio_best_batch": asdict(top),
            "best_batch": best,
            "items_per_s": {name: len(items) / sum(timing.seconds) for name, timing in timings.items()},
            "largest_difference_nats": difference,
            "memory": memory,
        },
        quick=options.quick,
    )


MEMORY = """
import json, sys, threading, psutil, torch
torch.set_num_threads(int(sys.argv[2]))
import likely, likely.lm.model, transformers.models.llama.modeling_llama
from likely.runtimes.torch.runtime import TorchRuntime
pairs = json.load(sys.stdin)
process = psutil.Process()
base, peak, go = process.memory_info().rss, 0, True
def watch():
    global peak
    while go:
        peak = max(peak, process.memory_info().rss)
        threading.Event().wait(0.002)
thread = threading.Thread(target=watch); thread.start()
lm = likely.load(sys.argv[1], runtime="torch", dtype="float32")
lm.score_pairs(pairs)
go = False; thread.join()
weights = sum(p.numel() * p.element_size() for p in lm.runtime.module.parameters())
longest = max(len(lm.encode_prompt(a + b)) for a, b in pairs)
held = lm.runtime.kv_bytes_per_token * (lm.runtime.limits.tokens_per_call + longest)
print(json.dumps({"peak_minus_imports_bytes": peak - base, "weights_bytes": weights, "kv_bytes": held,
                  "ratio": (peak - base) / (weights + held)}))
"""


def peak_memory(folder: str, pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Peak resident memory of loading and scoring in a fresh process, less what imports take."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, folder, str(cores())], input=json.dumps(pairs), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
