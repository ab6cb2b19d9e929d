"""The command line: one file per verb. Heavy imports happen inside the verbs, so that --help is quick."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Entry point of `likely`: exit codes 0 done, 1 the work failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this program
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115

    def end(*_: int | FrameType | None) -> None:  # not as Ctrl-C, which may end an answer alone
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, end)
    try:
        from likely.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # outside of any verb
        code = 130
    except SystemExit as stop:  # what was half written has been removed
        code = stop.code if isinstance(stop.code, int) else 1
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk
        print(f"Error: cannot write the output: {error.strerror or error}", file=sys.stderr)
        code = 1
    # llama.cpp and torch keep worker threads; nothing is left to save, so leave without waiting for them
    sys.stderr.flush()
    os._exit(code)
