"""Members, signatures and cases of Python code by jedi, in a process that is killed when it takes too long."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import IO, Any

from likely.code.analysis.child import Child, ChildEnded, ChildTimedOut
from likely.code.analysis.members import AnalysisKind, AnalysisReply, Member, Parameter
from likely.code.buffer import CodeBuffer
from likely.errors import missing_extra

WORKER = (sys.executable, "-m", "likely.code.analysis.worker")
START_LIMIT_S = 30.0  # importing jedi on a busy machine
RECYCLED_AFTER = 500  # questions: jedi's own caches only grow


class JediProvider:
    """jedi for one project.

    limit_s   seconds a question may take; then the answer is "timed out", the process is killed and started anew
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
        self._asked = 0  # of the present process
        self._number = 0
        self._closed = False

    def members(self, buffer: CodeBuffer) -> AnalysisReply:
        return self.about("members", buffer)

    def about(self, kind: AnalysisKind, buffer: CodeBuffer) -> AnalysisReply:
        request = {
            "id": self._number, "root": buffer.project_root or self.root, "kind": kind, "path": buffer.path,
            "prefix": buffer.prefix, "suffix": buffer.suffix,
        }  # fmt: skip
        self._number += 1
        try:
            child = self._running()
            self._asked += 1
            child.send(json.dumps(request).encode() + b"\n")
            reply: dict[str, Any] = json.loads(child.receive(self.limit_s))
        except ChildTimedOut:
            self._stop()
            return AnalysisReply("timed out", detail=f"no answer within {self.limit_s:g} s")
        except (ChildEnded, ValueError) as error:
            self._stop()
            return AnalysisReply("failed", detail=str(error))
        if reply.get("id") != request["id"]:
            self._stop()
            return AnalysisReply("failed", detail="the worker answered another question")
        return answer_of(reply)

    def _running(self) -> Child:
        if self._closed:
            raise ChildEnded("the provider is closed")
        if self._child is not None and self._child.alive and self._asked < RECYCLED_AFTER:
            return self._child
        self._stop()
        self.restarts += 1
        self._asked = 0
        env = {**os.environ, "LIKELY_ANALYSIS_ROOT": self.root, "PYTHONDONTWRITEBYTECODE": "1"}
        self._child = Child(self.command, _line, env=env)
        self._child.receive(START_LIMIT_S)
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        self._closed = True
        self._stop()


def _line(stream: IO[bytes]) -> bytes | None:
    return stream.readline() or None


def answer_of(reply: dict[str, Any]) -> AnalysisReply:
    """The worker's reply as an AnalysisReply; ValueError for another form."""
    parameters = reply.get("parameters")
    return AnalysisReply(
        reply["status"],
        tuple(Member(*one) for one in reply.get("members", ())),
        None if parameters is None else tuple(Parameter(*one) for one in parameters),
        bool(reply.get("dynamic")),
        detail=reply.get("detail", ""),
    )
