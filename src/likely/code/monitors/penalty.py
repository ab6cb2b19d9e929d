"""The soft policy: what monitors forbid becomes less likely instead of impossible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from likely.code.monitors.monitor import MonitorConstraint
from likely.decoding.constraint import LogitsProcessor, unpack
from likely.runtimes.protocol import FloatArray, Runtime


class MonitorPenalty(LogitsProcessor):
    """A LogitsProcessor that takes `penalty` nats from every token that the monitors forbid.

    An illegal token that is chosen all the same ends the monitor's interest until its next trigger.
    """

    def __init__(self, monitors: MonitorConstraint, penalty: float = 6.0):
        if not penalty >= 0:
            raise ValueError(f"penalty must be >= 0 nats, got {penalty}")
        self._monitors, self.penalty = monitors, penalty

    def begin(self, runtime: Runtime, prompt: Sequence[int]) -> MonitorPenalty:
        return self.fork()

    def apply(self, path: Sequence[int], logits: FloatArray) -> FloatArray:
        state = self._monitors.fork()
        for token in path:
            state.push(token)
        mask = state.allowed()
        allowed = unpack(mask, len(logits))
        return np.where(allowed, logits, logits - np.float32(self.penalty))

    def advance(self, tokens: Sequence[int], accepted: Sequence[int]) -> None:
        for token in tokens:
            self._monitors.push(token)

    def fork(self) -> MonitorPenalty:
        return MonitorPenalty(self._monitors.fork(), self.penalty)

    def ready(self) -> bool:
        return self._monitors.ready()
