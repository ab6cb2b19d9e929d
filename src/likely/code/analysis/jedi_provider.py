"""Members, signatures and cases of Python code by jedi, in a process that is killed when it takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec

from likely.code.analysis.members import AnalysisKind, AnalysisReply, Member, Parameter
from likely.code.buffer import CodeBuffer
from likely.errors import missing_extra

WORKER = (sys.executable, "-m", "likely.code.analysis.worker")
START_LIMIT_S = 30.0  # importing jedi on a busy machine
RECYCLED_AFTER = 500  # questions: jedi's own caches only grow


class ChildTimedOut(Exception):
    """The child did not answer in time."""


class ChildEnded(Exception):
    """The child is gone, or never came."""


class Child:
    """A process that writes lines, and a thread that reads them.

    Started in a session of its own, so that `kill` also ends what it started.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str]):
        try:
            self.process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=env, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ChildEnded(f"{command[0]} cannot be started: {error.strerror or error}") from None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="likely-child", daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                self._lines.put(line)
        self._lines.put(b"")

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except (OSError, ValueError):
            raise ChildEnded("the process does not take messages any more") from None

    def receive(self, timeout_s: float) -> bytes:
        """The next line; ChildTimedOut after so many seconds, ChildEnded if there will be none."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ChildTimedOut from None
        if not line:
            self._lines.put(b"")
            raise ChildEnded(f"the process ended with code {self.process.poll()}")
        return line

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """End it and whatever it started; harmless when repeated."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.close()


class JediProvider:
    """jedi for one project (a `MemberProvider`), in a child process that is started when it is first asked.

    root      folder of the project
    limit_s   seconds a question may take; then the reply is "timed out", the process is killed and started anew
    command   of the worker process, for tests
    restarts  how often it had to be started again
    """

    name = "jedi"

    def __init__(self, root: str = "", *, limit_s: float = 2.0, command: Sequence[str] = WORKER):
        if not limit_s > 0:
            raise ValueError(f"limit_s must be > 0, got {limit_s}")
        if find_spec("jedi") is None:
            raise missing_extra("jedi", "guided")
        self.root, self.limit_s, self.command = root, limit_s, tuple(command)
        self.restarts = -1
        self._child: Child | None = None
        self._number = 0  # of messages
        self._asked = 0  # of the present process
        self._closed = False

    def about(self, kind: AnalysisKind, buffer: CodeBuffer) -> AnalysisReply:
        try:
            return self._ask(self._running(), kind, buffer)
        except ChildTimedOut:
            self._stop()
            return AnalysisReply("timed out", detail=f"no answer within {self.limit_s:g} s")
        except (ChildEnded, ValueError, KeyError, TypeError) as error:
            self._stop()
            return AnalysisReply("failed", detail=f"{type(error).__name__}: {error}")

    def _running(self) -> Child:
        if self._closed:
            raise ChildEnded("the provider is closed")
        if self._child is None or not self._child.alive or self._asked >= RECYCLED_AFTER:
            self._stop()
            self.restarts += 1
            self._asked = 0
            env = {**os.environ, "LIKELY_ANALYSIS_ROOT": self.root, "PYTHONDONTWRITEBYTECODE": "1"}
            self._child = Child(self.command, env)
            self._child.receive(START_LIMIT_S)  # its first line says that it is ready
        return self._child

    def _ask(self, child: Child, kind: AnalysisKind, buffer: CodeBuffer) -> AnalysisReply:
        """ValueError, KeyError or TypeError where the child's reply has another form."""
        self._asked += 1
        self._number += 1
        request = {
            "id": self._number, "root": buffer.project_root or self.root, "kind": kind, "path": buffer.path,
            "prefix": buffer.prefix, "suffix": buffer.suffix,
        }  # fmt: skip
        child.send(json.dumps(request).encode() + b"\n")
        reply = json.loads(child.receive(self.limit_s))
        if reply.get("id") != self._number:
            raise ValueError("the worker answered another question")
        parameters = reply.get("parameters")
        return AnalysisReply(
            reply["status"],
            tuple(Member(*one) for one in reply.get("members", ())),
            None if parameters is None else tuple(Parameter(*one) for one in parameters),
            bool(reply.get("dynamic")),
            detail=reply.get("detail", ""),
        )

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        self._closed = True
        self._stop()
