"""SmartSpec: is the draft length that goodput chooses as good as the best fixed length, at every load?

The server's own loop, scheduler and controller on a virtual clock: arrival times and lengths from a trace of real
requests, call costs from a model of three machines, drafted tokens accepted by coin flips.

  python reproductions/smartspec.py            3 loads a machine, 3 acceptance rates, 3 x 50 requests a cell
  python reproductions/smartspec.py --full     4 loads, 4 rates, 5 x 200 requests
  python reproductions/smartspec.py --quick    one cell of each machine

Speed on real models is the part of benchmarks/smartspec_live.py.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from study import arguments, conclude, data_sources, ratio_figure, run_script, run_study

from likely.data.datasets import find_path
from likely.evidence import Check, Evidence, Figure, Source
from likely.metrics.checks import Floats
from likely.runtimes.step_cost import StepCost
from likely.serving.simulator import Arrival, SimulatedServer

DATA = ("llm_traces", "azure2023_conv.csv.gz")
AUTO, PLAIN = "auto", "none"
FIXED = (1, 3, 5)
CLOSE = 1.05  # times the latency of the best fixed length
Lengths = list[tuple[float, int, int]]  # of a trace: arrival, prompt, output


@dataclass(frozen=True)
class SimulatedMachine:
    """What calls cost, who drafts, and how much of a prompt is read per call."""

    target: StepCost
    draft: StepCost | None
    prefill_tokens: int


MACHINES: Mapping[str, SimulatedMachine] = {
    # 7B weights in 16 bits over 1.5 TB/s, 0.5 MB of keys and values per token kept, 150 TFLOP/s; a draft model of 160M
    "GPU, 7B with a draft model of 160M": SimulatedMachine(
        StepCost(3.5e-7, 9e-5, 2e-5, 1.05e-2), StepCost(1e-8, 2e-6, 2e-6, 1.5e-3), 512
    ),
    # 135M in bf16 on one core with matrix units: 55 ms for 1 token, 64 for 16; 16 texts: 74 for one each, 142 for 8
    "CPU in bf16, copying": SimulatedMachine(StepCost(1e-6, 6.1e-4, 6e-4, 5.4e-2), None, 64),
    # 135M in 4 bits on one core: 8.7 ms for 1 token, 38 for 8, 63 for 16
    "CPU in 4 bits, copying": SimulatedMachine(StepCost(1e-6, 3.6e-3, 1e-4, 5e-3), None, 32),
}


def read_trace() -> Lengths:
    path = find_path(*DATA)
    with gzip.open(path, "rt", newline="") as file:
        rows = csv.DictReader(file)
        return [(float(row["arrival_s"]), int(row["context_tokens"]), int(row["generated_tokens"])) for row in rows]


def capacity(machine: SimulatedMachine, lengths: Sequence[tuple[int, int]], running: int) -> float:
    """Requests per second that plain decoding can serve with `running` texts at a time."""
    cost = machine.target
    prompt, output = (float(np.mean(column)) for column in zip(*lengths, strict=True))
    decoding = float(cost.seconds(running, running, running * (prompt + output / 2))) / running
    return 1 / (prompt * cost.token_s + output * decoding)


def load_of(trace: Lengths, start: int, count: int, rate: float) -> list[Arrival]:
    """`count` requests of the trace from `start` on, lengths clipped, the time axis stretched to `rate` per second."""
    part = trace[start : start + count]
    stretch = (count - 1) / rate / max(part[-1][0] - part[0][0], 1e-9)
    return [Arrival((at - part[0][0]) * stretch, *clipped(prompt, output)) for at, prompt, output in part]


def clipped(prompt: int, output: int) -> tuple[int, int]:
    return min(max(prompt // 4, 1), 512), min(max(output // 2, 1), 96)


def policies(alpha: float) -> dict[str, dict[str, Any]]:
    """Name -> what differs from a server that does not draft."""
    fixed = {f"k = {k}": {"draft_alpha": alpha, "draft_budget": k} for k in FIXED}
    return {**fixed, AUTO: {"draft_alpha": alpha}}


def run_cells(
    trace: Lengths, machines: Mapping[str, SimulatedMachine], loads: Sequence[float], alphas: Sequence[float],
    *, seeds: int, count: int, running: int = 32, report: Callable[[str], None] = print,
) -> dict[tuple[str, float, float, str], Floats]:  # fmt: skip
    """(machine, load, alpha, policy) -> latency of every request, the same requests for all policies."""
    found: dict[tuple[str, float, float, str], Floats] = {}
    starts = np.linspace(0, len(trace) - count, seeds).astype(int).tolist()
    lengths = [clipped(prompt, output) for start in starts for _, prompt, output in trace[start : start + count]]
    for name, machine in machines.items():
        most = capacity(machine, lengths, running)
        plain = SimulatedServer(machine.target, max_running=running, prefill_tokens=machine.prefill_tokens, jitter=0.03)
        for load in loads:
            arrivals = [load_of(trace, start, count, load * most) for start in starts]

            def latencies(server: SimulatedServer, requests: Sequence[Sequence[Arrival]] = arrivals) -> Floats:
                return np.concatenate([server.serve(each, seed=i).latencies() for i, each in enumerate(requests)])

            without = latencies(plain)
            for alpha in alphas:
                found[name, load, alpha, PLAIN] = without
                for policy, settings in policies(alpha).items():
                    found[name, load, alpha, policy] = latencies(replace(plain, draft_cost=machine.draft, **settings))
                report(f"{name}: load {load:g}, acceptance {alpha:g} done")
    return found


def figures_of(found: Mapping[tuple[str, float, float, str], Floats]) -> list[Figure]:
    figures = []
    for (name, load, alpha, policy), values in found.items():
        if policy != PLAIN:
            subject = f"{name}, load {load:g}, acceptance {alpha:g}"
            quantity = f"{policy}: latency over that without drafts"
            without = found[name, load, alpha, PLAIN]
            figures.append(ratio_figure(subject, quantity, values, without, unit="x", of="requests", resamples=500))
    return figures


def checks_of(found: Mapping[tuple[str, float, float, str], Floats]) -> tuple[list[Check], str]:
    """(the claim as inequalities, what was found in words)."""
    mean = {key: float(values.mean()) for key, values in found.items()}
    cells = sorted({key[:3] for key in mean})
    checks, words = [], []
    for name in dict.fromkeys(cell[0] for cell in cells):
        own = [cell for cell in cells if cell[0] == name]
        best = {cell: min(mean[*cell, p] for p in (PLAIN, *(f"k = {k}" for k in FIXED))) for cell in own}
        worst = max(mean[*cell, AUTO] / best[cell] for cell in own)
        lost = max(mean[*cell, AUTO] / mean[*cell, PLAIN] for cell in own)
        gain = max(mean[*cell, PLAIN] / mean[*cell, AUTO] for cell in own)
        busiest = max(cell[1] for cell in own), min(cell[2] for cell in own)
        fixed = mean[name, *busiest, f"k = {FIXED[-1]}"] / mean[name, *busiest, PLAIN]
        checks += [
            Check(statement=f"{name}: auto over the best of none and the fixed lengths, largest", value=worst,
                  bound=CLOSE, unit="x"),
            Check(statement=f"{name}: auto over no drafts, largest", value=lost, bound=1.03, unit="x"),
            Check(statement=f"{name}: no drafts over k = {FIXED[-1]}, highest load and lowest acceptance",
                  value=1 / fixed, bound=1 / 1.2, unit="x"),
        ]  # fmt: skip
        words.append(
            f"{name}: auto up to {gain:.2f}x lower latency than no drafts, at worst {lost:.2f}x of it and {worst:.2f}x "
            f"of the best fixed length; k = {FIXED[-1]} at the highest load and lowest acceptance {fixed:.2f}x"
        )
    return checks, "; ".join(words)


def study(
    trace: Lengths, *, loads: Sequence[float], alphas: Sequence[float], seeds: int, count: int, full: bool,
    data: Sequence[Source], report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    started = time.perf_counter()
    found = run_cells(trace, MACHINES, loads, alphas, seeds=seeds, count=count, report=report)
    checks, ours = checks_of(found)
    return conclude(
        "smartspec",
        title="SmartSpec: speculation length chosen by goodput",
        claim=(
            "A draft length chosen anew for every step by goodput is as good as the best fixed length at every load, "
            "and never worse than no drafts; a fixed length loses at high load or low acceptance."
        ),
        paper_figure="average request latency up to 3.2x lower than without speculation, over loads and data sets",
        ours=ours,
        figures=figures_of(found),
        checks=checks,
        samples=(
            f"{seeds} parts of {count} requests of the Azure conversation trace (2023), prompts a quarter and answers "
            f"half as long, at most 512 and 96 tokens; 32 texts at a time; loads as shares of what plain decoding "
            f"can serve"
        ),
        intervals="95 %, percentile bootstrap over requests, paired between policies, 500 resamples, fixed seed",
        full=full,
        data=data,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Wall-clock speed on real models: benchmarks/smartspec_live.py.",
            "Call costs are models of three machines, stated in the script, and acceptance is a coin flip per token.",
            "Requests of one part share queues: intervals that resample them as if independent are too narrow.",
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    trace, data = read_trace(), data_sources([DATA])
    if options.quick:
        return study(trace, loads=[0.5], alphas=[0.6], seeds=1, count=15, full=False, data=data)
    if options.full:
        return study(
            trace, loads=[0.25, 0.5, 1, 2], alphas=[0.3, 0.6, 0.8, 0.9], seeds=5, count=200, full=True, data=data
        )
    return study(trace, loads=[0.25, 0.75, 1.5], alphas=[0.3, 0.6, 0.9], seeds=3, count=50, full=False, data=data)


def main() -> None:
    run_study(arguments(full="more loads, rates and requests", quick="one cell of each machine"), measure)


if __name__ == "__main__":
    run_script(main)
