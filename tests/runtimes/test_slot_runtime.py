"""Runtimes over slots: what the base class does around a computation that only writes tokens into its memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from likely.errors import KvFull, ModelError
from likely.runtimes.protocol import Capabilities, Limits, Output, Runtime, Want, Work
from likely.runtimes.slots.layout import WorkLayout
from likely.runtimes.slots.runtime import SlotRuntime, SlotSequence
from likely.runtimes.slots.table import TokenCount

EVERYTHING = Capabilities(trees=True, fork=True, truncate=True)


class Memo(SlotRuntime):
    """Its memory holds a token per slot; an Output's top_ids are the tokens seen by its last row."""

    def __init__(self, room=1000, sequences=8):
        super().__init__(
            vocab_size=50,
            context_length=600,
            capabilities=EVERYTHING,
            limits=Limits(sequences, room, room, 64),
            revision="memo",
        )
        self.memory = np.full(0, -1)
        self.calls, self.fails = [], False

    def _compute(self, sequences, work, tokens, slots):
        more = self._table.capacity - len(self.memory)
        self.memory = np.concatenate([self.memory, np.full(max(0, more), -1)])
        self.calls.append([numbers.tolist() for numbers in slots])
        if self.fails:
            raise FloatingPointError
        for own, numbers in zip(tokens, slots, strict=True):
            self.memory[numbers] = own
        found = []
        for of in zip(sequences, work, slots, strict=True):
            piece = WorkLayout.of(*of).piece(len(of[2]) - 1, len(of[2]))
            found.append(Output(top_ids=self.memory[piece.slots[piece.visible(None)[0]]]))
        return found


def seen(runtime, *work):
    return [output.top_ids.tolist() for output in runtime.forward(list(work))]


def test_it_is_a_runtime_without_torch():
    assert isinstance(Memo(), Runtime)
    code = "import sys, likely.runtimes.slots.layout; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_rows_see_their_own_sequence_through_forks_trees_commits_and_cuts():
    runtime = Memo()
    a, b = runtime.open(), runtime.open()
    assert seen(runtime, Work(a, [1, 2, 3]), Work(b, [9])) == [[1, 2, 3], [9]]
    fork = runtime.fork(a, 2)
    assert seen(runtime, Work(fork, [7]), Work(a, [4])) == [[1, 2, 7], [1, 2, 3, 4]]
    tree = np.array([-1, 0, -1, 2])
    assert seen(runtime, Work(fork, [10, 11, 12, 13], tree)) == [[1, 2, 7, 12, 13]]
    assert seen(runtime, Work(fork, [14], np.array([1]))) == [[1, 2, 7, 10, 11, 14]]
    assert (fork.pending, fork.depths) == (5, [1, 2, 1, 2, 3])
    runtime.commit([(fork, [0, 1, 4])])
    assert seen(runtime, Work(fork, [15])) == [[1, 2, 7, 10, 11, 14, 15]]
    runtime.truncate(fork, 1)
    assert seen(runtime, Work(fork, [16]), Work(b, [8])) == [[1, 16], [9, 8]]
    runtime.close(a)
    assert seen(runtime, Work(fork, [17])) == [[1, 16, 17]]
    runtime.shutdown()
    assert runtime.free_tokens() == 1000


def test_new_tokens_follow_the_last_one_and_memory_grows_with_the_table():
    runtime = Memo()
    sequence = runtime.open()
    for start in range(0, 600, 60):
        runtime.forward([Work(sequence, np.arange(60) % 50)])
        assert runtime.calls[-1] == [list(range(start, start + 60))]
    assert len(runtime.memory) == runtime._table.capacity >= 600


def test_a_call_that_fails_or_does_not_fit_changes_nothing():
    runtime = Memo(room=10)
    sequence, other = runtime.open(), runtime.open()
    runtime.forward([Work(sequence, [1, 2, 3])])
    tree = Work(sequence, [4, 5], np.array([-1, -1]))
    for fails, raised, work in (
        (False, KvFull, [tree, Work(other, [1] * 6)]),
        (True, FloatingPointError, [tree, Work(other, [1] * 5)]),
    ):
        runtime.fails = fails
        with pytest.raises(raised):
            runtime.forward(work)
        assert runtime.free_tokens() == 7 and sequence.pending == 0 and (sequence.length, other.length) == (3, 0)
    assert len(runtime.calls) == 2  # too large a call is refused before it is computed
    runtime.fails = False
    assert seen(runtime, tree, Work(other, [1] * 5)) == [[1, 2, 3, 5], [1] * 5]
    assert runtime.free_tokens() == 0


def test_numbers_that_a_runtime_puts_in_place_of_slots_are_held():
    class Renumbering(Memo):
        def _new_table(self, limit):
            return TokenCount(limit)

        def _compute(self, sequences, work, tokens, slots):
            slots[:] = [own + 100 for own in tokens]
            return [Output() for _ in work]

    runtime = Renumbering()
    sequence = runtime.open()
    runtime.forward([Work(sequence, np.array([1, 2]), want=Want.NONE)])
    runtime.forward([Work(sequence, np.array([3]), np.array([-1]), want=Want.NONE)])
    assert (sequence.held.tolist(), sequence.nodes, sequence.last_slot) == ([101, 102], [103], 103)
    assert runtime.free_tokens() == 997
    runtime.close(sequence)
    assert runtime.free_tokens() == 1000


def test_sequences_from_before_a_change_or_from_elsewhere_are_refused():
    runtime = Memo(sequences=1)
    old = runtime.open()
    runtime.forward([Work(old, [1, 2])])
    with pytest.raises(KvFull):
        runtime.open()
    runtime._invalidate()
    assert runtime.free_tokens() == 1000
    for wrong in (old, Memo().open()):
        with pytest.raises(ModelError, match="another runtime"):
            runtime.forward([Work(wrong, [1])])
        runtime.close(wrong)
    assert wrong.closed and seen(runtime, Work(runtime.open(), [3])) == [[3]]


def test_a_sequence_that_grows_is_copied_seldom_and_leaves_others_as_they_are():
    rng, sequence, expected, rooms = np.random.default_rng(0), SlotSequence(), [], set()
    before = []
    for number in range(3000):
        numbers = rng.integers(0, 99, number % 3)
        sequence.keep(numbers)
        expected += numbers.tolist()
        before.append((sequence.held, len(expected)))
        rooms.add(id(sequence._room))
        if number % 500 == 0:
            fork = SlotSequence(length=sequence.length, held=sequence.held.copy())
            fork.keep(np.array([7]))
            sequence.keep(np.array([8]))
            expected.append(8)
            assert fork.held[-1] == 7 and sequence.held[-1] == 8
    assert sequence.held.tolist() == expected and sequence.length == len(expected)
    assert all(held.tolist() == expected[:n] for held, n in before[::97])
    assert len(rooms) < 30
