"""A thread of its own for llama.cpp on processors with tile registers (AMX).

llama.cpp sets up the tiles of a thread once and trusts that they stay so.  torch, in bfloat16, sets up its own and
gives them back: the next call of llama.cpp on that thread dies of an illegal instruction, or reads tiles of another
shape and returns numbers from nowhere.  torch never runs on the thread here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import lru_cache
from queue import SimpleQueue
from typing import Any


class _Job:
    """A call to make, a lock that is free once it is made, and (the result, the error), which are there before that."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]):
        self.function, self.arguments = function, arguments
        self.made = threading.Lock()
        self.made.acquire()
        self.outcome: tuple[Any, BaseException | None] | None = None

    def make(self) -> None:
        try:
            self.outcome = self.function(*self.arguments), None
        except BaseException as error:
            self.outcome = None, error
        self.made.release()


@lru_cache(maxsize=1)
def _jobs() -> SimpleQueue[_Job]:
    jobs: SimpleQueue[_Job] = SimpleQueue()

    def work() -> None:
        while True:
            jobs.get().make()

    threading.Thread(target=work, name="llama.cpp", daemon=True).start()
    return jobs


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_jobs.cache_clear)  # threads stay behind with the parent


def on_tile_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed on the one thread.  Ctrl-C is raised when it has ended, as in a plain call."""
    job = _Job(function, arguments)
    _jobs().put(job)
    interrupted = False
    while True:
        try:
            job.made.acquire()
            break
        except KeyboardInterrupt:
            interrupted = True
            if job.outcome is not None:  # it came between taking the lock and knowing so
                break
    assert job.outcome is not None
    value, error = job.outcome
    if interrupted:
        raise KeyboardInterrupt
    if error is not None:
        raise error
    return value
