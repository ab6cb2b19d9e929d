"""The recurrent runtime: what it keeps, what going back costs, and drafts of every shape on it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from drafter_factories import MADE
from factories import FACTORIES
from hypothesis import given
from hypothesis import strategies as st
from speculation_product import requests
from tiny_states import VOCAB, state_module

from likely.decoding.loop import Loop
from likely.errors import ModelError
from likely.runtimes.protocol import Want, Work
from likely.runtimes.recurrent.checkpoints import kept_checkpoints
from likely.runtimes.recurrent.pending import longest_chains
from likely.runtimes.recurrent.runtime import RecurrentRuntime
from likely.sequence.convert import from_transformers

EVERY = 4


@pytest.fixture(scope="module", params=["recurrent", "recurrent-falcon_h1"])
def runtime(request):
    made = FACTORIES[request.param][0]()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def mamba2():
    return from_transformers(state_module("mamba2"))


def tokens_of(n, seed=0):
    return np.random.default_rng(seed).integers(3, VOCAB, n)


def read(runtime, sequence, tokens, want=Want.ALL):
    return runtime.forward([Work(sequence, np.asarray(tokens), want=want)])[0].logits


def fresh(runtime, tokens):
    sequence = runtime.open()
    rows = read(runtime, sequence, tokens)
    runtime.close(sequence)
    return rows


# --- what is kept -------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 9), st.data())
def test_kept_checkpoints_are_few_and_never_far(length, every, data):
    kept = kept_checkpoints(length, every)
    assert all(0 < at <= length and at % every == 0 for at in kept) and kept == sorted(set(kept))
    assert len(kept) <= 2 + np.log2(max(1, length // every))
    assert set(kept_checkpoints(length + 1, every)) <= {*kept, length + 1}  # nothing is needed that was dropped
    back = data.draw(st.integers(1, length))
    nearest = max([0, *(at for at in kept if at <= length - back)])
    assert length - back - nearest < 2 * back + every


@given(st.lists(st.integers(0, 10**6), max_size=30), st.integers(0, 3))
def test_chains_cover_a_tree_in_few_levels(draws, first):
    parents = [draw % (first + i + 1) - 1 for i, draw in enumerate(draws)]
    chains = longest_chains(parents, first)
    assert sorted(n for chain in chains for n in chain) == list(range(first, first + len(parents)))
    for chain in chains:
        for parent, node in itertools.pairwise(chain):
            assert parents[node - first] == parent
    level = {}
    for chain in sorted(chains):  # a parent has a smaller number, so its chain is known
        parent = parents[chain[0] - first]
        level |= dict.fromkeys(chain, 1 + level.get(parent, 0))
    assert max(level.values(), default=0) <= 1 + np.log2(max(1, len(parents)))


def test_a_chain_of_drafts_is_one_chain():
    assert longest_chains([-1, 0, 1, 2], 0) == [[0, 1, 2, 3]]
    assert longest_chains([-1, 0, 0, 2], 0) == [[0, 2, 3], [1]]


@pytest.mark.parametrize("length", [37, 200])
def test_going_back_reads_little_again_and_gives_the_same_rows(runtime, length):
    tokens, sequence = tokens_of(length), runtime.open()
    read(runtime, sequence, tokens, Want.NONE)
    other = tokens_of(5, seed=1)
    for back in (1, 3, 14, length // 2, length):
        fork = runtime.fork(sequence, length - back)
        before = runtime.tokens_read_again
        rows = read(runtime, fork, other)
        assert runtime.tokens_read_again - before < 2 * back + EVERY
        np.testing.assert_allclose(
            rows[-1], fresh(runtime, np.concatenate([tokens[: length - back], other]))[-1], atol=1e-4
        )
        runtime.close(fork)
    runtime.close(sequence)


def test_a_text_of_any_length_takes_the_same_memory(mamba2):
    runtime = RecurrentRuntime(mamba2, tokens_held=1 << 14)
    held = {}
    for length in (64, 512, 4096):
        sequence = runtime.open()
        read(runtime, sequence, tokens_of(length), Want.NONE)
        held[length] = runtime.bytes_held(sequence) // runtime.state_bytes
        assert len(sequence.checkpoints) - 1 == len(kept_checkpoints(length, 64))
        runtime.close(sequence)
    assert held == {64: 3, 512: 6, 4096: 9}  # the state, those of kept_checkpoints, and that of nothing
    assert runtime.kv_bytes_per_token == 0


def test_checkpoints_of_a_hybrid_hold_no_keys():
    runtime = FACTORIES["recurrent-falcon_h1"][0]()
    sequence = runtime.open()
    read(runtime, sequence, tokens_of(200), Want.NONE)
    fixed = sum(state.nbytes for state in sequence.checkpoints.values())
    assert fixed == len(sequence.checkpoints) * runtime.state_bytes
    assert runtime.bytes_held(sequence) == fixed + runtime.state_bytes + 200 * runtime.kv_bytes_per_token
    assert runtime.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, float32
    runtime.shutdown()


def test_forks_share_states_and_a_text_that_went_back_is_read_again_once(runtime):
    tokens, base = tokens_of(50), runtime.open()
    read(runtime, base, tokens, Want.NONE)
    fork = runtime.fork(base)
    assert fork.state is base.state and fork.checkpoints == base.checkpoints
    runtime.truncate(base, 47)
    before = runtime.tokens_read_again
    forks = [runtime.fork(base) for _ in range(5)]
    again = runtime.tokens_read_again - before
    assert 0 < again < 2 * 3 + EVERY
    rows = runtime.forward([Work(s, np.array([7]), want=Want.LAST) for s in (*forks, base)])
    assert runtime.tokens_read_again - before == again
    expected = fresh(runtime, [*tokens[:47], 7])[-1]
    for row in rows:
        np.testing.assert_allclose(row.logits[0], expected, atol=1e-4)
    np.testing.assert_allclose(read(runtime, fork, [7])[0], fresh(runtime, [*tokens, 7])[-1], atol=1e-4)
    for s in (*forks, fork, base):
        runtime.close(s)


def test_texts_of_very_different_lengths_in_one_call(runtime):
    """Padding beside hybrids' keys of other lengths changes nothing."""
    lengths = (3, 61, 18, 1, 40)
    texts = [tokens_of(n, seed=n) for n in lengths]
    sequences = [runtime.open() for _ in texts]
    runtime.forward([Work(s, t[:-1], want=Want.NONE) for s, t in zip(sequences, texts, strict=True) if len(t) > 1])
    found = runtime.forward([Work(s, t[-1:]) for s, t in zip(sequences, texts, strict=True)])
    for text, sequence, output in zip(texts, sequences, found, strict=True):
        np.testing.assert_allclose(output.logits[0], fresh(runtime, text)[-1], atol=1e-4)
        runtime.close(sequence)


def test_hidden_states_are_those_before_the_head(runtime):
    tokens, sequence = tokens_of(23), runtime.open()
    found = runtime.forward([Work(sequence, tokens, want=Want(rows=(2, 22), hidden=True, logits=True))])[0]
    head = runtime.module.lm_head.weight.detach().numpy() * runtime.module.config.logits_multiplier
    np.testing.assert_allclose(found.hidden @ head.T, found.logits, atol=1e-4)
    runtime.close(sequence)


def test_settings_that_make_no_sense_are_refused(mamba2):
    with pytest.raises(ModelError, match="checkpoint_every must be >= 1, got 0"):
        RecurrentRuntime(mamba2, checkpoint_every=0)
    with pytest.raises(ModelError, match="computes in float32"):
        RecurrentRuntime(from_transformers(state_module("mamba2")).double())


def test_new_weights_end_old_sequences(mamba2):
    runtime = RecurrentRuntime(mamba2, tokens_held=64)
    sequence, name = runtime.open(), runtime.revision
    runtime.refresh()
    assert runtime.revision == name  # a digest of the same weights
    with pytest.raises(ModelError, match="refresh"):
        read(runtime, sequence, [1])


# --- drafts -------------------------------------------------------------------------------------------------------


def run(runtime, wanted):
    loop = Loop(runtime, token_bytes=lambda t: bytes([97 + t % 26]), end_ids=frozenset({7}))
    free = runtime.free_tokens()
    ids, done = [loop.add(r) for r in wanted], {}
    while not loop.idle:
        for event in loop.step():
            assert event.error is None, event.error
            if event.finish:
                done[event.request] = event.finish
    assert runtime.free_tokens() == free
    return [done[i] for i in ids]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("choice", ["greedy", "sampled, keyed"])
@pytest.mark.parametrize("name", ["lookup", "suffix, trees", "trigram", "model, chain", "model, RSD-S"])
def test_drafts_change_no_text(runtime, name, choice):
    source = MADE[name].build(runtime)
    plain = requests(choice, 3, runtime.vocab_size)
    found = run(runtime, [replace(r, drafter=source) for r in plain])
    for expected, finish in zip(run(runtime, plain), found, strict=True):
        assert finish.tokens == expected.tokens and finish.text == expected.text
        np.testing.assert_allclose(finish.logprobs, expected.logprobs, rtol=0, atol=1e-4)
