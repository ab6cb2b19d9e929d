"""The command line: one file per verb. Heavy imports happen inside the verbs, so that --help is quick."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of `likely`: exit codes 0 done, 1 the work failed, 2 wrong usage, 130 Ctrl-C."""
    try:
        from likely.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # outside of any verb
        code = 130
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # llama.cpp and torch keep worker threads; nothing is left to save, so leave without waiting for them
    sys.stderr.flush()
    os._exit(code)
