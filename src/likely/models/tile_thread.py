"""A thread of its own for llama.cpp on processors with tile registers (AMX).

llama.cpp sets up the tiles of a thread once and trusts that they stay so.  torch, in bfloat16, sets up its own and
gives them back: the next call of llama.cpp on that thread dies of an illegal instruction, or reads tiles of another
shape and returns numbers from nowhere.  torch never runs on the thread here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="llama.cpp")


def on_tile_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed on the one thread.  Ctrl-C is raised when it has ended, as in a plain call."""
    future = _thread().submit(function, *arguments)
    interrupted = False
    while not future.done():
        try:
            wait([future])
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        with contextlib.suppress(Exception):
            future.result()
        raise KeyboardInterrupt
    return future.result()
