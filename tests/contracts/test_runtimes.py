"""What every Runtime promises, checked on every Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from factories import FACTORIES, runtime_cases

from likely.errors import CapabilityError, KvFull, LikelyError
from likely.runtimes.protocol import LayerPlan, Runtime, Want, Work
from likely.runtimes.rows import log_softmax, logsumexp

LENGTH = 20


@pytest.fixture(scope="module", params=runtime_cases())
def made(request):
    build, tolerance = FACTORIES[request.param]
    runtime = build()
    yield runtime, tolerance
    runtime.shutdown()


@pytest.fixture
def runtime(made):
    return made[0]


@pytest.fixture
def close_to(made):
    tolerance = made[1]

    def check(got, expected):
        got, expected = np.asarray(got), np.asarray(expected)
        assert got.shape == expected.shape
        if tolerance == 0:
            np.testing.assert_array_equal(got, expected)
        else:
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)

    return check


def tokens_for(runtime, n=LENGTH, seed=0):
    return np.random.default_rng(seed).integers(3, min(runtime.vocab_size, 60), n)


def one(runtime, sequence, tokens, want=Want.ALL, parents=None):
    parents = None if parents is None else np.asarray(parents)
    return runtime.forward([Work(sequence, np.asarray(tokens), parents, want=want)])[0]


def fresh_rows(runtime, tokens):
    """Logits after every token, computed in one call on a new sequence: the oracle."""
    sequence = runtime.open()
    rows = one(runtime, sequence, tokens).logits
    runtime.close(sequence)
    return rows


def test_it_is_a_runtime(runtime):
    assert isinstance(runtime, Runtime)
    assert runtime.revision and runtime.vocab_size > 3 and runtime.context_length >= 64


def test_one_by_one_equals_one_call(runtime, close_to):
    tokens = tokens_for(runtime)
    sequence = runtime.open()
    rows = [one(runtime, sequence, [t], Want.LAST).logits[0] for t in tokens]
    runtime.close(sequence)
    close_to(np.stack(rows), fresh_rows(runtime, tokens))


@pytest.mark.parametrize("cut", [1, 7, 13, 19])
def test_chunked_prefill_equals_one_call(runtime, close_to, cut):
    tokens = tokens_for(runtime, seed=cut)
    sequence = runtime.open()
    one(runtime, sequence, tokens[:cut], Want.NONE)
    rows = one(runtime, sequence, tokens[cut:]).logits
    assert sequence.length == LENGTH
    runtime.close(sequence)
    close_to(rows, fresh_rows(runtime, tokens)[cut:])


def test_companions_in_a_batch_change_nothing(runtime, close_to):
    texts = [tokens_for(runtime, n, seed=n) for n in (3, 17, 1, 9)]
    alone = [fresh_rows(runtime, t) for t in texts]
    sequences = [runtime.open() for _ in texts]
    outputs = runtime.forward([Work(s, t, want=Want.ALL) for s, t in zip(sequences, texts, strict=True)])
    for sequence, output, rows in zip(sequences, outputs, alone, strict=True):
        close_to(output.logits, rows)
        runtime.close(sequence)


def test_order_of_work_permutes_outputs(runtime, close_to):
    texts = [tokens_for(runtime, n, seed=n) for n in (5, 8, 2)]
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        sequences = {i: runtime.open() for i in order}
        outputs = runtime.forward([Work(sequences[i], texts[i]) for i in order])
        results.append({i: o.logits for i, o in zip(order, outputs, strict=True)})
        for s in sequences.values():
            runtime.close(s)
    for i in range(3):
        close_to(results[1][i], results[0][i])


def test_forks_share_a_prefix_and_do_not_leak(runtime, close_to):
    tokens, other = tokens_for(runtime), tokens_for(runtime, seed=5)
    base = runtime.open()
    one(runtime, base, tokens[:12], Want.NONE)
    fork = runtime.fork(base, 8)
    assert (base.length, fork.length) == (12, 8)
    ours, theirs = runtime.forward([Work(base, tokens[12:], want=Want.ALL), Work(fork, other[8:], want=Want.ALL)])
    close_to(ours.logits, fresh_rows(runtime, tokens)[12:])
    close_to(theirs.logits, fresh_rows(runtime, np.concatenate([tokens[:8], other[8:]]))[8:])
    runtime.close(base)
    again = one(runtime, fork, tokens[:3]).logits
    close_to(again, fresh_rows(runtime, np.concatenate([tokens[:8], other[8:], tokens[:3]]))[-3:])
    runtime.close(fork)


def test_truncate_equals_never_computed(runtime, close_to):
    tokens, other = tokens_for(runtime), tokens_for(runtime, seed=9)
    sequence = runtime.open()
    one(runtime, sequence, tokens, Want.NONE)
    runtime.truncate(sequence, 6)
    assert sequence.length == 6
    rows = one(runtime, sequence, other[6:]).logits
    runtime.close(sequence)
    close_to(rows, fresh_rows(runtime, np.concatenate([tokens[:6], other[6:]]))[6:])


def test_truncate_to_zero_starts_again(runtime, close_to):
    tokens = tokens_for(runtime)
    sequence = runtime.open()
    one(runtime, sequence, tokens_for(runtime, seed=2), Want.NONE)
    runtime.truncate(sequence, 0)
    close_to(one(runtime, sequence, tokens).logits, fresh_rows(runtime, tokens))
    runtime.close(sequence)


TREE = {  # node -> parent; two roots, siblings, an inner branch
    0: -1, 1: 0, 2: 0, 3: 1, 4: -1, 5: 4, 6: 2, 7: 3,
}  # fmt: skip


def tree_paths():
    for node in TREE:
        path, at = [], node
        while at != -1:
            path.append(at)
            at = TREE[at]
        yield node, path[::-1]


def test_tree_rows_equal_separate_paths(runtime, close_to):
    tokens, drafts = tokens_for(runtime, 9), tokens_for(runtime, len(TREE), seed=4)
    sequence = runtime.open()
    one(runtime, sequence, tokens, Want.NONE)
    rows = one(runtime, sequence, drafts, parents=list(TREE.values())).logits
    assert (sequence.length, sequence.pending) == (9, len(TREE))
    for node, path in tree_paths():
        close_to(rows[node], fresh_rows(runtime, np.concatenate([tokens, drafts[path]]))[-1])
    runtime.commit([(sequence, [])])
    assert (sequence.length, sequence.pending) == (9, 0)
    close_to(one(runtime, sequence, drafts[:2]).logits, fresh_rows(runtime, np.concatenate([tokens, drafts[:2]]))[9:])
    runtime.close(sequence)


@pytest.mark.parametrize("path", [path for _, path in tree_paths()])
def test_commit_keeps_exactly_the_path(runtime, close_to, path):
    tokens, drafts, more = (
        tokens_for(runtime, 6),
        tokens_for(runtime, len(TREE), seed=4),
        tokens_for(runtime, 4, seed=8),
    )
    sequence = runtime.open()
    one(runtime, sequence, tokens, Want.NONE)
    one(runtime, sequence, drafts, Want.NONE, parents=list(TREE.values()))
    runtime.commit([(sequence, path)])
    assert (sequence.length, sequence.pending) == (6 + len(path), 0)
    rows = one(runtime, sequence, more).logits
    runtime.close(sequence)
    close_to(rows, fresh_rows(runtime, np.concatenate([tokens, drafts[path], more]))[-4:])


def test_pending_nodes_can_be_extended_by_later_calls(runtime, close_to):
    tokens, drafts = tokens_for(runtime, 5), tokens_for(runtime, 6, seed=4)
    sequence = runtime.open()
    one(runtime, sequence, tokens, Want.NONE)
    one(runtime, sequence, drafts[:2], parents=[-1, -1])
    rows = one(runtime, sequence, drafts[2:5], parents=[0, 0, 1]).logits
    deep = one(runtime, sequence, drafts[5:], parents=[3]).logits
    for node, path in enumerate(([0, 2], [0, 3], [1, 4])):
        close_to(rows[node], fresh_rows(runtime, np.concatenate([tokens, drafts[path]]))[-1])
    close_to(deep[0], fresh_rows(runtime, np.concatenate([tokens, drafts[[0, 3, 5]]]))[-1])
    runtime.commit([(sequence, [0, 3, 5])])
    rows = one(runtime, sequence, tokens[:2]).logits
    close_to(rows, fresh_rows(runtime, np.concatenate([tokens, drafts[[0, 3, 5]], tokens[:2]]))[-2:])
    runtime.close(sequence)


def test_trees_of_several_sequences_in_one_call(runtime, close_to):
    bases = [tokens_for(runtime, n, seed=n) for n in (4, 11, 7)]
    drafts = tokens_for(runtime, 4, seed=21)
    sequences = [runtime.open() for _ in bases]
    runtime.forward([Work(s, b, want=Want.NONE) for s, b in zip(sequences, bases, strict=True)])
    parents = np.array([-1, 0, 0, -1])
    outputs = runtime.forward([Work(s, drafts, parents, want=Want.ALL) for s in sequences])
    for base, output in zip(bases, outputs, strict=True):
        for node, path in enumerate(([0], [0, 1], [0, 2], [3])):
            close_to(output.logits[node], fresh_rows(runtime, np.concatenate([base, drafts[path]]))[-1])
    runtime.commit([(s, p) for s, p in zip(sequences, ([0, 2], [3], []), strict=True)])
    for sequence, base, path in zip(sequences, bases, ([0, 2], [3], []), strict=True):
        expected = fresh_rows(runtime, np.concatenate([base, drafts[path], drafts[:1]]))[-1:]
        close_to(one(runtime, sequence, drafts[:1]).logits, expected)
        runtime.close(sequence)


def test_only_the_wanted_numbers_come_back(runtime, close_to):
    tokens = tokens_for(runtime)
    logits = fresh_rows(runtime, tokens)
    logprobs = log_softmax(logits)
    pairs = np.array([[3, 5], [3, 6], [LENGTH - 1, 4], [0, 3]])
    want = Want(rows=(7, 2), top=3, entropy=True, pairs=pairs)
    sequence = runtime.open()
    output = one(runtime, sequence, tokens, want)
    runtime.close(sequence)
    assert output.logits is None and output.hidden is None
    np.testing.assert_allclose(output.logprobs, logprobs[pairs[:, 0], pairs[:, 1]], atol=2e-5)
    for i, row in enumerate((7, 2)):
        order = np.lexsort((np.arange(runtime.vocab_size), -logits[row]))[:3]
        np.testing.assert_array_equal(output.top_ids[i], order)
        np.testing.assert_allclose(output.top_logprobs[i], logprobs[row, order], atol=2e-5)
        p = np.exp(logprobs[row].astype(np.float64))
        np.testing.assert_allclose(output.entropy[i], -(p * np.log(p)).sum(), atol=1e-4)


def test_rows_none_gives_nothing_and_keeps_the_tokens(runtime):
    sequence = runtime.open()
    output = one(runtime, sequence, tokens_for(runtime), Want.NONE)
    assert output.logits is None and output.logprobs is None and sequence.length == LENGTH
    runtime.close(sequence)


def test_pairs_alone_come_back_from_a_call_computed_in_pieces(runtime):
    tokens = tokens_for(runtime, 60)
    logprobs = log_softmax(fresh_rows(runtime, tokens))
    pairs = np.stack([np.arange(59), tokens[1:]], axis=1)
    sequence = runtime.open()
    output = one(runtime, sequence, tokens, Want(rows="none", pairs=pairs))
    runtime.close(sequence)
    assert output.logits is None
    np.testing.assert_allclose(output.logprobs, logprobs[np.arange(59), tokens[1:]], atol=1e-4)


def test_rows_are_finite_fp32_of_the_vocabulary(runtime):
    rows = fresh_rows(runtime, tokens_for(runtime))
    assert rows.dtype == np.float32 and rows.shape == (LENGTH, runtime.vocab_size)
    assert np.isfinite(rows).all() and np.isfinite(logsumexp(rows[0]))


def test_outputs_are_copies(runtime):
    sequence = runtime.open()
    first = one(runtime, sequence, tokens_for(runtime, 3)).logits
    before = first.copy()
    one(runtime, sequence, tokens_for(runtime, 9, seed=3))
    np.testing.assert_array_equal(first, before)
    runtime.close(sequence)


def test_kv_full_is_typed_and_leaves_state_unchanged(runtime, close_to):
    tokens = tokens_for(runtime)
    sequence = runtime.open()
    one(runtime, sequence, tokens[:10], Want.NONE)
    filler, chunk = [], tokens_for(runtime, min(60, runtime.context_length), seed=1)
    with pytest.raises(KvFull) as error:
        while True:
            filler.append(runtime.open())
            one(runtime, filler[-1], chunk, Want.NONE)
            assert len(filler) <= 4096
    assert error.value.needed > error.value.available >= 0
    rows = None
    for extra in filler:
        runtime.close(extra)
    rows = one(runtime, sequence, tokens[10:]).logits
    close_to(rows, fresh_rows(runtime, tokens)[10:])
    runtime.close(sequence)


def test_closing_gives_all_room_back(runtime):
    free = runtime.free_tokens()
    for _ in range(3):
        sequences = [runtime.open() for _ in range(3)]
        for s in sequences:
            one(runtime, s, tokens_for(runtime), Want.NONE)
        fork = runtime.fork(sequences[0])
        one(runtime, fork, tokens_for(runtime, 4), Want.NONE, parents=[-1, 0, 0, -1])
        assert runtime.free_tokens() < free
        for s in (*sequences, fork):
            runtime.close(s)
            runtime.close(s)  # twice is harmless
    assert runtime.free_tokens() == free


def test_wrong_calls_are_refused_and_change_nothing(runtime, close_to):
    tokens = tokens_for(runtime)
    sequence = runtime.open()
    one(runtime, sequence, tokens[:8], Want.NONE)
    bad = [
        lambda: one(runtime, sequence, []),
        lambda: one(runtime, sequence, [runtime.vocab_size]),
        lambda: one(runtime, sequence, [-1]),
        lambda: one(runtime, sequence, [1, 2], parents=[0, -1]),
        lambda: one(runtime, sequence, [1, 2], parents=[-1]),
        lambda: one(runtime, sequence, [1], Want(rows=(1,), logits=True)),
        lambda: one(runtime, sequence, [1], Want(rows="none", pairs=np.array([[0, runtime.vocab_size]]))),
        lambda: runtime.forward([Work(sequence, np.array([1])), Work(sequence, np.array([2]))]),
        lambda: one(runtime, sequence, np.ones(runtime.context_length, int)),
        lambda: runtime.truncate(sequence, 9),
        lambda: runtime.truncate(sequence, -1),
        lambda: runtime.fork(sequence, 9),
        lambda: runtime.commit([(sequence, [0])]),
    ]
    for call in bad:
        with pytest.raises((ValueError, LikelyError)):
            call()
    assert (sequence.length, sequence.pending) == (8, 0)
    close_to(one(runtime, sequence, tokens[8:]).logits, fresh_rows(runtime, tokens)[8:])
    runtime.close(sequence)
    with pytest.raises(ValueError, match="closed"):
        one(runtime, sequence, [1])
    with pytest.raises(ValueError, match="closed"):
        runtime.fork(sequence)


def test_a_kept_chain_is_refused_while_nodes_are_pending(runtime):
    sequence = runtime.open()
    one(runtime, sequence, [1, 2], Want.NONE)
    one(runtime, sequence, [3], parents=[-1])
    with pytest.raises(ValueError, match="pending"):
        one(runtime, sequence, [4])
    for twice in ([(sequence, [0, 0])], [(sequence, [0]), (sequence, [])]):
        with pytest.raises(ValueError):
            runtime.commit(twice)
    assert (sequence.length, sequence.pending) == (2, 1)
    runtime.close(sequence)


def test_missing_capabilities_say_so(runtime):
    sequence = runtime.open()
    if not runtime.capabilities.hidden:
        with pytest.raises(CapabilityError):
            one(runtime, sequence, [1, 2], Want(rows="all", hidden=True))
    if not runtime.capabilities.full_attention:
        with pytest.raises(CapabilityError):
            runtime.forward([Work(sequence, np.array([1, 2]), np.array([-1, 0]), attention="full")])
    if not runtime.capabilities.layers:
        with pytest.raises(CapabilityError, match="torch"):
            runtime.forward([Work(sequence, np.array([1]), np.array([-1]), layers=LayerPlan(frozenset({0})))])
    if not runtime.capabilities.parallel_layers:
        with pytest.raises(CapabilityError, match="torch"):
            runtime.forward([Work(sequence, np.array([1]), np.array([-1]), layers=LayerPlan(parallel=((0, 1),)))])
    assert (sequence.length, sequence.pending) == (0, 0)
    runtime.close(sequence)


def test_nodes_without_some_layers_are_approximate_and_leave_no_trace(runtime, close_to):
    if not runtime.capabilities.layers:
        pytest.skip("this runtime leaves out no layers (it says so: see test_missing_capabilities_say_so)")
    tokens, drafts = tokens_for(runtime), tokens_for(runtime, 3, seed=2)
    sequence = runtime.open()
    one(runtime, sequence, tokens[:9], Want.NONE)
    exact = one(runtime, sequence, drafts, parents=[-1, 0, 0]).logits
    runtime.commit([(sequence, [])])
    layers = runtime.capabilities.layers
    last = frozenset({layers - 1})
    plans = [(LayerPlan(), False), (LayerPlan(last, last), True), (LayerPlan(last), True)]
    if runtime.capabilities.parallel_layers:
        plans += [
            (LayerPlan(parallel=tuple((n,) for n in range(layers))), False),
            (LayerPlan(parallel=(tuple(range(layers)),)), True),
        ]
    for plan, changes in plans:
        work = Work(sequence, drafts, np.array([-1, 0, 0]), want=Want.ALL, layers=plan)
        rows = runtime.forward([work])[0].logits
        assert (np.abs(rows - exact).max() > 1e-2) == changes
        with pytest.raises(ValueError, match="kept"):
            runtime.commit([(sequence, [0])])
        runtime.commit([(sequence, [])])
    close_to(one(runtime, sequence, tokens[9:]).logits, fresh_rows(runtime, tokens)[9:])
    runtime.close(sequence)


def test_full_attention_sees_the_whole_canvas(runtime):
    if not runtime.capabilities.full_attention:
        pytest.skip("this runtime has no full attention (it says so: see test_missing_capabilities_say_so)")
    tokens, canvas = tokens_for(runtime, 6), tokens_for(runtime, 4, seed=2)
    rows = []
    for last in (canvas[3], (canvas[3] + 1) % runtime.vocab_size):
        sequence = runtime.open()
        one(runtime, sequence, tokens, Want.NONE)
        work = Work(sequence, np.array([*canvas[:3], last]), np.array([-1, 0, 1, 2]), attention="full", want=Want.ALL)
        rows.append(runtime.forward([work])[0].logits)
        runtime.close(sequence)
    assert np.abs(rows[0][0] - rows[1][0]).max() > 1e-4  # the first row saw the last token
