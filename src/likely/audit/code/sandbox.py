"""Run a Python program that nobody has read: as little as the operating system lets it do, for a short time.

On Linux the program has a world of its own (namespaces: no network, no other processes, a working folder in memory),
reads nothing but the interpreter and its libraries (landlock), starts no processes and opens no sockets (seccomp), and
is bounded in time, memory, files and output (limits).  What could not be had is said in the result.  This keeps a
careless program harmless and a hostile one at arm's length; it is not a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from likely.errors import CapabilityError

CAGE = Path(__file__).with_name("code_cage.py")
CPU_EXIT = 124
GUARDS = ("namespaces", "landlock", "seccomp")


@dataclass(frozen=True)
class Limits:
    """wall_s, cpu_s in seconds; the others in bytes: memory, one file, all files, each of stdout and stderr."""

    wall_s: float = 10.0
    cpu_s: int = 5
    memory_bytes: int = 512 << 20
    file_bytes: int = 4 << 20
    folder_bytes: int = 32 << 20
    output_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")


@dataclass(frozen=True)
class Execution:
    """What became of a program.

    status     "ok" (exit code 0), "failed" (any other), "timeout" (wall or CPU time), "killed" (by a signal), "output"
               (it wrote more than it may)
    isolation  "namespace": no network and no other processes to be seen; "limits": the operating system gave no such
               world, and what is in `guards` is all
    guards     what held it: "limits", and of "namespaces", "landlock", "seccomp", "audit hook" those that could be had
    """

    status: Literal["ok", "failed", "timeout", "killed", "output"]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    isolation: Literal["namespace", "limits"]
    guards: tuple[str, ...]


def run_python(program: str, limits: Limits | None = None, *, guards: Iterable[str] = GUARDS) -> Execution:
    """Run a program in a fresh interpreter without site-packages, environment or standard input.

    guards  which to ask for, beside the limits
    """
    limits = limits or Limits()
    guards = list(guards)
    if unknown := set(guards) - set(GUARDS):
        raise ValueError(f"guards must be among {', '.join(GUARDS)}, got {', '.join(sorted(unknown))}")
    if os.name != "posix":
        raise CapabilityError("running untrusted code needs Linux or macOS; on Windows use WSL or a container")
    with tempfile.TemporaryDirectory(prefix="likely-code-", ignore_cleanup_errors=True) as folder:
        settings = {"program": program, "folder": os.path.realpath(folder), "guards": guards, **vars(limits)}
        reader, writer = os.pipe()
        started = time.monotonic()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CAGE), str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writer,),
                env={},
                cwd=folder,
                start_new_session=True,
            )
        finally:
            os.close(writer)
        with open(reader, "rb") as report:
            try:
                status, out, err = _watch(process, json.dumps(settings).encode(), limits, started + limits.wall_s)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            seconds = time.monotonic() - started
            told = report.read()
        if not told:  # the cage itself failed: nothing of the program has run
            if status == "timeout":
                return Execution("timeout", -signal.SIGKILL, "", "", seconds, "limits", ())
            raise CapabilityError(f"the sandbox could not start: {err.strip().splitlines()[-1:] or status}")
        found = tuple(json.loads(told))
    code = process.returncode
    if status == "ended":
        status = (
            "ok" if code == 0 else "timeout" if code == CPU_EXIT else "killed" if code < 0 or code > 128 else "failed"
        )
    isolation: Literal["namespace", "limits"] = "namespace" if "namespaces" in found else "limits"
    return Execution(status, code, out, err, seconds, isolation, found)  # type: ignore[arg-type]


def _watch(process: subprocess.Popen, settings: bytes, limits: Limits, deadline: float) -> tuple[str, str, str]:
    """(how it ended: "ended", "timeout" or "output"; stdout; stderr), each cut to `output_bytes`."""
    assert process.stdin and process.stdout and process.stderr
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(settings)  # read whole by the cage before anything else happens
        process.stdin.close()
    streams = {process.stdout: bytearray(), process.stderr: bytearray()}
    status = "ended"
    with selectors.DefaultSelector() as selector:
        for stream, held in streams.items():
            selector.register(stream, selectors.EVENT_READ, held)
        while selector.get_map() and status == "ended":
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready and left <= 0:
                status = "timeout"
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                key.data.extend(piece[: limits.output_bytes + 1 - len(key.data)])
                if not piece:
                    selector.unregister(key.fileobj)
                elif len(key.data) > limits.output_bytes:
                    status = "output"
    if status == "ended":  # both streams are closed; the process may still be there
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = "timeout"
    texts = [bytes(held[: limits.output_bytes]).decode("utf-8", "replace") for held in streams.values()]
    for stream in streams:
        stream.close()
    return status, texts[0], texts[1]
