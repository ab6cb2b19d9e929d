"""External calls of a query: their results are recorded, so that a program can be run again without calling anew."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Recorder = Callable[[str, Callable[[], Any]], Any]
RECORDER: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def effect(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that reaches outside (a search, a clock, a file).

    Decoders that branch run the body again and again; a marked function is called once per branch and place, and its
    recorded result is given back after that.  Outside a query it is an ordinary function.
    """

    @wraps(function)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        recorder = RECORDER.get()
        if recorder is None:
            return function(*args, **kwargs)
        return recorder(function.__name__, lambda: function(*args, **kwargs))

    return recorded
