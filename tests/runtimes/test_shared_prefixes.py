"""What sequences of a call share is read once: found by slots alone, the same numbers, used by all that forks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny_torch import CONFIGS, VOCAB, module_of, tiny_module

import likely
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.runtimes.prefix_cache import PrefixCache
from likely.runtimes.protocol import Want, Work
from likely.runtimes.slots import sharing
from likely.runtimes.slots.layout import SequenceQueries
from likely.runtimes.slots.sharing import split_shared
from likely.runtimes.torch.runtime import TorchRuntime

ATTENTION = ["llama", "qwen3", "gemma2", "gemma3", "gpt_oss", "gpt2"]


def tokens_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, n)


@pytest.fixture
def every_run(monkeypatch):
    """Whatever two sequences have in common is shared."""
    monkeypatch.setattr(sharing, "LEAST_TOKENS", 1)
    monkeypatch.setattr(sharing, "RUN_COST", 0)
    monkeypatch.setattr(sharing, "SHARING_COST", 0)


# --- what is shared -------------------------------------------------------------------------------------------------


def random_forks(rng, count=7, longest=30):
    """Texts as lists of slots, each a fork of an earlier one at a random place, and pieces that go on from them."""
    free, texts = itertools.count(), [[]]
    for _ in range(count):
        source = texts[rng.integers(len(texts))]
        kept = source[: rng.integers(len(source) + 1)]
        texts.append(kept + [next(free) for _ in range(rng.integers(1, longest))])
    pieces = []
    for text in texts[1:]:
        n = int(rng.integers(1, 4))
        tail = None if rng.random() < 0.5 else np.tril(rng.random((n, n)) < 0.7) | np.eye(n, dtype=bool)
        positions = len(text) + np.arange(n)
        slots = np.array(text + [next(free) for _ in range(n)])
        pieces.append(SequenceQueries(positions, slots, len(text), tail, None if tail is None else positions))
    return pieces


def seen_by(piece, window):
    """Per query the set of slots that it sees."""
    first = piece.first_column(window)
    return [set(piece.slots[first:][row].tolist()) for row in piece.visible(window)]


@pytest.mark.parametrize("window", [None, 12, 40])
@pytest.mark.parametrize("least", [1, 3])
def test_runs_and_what_is_left_are_what_each_query_saw(window, least, every_run, monkeypatch):
    monkeypatch.setattr(sharing, "LEAST_TOKENS", least)
    rng, found = np.random.default_rng(0), 0
    for _ in range(40):
        pieces = random_forks(rng)
        runs, rest = split_shared(pieces, window)
        found += len(runs)
        for n, (before, left) in enumerate(zip(pieces, rest, strict=True)):
            mine = [set(run.slots.tolist()) for run in runs if n in run.pieces]
            shared = set().union(*mine)
            for whole, own in zip(seen_by(before, window), seen_by(left, window), strict=True):
                assert own | shared == whole and not own & shared
            assert len(shared) == sum(map(len, mine))
        assert all(len(run.pieces) > 1 and len(run.slots) >= least for run in runs)
    assert found > 10


def test_without_a_least_length_each_slot_is_read_once(every_run):
    rng = np.random.default_rng(1)
    for _ in range(40):
        pieces = random_forks(rng)
        runs, rest = split_shared(pieces)
        read = [slot for part in (*runs, *rest) for slot in part.slots.tolist()]
        assert len(read) == len(set(read)) == len({slot for piece in pieces for slot in piece.slots.tolist()})


def test_short_runs_go_to_the_longer_ones_below_them(every_run, monkeypatch):
    monkeypatch.setattr(sharing, "LEAST_TOKENS", 64)
    common, left, right = np.arange(10), np.arange(10, 80), np.arange(80, 150)
    texts = [np.concatenate([common, part]) for part in (left, left, right, right)]
    pieces = [SequenceQueries(np.array([80]), np.append(text, 200 + n), 80) for n, text in enumerate(texts)]
    runs, rest = split_shared(pieces)
    assert sorted((len(run.slots), run.pieces) for run in runs) == [(80, [0, 1]), (80, [2, 3])]
    assert [piece.slots.tolist() for piece in rest] == [[200], [201], [202], [203]]
    assert split_shared(pieces[:1])[0] == split_shared(pieces[1:3])[0] == []  # alone, and with ten in common
    short = [SequenceQueries(np.array([63]), np.append(left[:63], 200 + n), 63) for n in range(2)]
    assert split_shared(short)[0] == []


def test_little_is_not_shared():
    """64 tokens of 2 sequences or more, (m - 1) P > 256, and 768 beyond that in all."""

    def runs(*families):
        pieces, first = [], 0
        for length, count in families:
            own = np.arange(first, first + length)
            pieces += [SequenceQueries(np.array([length]), np.append(own, 10**6 + n), length) for n in range(count)]
            first += length
        return [len(run.slots) for run in split_shared(pieces)[0]]

    assert runs((1024, 2)) == [] and runs((1025, 2)) == [1025]
    assert runs((64, 17)) == [] and runs((64, 18)) == [64] and runs((63, 40)) == []
    assert runs((513, 2), (513, 2)) == [] and runs((641, 2), (641, 2)) == [641, 641]
    assert runs((1025, 2), (256, 2)) == [1025]


# --- the runtime ----------------------------------------------------------------------------------------------------


def forward(runtime, work):
    return [output.logits for output in runtime.forward(work)]


def plain(runtime, tokens):
    with torch.no_grad():
        return (
            runtime.module(input_ids=torch.tensor([list(map(int, tokens))]), use_cache=False).logits[0].float().numpy()
        )


def three_levels(runtime, lengths=((40,), (9, 17), (5, 0, 3, 12))):
    """(sequence, text) of leaves of a tree of depth 3, with ragged suffixes."""
    root, [text] = [runtime.open()], [tokens_of(lengths[0][0])]
    forward(runtime, [Work(root[0], text)])
    level = [(root[0], text)]
    for depth, sizes in enumerate(lengths[1:], 1):
        below = []
        for i, size in enumerate(sizes):
            parent, text = level[i * len(level) // len(sizes)]
            sequence, own = runtime.fork(parent), tokens_of(size, seed=10 * depth + i)
            if size:
                forward(runtime, [Work(sequence, own)])
            below.append((sequence, np.concatenate([text, own])))
        level = below
    return level


def closes(runtime, rows, texts, atol=2e-5):
    for found, text in zip(rows, texts, strict=True):
        expected = plain(runtime, text)[-len(found) :]
        np.testing.assert_allclose(found, expected, atol=atol * max(1.0, float(expected.std())), rtol=0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ATTENTION)
def test_a_tree_of_depth_three_equals_the_plain_forward(name, every_run):
    """Grouped heads, windows, soft-capping and sinks; several tokens at once, single ones, and pending trees."""
    runtime = TorchRuntime(tiny_module(name), tokens_held=1024, revision="x")
    leaves = three_levels(runtime)
    before = runtime.kv_reads.saved
    rng = np.random.default_rng(0)
    for n in (3, 1, 1):
        new = [rng.integers(0, VOCAB, n) for _ in leaves]
        rows = forward(runtime, [Work(s, t, want=Want.ALL) for (s, _), t in zip(leaves, new, strict=True)])
        leaves = [(s, np.concatenate([text, t])) for (s, text), t in zip(leaves, new, strict=True)]
        closes(runtime, rows, [text for _, text in leaves])
    nodes, parents = rng.integers(0, VOCAB, 5), np.array([-1, 0, 0, -1, 2])
    rows = forward(runtime, [Work(s, nodes, parents, want=Want.ALL) for s, _ in leaves])
    for path in ([0, 2, 4], [0, 1], [3]):
        closes(runtime, [row[path] for row in rows], [np.concatenate([text, nodes[path]]) for _, text in leaves])
    late = forward(runtime, [Work(s, np.array([7]), np.array([4]), want=Want.ALL) for s, _ in leaves])
    closes(runtime, late, [np.concatenate([text, nodes[[0, 2, 4]], [7]]) for _, text in leaves])
    assert runtime.kv_reads.saved > before


def test_long_prefixes_are_shared_by_themselves_and_reads_are_counted():
    runtime = TorchRuntime(tiny_module("llama"), tokens_held=1024, revision="x")
    text, count = tokens_of(100), 13
    source = runtime.open()
    forward(runtime, [Work(source, text)])
    forks = [runtime.fork(source) for _ in range(count)]
    reads = {}
    for share in (True, False):
        runtime.group_prefixes, before = share, (runtime.kv_reads.read, runtime.kv_reads.saved)
        rows = forward(runtime, [Work(fork, np.array([n]), np.array([-1])) for n, fork in enumerate(forks)])
        runtime.commit([(fork, []) for fork in forks])
        closes(runtime, rows, [np.append(text, n) for n in range(count)])
        reads[share] = runtime.kv_reads.read - before[0], runtime.kv_reads.saved - before[1]
    layers = 2
    shared, plain_reads = (layers * (100 + count), layers * (count - 1) * 100), (layers * count * 101, 0)
    assert reads == {True: shared, False: plain_reads}


@pytest.mark.parametrize("share", [True, False])
def test_a_window_sees_only_the_end_of_a_shared_prefix(share, every_run):
    config = CONFIGS["gemma3"]()
    config.sliding_window = 100
    runtime = TorchRuntime(module_of(config), tokens_held=2048, revision="x", group_prefixes=share)
    assert runtime.cached
    leaves = three_levels(runtime, ((130,), (8, 20), (3, 5, 0, 9)))
    before = runtime.kv_reads.saved
    for n in (4, 1):
        new = [tokens_of(n, seed=90 + i) for i in range(4)]
        rows = forward(runtime, [Work(s, t, want=Want.ALL) for (s, _), t in zip(leaves, new, strict=True)])
        leaves = [(s, np.concatenate([text, t])) for (s, text), t in zip(leaves, new, strict=True)]
        closes(runtime, rows, [text for _, text in leaves])
    assert (runtime.kv_reads.saved > before + 2 * 3 * 130) == share  # of one full layer, and of the windows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "llama"])
def test_blocks_of_a_shared_prefix_are_read_as_without_sharing(name, every_run):
    """bfloat16 weights and quantised keys: as close to each other as rounding allows."""
    for kv_dtype, dtype, atol in (("bfp16n8", torch.float32, 2e-5), (None, torch.bfloat16, 0.1)):
        rows = []
        for share in (True, False):
            module = tiny_module(name, dtype=dtype)
            runtime = TorchRuntime(module, tokens_held=1024, revision="x", group_prefixes=share, kv_dtype=kv_dtype)
            leaves = three_levels(runtime)
            rows.append(np.stack(forward(runtime, [Work(s, np.array([n])) for n, (s, _) in enumerate(leaves)])))
            assert (runtime.kv_reads.saved > 0) == share
        assert np.abs(rows[0] - rows[1]).mean() <= atol * rows[1].std()


def test_layers_that_are_left_out_share_too(every_run):
    from likely.runtimes.protocol import LayerPlan

    runtime = TorchRuntime(tiny_module("llama"), tokens_held=512, revision="x")
    leaves = three_levels(runtime)
    plan = LayerPlan(skip_attention=frozenset({0}), skip_mlp=frozenset())
    rows = []
    for share in (True, False):
        runtime.group_prefixes = share
        work = [Work(s, np.array([n]), np.array([-1]), layers=plan) for n, (s, _) in enumerate(leaves)]
        rows.append(np.stack(forward(runtime, work)))
        runtime.commit([(s, []) for s, _ in leaves])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)


# --- what forks, shares ---------------------------------------------------------------------------------------------


def answers(loop, requests):
    ids, done = [loop.add(request) for request in requests], {}
    while not loop.idle:
        for event in loop.step():
            assert event.error is None, event.error
            if event.finish:
                done[ids.index(event.request), event.sample] = event.finish
    return done


def loop_of(runtime, prefixes=None):
    return Loop(runtime, lambda token: bytes([97 + token % 26]), frozenset({2}), prefixes=prefixes)


@pytest.mark.parametrize("kind", ["samples", "beams", "prefix cache"])
def test_texts_are_the_same_and_prefixes_are_shared(kind):
    prompt, found, saved = tuple(tokens_of(230).tolist()), {}, {}
    requests = {
        "samples": [Request(prompt, Sampling(seed=3), samples=8, max_tokens=8)],
        "beams": [Request(prompt, Sampling(temperature=0), beams=8, samples=3, max_tokens=8)],
        "prefix cache": [Request((*prompt, i), Sampling(seed=i), max_tokens=8) for i in range(8)],
    }[kind]
    module = tiny_module("llama")
    for share in (True, False):
        runtime = TorchRuntime(module, tokens_held=4096, revision="x", group_prefixes=share)
        prefixes = PrefixCache(runtime) if kind == "prefix cache" else None
        if prefixes is not None:
            answers(loop_of(runtime, prefixes), [Request(prompt, Sampling(temperature=0), max_tokens=2)])
        found[share] = answers(loop_of(runtime, prefixes), requests)
        saved[share] = runtime.kv_reads.saved
    assert {key: finish.tokens for key, finish in found[True].items()} == {
        key: finish.tokens for key, finish in found[False].items()
    }
    for key, finish in found[True].items():
        np.testing.assert_allclose(finish.logprobs, found[False][key].logprobs, atol=1e-4)
    layers, steps, others = 2, 5, 7
    assert saved[False] == 0 and saved[True] >= (1 if kind == "beams" else layers * steps * others * 229)


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_says_the_same_with_and_without(smollm2_path, every_run):
    """A tree of depth 3 with ragged suffixes, 12 tokens each; then samples and scores of the model object."""
    rng, rows, texts = np.random.default_rng(0), {}, {}
    known = [rng.integers(0, 40000, n) for n in (100, 64, 70, 7, 12, 3, 30)]
    question = "A list of the capitals of Europe, one after the other, with the year of their foundation. " * 4
    with likely.load(smollm2_path, runtime="torch", threads=1, context=2048) as lm:
        runtime = lm.runtime
        assert runtime.group_prefixes
        for share in (True, False):
            runtime.group_prefixes, reads = share, runtime.kv_reads.saved
            root = runtime.open()
            runtime.forward([Work(root, known[0])])
            middle = [runtime.fork(root) for _ in range(2)]
            runtime.forward([Work(s, t) for s, t in zip(middle, known[1:3], strict=True)])
            leaves = [runtime.fork(middle[i // 2]) for i in range(4)]
            logits = forward(runtime, [Work(s, t) for s, t in zip(leaves, known[3:], strict=True)])
            rows[share], texts[share] = [np.concatenate(logits)], []
            for _ in range(12):
                texts[share].append(rows[share][-1].argmax(-1))
                logits = forward(runtime, [Work(s, t[None]) for s, t in zip(leaves, texts[share][-1], strict=True)])
                rows[share].append(np.concatenate(logits))
            assert (runtime.kv_reads.saved > reads) == share
            for sequence in (root, *middle, *leaves):
                runtime.close(sequence)
            reads = runtime.kv_reads.saved
            texts[share].append([one.text for one in lm.generate(question, n=3, max_tokens=6, seed=1)])
            texts[share].append([one.sequence_logprob for one in lm.score(question, [" Paris", " London is old"])])
            assert (runtime.kv_reads.saved > reads) == share
    *tokens, generated, scores = zip(texts[True], texts[False], strict=True)
    assert all(np.array_equal(*pair) for pair in tokens) and generated[0] == generated[1]
    np.testing.assert_allclose(*scores, atol=1e-3)
    assert np.abs(np.array(rows[True]) - np.array(rows[False])).max() < 1e-3
