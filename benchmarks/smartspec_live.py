"""What automatic draft lengths gain on a real model: clients of one loop, by how many ask at a time.

  python benchmarks/smartspec_live.py --runtime native --threads 1
  python benchmarks/smartspec_live.py --runtime torch --dtype bfloat16

Each client sends its next prompt when its last one is answered (closed loop).  Policies run in turn over the same
prompts, rounds interleaved; times are ratios to no drafts within each round.  Run `likely profile` of the same model,
runtime and threads before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import protocol
from speculation_tasks import tasks

import likely
from likely.bench.timing import interleaved, refuse_busy, speedup
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.decoding.scheduling import AtMost
from likely.lm.model import Model

POLICIES: dict[str, dict[str, Any]] = {
    "none": {"draft_budget": 0},
    "k = 3": {"draft_budget": 3},
    "k = 8": {"draft_budget": 8},
    "auto": {"draft_budget": "auto"},
}


def serve(lm: Model, requests: Sequence[Request], clients: int) -> tuple[list[list[int]], int, list[float]]:
    """(tokens of each request, calls of the model, seconds of each answer) with that many clients at a time."""
    waiting, begun, seconds = list(enumerate(requests)), {}, []
    done: dict[int, list[int]] = {}
    calls = 0
    with closing(lm.loop(policy=AtMost(clients), prefill_tokens=32)) as loop:
        while waiting or not loop.idle:
            while waiting and len(begun) < clients:
                number, request = waiting.pop(0)
                begun[loop.add(request)] = number, time.perf_counter()
            calls += 1
            for event in loop.step():
                if event.error:
                    raise event.error
                if event.finish:
                    number, started = begun.pop(event.request)
                    seconds.append(time.perf_counter() - started)
                    done[number] = list(event.finish.tokens)
    return [done[i] for i in range(len(requests))], calls, seconds


def requests_of(lm: Model, name: str, prompts: Sequence[Any], drafter: str, most: int) -> list[Request]:
    source = lm.drafter(drafter, remembered=False)
    return [
        Request(tuple(lm.render(prompt).tokens), Sampling(temperature=0.0), max_tokens=most, drafter=source)
        for prompt in prompts
    ]


def compare(
    lm: Model, name: str, prompts: Sequence[Any], clients: int, *, drafter: str, most: int, rounds: int
) -> list[dict[str, Any]]:
    requests = requests_of(lm, name, prompts, drafter, most)
    last: dict[str, tuple[list[list[int]], int, list[float]]] = {}

    def run(policy: str) -> None:
        last[policy] = serve(lm, [replace(r, **POLICIES[policy]) for r in requests], clients)

    timings = interleaved({policy: lambda p=policy: run(p) for policy in POLICIES}, rounds=rounds, warmup=1)
    rows = []
    for policy in POLICIES:
        texts, calls, seconds = last[policy]
        rows.append(
            {
                "task": name, "clients": min(clients, len(prompts)), "policy": policy, "times_plain": asdict(
                    speedup(timings[policy], timings["none"])
                ),
                "tokens_per_call": sum(map(len, texts)) / calls, "seconds_per_answer": sum(seconds) / len(seconds),
                "same_text": sum(a == b for a, b in zip(texts, last["none"][0], strict=True)), "texts": len(texts),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--runtime", default="native")
    parser.add_argument("--dtype")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--drafter", default="copy")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompts", type=int, default=16, help="of each task")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--even-if-busy", action="store_true")
    options = parser.parse_args()
    if not options.even_if_busy:
        refuse_busy()
    wanted = [task for task in tasks(options.prompts) if task.name in ("second turns", "self-correction", "questions")]
    rows: list[dict[str, Any]] = []
    with likely.load(options.model, runtime=options.runtime, dtype=options.dtype, threads=options.threads) as lm:
        for task in wanted:
            for clients in options.clients:
                rows += compare(
                    lm, task.name, task.prompts, clients, drafter=options.drafter, most=options.tokens,
                    rounds=options.rounds,
                )  # fmt: skip
                for row in rows[-len(POLICIES) :]:
                    print(json.dumps(row), flush=True)
        record = {
            "model": lm.info.name, "runtime": lm.info.runtime, "dtype": lm.info.dtype, "threads": options.threads,
            "drafter": options.drafter, "prompts": options.prompts, "tokens": options.tokens,
            "profiled": lm.speculation.costs.step is not None, "rows": rows,
        }  # fmt: skip
    protocol.write(f"smartspec_live_{options.runtime}", record, quick=False)


if __name__ == "__main__":
    main()
