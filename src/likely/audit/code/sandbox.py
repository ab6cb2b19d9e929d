"""Run an untrusted Python program in a child process with few rights and for a short time.

On Linux it gets namespaces of its own (no network, no other processes, a working folder in memory), reads nothing but
the interpreter and its libraries (landlock), starts no processes and opens no sockets (seccomp), and is bounded in
time, memory, files and output (resource limits).  No program is needed for that, and no privilege where the kernel
lets users make namespaces.  `Execution` says which of these guards held.  This keeps a careless program harmless and a
hostile one at arm's length; it is not a virtual machine.
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

CHILD = Path(__file__).with_name("child.py")
CPU_EXIT = 124  # exit code of the child when the program was killed because its CPU time was used up
GUARDS = ("namespaces", "landlock", "seccomp")
Isolation = Literal["full", "partial", "limits"]


@dataclass(frozen=True)
class SandboxLimits:
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
    guards     what held it: "limits", and of "namespaces", "landlock", "seccomp", "audit hook" those that could be had
    isolation  "full": namespaces, landlock and seccomp all held; "partial": some of them; "limits": none
    """

    status: Literal["ok", "failed", "timeout", "killed", "output"]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    guards: tuple[str, ...]

    @property
    def isolation(self) -> Isolation:
        held = sum(guard in self.guards for guard in GUARDS)
        return "full" if held == len(GUARDS) else "partial" if held else "limits"


def run_python(program: str, limits: SandboxLimits | None = None, *, guards: Iterable[str] = GUARDS) -> Execution:
    """Run a program in a fresh interpreter without site-packages, environment or standard input.

    guards  which to ask for, beside the limits
    """
    limits = limits or SandboxLimits()
    guards = list(guards)
    if unknown := set(guards) - set(GUARDS):
        raise ValueError(f"guards must be among {', '.join(GUARDS)}, got {', '.join(sorted(unknown))}")
    if os.name != "posix":
        raise CapabilityError("running untrusted code needs Linux or macOS; on Windows use WSL or a container")
    with tempfile.TemporaryDirectory(prefix="likely-code-", ignore_cleanup_errors=True) as folder:
        settings = {
            "program": program, "folder": os.path.realpath(folder), "guards": guards, "cpu_exit": CPU_EXIT,
            **vars(limits),
        }  # fmt: skip
        reader, writer = os.pipe()
        started = time.monotonic()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CHILD), str(writer)],
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
            held = report.read()
        if not held:  # the child failed before the program began
            if status == "timeout":
                return Execution("timeout", -signal.SIGKILL, "", "", seconds, ())
            raise CapabilityError(f"the sandbox could not start: {err.strip().splitlines()[-1:] or status}")
    code = process.returncode
    if status == "ended":
        status = (
            "ok" if code == 0 else "timeout" if code == CPU_EXIT else "killed" if code < 0 or code > 128 else "failed"
        )
    return Execution(status, code, out, err, seconds, tuple(json.loads(held)))  # type: ignore[arg-type]


def _watch(process: subprocess.Popen, settings: bytes, limits: SandboxLimits, deadline: float) -> tuple[str, str, str]:
    """(how it ended: "ended", "timeout" or "output"; stdout; stderr), each cut to `output_bytes`."""
    assert process.stdin and process.stdout and process.stderr
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(settings)  # read whole by the child before anything else happens
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
