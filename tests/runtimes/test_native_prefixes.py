"""Columns that several pieces of work share are read once for all of them, and no number shows it."""

from __future__ import annotations

import numpy as np
import pytest
from native_models import VOCAB, forward, tokens_of
from test_native_rows import INVARIANT, TEXT

from likely.runtimes.native.calls import CallArrays
from likely.runtimes.native.library import DTYPES
from likely.runtimes.protocol import Want, Work

BOTH = (True, False)  # whether pieces are put together


@pytest.fixture
def pair(natives, monkeypatch):
    """(config name, kind) -> a runtime that reads what is shared once, and one that does not."""
    monkeypatch.setattr("likely.runtimes.machine.processors", lambda: 3)

    def get(name, kind, **options):
        return [natives(name, kind, group_prefixes=g, **{"tokens_per_call": 512, **options}) for g in BOTH]

    return get


def forks_of(runtime, lengths, suffixes, seed):
    """Sequences that share the first `lengths` tokens of one text and go on for themselves; the text's is the first."""
    rng = np.random.default_rng(seed)
    opened = [runtime.open()]
    forward(runtime, opened[0], TEXT[: max(lengths)], want=Want.NONE)
    for length, suffix in zip(lengths, suffixes, strict=True):
        opened.append(runtime.fork(opened[0], length))
        if suffix:
            forward(runtime, opened[-1], rng.integers(0, VOCAB - 5, suffix), want=Want.NONE)
    return opened


def rows_of_call(runtime, opened, seed, most=3, trees=True, every=False):
    """Logits of one call with some tokens of every sequence, chains and trees on pending nodes, and what it read."""
    rng = np.random.default_rng(seed)
    work = []
    for sequence in opened:
        n = int(rng.integers(1, most + 1))
        tokens, parents = rng.integers(0, VOCAB - 5, n), rng.integers(-1, np.arange(n))
        grows = trees and rng.random() < 0.4
        if grows and rng.random() < 0.5:
            forward(runtime, sequence, tokens[::-1].copy(), np.arange(n) - 1, want=Want.NONE)
        want = Want.ALL if every or len(work) % 5 != 3 else Want.NONE  # the last layer computes wanted rows alone
        work.append(Work(sequence, tokens, parents if grows else None, want=want))
    before = runtime.columns_read()
    outputs = runtime.forward(work)
    read = runtime.columns_read() - before
    for sequence in opened:
        runtime.close(sequence)
    return np.concatenate([output.logits for output in outputs if output.logits is not None]), read


@pytest.mark.sampled(6)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", INVARIANT)
def test_ragged_forks_get_the_same_bits_from_fewer_reads(pair, name, kind, threads):
    """Forks before, on and behind the borders of blocks, forks of forks, windows, one and several query heads a key."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        lengths = rng.choice([190, 190, 170, 129, 128, 127, 70, 64, 63, 5], 14).tolist()
        suffixes = rng.choice([0, 1, 9, 70], 14).tolist()
        (found, read), (expected, apart) = (
            rows_of_call(runtime, forks_of(runtime, lengths, suffixes, seed), seed)
            for runtime in pair(name, kind, threads=threads)
        )
        np.testing.assert_array_equal(found, expected)
        assert read < apart


@pytest.mark.slow
@pytest.mark.parametrize("kind", DTYPES)
def test_calls_that_are_divided_by_rows_share_too(pair, kind):
    """Many rows for each thread: what is put together are the pieces of one span of rows."""
    for name in ("llama, seven heads a key", "gemma3, a window over blocks"):
        (found, read), (expected, apart) = (
            rows_of_call(runtime, forks_of(runtime, [150] * 60, [3] * 60, 0), 0, most=4)
            for runtime in pair(name, kind, threads=1)
        )
        assert len(found) >= 64
        np.testing.assert_array_equal(found, expected)
        assert 2 * read < apart


def test_a_tree_of_prefixes_is_read_block_by_block_once(pair):
    """64 columns of all, 64 more of each half, and the rest of each: in this order, for 3 key heads of 3 layers."""
    grouped, apart = pair("llama, heads of 64", "float32", threads=1)
    for runtime, expected in ((grouped, 64 + 2 * 64 + 8 * 43), (apart, 8 * 171)):
        first = runtime.open()
        forward(runtime, first, TEXT[:100], want=Want.NONE)
        opened = []
        for half in range(2):
            branch = runtime.fork(first)
            forward(runtime, branch, tokens_of(70, seed=half), want=Want.NONE)
            opened += [runtime.fork(branch) for _ in range(4)]
            runtime.close(branch)
        opened = opened[::2] + opened[1::2]  # in no order of prefixes
        runtime.close(first)
        rows, read = rows_of_call(runtime, opened, 1, most=1, trees=False, every=True)
        assert len(rows) == 8 and read == 9 * expected


def test_texts_that_are_equal_but_share_no_slots_are_read_apart(pair):
    reads, rows = [], []
    for runtime in pair("llama, heads of 64", "int8", threads=1):
        opened = [runtime.open() for _ in range(4)]
        runtime.forward([Work(sequence, TEXT[:130], want=Want.NONE) for sequence in opened])
        found, read = rows_of_call(runtime, opened, 2, trees=False)
        reads.append(read)
        rows.append(found)
    np.testing.assert_array_equal(*rows)
    assert reads[0] == reads[1]


def test_a_block_of_another_text_would_show(pair, monkeypatch):
    """The control: the same comparison, when a second piece is given 64 columns of the first."""
    original, rows = CallArrays.of, []

    def wrong(*arguments):
        found = original(*arguments)
        at, other = found.pieces[0, 2], found.pieces[1, 2]
        found.columns[other : other + 64] = found.columns[at : at + 64]
        return found

    for runtime, change in zip(pair("llama, heads of 64", "bfloat16", threads=1), BOTH, strict=True):
        opened = [runtime.open() for _ in range(2)]
        runtime.forward([Work(s, tokens_of(130, seed=i), want=Want.NONE) for i, s in enumerate(opened)])
        with monkeypatch.context() as patch:
            if change:
                patch.setattr(CallArrays, "of", wrong)
            rows.append(rows_of_call(runtime, opened, 3, most=1, trees=False)[0])
    np.testing.assert_array_equal(rows[0][0], rows[1][0])
    assert np.abs(rows[0][1] - rows[1][1]).max() > 1e-3
