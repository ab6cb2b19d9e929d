"""A runtime whose sequences are lists of slots: all of the Runtime protocol but the computation, without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from likely.errors import KvFull, ModelError
from likely.runtimes.protocol import (
    Capabilities,
    IntArray,
    Limits,
    Output,
    Path,
    Sequence,
    Work,
    check_length,
    check_open,
    check_path,
    check_work,
)
from likely.runtimes.slots.table import SlotTable
from likely.runtimes.turns import SharedByThreads, one_at_a_time


@dataclass(eq=False)
class SlotSequence(Sequence):
    """held: a slot number per kept token (a token id where nothing is cached); nodes: the same per pending node."""

    held: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    nodes: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)  # of pending nodes
    epoch: object = None  # of the runtime when the sequence was opened
    _room: IntArray | None = None  # that `held` is the first part of, where it has grown

    def keep(self, numbers: IntArray) -> None:
        """Hold these, too; a long sequence is not copied for each token."""
        before, length = self.held, len(self.held) + len(numbers)
        room = before.base if isinstance(before.base, np.ndarray) else before
        if room is not self._room or length > len(room):
            room = self._room = np.empty(length + length // 2, np.int64)
            room[: len(before)] = before
        room[len(before) : length] = numbers
        self.held, self.length = room[:length], length

    @property
    def last_slot(self) -> int:
        """Of the newest token; -1 where there is none."""
        if self.nodes:
            return self.nodes[-1]
        return int(self.held[-1]) if self.length else -1


class SlotRuntime(SharedByThreads, ABC):
    """Sequences, slots and checks of a runtime; a subclass computes.

    `_table` says which slots are taken. Memory that lies outside it must hold `_table.capacity` slots when `_compute`
    is called; the number only grows, except that `_invalidate` and `shutdown` set it back.
    """

    def __init__(
        self, *, vocab_size: int, context_length: int, capabilities: Capabilities, limits: Limits, revision: str
    ):
        super().__init__()
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.capabilities = capabilities
        self.revision = revision
        self._open: set[SlotSequence] = set()
        self._epoch: object = object()
        self._set_limits(limits)

    @abstractmethod
    def _compute(
        self, sequences: list[SlotSequence], work: list[Work], tokens: list[IntArray], slots: list[IntArray]
    ) -> list[Output]:
        """The outputs of checked work, in its order; what is remembered of a token goes to its slot.

        tokens, slots  per piece of work (n,); the sequences are as before the call
        If this raises, the slots are free again; it must not have changed the sequences. A runtime whose table only
        counts tokens puts numbers of its own into `slots` before it returns: they are what the sequences then hold.
        """

    def _new_table(self, limit: int) -> Any:
        """A `SlotTable`, or a `TokenCount` in its place; Any, because subclasses use more of their own tables."""
        return SlotTable(limit)

    def _new_sequence(self, held: IntArray, source: SlotSequence | None = None) -> SlotSequence:
        """A sequence that holds the first len(held) tokens of `source`."""
        return SlotSequence(length=len(held), held=held, epoch=self._epoch)

    # --- sequences --------------------------------------------------------------------------------------------------

    @one_at_a_time
    def open(self) -> SlotSequence:
        self._check_sequences()
        sequence = self._new_sequence(np.empty(0, np.int64))
        self._open.add(sequence)
        return sequence

    @one_at_a_time
    def fork(self, sequence: Sequence, length: int | None = None) -> SlotSequence:
        own = self._own(sequence)
        length = own.length if length is None else length
        check_length(own, length)
        self._check_sequences()
        self._table.retain(own.held[:length])
        copy = self._new_sequence(own.held[:length].copy(), own)
        self._open.add(copy)
        return copy

    @one_at_a_time
    def commit(self, accepted: Iterable[tuple[Sequence, Path]]) -> None:
        chosen = [(self._own(sequence), [int(node) for node in path]) for sequence, path in accepted]
        if len({id(sequence) for sequence, _ in chosen}) < len(chosen):
            raise ValueError("one commit may name a sequence only once")
        for sequence, path in chosen:
            check_path(sequence, path)
        for sequence, path in chosen:
            kept = np.array([sequence.nodes[node] for node in path], np.int64)
            dropped = np.array(sequence.nodes, np.int64)[np.setdiff1d(np.arange(sequence.pending), path)]
            self._drop_nodes(sequence, dropped)
            sequence.keep(kept)

    @one_at_a_time
    def truncate(self, sequence: Sequence, length: int) -> None:
        own = self._own(sequence)
        check_length(own, length)
        self._drop_nodes(own, np.array(own.nodes, np.int64))
        self._table.release(own.held[length:])
        own.held, own.length = own.held[:length].copy(), length

    @one_at_a_time
    def close(self, sequence: Sequence) -> None:
        if sequence.closed or not isinstance(sequence, SlotSequence):
            return
        if sequence.epoch is self._epoch:
            self.truncate(sequence, 0)
            self._open.discard(sequence)
        sequence.closed = True

    @one_at_a_time
    def free_tokens(self) -> int:
        return self._table.free

    @one_at_a_time
    def shutdown(self) -> None:
        for sequence in list(self._open):
            self.close(sequence)
        self._table.clear()

    # --- evaluation -------------------------------------------------------------------------------------------------

    @one_at_a_time
    def forward(self, work: Seq[Work]) -> list[Output]:
        work = list(work)
        sequences = [self._own(item.sequence) for item in work]
        check_work(work, vocab_size=self.vocab_size, context_length=self.context_length, capabilities=self.capabilities)
        if not work:
            return []
        tokens = [np.asarray(item.tokens, np.int64) for item in work]
        needed = sum(map(len, tokens))
        if needed > self.free_tokens():
            raise KvFull(needed, self.free_tokens())
        slots: list[IntArray] = []
        try:
            for sequence, own in zip(sequences, tokens, strict=True):
                slots.append(self._table.allocate(len(own), sequence.last_slot, sequence.length + sequence.pending))
            outputs = self._compute(sequences, work, tokens, slots)
        except BaseException:
            for taken in slots:
                self._table.release(taken)
            raise
        self._hold(sequences, work, slots)
        return outputs

    # --- for subclasses ---------------------------------------------------------------------------------------------

    def _set_limits(self, limits: Limits) -> None:
        """Bounds and an empty table for them; sequences that were open are forgotten."""
        self._open.clear()
        self.limits = limits
        self._table = self._new_table(limits.tokens_held)

    def _invalidate(self) -> None:
        """Sequences opened until now are no longer ours; what they held is free again."""
        self._epoch = object()
        self._open.clear()
        self._table.clear()

    def _own(self, sequence: Sequence) -> SlotSequence:
        check_open(sequence)
        if not isinstance(sequence, SlotSequence) or sequence.epoch is not self._epoch:
            raise ModelError(
                "this sequence belongs to another runtime or to weights before refresh(): open a new one here"
            )
        return sequence

    def _check_sequences(self) -> None:
        free = self.limits.sequences - len(self._open)
        if free < 1:
            raise KvFull(1, free, "sequences")

    def _drop_nodes(self, sequence: SlotSequence, released: IntArray) -> None:
        self._table.release(released)
        sequence.nodes, sequence.parents, sequence.depths, sequence.plan = [], [], [], None

    def _hold(self, sequences: list[SlotSequence], work: list[Work], slots: list[IntArray]) -> None:
        """The new tokens are kept where the work is a chain, and pending where it is a tree."""
        for sequence, item, numbers in zip(sequences, work, slots, strict=True):
            if item.parents is None:
                sequence.keep(numbers)
                continue
            for parent, number in zip(np.asarray(item.parents).tolist(), numbers.tolist(), strict=True):
                sequence.depths.append(1 + (sequence.depths[parent] if parent >= 0 else 0))
                sequence.parents.append(parent)
                sequence.nodes.append(number)
            sequence.plan = item.layers
