"""Rows of the native runtime: the same bits whatever is computed beside them, and what a `Want` makes of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import SIZES, VOCAB, forward, llama, path_to, rows_of, tokens_of
from tiny_torch import folder_of, module_of

from likely.runtimes.native.library import DTYPES
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.protocol import LayerPlan, Want, Work
from likely.runtimes.rows import reduce_rows

INVARIANT = [
    "llama, heads of 24", "llama, heads of 64", "llama, seven heads a key", "gemma3, short window",
    "gemma3, a window over blocks",
]  # fmt: skip
TEXT = tokens_of(190, seed=8)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", INVARIANT)
def test_any_cutting_gives_the_same_bits(natives, name, kind):
    """Chains, trees whose paths are kept, forks and cuts, beside other texts; over the borders of 64 columns."""
    runtime, whole = natives(name, kind, tokens_per_call=37), natives(name, kind, tokens_per_call=512)
    expected = rows_of(whole, TEXT)
    other = rows_of(whole, TEXT[::-1].copy())

    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def check(data):
        opened = [runtime.open(), runtime.open()]
        try:
            follow(data, opened)
        finally:
            for sequence in opened:
                runtime.close(sequence)

    def follow(data, opened):
        sequence, beside = opened
        at = done = 0
        while at < len(TEXT):
            n = min(len(TEXT) - at, data.draw(st.sampled_from([1, 2, 3, 5, 6, 7, 8, 13, 30, 63, 64, 65, 90])))
            verb = data.draw(st.sampled_from(["chain", "chain", "tree", "fork", "cut"]))
            new = TEXT[at : at + n]
            work = [Work(sequence, new, want=Want.ALL)]
            rows = np.arange(n)
            if verb == "tree":  # each token of the text has siblings that are not kept
                siblings = data.draw(st.integers(0, 3))
                rows = np.arange(n) * (siblings + 1)
                tokens = np.repeat(new, siblings + 1)
                tokens[np.setdiff1d(np.arange(len(tokens)), rows)] += 1
                parents = np.repeat(np.concatenate([[-1], rows[:-1]]), siblings + 1)
                work = [Work(sequence, tokens, parents, want=Want.ALL)]
            more = min(data.draw(st.integers(0, 20)), len(TEXT) - done)
            if more:
                work.insert(data.draw(st.integers(0, 1)), Work(beside, TEXT[::-1][done : done + more], want=Want.ALL))
            for item, output in zip(work, runtime.forward(work), strict=True):
                if item.sequence is sequence:
                    np.testing.assert_array_equal(output.logits[rows], expected[at : at + n])
                else:
                    np.testing.assert_array_equal(output.logits, other[done : done + more])
            done += more
            if verb == "tree":
                runtime.commit([(sequence, rows.tolist())])
            at += n
            if verb == "fork":
                opened.append(runtime.fork(sequence))
                runtime.close(sequence)
                sequence = opened[-1]
            elif verb == "cut" and data.draw(st.booleans()):
                at = data.draw(st.integers(max(0, at - 40), at))
                runtime.truncate(sequence, at)

    check()
    assert runtime.free_tokens() == 4096


PLANS = {
    "all layers": None,
    "no last attention": LayerPlan(skip_attention=frozenset({2})),
    "no attention": LayerPlan(skip_attention=frozenset({0, 1, 2})),
    "no last layer": LayerPlan.exit_after(2, 3),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", INVARIANT)
def test_rows_that_nobody_wants_change_nothing(natives, name, kind, plan):
    """From the last layer's attention on only wanted rows are computed: neither they nor what follows may differ."""
    runtime, n = natives(name, kind, threads=2, tokens_per_call=512), 150
    beside, layers = runtime.open(), PLANS[plan]

    def calls(rows):
        sequence = runtime.open()
        work = [
            Work(sequence, TEXT[:n], np.arange(n) - 1, want=Want(rows=rows, logits=True, hidden=True), layers=layers)
        ]
        if layers is None:  # another text's rows are wanted by their own list
            work.insert(0, Work(beside, TEXT[n : n + 20], want=Want(rows=(3, 19), logits=True)))
        found = runtime.forward(work)[-1]
        after = forward(runtime, sequence, TEXT[n : n + 7], np.arange(n - 1, n + 6), layers=layers).logits
        runtime.close(sequence)
        runtime.truncate(beside, 0)
        return found, after

    every, expected_after = calls("all")
    for rows in ((), (0,), (149,), (15, 16), (3, 40, 41, 97), tuple(range(5, 140))):
        found, after = calls(rows)
        np.testing.assert_array_equal(after, expected_after)
        if rows:
            np.testing.assert_array_equal(found.logits, every.logits[list(rows)])
            np.testing.assert_array_equal(found.hidden, every.hidden[list(rows)])
    runtime.close(beside)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", INVARIANT)
def test_any_tree_gives_the_bits_of_its_paths(natives, name, kind):
    """Random trees that stand just before, on and after a border of 64 columns, grown over several calls."""
    runtime, whole = natives(name, kind, tokens_per_call=37), natives(name, kind, tokens_per_call=512)

    @settings(max_examples=12, deadline=None)
    @given(st.sampled_from([0, 1, 50, 61, 63, 64, 65, 90, 120]), st.integers(0, 2**32 - 1), st.integers(2, 90))
    def check(start, seed, nodes):
        rng = np.random.default_rng(seed)
        tokens, back = rng.integers(0, VOCAB - 5, nodes), rng.choice([1, 2, 6])  # deep or bushy
        parents = np.array([max(-1, i - int(rng.integers(1, back + 1))) for i in range(nodes)])
        sequence = runtime.open()
        if start:
            forward(runtime, sequence, TEXT[:start], want=Want.NONE)
        cuts = [0, *sorted(rng.integers(1, nodes, 2).tolist()), nodes]
        found = [
            forward(runtime, sequence, tokens[a:b], parents[a:b]).logits
            for a, b in pairwise(cuts) if b > a
        ]  # fmt: skip
        rows = np.concatenate(found)
        leaves = np.setdiff1d(np.arange(nodes), parents)
        for leaf in leaves[:: max(1, len(leaves) // 4)]:
            path = path_to(parents, leaf)
            alone = rows_of(whole, np.concatenate([TEXT[:start], tokens[path]]))
            np.testing.assert_array_equal(rows[path], alone[start:])
        runtime.close(sequence)

    check()


@pytest.mark.parametrize("kind", DTYPES)
def test_a_canvas_does_not_depend_on_how_its_text_was_cut(natives, kind):
    runtime, whole = natives("llama, heads of 24", kind, tokens_per_call=37), natives("llama, heads of 24", kind)
    canvas, chain = tokens_of(45, seed=5), np.arange(45) - 1
    for start in (0, 40, 63, 64, 100):
        rows = []
        for one, step in ((whole, 200), (runtime, 7)):
            sequence, beside = one.open(), one.open()
            for at in range(0, start, step):
                forward(one, sequence, TEXT[at : min(start, at + step)], want=Want.NONE)
            work = [Work(sequence, canvas, chain, attention="full", want=Want.ALL)]
            if one is runtime:
                work.insert(0, Work(beside, TEXT[:9], want=Want.ALL))
            rows.append(one.forward(work)[-1].logits)
            one.close(sequence)
            one.close(beside)
        np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("kind", DTYPES)
def test_threads_change_nothing(natives, kind, monkeypatch):
    """Few rows for each thread are divided by outputs, many by rows: neither shows."""
    monkeypatch.setattr("likely.runtimes.machine.processors", lambda: 3)
    for name in ("qwen2", "gemma3, a window over blocks"):
        expected = rows_of(natives(name, kind), TEXT)  # in calls of 64 tokens
        for threads, most in ((3, 64), (1, 512), (2, 512), (3, 512)):
            found = rows_of(natives(name, kind, threads=threads, tokens_per_call=most), TEXT)
            np.testing.assert_array_equal(found, expected)


def test_slots_that_are_used_again_leave_no_trace(natives):
    """Old keys and values beyond a text's end, and in the lanes of its last block, are never read."""
    runtime = natives("llama", "int8", tokens_held=200)
    expected = rows_of(runtime, TEXT[:70])
    for seed in range(4):
        rows_of(runtime, tokens_of(200, seed=seed))
        np.testing.assert_array_equal(rows_of(runtime, TEXT[:70]), expected)


# --- wants ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_ties(native_cache):
    """Tokens 10, 11, 12 and 40, 41 have one row of the head each: their logits are equal bit for bit."""
    module = module_of(llama(tie_word_embeddings=False), std=0.15, vectors=0.2)
    with torch.no_grad():
        weight = module.lm_head.weight
        weight[[11, 12]], weight[41] = weight[10].clone(), weight[40].clone()
        weight[[10, 11, 12]] *= 3
    runtime = NativeRuntime(folder_of(module), dtype="int8", threads=1, tokens_held=1024, tokens_per_call=16)
    yield runtime
    runtime.shutdown()


ROWS = ["none", "last", "all", (), (3,), (49, 0, 17), (5, 5, 5), (20, 3, 20, 49, 3)]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("top", [0, 1, 2, 7, VOCAB])
@pytest.mark.parametrize("logits", [False, True])
def test_wants_are_those_of_the_slow_reduction(with_ties, rows, top, logits):
    rng = np.random.default_rng(top)
    tokens = tokens_of(50)
    whole = rows_of(with_ties, tokens)
    assert (whole[:, 10] == whole[:, 12]).all() and (whole[:, 40] == whole[:, 41]).all()
    for pairs in (None, np.empty((0, 2), int), np.stack([rng.integers(0, 50, 30), rng.integers(0, VOCAB, 30)], 1)):
        for entropy in (False, True):
            want = Want(rows=rows, logits=logits, top=top, entropy=entropy, pairs=pairs)
            sequence = with_ties.open()
            found = forward(with_ties, sequence, tokens, want=want)
            with_ties.close(sequence)
            expected = reduce_rows(want, 50, lambda i: whole[i])
            assert (found.top_ids is None) == (top == 0) and (found.entropy is None) == (not entropy)
            if logits:
                np.testing.assert_array_equal(found.logits, whole[want.row_numbers(50)])
            else:
                assert found.logits is None
            if top:
                np.testing.assert_array_equal(found.top_ids, expected.top_ids.reshape(-1, top))
                np.testing.assert_allclose(found.top_logprobs, expected.top_logprobs.reshape(-1, top), atol=2e-6)
            if entropy:
                np.testing.assert_allclose(found.entropy, expected.entropy, atol=2e-5)
            if pairs is None:
                assert found.logprobs is None
            else:
                np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-6)


def test_works_of_one_call_have_wants_of_their_own(with_ties):
    texts = [tokens_of(n, seed=n) for n in (30, 9, 22, 5)]
    alone = [rows_of(with_ties, t) for t in texts]
    wants = [
        Want(rows=(29, 2), top=3, hidden=True),
        Want.NONE,
        Want(rows="all", logits=True, pairs=np.array([[21, 4], [0, 9]])),
        Want(rows="last", entropy=True),
    ]
    sequences = [with_ties.open() for _ in texts]
    outputs = with_ties.forward([Work(s, t, want=w) for s, t, w in zip(sequences, texts, wants, strict=True)])
    for s in sequences:
        with_ties.close(s)
    for want, text, rows, output in zip(wants, texts, alone, outputs, strict=True):
        expected = reduce_rows(want, len(text), lambda i, rows=rows: rows[i])
        for field in ("logits", "top_ids", "top_logprobs", "entropy", "logprobs"):
            one, other = getattr(output, field), getattr(expected, field)
            assert (one is None) == (other is None), field
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=0, atol=2e-5, err_msg=field)
        assert (output.hidden is None) == (not want.hidden)
    assert outputs[0].hidden.shape == (2, SIZES["hidden_size"])


def test_rows_are_handed_out_in_bounded_pieces(with_ties, monkeypatch):
    """Fewer rows of logits than a call has are in memory at once; nothing else changes."""
    tokens = tokens_of(50)
    want = Want(rows=(44, 1, 30), top=4, entropy=True, pairs=np.array([[0, 1], [48, 3], [17, 9]]))

    def answer(want):
        sequence = with_ties.open()
        found = forward(with_ties, sequence, tokens, want=want)
        with_ties.close(sequence)
        return found

    before, logits = answer(want), answer(Want.ALL).logits
    monkeypatch.setattr("likely.runtimes.native.runtime.ROWS_AT_ONCE", 2)
    monkeypatch.setattr("likely.runtimes.native.runtime.LOGITS_BYTES", 3 * 4 * with_ties._stride)
    after = answer(want)
    for field in ("top_ids", "top_logprobs", "entropy", "logprobs"):
        np.testing.assert_array_equal(getattr(after, field), getattr(before, field))
    np.testing.assert_array_equal(answer(Want.ALL).logits, logits)
