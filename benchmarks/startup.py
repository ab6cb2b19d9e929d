"""How long a person waits: `likely --help`, and the first token of `likely ask` from cold (llama.cpp, native)."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import protocol

from likely.metrics.bootstrap import median_interval

COMMAND = [sys.executable, "-c", "from likely.cli import main; main()"]


def seconds(arguments: list[str], *, first_byte: bool) -> float:
    started = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    first = time.perf_counter() - started
    process.stdout.read()
    process.wait()
    return first if first_byte else time.perf_counter() - started


def main() -> None:
    options = protocol.arguments(__doc__)
    rounds = 2 if options.quick else max(options.rounds, 5)
    record = {}
    for name, arguments, first in (
        ("help_s", ["--help"], False),
        ("first_token_s", ["ask", "What is the capital of France?", "--runtime", "llamacpp"], True),
        ("first_token_native_s", ["ask", "What is the capital of France?", "--runtime", "native"], True),
        ("import_s", [], False),
    ):
        if name == "import_s":
            code = "import time; t = time.perf_counter(); import likely; print(time.perf_counter() - t)"
            times = [
                float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
                for _ in range(rounds)
            ]
        else:
            times = [seconds(arguments, first_byte=first) for _ in range(rounds)]
        low, high = median_interval(times)
        record[name] = {"median": sorted(times)[len(times) // 2], "low": low, "high": high, "rounds": rounds}
        print(f"{name}: {record[name]['median']:.3f} s [{low:.3f}, {high:.3f}]")
    protocol.write("startup", record, quick=options.quick)


if __name__ == "__main__":
    main()
