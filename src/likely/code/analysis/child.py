"""A child process that answers messages on its standard streams, and is killed when it takes too long."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import IO


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
