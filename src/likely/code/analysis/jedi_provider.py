"""Members, signatures and cases of Python code by jedi, in a process that is killed when it takes too long."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import IO, Any

from likely.code.analysis.child import Child, ChildProvider
from likely.code.analysis.members import AnalysisKind, AnalysisReply, Member, Parameter
from likely.code.buffer import CodeBuffer
from likely.errors import missing_extra

WORKER = (sys.executable, "-m", "likely.code.analysis.worker")
START_LIMIT_S = 30.0  # importing jedi on a busy machine
RECYCLED_AFTER = 500  # questions: jedi's own caches only grow


class JediProvider(ChildProvider):
    """jedi for one project.

    command  of the worker process, for tests;  the others: see `ChildProvider`
    """

    name = "jedi"

    def __init__(self, root: str = "", *, limit_s: float = 2.0, command: Sequence[str] = WORKER):
        super().__init__(root, limit_s)
        if find_spec("jedi") is None:
            raise missing_extra("jedi", "guided")
        self.command = tuple(command)
        self._asked = 0  # of the present process

    def _start(self) -> Child:
        self._asked = 0
        env = {**os.environ, "LIKELY_ANALYSIS_ROOT": self.root, "PYTHONDONTWRITEBYTECODE": "1"}
        return Child(self.command, _line, env=env)

    def _greet(self, child: Child) -> None:
        child.receive(START_LIMIT_S)

    def _running(self) -> Child:
        if self._asked >= RECYCLED_AFTER:
            self._stop()
        return super()._running()

    def _ask(self, child: Child, kind: AnalysisKind, buffer: CodeBuffer) -> AnalysisReply:
        self._asked += 1
        self._number += 1
        request = {
            "id": self._number, "root": buffer.project_root or self.root, "kind": kind, "path": buffer.path,
            "prefix": buffer.prefix, "suffix": buffer.suffix,
        }  # fmt: skip
        child.send(json.dumps(request).encode() + b"\n")
        reply: dict[str, Any] = json.loads(child.receive(self.limit_s))
        if reply.get("id") != self._number:
            raise ValueError("the worker answered another question")
        return reply_of(reply)


def _line(stream: IO[bytes]) -> bytes | None:
    return stream.readline() or None


def reply_of(reply: dict[str, Any]) -> AnalysisReply:
    """The worker's reply as an AnalysisReply; ValueError for another form."""
    parameters = reply.get("parameters")
    return AnalysisReply(
        reply["status"],
        tuple(Member(*one) for one in reply.get("members", ())),
        None if parameters is None else tuple(Parameter(*one) for one in parameters),
        bool(reply.get("dynamic")),
        detail=reply.get("detail", ""),
    )
