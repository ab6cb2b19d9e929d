"""A user's 500 preference pairs become an adapter: `likely align train`, killed in the middle and started again.

The file has chats with two answers each (preference-pairs), and questions with a true and a false answer (TruthfulQA),
in one order for all.  The command runs on the default model with its default settings, but that long answers are cut;
once half of the steps are done it gets SIGKILL, and the same command is given again.  What counts is the time of both.

  python benchmarks/preference_run.py             500 pairs, two threads
  python benchmarks/preference_run.py --quick     a smoke run on 16 pairs; its figures are not kept
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import protocol

from likely.data import load_records

PAIRS, THREADS = 500, 2
LONGEST_PROMPT = 700  # characters of a chat's prompt, so that it fits into the default 256 tokens


def user_pairs(count: int = PAIRS) -> list[dict[str, Any]]:
    """Rows as a user has them: {"prompt": messages, "chosen", "rejected"}."""
    chats = [
        {name: row[name] for name in ("prompt", "chosen", "rejected")}
        for file in ("train.jsonl.gz", "test.jsonl.gz")
        for row in load_records("preference-pairs", file)
        if sum(len(message["content"]) for message in row["prompt"]) <= LONGEST_PROMPT
        and row["chosen"].strip() != row["rejected"].strip()
    ]
    questions = [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "chosen": row["best_answer"],
            "rejected": row["incorrect_answers"][0],
        }
        for row in load_records("truthfulqa", "truthfulqa.jsonl.gz")
    ]
    different = {(row["prompt"][-1]["content"], row["chosen"]): row for row in [*chats, *questions]}
    rows = list(different.values())[:PAIRS]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]


def command(pairs: Path, out: Path, *more: str) -> list[str]:
    line = ["align", "train", str(pairs), "-o", str(out), "--too-long", "cut", *more]
    return [sys.executable, "-c", "from likely.cli import main; main()", *line]


def run(line: list[str], out: Path, *, kill_after: int | None = None) -> float:
    """Seconds of the command, which is killed once so many steps stand in its log."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    started = time.perf_counter()
    process = subprocess.Popen(line, env=environment, stdout=sys.stderr)
    while kill_after is not None and process.poll() is None:
        log = out / "metrics.jsonl"
        if log.exists() and log.read_bytes().count(b"\n") >= kill_after:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.2)
    code = process.wait()
    if code not in ((0,) if kill_after is None else (0, -signal.SIGKILL)):
        raise RuntimeError(f"likely align train ended with {code}")
    return time.perf_counter() - started


def measured(folder: Path, rows: list[dict[str, Any]], *more: str) -> dict[str, Any]:
    pairs, out = folder / "pairs.jsonl", folder / "adapter"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = command(pairs, out, *more)
    half = max(1, round(0.9 * len(rows) / 8) // 2)
    first = run(line, out, kill_after=half)
    finished_too_early = (out / "report.json").exists()
    second = run(line, out)
    report = json.loads((out / "report.json").read_text())
    held = (report["before"], report["after"])
    for one in held:
        one["samples"].pop("rewards", None)
    return {
        "pairs": len(rows), "steps": report["steps"], "killed_after_step": None if finished_too_early else half,
        "seconds": {"until_killed": first, "from_there": second, "together": first + second},
        "estimated_seconds": report["estimate"]["seconds"],
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "dropped": report["dropped"], "cut": report["cut"], "losses": report["losses"],
        "before": held[0], "after": held[1], "threads": THREADS,
        "command": "likely " + " ".join(line[3:]).replace(f"{folder}/", ""),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    options = protocol.arguments(__doc__.splitlines()[0], argv)
    rows = user_pairs(16 if options.quick else PAIRS)
    with tempfile.TemporaryDirectory() as folder:
        protocol.write("preference_run", measured(Path(folder), rows), quick=options.quick)


if __name__ == "__main__":
    main()
