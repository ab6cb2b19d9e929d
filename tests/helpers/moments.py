"""Run `likely` command lines that are hit by a signal at an exact moment: the n-th step of the interpreter.

A process of its own imports everything once and forks a child per command line, so that fifty kills cost seconds.  A
moment is a number of calls and returns (of Python and of C functions) since the command began: unlike a time it is the
same on every machine, and unlike a size it also lies before, between and after writes.

As a script: one job per line on standard input, {"argv", "at": step or null, "signal": number}; one reply per line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Ended:
    """code: exit code, or minus the number of the signal that ended it; steps: of an unbroken run"""

    code: int
    err: str
    steps: int


class Moments:
    """The parent's side; the commands keep what they remember of models in `cache`."""

    def __init__(self, cache: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "LIKELY_CACHE": str(cache)},
        )  # fmt: skip

    def run(self, *argv: object, at: int | None = None, kind: signal.Signals = signal.SIGKILL) -> Ended:
        assert self._process.stdin and self._process.stdout
        job = {"argv": [str(a) for a in argv], "at": at, "signal": int(kind)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


def _child(job: dict[str, Any], err: int, steps_out: int) -> None:
    """Become the command line; never returns."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(err, 2)
    steps, at = 0, job["at"]

    def count(frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal steps, at
        steps += 1
        # Python itself drops an interrupt in a callback of its import system: the next step outside takes it
        if at is not None and steps >= at and not frame.f_code.co_filename.startswith("<frozen importlib"):
            at = None
            os.kill(os.getpid(), job["signal"])

    leave = os._exit

    def exit_counted(code: int) -> None:
        sys.setprofile(None)
        os.write(steps_out, str(steps).encode())
        leave(code)

    os._exit = exit_counted  # type: ignore[assignment]
    sys.argv = ["likely", *job["argv"]]
    from likely.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setprofile(count)
    main()


def _serve() -> None:
    import llama_cpp  # noqa: F401

    import likely.lm.api
    import likely.models.convert
    import likely.runtimes.llamacpp.runtime  # noqa: F401
    from likely.cli.app import command

    command()
    for raw in sys.stdin:
        job = json.loads(raw)
        with tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as steps:
            child = os.fork()
            if child == 0:
                try:
                    _child(job, err.fileno(), steps.fileno())
                except BaseException:
                    import traceback

                    traceback.print_exc()
                finally:
                    os._exit(99)
            _, status = os.waitpid(child, 0)
            err.seek(0)
            steps.seek(0)
            ended = Ended(os.waitstatus_to_exitcode(status), err.read().decode(), int(steps.read() or 0))
        print(json.dumps(ended.__dict__), flush=True)


if __name__ == "__main__":
    _serve()
