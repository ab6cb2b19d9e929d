"""What every benchmark script shares: its arguments, the check for a quiet machine, and the results file."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from likely.bench.timing import refuse_busy
from likely.io.whole_file import write_whole_file
from likely.runtimes.machine import machine

RESULTS = Path(__file__).parent / "results"


def arguments(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures are not kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--even-if-busy", action="store_true")
    found = parser.parse_args(argv)
    if not found.even_if_busy:
        refuse_busy()
    print(machine().line())
    return found


def write(name: str, record: dict[str, Any], *, quick: bool) -> None:
    """Print the record; keep it in benchmarks/results unless this was a smoke run."""
    versions = {}
    for package in ("likely", "torch", "transformers", "llama-cpp-python", "lm-eval", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    record = {
        "benchmark": name,
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": asdict(machine()),
        "versions": versions,
        **record,
    }
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    if quick:
        return
    write_whole_file(RESULTS / f"{name}.json", text.encode())
