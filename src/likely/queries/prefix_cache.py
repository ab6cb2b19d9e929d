"""A runtime that keeps what it computed: closed sequences stay for a while, so that the next hole goes on from them.

It stands before the real runtime, knows the tokens of every sequence opened through it, and counts what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, TypeVar

from likely.errors import KvFull
from likely.queries.trace import CostMeter
from likely.runtimes.protocol import Output, Path, Runtime, Sequence, Work
from likely.tokenizers.protocol import common_length

T = TypeVar("T")


@dataclass(eq=False)
class _Known:
    kept: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)


class PrefixCachingRuntime:
    """most  closed sequences that are held; 0: none, every request computes its whole prompt."""

    def __init__(self, runtime: Runtime, meter: CostMeter, *, most: int = 4):
        self._runtime, self._meter, self._most = runtime, meter, most
        self._known: dict[Sequence, _Known] = {}
        self._idle: list[Sequence] = []  # oldest first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def take(self, prompt: Seq[int]) -> Sequence | None:
        """An idle sequence that holds the longest beginning of the prompt (never all of it); the caller owns it."""
        cuts = self._runtime.capabilities.truncate
        best, length = None, 0
        for sequence in self._idle:
            kept = self._known[sequence].kept
            common = min(common_length(kept, prompt), len(prompt) - 1)
            if common > length and (cuts or common == len(kept)):
                best, length = sequence, common
        if best is None:
            return None
        self._idle.remove(best)
        if length < best.length:
            self.truncate(best, length)
        return best

    def release(self) -> None:
        """Give up everything that is held."""
        while self._idle:
            self._forget(self._idle.pop(0))

    def _forget(self, sequence: Sequence) -> None:
        del self._known[sequence]
        self._runtime.close(sequence)

    def free_tokens(self) -> int:
        return self._runtime.free_tokens() + sum(s.length for s in self._idle)

    def open(self) -> Sequence:
        sequence = self._with_room(self._runtime.open)
        self._known[sequence] = _Known()
        return sequence

    def fork(self, sequence: Sequence, length: int | None = None) -> Sequence:
        copy = self._with_room(lambda: self._runtime.fork(sequence, length))
        self._known[copy] = _Known(self._known[sequence].kept[: copy.length])
        return copy

    def forward(self, work: list[Work]) -> list[Output]:
        outputs = self._with_room(lambda: self._runtime.forward(work))
        self._meter.computed(sum(len(item.tokens) for item in work))
        for item in work:
            known = self._known.get(item.sequence)
            if known is not None:
                (known.kept if item.parents is None else known.pending).extend(int(t) for t in item.tokens)
        return outputs

    def commit(self, accepted: Iterable[tuple[Sequence, Path]]) -> None:
        accepted = list(accepted)
        self._runtime.commit(accepted)
        for sequence, path in accepted:
            known = self._known.get(sequence)
            if known is not None:
                known.kept += [known.pending[node] for node in path]
                known.pending = []

    def truncate(self, sequence: Sequence, length: int) -> None:
        self._runtime.truncate(sequence, length)
        known = self._known[sequence]
        known.kept, known.pending = known.kept[:length], []

    def close(self, sequence: Sequence) -> None:
        if sequence.closed or sequence not in self._known:
            self._runtime.close(sequence)
            return
        if sequence.pending:
            self.commit([(sequence, [])])
        if not self._most or not sequence.length:
            self._forget(sequence)
            return
        self._idle.append(sequence)
        if len(self._idle) > self._most:
            self._forget(self._idle.pop(0))

    def _with_room(self, call: Callable[[], T]) -> T:
        """What is held makes way when the runtime is full."""
        while True:
            try:
                return call()
            except KvFull:
                if not self._idle:
                    raise
                self._forget(self._idle.pop(0))
