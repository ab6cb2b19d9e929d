"""Any interleaving of open, fork, forward, commit, truncate and close, against a recomputing oracle.

A subclass makes the runtime under test (anew for each example) and the oracle (once); every row of logits must equal a
fresh decode of the same tokens, and a call that raises KvFull must leave everything as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from likely.errors import KvFull
from likely.runtimes.protocol import Runtime, Want, Work


class Interleavings(RuleBasedStateMachine):
    tolerance = 0.0  # nats; 0 is bit for bit
    longest = 60  # tokens of one sequence
    oracle: Runtime

    def make(self) -> Runtime:
        raise NotImplementedError

    @classmethod
    def make_oracle(cls) -> Runtime:
        raise NotImplementedError

    def __init__(self):
        super().__init__()
        self.runtime = self.make()
        self.kept, self.nodes = {}, {}  # sequence -> tokens

    def teardown(self):
        self.runtime.shutdown()

    def pick(self, data):
        return data.draw(st.sampled_from(list(self.kept)))

    def check(self, logits, tokens):
        sequence = self.oracle.open()
        fresh = self.oracle.forward([Work(sequence, np.array(tokens), want=Want.LAST)])[0].logits[-1]
        self.oracle.close(sequence)
        np.testing.assert_allclose(logits, fresh, rtol=0, atol=self.tolerance)

    @rule()
    def open(self):
        try:
            sequence = self.runtime.open()
        except KvFull:
            return
        self.kept[sequence], self.nodes[sequence] = [], []

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def fork(self, data):
        source = self.pick(data)
        length = data.draw(st.integers(0, source.length))
        try:
            copy = self.runtime.fork(source, length)
        except KvFull:
            return
        self.kept[copy], self.nodes[copy] = self.kept[source][:length], []

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forward(self, data):
        work, expected = [], []
        for sequence in data.draw(st.lists(st.sampled_from(list(self.kept)), min_size=1, max_size=3, unique=True)):
            n = data.draw(st.integers(1, 6))
            tokens = data.draw(st.lists(st.integers(0, self.runtime.vocab_size - 1), min_size=n, max_size=n))
            first = sequence.pending
            if first or data.draw(st.booleans()):
                parents = [data.draw(st.integers(-1, first + i - 1)) for i in range(n)]
                work.append(Work(sequence, np.array(tokens), np.array(parents), want=Want.ALL))
            else:
                work.append(Work(sequence, np.array(tokens), want=Want.ALL))
            if sequence.length + first + n > self.longest:
                return
        state = [(item.sequence.length, item.sequence.pending) for item in work]
        free = self.runtime.free_tokens()
        try:
            outputs = self.runtime.forward(work)
        except KvFull:
            assert state == [(item.sequence.length, item.sequence.pending) for item in work]
            assert free == self.runtime.free_tokens()
            return
        for item, output in zip(work, outputs, strict=True):
            sequence, tokens = item.sequence, item.tokens.tolist()
            if item.parents is None:
                self.kept[sequence] = self.kept[sequence] + tokens
                expected.append((output.logits[-1], self.kept[sequence]))
                continue
            first = len(self.nodes[sequence])
            self.nodes[sequence] = self.nodes[sequence] + tokens
            for i in range(len(tokens)):
                along = [self.nodes[sequence][v] for v in sequence.path(first + i)]
                expected.append((output.logits[i], self.kept[sequence] + along))
        for row, tokens in expected:
            self.check(row, tokens)

    @precondition(lambda self: any(s.pending for s in self.kept))
    @rule(data=st.data())
    def commit(self, data):
        sequence = data.draw(st.sampled_from([s for s in self.kept if s.pending]))
        path = sequence.path(data.draw(st.integers(-1, sequence.pending - 1)))
        self.kept[sequence] = self.kept[sequence] + [self.nodes[sequence][v] for v in path]
        self.nodes[sequence] = []
        self.runtime.commit([(sequence, path)])

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def truncate(self, data):
        sequence = self.pick(data)
        length = data.draw(st.integers(0, sequence.length))
        self.runtime.truncate(sequence, length)
        self.kept[sequence], self.nodes[sequence] = self.kept[sequence][:length], []

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def close(self, data):
        sequence = self.pick(data)
        self.runtime.close(sequence)
        del self.kept[sequence], self.nodes[sequence]


def check_interleavings(machine: type[Interleavings], **options: Any) -> None:
    """Run a machine with one oracle for all its examples; options are those of hypothesis' settings."""
    machine.oracle = machine.make_oracle()
    try:
        every = settings(deadline=None, suppress_health_check=list(HealthCheck), **options)
        run_state_machine_as_test(machine, settings=every)
    finally:
        machine.oracle.shutdown()
