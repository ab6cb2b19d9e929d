"""Threads that share a runtime wait their turn; a child process, a copy and the end of the interpreter are kept away.

A runtime has two locks. `turn` is for whole operations (scoring, a step of decoding): their numbers are then those of
an operation that runs alone. The other one is held within each method only, while no other lock is waited for: it keeps
the state whole where a method is called without the turn, as that of a draft model is.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

from likely.errors import CapabilityError, ModelError

P = ParamSpec("P")
R = TypeVar("R")


class Turn:
    """A lock for `with`: its owner may take it again, and cannot take it twice in a row before one who waits.

    ModelError in a child process made by fork: threads and calls of the parent are not there.
    """

    def __init__(self) -> None:
        self._lock, self._first_in_line = threading.RLock(), threading.Lock()
        self._owner, self._depth, self._process = 0, 0, os.getpid()

    def __enter__(self) -> None:
        if os.getpid() != self._process:
            raise ModelError(
                f"this model was loaded in process {self._process} and cannot be used in process {os.getpid()}, a fork "
                f'of it: load it there, or start processes with multiprocessing\'s "spawn"'
            )
        if self._owner == threading.get_ident():
            self._lock.acquire()
        else:
            with self._first_in_line:
                self._lock.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
        self._lock.release()


class SharedByThreads:
    """What a runtime inherits to be safe among threads; its public methods are `one_at_a_time`."""

    def __init__(self) -> None:
        self.turn, self._method = Turn(), Turn()
        _LIVE.add(self)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        refuse_copy(self)


def one_at_a_time(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], R]:
    """A method of a `SharedByThreads` that keeps other threads out of it and of all others."""

    @wraps(method)
    def locked(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._method:
            return method(self, *args, **kwargs)

    return locked


def refuse_copy(held: object) -> NoReturn:
    raise CapabilityError(
        f"a {type(held).__name__} cannot be copied or pickled: it owns memory and threads. Share it (threads may), or "
        f"load the model again"
    )


def freeing(owner: object, free: Callable[..., object], *arguments: Any) -> weakref.finalize:
    """Calls `free` when the owner is gone, but not at exit (a thread may be in it) and not in a child process."""
    process = os.getpid()

    def free_here() -> None:
        if os.getpid() == process:
            free(*arguments)

    found = weakref.finalize(owner, free_here)
    found.atexit = False
    return found


_LIVE: weakref.WeakSet[SharedByThreads] = weakref.WeakSet()


@atexit.register
def _stop_threads() -> None:
    """Daemon threads end the call that they are in and get no other: what they use is about to go."""
    for runtime in list(_LIVE):
        if runtime._method._process == os.getpid():
            runtime._method.__enter__()
