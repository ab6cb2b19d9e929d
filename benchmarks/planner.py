"""Estimators of uncertainty: one run of the model for all (`gather`) against one run for each.

The questions are short, after three examples each, as in reproductions/g_nll.py.  Three ways to the same values:

  one run      what all estimators need together, from shared prefixes, in one batch
  one by one   each estimator makes what it needs for itself
  by hand      each need once (greedy texts, samples, beams, P(True) on the texts at hand): what a careful user writes

A round asks questions of its own, the same of all three.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import protocol

import likely
from likely.bench.timing import interleaved, speedup
from likely.runtimes.machine import cores
from likely.uncertainty.plan import GatherPlan
from likely.uncertainty.planner import gather
from likely.uncertainty.table import estimate, needs_of
from likely.uncertainty.types import Gathered

# each of its kind: what another one tells in other units (perplexity), what needs longer texts (stated confidence) and
# the graph scores are left out
ESTIMATORS = (
    "g_nll", "mean_nll", "max_nll", "token_entropy", "m_nll", "predictive_entropy", "ln_predictive_entropy",
    "semantic_entropy", "ln_semantic_entropy", "discrete_semantic_entropy", "lexical_similarity", "csc", "p_true",
)  # fmt: skip
TARGET = 3.0  # times as fast as one by one; by hand is told beside it, without a target
TOLERANCE = 0.05  # nats that values may differ by: llama.cpp's sums depend on the shape of a call
Values = dict[str, np.ndarray]


def one_run(lm: Any, prompts: Sequence[str], settings: dict[str, Any]) -> Values:
    found = estimate(gather(lm, prompts, needs=ESTIMATORS, **settings), ESTIMATORS)
    return {name: u.values for name, u in found.items()}


def one_by_one(lm: Any, prompts: Sequence[str], settings: dict[str, Any]) -> Values:
    return {name: estimate(gather(lm, prompts, needs=[name], **settings), [name])[name].values for name in ESTIMATORS}


def by_hand(lm: Any, prompts: Sequence[str], settings: dict[str, Any]) -> Values:
    """Each need by a call of its own; what P(True) shows is not drawn again."""
    from likely.uncertainty.local_run import _p_true

    greedy = gather(lm, prompts, needs=["token_entropy"], **settings)
    samples = gather(lm, prompts, needs=["samples"], **settings)
    beams = gather(lm, prompts, needs=["beams"], **settings)
    found = Gathered(greedy.prompts, greedy.greedy, samples.samples, beams.beams)
    plan = GatherPlan(needs_of(["p_true"]), samples=settings["samples"], max_tokens=settings["max_tokens"])
    found = replace(found, extra={"p_true": _p_true(lm, found, plan)})
    return {name: u.values for name, u in estimate(found, ESTIMATORS).items()}


WAYS: dict[str, Callable[[Any, Sequence[str], dict[str, Any]], Values]] = {
    "one run": one_run, "one by one": one_by_one, "by hand": by_hand,
}  # fmt: skip


def measure(lm: Any, prompts: Sequence[str], *, rounds: int, samples: int, max_tokens: int) -> dict[str, Any]:
    """Seconds of each way, their ratios, and how far their values are apart."""
    settings = {"samples": samples, "max_tokens": max_tokens, "stop": "\n", "seed": 0}
    per_round = len(prompts) // rounds
    if not per_round:
        raise ValueError(f"{len(prompts)} questions for {rounds} rounds: each needs one at least")
    values: dict[str, list[Values]] = {name: [] for name in WAYS}

    def run(name: str) -> None:
        at = len(values[name]) * per_round
        values[name].append(WAYS[name](lm, prompts[at : at + per_round], settings))

    gather(lm, prompts[:1], needs=["greedy"], **settings)  # whatever the first call alone has to do
    timings = interleaved({name: lambda name=name: run(name) for name in WAYS}, rounds=rounds, warmup=0)
    ratio, shared = (speedup(timings["one run"], timings[other]) for other in ("one by one", "by hand"))
    gaps = np.array([
        np.abs(one[name] - other[name])
        for way in ("one by one", "by hand")
        for one, other in zip(values["one run"], values[way], strict=True)
        for name in ESTIMATORS
    ])  # fmt: skip
    agree = bool((gaps < TOLERANCE).all())
    return {
        "estimators": list(ESTIMATORS),
        "questions": per_round * rounds,
        "samples": samples,
        "max_tokens": max_tokens,
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "median_s": {name: timing.median_s for name, timing in timings.items()},
        "ratio_one_by_one": asdict(ratio),
        "ratio_by_hand": asdict(shared),
        "target": TARGET,
        "target_of": "ratio_one_by_one, with equal values",
        "reached": bool(ratio.low >= TARGET) and agree,
        "values_agree": agree,
        "values_within_0.01": float((gaps < 0.01).mean()),
        "largest_difference": float(gaps.max()),
    }


def said(record: dict[str, Any]) -> str:
    """What the record shows, for people."""
    one_by_one, by_hand = (record[f"ratio_{name}"]["median"] for name in ("one_by_one", "by_hand"))
    equal = (
        "all values agree" if record["values_agree"] else f"values differ by up to {record['largest_difference']:.3g}"
    )
    return (
        f"one run is {one_by_one:.1f} times as fast as each estimator by itself (target {record['target']:g}: "
        f"{'reached' if record['reached'] else 'not reached'}), {by_hand:.1f} times as fast as a careful user's calls, "
        f"which share what they can; {equal}"
    )


def prompts_of(count: int) -> list[str]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "reproductions"))
    from closed_book import questions

    return [q.prompt("capitals") for q in questions("capitals", count)]


def main() -> None:
    options = protocol.arguments(__doc__.splitlines()[0])
    rounds = 2 if options.quick else options.rounds
    prompts = prompts_of(2 if options.quick else 8 * rounds)
    with likely.load("smollm2", runtime="llamacpp", threads=cores()) as lm:
        record = measure(lm, prompts, rounds=rounds, samples=3 if options.quick else 10, max_tokens=12)
        record = {"model": lm.info.name, "sha256": lm.info.sha256, "runtime": "llamacpp", "threads": cores(), **record}
    for name in ("one_by_one", "by_hand"):
        found = record[f"ratio_{name}"]
        print(f"{name}: {found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}] times the seconds of one run")
    print(said(record))
    protocol.write("planner", record, quick=options.quick)


if __name__ == "__main__":
    main()
