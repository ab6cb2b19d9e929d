"""An event loop whose clock jumps to the next timer: hours of waiting take no time, and orders are always the same."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

R = TypeVar("R")


class _Jumping(selectors.SelectSelector):
    """Never waits: time is added to the clock of its loop instead."""

    clock: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise RuntimeError("everything waits for something that never comes")
        self.clock.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """For coroutines that wait for timers and each other alone (no threads, no sockets)."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Jumping()
        selector.clock = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run_on_virtual_clock(work: Coroutine[Any, Any, R]) -> tuple[R, float]:
    """(result, seconds that passed on the virtual clock)"""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(work)
        loop = runner.get_loop()
        return result, loop.time()
