"""Recorded answers through a runtime: as many calls as the replay counts, whatever the drafter."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import ROOT, script

from likely.decoding.drafting.lookup import CopySource
from likely.decoding.drafting.replay import RecordedAnswer, replay
from likely.decoding.drafting.suffix.drafter import SuffixMemory
from likely.runtimes.toy import ToyRuntime


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "reproductions"))
        yield script("recorded_answers", folder="benchmarks")


def answers(seed=0):
    """Answers that repeat half of their prompt."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(4):
        old = rng.integers(0, 50, 20).tolist()
        found.append(RecordedAnswer([*old, 51], [*old[:12], *rng.integers(0, 50, 4).tolist()]))
    return found


def toy():
    return ToyRuntime(lambda prefix: np.zeros(64, np.float32), vocab_size=64, context_length=128)


@pytest.mark.parametrize("make", [CopySource, SuffixMemory])
def test_calls_are_those_of_the_replay(bench, make):
    runtime, live, recorded = toy(), make(), make()
    for answer in answers():
        expected = replay(recorded, answer.prompt, answer.answer, budget=6)
        found = bench.forced(runtime, answer, live, 6)
        assert abs(found.calls - len(expected.accepted)) <= 1  # the replay drafts nothing before the first token
        assert bench.forced(runtime, answer, None, 0).calls == len(answer.answer)


def test_a_second_pass_of_a_memory_needs_fewer_calls(bench):
    kind = bench.Kind("mine", answers(), SuffixMemory, 16, passes=2)
    first, second = bench.gains(toy(), kind)
    assert second["tokens_per_call"] > first["tokens_per_call"] > 1
    assert (first["pass"], second["pass"], second["n"]) == (1, 2, 4) and first["low"] <= first["high"]
