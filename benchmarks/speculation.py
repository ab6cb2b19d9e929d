"""Every drafter against plain decoding of the same runtime, on copy-heavy and ordinary tasks."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial

import protocol
import speculation_tasks

import likely
from likely.bench.speculation import Task, compare, overall
from likely.cli.verbs.speed.speculation import print_timings
from likely.runtimes.machine import cores

DRAFTERS = ("lookup", "copy", "suffix", "trigram", "auto")
SHORT = ("second turns", "self-correction", "text-to-SQL", "summaries", "arithmetic")
# (model, runtime): prompts per task, tokens per text, drafters, tasks (None: all)
SETTINGS = {
    ("smollm2", "llamacpp"): (3, 64, DRAFTERS, None),
    ("smollm2", "torch"): (2, 32, DRAFTERS, SHORT),
    ("smollm2", "native"): (2, 64, ("lookup", "suffix", "auto"), SHORT),
    ("gemma3", "llamacpp"): (1, 64, ("lookup", "suffix", "auto"), None),
    ("gemma3", "torch"): (1, 24, ("lookup", "suffix", "auto"), SHORT),
}


def main() -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--only", help="MODEL:RUNTIME of one of them")
    extra.add_argument("--drafter", action="append", help="instead of the usual ones")
    chosen, rest = extra.parse_known_args()
    options = protocol.arguments(__doc__, rest)
    record: dict = {"threads": cores(), "runs": []}
    for (model, runtime), (count, tokens, usual, names) in SETTINGS.items():
        if chosen.only and chosen.only != f"{model}:{runtime}":
            continue
        drafters = chosen.drafter or usual
        tasks = speculation_tasks.tasks(1 if options.quick else count)
        tasks = [task for task in tasks if names is None or task.name in names]
        if model == "gemma3":  # a base model: conversations as plain text
            tasks = [Task(task.name, [speculation_tasks.as_text(p) for p in task.prompts]) for task in tasks]
        with likely.load(model, runtime=runtime, threads=cores()) as lm:
            rows = compare(
                lm,
                tasks[:2] if options.quick else tasks,
                drafters,
                rounds=2 if options.quick else max(options.rounds, 10),
                fewer=2 if options.quick else 3,
                max_tokens=8 if options.quick else tokens,
                progress=partial(print, flush=True),
            )
            name = f"{model}, {runtime} {lm.info.dtype}"
            print_timings({name: rows})
            record["runs"].append(
                {
                    "model": model,
                    "runtime": runtime,
                    "dtype": lm.info.dtype,
                    "prompts": count,
                    "tokens": tokens,
                    "overall": [overall(rows, d) for d in drafters],
                    "rows": [asdict(row) for row in rows],
                }
            )
    part = (chosen.only or "part").replace(":", "_")
    name = "speculation" if not chosen.only and not chosen.drafter else f"speculation_{part}"
    protocol.write(name, record, quick=options.quick)


if __name__ == "__main__":
    main()
