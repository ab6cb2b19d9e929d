"""Analysers in child processes: messages on standard streams, killed when they take too long, then started anew."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import IO

from likely.code.analysis.members import AnalysisKind, AnalysisReply
from likely.code.buffer import CodeBuffer


class ChildTimedOut(Exception):
    """The child did not answer in time."""


class ChildEnded(Exception):
    """The child is gone, or never came."""


class Child:
    """The process and a thread that reads what it says.

    read_message  one message from its standard output, None at the end
    Started in a session of its own, so that `kill` also ends what it started.
    """

    def __init__(
        self, command: Sequence[str], read_message: Callable[[IO[bytes]], bytes | None], *,
        cwd: str | None = None, env: dict[str, str] | None = None,
    ):  # fmt: skip
        try:
            self.process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                cwd=cwd, env=env, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ChildEnded(f"{command[0]} cannot be started: {error.strerror or error}") from None
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._read = read_message
        threading.Thread(target=self._listen, name="likely-child", daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            while (message := self._read(self.process.stdout)) is not None:
                self._messages.put(message)
        self._messages.put(None)

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except (OSError, ValueError):
            raise ChildEnded("the process does not take messages any more") from None

    def receive(self, timeout_s: float) -> bytes:
        """The next message; ChildTimedOut after so many seconds, ChildEnded if there will be none."""
        try:
            message = self._messages.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            raise ChildTimedOut from None
        if message is None:
            self._messages.put(None)
            raise ChildEnded(f"the process ended with code {self.process.poll()}")
        return message

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """End it and whatever it started; harmless when repeated."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None and stream is self.process.stdin:
                    stream.close()


class ChildProvider(ABC):
    """A provider of analyses (`MemberProvider`) in a child process that is started when it is first asked.

    root      folder of the project
    limit_s   seconds a question may take; then the reply is "timed out", the process is killed and started anew
    restarts  how often it had to be started again
    """

    name: str

    def __init__(self, root: str, limit_s: float):
        if not limit_s > 0:
            raise ValueError(f"limit_s must be > 0, got {limit_s}")
        self.root, self.limit_s = root, limit_s
        self.restarts = -1
        self._child: Child | None = None
        self._number = 0  # of messages
        self._closed = False

    @abstractmethod
    def _start(self) -> Child:
        """The process, not yet greeted."""

    @abstractmethod
    def _greet(self, child: Child) -> None:
        """Wait until it is ready."""

    @abstractmethod
    def _ask(self, child: Child, kind: AnalysisKind, buffer: CodeBuffer) -> AnalysisReply:
        """One question; ValueError, KeyError or TypeError where the child's reply has another form."""

    def members(self, buffer: CodeBuffer) -> AnalysisReply:
        return self.about("members", buffer)

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
        if self._child is None or not self._child.alive:
            self._stop()
            self.restarts += 1
            self._child = self._start()
            self._greet(self._child)
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        self._closed = True
        self._stop()
