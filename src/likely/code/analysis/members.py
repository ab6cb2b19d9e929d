"""What monitors ask and what providers answer; answers come in the background and are remembered."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from likely.code.buffer import CodeBuffer

AnalysisKind = Literal["members", "signature", "cases", "exceptions"]
Status = Literal["answered", "unknown", "timed out", "failed"]


@dataclass(frozen=True)
class Member:
    """One legal name.  kind: "function", "property", ...;  defined_in: a file or module, "" where not known."""

    name: str
    kind: str = ""
    defined_in: str = ""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a callable.  kind: as in `inspect`, "POSITIONAL_ONLY", "VAR_KEYWORD", ..."""

    name: str
    kind: str
    required: bool


@dataclass(frozen=True)
class AnalysisReply:
    """What a provider knows at a place.

    status      "answered"; "unknown": the analyser cannot tell; "timed out"; "failed": with `detail`
    members     legal names (for "members", "cases", "exceptions");  parameters: of the callable (for "signature")
    dynamic     there may be further members that the analyser cannot see (`__getattr__`)
    seconds     that the analysis took
    """

    status: Status
    members: tuple[Member, ...] = ()
    parameters: tuple[Parameter, ...] | None = None
    dynamic: bool = False
    seconds: float = 0.0
    detail: str = ""


class MemberProvider(Protocol):
    """A static analyser.  Answers within its own time limit, and never raises for code that it does not understand."""

    name: str

    def about(self, kind: AnalysisKind, buffer: CodeBuffer) -> AnalysisReply:
        """The answer to a question about the place at the cursor; "unknown" for kinds that it cannot answer.

        "members": what may follow a dot before the cursor.  "signature": the cursor follows the opening bracket of a
        call.  "cases": it stands where a pattern of a `match` statement is due.  "exceptions": after `raise` or
        `except`.
        """
        ...

    def close(self) -> None: ...


@dataclass(eq=False)
class Analyses:
    """Questions to one provider: asked in a thread of their own, each only once.

    kept    answers remembered (the least recently used go first); those without a result are asked anew
    counts  how many questions ended with each status, and "remembered"
    """

    provider: MemberProvider
    kept: int = 512
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._asked: OrderedDict[tuple[AnalysisKind, CodeBuffer], Future[AnalysisReply]] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def ask(self, kind: AnalysisKind, buffer: CodeBuffer) -> Future[AnalysisReply]:
        """The answer to come; never an exception."""
        key = (kind, buffer)
        with self._lock:
            known = self._asked.get(key)
            if known is not None and not (known.done() and known.result().status in ("timed out", "failed")):
                self._asked.move_to_end(key)
                self.counts["remembered"] += 1
                return known
            if self._threads is None:
                self._threads = ThreadPoolExecutor(1, thread_name_prefix="likely-analysis")
            future = self._asked[key] = self._threads.submit(self._answer, kind, buffer)
            while len(self._asked) > self.kept:
                self._asked.popitem(last=False)
        return future

    def _answer(self, kind: AnalysisKind, buffer: CodeBuffer) -> AnalysisReply:
        started = time.perf_counter()
        try:
            found = self.provider.about(kind, buffer)
        except Exception as error:  # an analyser's fault must not end a text
            found = AnalysisReply("failed", detail=f"{type(error).__name__}: {error}")
        self.counts[found.status] += 1
        return replace(found, seconds=time.perf_counter() - started)

    def close(self) -> None:
        """Stop asking and close the provider."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        self.provider.close()
