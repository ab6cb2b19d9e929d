"""llama.cpp: cells, ids, trees and bit-identical logits, against fresh decodes of the same tokens."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import invariant
from interleavings import Interleavings, check_interleavings

from likely.errors import CapabilityError, KvFull, ModelError
from likely.runtimes.protocol import Want, Work

pytest.importorskip("llama_cpp")

from tiny_gguf import write_tiny_gemma3, write_tiny_llama

from likely.runtimes.llamacpp import runtime as llamacpp
from likely.runtimes.llamacpp.library import has_amx
from likely.runtimes.llamacpp.runtime import LlamaCppRuntime
from likely.runtimes.llamacpp.tree import LlamaSequence, grow
from likely.runtimes.machine import physical_cores


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", dtype="Q8_0")


@pytest.fixture
def tiny(tiny_path):
    runtime = LlamaCppRuntime(tiny_path, threads=1, context=400, sequences=32, invariant=True)
    yield runtime
    runtime.shutdown()


def tokens_of(n, seed=0):
    return np.random.default_rng(seed).integers(3, 300, n)


def one(runtime, sequence, tokens, want=Want.ALL, parents=None):
    parents = None if parents is None else np.asarray(parents)
    return runtime.forward([Work(sequence, np.asarray(tokens), parents, want=want)])[0].logits


def fresh_rows(runtime, tokens):
    sequence = runtime.open()
    rows = one(runtime, sequence, tokens)
    runtime.close(sequence)
    return rows


# --- order of cells --------------------------------------------------------------------------------------------------


def test_cells_freed_below_a_sequence_do_not_change_it(tiny):
    """One of two interleaved sequences closes. Reusing its cells at once would reorder the other one."""
    mine, theirs = tokens_of(60), tokens_of(40, 1)
    a, b = tiny.open(), tiny.open()
    for i in range(40):
        tiny.forward([Work(b, theirs[i : i + 1]), Work(a, mine[i : i + 1])])
    tiny.close(b)
    np.testing.assert_array_equal(one(tiny, a, mine[40:]), fresh_rows(tiny, mine)[40:])


def test_clearing_buried_cells_away_changes_no_logits(tiny, monkeypatch):
    monkeypatch.setattr(llamacpp, "MANY_DEAD", 4)
    compacted = []
    real = tiny._cells.compact
    monkeypatch.setattr(tiny._cells, "compact", lambda ids: compacted.append(1) or real(ids))
    mine, theirs = tokens_of(60), tokens_of(180, 1)
    expected = fresh_rows(tiny, mine)
    a, b = tiny.open(), tiny.open()
    fork = None
    for i in range(60):
        row = tiny.forward([Work(b, theirs[3 * i : 3 * i + 3]), Work(a, mine[i : i + 1])])[1].logits[0]
        np.testing.assert_array_equal(row, expected[i])
        tiny.truncate(b, 0)
        if i == 20:
            fork = tiny.fork(a)
    np.testing.assert_array_equal(one(tiny, fork, mine[21:]), expected[21:])
    assert len(compacted) >= 3
    for sequence in (a, b, fork):
        tiny.close(sequence)
    assert tiny.free_tokens() == 400 and tiny._cells.top == 0


@pytest.mark.parametrize("window", [8, 32])
def test_sliding_windows_lose_nothing_that_a_truncation_needs(tmp_path, window, monkeypatch):
    """Long sequences of a model with a sliding window, cells cleared away often, then cut back below the window."""
    monkeypatch.setattr(llamacpp, "MANY_DEAD", 4)
    path = write_tiny_gemma3(tmp_path / "g.gguf", dtype="Q8_0", layers=3, sliding_window=window)
    runtime = LlamaCppRuntime(path, threads=1, context=300, sequences=8, invariant=True)
    mine, theirs, other = tokens_of(90), tokens_of(90, 1), tokens_of(90, 2)
    a, b = runtime.open(), runtime.open()
    for i in range(0, 80, 4):
        runtime.forward([Work(b, theirs[i : i + 4]), Work(a, mine[i : i + 4])])
        runtime.truncate(b, 0)
    runtime.truncate(a, 20)
    np.testing.assert_array_equal(
        one(runtime, a, other[20:60]), fresh_rows(runtime, np.concatenate([mine[:20], other[20:60]]))[20:]
    )
    runtime.shutdown()


# --- limits and errors ------------------------------------------------------------------------------------------------


def test_forks_share_cells(tiny):
    base = tiny.open()
    one(tiny, base, tokens_of(100), Want.NONE)
    forks = [tiny.fork(base) for _ in range(20)]
    assert tiny.free_tokens() == 300
    tiny.close(base)
    assert tiny.free_tokens() == 300
    for fork in forks:
        tiny.close(fork)
    assert tiny.free_tokens() == 400


def test_leaves_beyond_the_ids_are_refused_before_anything_changes(tiny):
    sequence = tiny.open()
    one(tiny, sequence, tokens_of(5), Want.NONE)
    free = tiny.free_sequences()
    with pytest.raises(KvFull) as error:
        one(tiny, sequence, tokens_of(free + 2), parents=[-1] * (free + 2))
    assert (error.value.unit, error.value.needed, error.value.available) == ("sequences", free + 1, free)
    assert (sequence.pending, tiny.free_sequences(), tiny.free_tokens()) == (0, free, 395)
    one(tiny, sequence, tokens_of(free + 1), parents=[-1] * (free + 1))
    assert tiny.free_sequences() == 0
    with pytest.raises(KvFull):
        tiny.open()
    tiny.commit([(sequence, [3])])
    assert tiny.free_sequences() == free


def test_every_token_of_the_context_can_be_held(tiny_path):
    runtime = LlamaCppRuntime(tiny_path, threads=1, context=300, sequences=8, invariant=True)
    a, b = runtime.open(), runtime.open()
    one(runtime, a, tokens_of(200), Want.NONE)
    with pytest.raises(KvFull) as error:
        one(runtime, b, tokens_of(101), Want.NONE)
    assert (error.value.needed, error.value.available) == (101, 100)
    one(runtime, b, tokens_of(100), Want.NONE)
    assert runtime.free_tokens() == 0
    runtime.shutdown()


def test_a_failed_decode_leaves_all_as_it_was(tiny, monkeypatch):
    tokens = tokens_of(80)
    sequence = tiny.open()
    one(tiny, sequence, tokens[:9], Want.NONE)
    one(tiny, sequence, tokens[9:11], Want.NONE, parents=[-1, 0])
    real = tiny._context.decode
    for code, expected in ((1, KvFull), (-3, ModelError)):
        calls = iter([0, code])
        monkeypatch.setattr(tiny._context, "decode", lambda *a, calls=calls: real(*a) or next(calls))
        with pytest.raises(expected):
            one(tiny, sequence, tokens[:70], Want.NONE, parents=[1, 0, -1, *range(4, 71)])
        monkeypatch.undo()
        assert (sequence.length, sequence.pending, tiny.free_sequences()) == (9, 2, 31)
        assert tiny.free_tokens() == 400 - 11
    row = one(tiny, sequence, tokens[11:12], parents=[1])
    np.testing.assert_array_equal(row[0], fresh_rows(tiny, tokens[:12])[-1])


def test_strangers_and_the_dead_are_refused(tiny, tiny_path):
    other = LlamaCppRuntime(tiny_path, threads=1, context=64)
    theirs = other.open()
    for call in (lambda: one(tiny, theirs, [5]), lambda: tiny.fork(theirs), lambda: tiny.close(theirs)):
        with pytest.raises(ValueError, match="another runtime"):
            call()
    other.shutdown()
    other.shutdown()
    for call in (other.open, lambda: other.forward([]), lambda: other.tokenizer.encode("a")):
        with pytest.raises(ValueError, match="shut down"):
            call()
    sequence = tiny.open()
    with pytest.raises(ValueError, match="only once"):
        tiny.commit([(sequence, []), (sequence, [])])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"context": 0}, ValueError),
        ({"sequences": 0}, ValueError),
        ({"sequences": 257}, ValueError),
        ({"threads": 0}, ValueError),
        ({"kv_dtype": "f8"}, ValueError),
        ({"kv_dtype": "f32", "invariant": True}, CapabilityError),
        ({"context": 1 << 40}, ModelError),
    ],
)
def test_bad_options_are_refused(tiny_path, options, error):
    with pytest.raises(error) as caught:
        LlamaCppRuntime(tiny_path, **options)
    assert "\n" not in str(caught.value)


def test_a_file_that_llama_cpp_refuses_gives_its_reason_in_one_line(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"llama\.cpp cannot load it \(.*key not found.*\)") as error:
        LlamaCppRuntime(tmp_path / "x.gguf")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", struct.pack("<I", 0)),
        ("llama.block_count", struct.pack("<I", 1 << 20)),
        ("llama.attention.layer_norm_rms_epsilon", struct.pack("<f", -1.0)),
        ("llama.attention.layer_norm_rms_epsilon", struct.pack("<f", float("nan"))),
    ],
)
def test_values_that_end_the_process_in_native_code_are_refused_before(tiny_path, tmp_path, key, value):
    data = bytearray(tiny_path.read_bytes())
    at = data.index(key.encode()) + len(key) + 4  # after the value's type
    data[at : at + 4] = value
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=key.split(".")[-1]):
        LlamaCppRuntime(tmp_path / "x.gguf")


@pytest.mark.slow
def test_leaving_without_shutdown_ends_quietly(tiny_path):
    code = f"""
import sys
from likely.runtimes.llamacpp.runtime import LlamaCppRuntime
from likely.runtimes.llamacpp.library import has_amx
from likely.runtimes.protocol import Work
import numpy as np
r = LlamaCppRuntime({str(tiny_path)!r}, threads=1, context=64)
r.forward([Work(r.open(), np.array([5, 6]))])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_threads_default_to_physical_cores():
    assert 1 <= physical_cores() <= 8 and physical_cores(1) == 1


# --- planning of trees ------------------------------------------------------------------------------------------------


@given(st.data())
def test_every_id_is_one_path_whatever_the_growth(data):
    """A model of the cache: id -> positions and nodes it covers. After each growth the ids are the leaves' paths."""
    sequence, covers, unused = LlamaSequence(id=0, length=3), {0: []}, iter(range(1, 1000))
    for _ in range(data.draw(st.integers(1, 4))):
        first = sequence.pending
        n = data.draw(st.integers(1, 6))
        parents = [data.draw(st.integers(-1, first + i - 1)) for i in range(n)]
        growth = grow(sequence, parents)
        before = {name: list(path) for name, path in covers.items()}
        ids = []
        for kept, (source, end) in zip(growth.keeps, growth.copies, strict=True):
            ids.append(next(unused) if kept is None else kept)
            if kept is None:
                covers[ids[-1]] = before[source][: end - sequence.length]
        assert len(set(ids)) == len(ids)
        for i, path in enumerate(growth.paths):
            for leaf in path:
                covers[ids[leaf]] = [*covers[ids[leaf]], first + i]
        sequence.parents += parents
        sequence.depths += growth.depths
        sequence.node_ids += [ids[path[0]] for path in growth.paths]
        for node in growth.ended:
            del sequence.leaves[node]
        sequence.leaves.update(zip(growth.leaves, ids, strict=True))
        leaves = set(range(sequence.pending)) - set(sequence.parents)
        assert set(sequence.leaves) == leaves and set(covers) == set(sequence.leaves.values())
        assert all(covers[name] == sequence.path(leaf) for leaf, name in sequence.leaves.items())
        assert all(node in covers[name] for node, name in enumerate(sequence.node_ids))


# --- any interleaving -------------------------------------------------------------------------------------------------


class InTheOpen(Interleavings):
    """The contract's interleavings in little room, with the cell bookkeeping checked after every step."""

    path = None

    def make(self):
        return LlamaCppRuntime(self.path, threads=1, context=160, sequences=12, invariant=True)

    @classmethod
    def make_oracle(cls):
        return LlamaCppRuntime(cls.path, threads=1, context=64, sequences=1, invariant=True)

    @invariant()
    def books_balance(self):
        cells = [c for s in self.kept for c in (*s.cells, *s.node_cells)]
        assert self.runtime.free_tokens() == 160 - len(set(cells))
        ids = [used for s in self.kept for used in s.ids()]
        assert len(set(ids)) == len(ids) == 12 - self.runtime.free_sequences()
        for s in self.kept:
            assert s.length == len(self.kept[s]) == len(s.cells) and s.pending == len(self.nodes[s])
            assert s.cells == sorted(s.cells)


@pytest.mark.slow
@pytest.mark.parametrize("many_dead", [256, 3])
def test_any_interleaving_equals_fresh_decodes(tiny_path, monkeypatch, many_dead):
    monkeypatch.setattr(llamacpp, "MANY_DEAD", many_dead)
    monkeypatch.setattr(InTheOpen, "path", tiny_path)
    check_interleavings(InTheOpen, max_examples=25, stateful_step_count=30)


# --- numerics ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "threads"), [("F16", 1), ("F32", 1), ("BF16", 1), ("Q8_0", 1), ("Q8_0", 2)])
def test_invariant_mode_holds_for_long_sequences(tmp_path, dtype, threads):
    """Past 256 cells a lone row and two rows take different attention kernels on several threads."""
    path = write_tiny_llama(tmp_path / "t.gguf", dtype=dtype, context=700, layers=1)
    runtime = LlamaCppRuntime(path, threads=threads, context=1100, invariant=True)
    assert runtime.is_invariant()
    tokens, beside = tokens_of(300), tokens_of(300, 1)
    expected = runtime._probe(tokens, [])
    for cuts, other in (
        ([64, 127, 300], None),
        ([7, 100, *range(520, 540)], beside),
        ([250, 251, 252, 255, 256, 257], None),
    ):
        np.testing.assert_array_equal(runtime._probe(tokens, cuts, other), expected)
    runtime.shutdown()


def test_revision_names_what_changes_numbers(tiny_path):
    revisions = set()
    for options in ({"invariant": True}, {"invariant": False}, {"kv_dtype": "bf16"}):
        runtime = LlamaCppRuntime(tiny_path, threads=1, context=64, **options)
        revisions.add(runtime.revision)
        runtime.shutdown()
    assert len(revisions) == 3 and len({r.split(":")[0] for r in revisions}) == 1


def test_sizes_are_those_of_the_file(tiny, tiny_path):
    assert 0 < tiny.weights_bytes < tiny_path.stat().st_size
    assert tiny.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2  # keys and values, layers, heads, width, bytes


def test_rows_of_one_piece_in_several_calls_are_joined(tiny, monkeypatch):
    tokens = tokens_of(150)
    want = Want(rows=(149, 3, 70, 3), logits=True, top=4, entropy=True, pairs=np.array([[149, 5], [0, 7], [65, 8]]))
    sequence = tiny.open()
    whole = tiny.forward([Work(sequence, tokens, want=want)])[0]
    tiny.close(sequence)
    monkeypatch.setattr(tiny, "_rows_per_call", 1)
    sequence = tiny.open()
    split = tiny.forward([Work(sequence, tokens, want=want)])[0]
    tiny.close(sequence)
    rows = fresh_rows(tiny, tokens)
    np.testing.assert_array_equal(whole.logits, rows[[149, 3, 70, 3]])
    for name in ("logits", "top_ids", "top_logprobs", "entropy", "logprobs"):
        np.testing.assert_array_equal(getattr(split, name), getattr(whole, name))


def test_f32_files_agree_with_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    path = write_tiny_llama(tmp_path / "f32.gguf", dtype="F32")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    tokens = tokens_of(50)
    with torch.no_grad():
        expected = reference.eval()(torch.tensor(tokens)[None]).logits[0].numpy()
    runtime = LlamaCppRuntime(path, threads=1, context=64)
    assert runtime.kv_dtype == "f32"
    np.testing.assert_allclose(fresh_rows(runtime, tokens), expected, atol=1e-3)
    runtime.shutdown()


# --- the real models --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_is_invariant_with_trees_holes_and_neighbours(smollm2_path):
    runtime = LlamaCppRuntime(smollm2_path, threads=1, context=512, invariant=True)
    assert runtime.is_invariant() and runtime.context_length == 512 and runtime.dtype == "q4_1+q8_0"
    tokens = np.array(
        runtime.tokenizer.encode("The abbot granted market rights, and merchants came each spring to sell.")
    )
    expected = fresh_rows(runtime, tokens)
    a, b = runtime.open(), runtime.open()
    runtime.forward([Work(b, tokens_of(9)), Work(a, tokens[:5])])
    drafts = [tokens[5], 77, 78, tokens[6], 79, tokens[7]]  # the right branch has holes
    rows = one(runtime, a, drafts, parents=[-1, -1, 0, 0, 3, 3])
    np.testing.assert_array_equal(rows[[0, 3, 5]], expected[5:8])
    runtime.commit([(a, [0, 3, 5])])
    runtime.truncate(b, 2)
    for i in range(8, len(tokens)):
        row = runtime.forward([Work(b, tokens_of(2, i)), Work(a, tokens[i : i + 1])])[1].logits[0]
        np.testing.assert_array_equal(row, expected[i])
    runtime.shutdown()


@pytest.mark.slow
@pytest.mark.real
def test_gemma_is_invariant_only_when_forced(gemma3_path):
    runtime = LlamaCppRuntime(gemma3_path, threads=1, context=256, invariant=True)
    assert runtime.limits.tokens_per_call == 7
    forced = runtime.revision
    runtime.shutdown()
    runtime = LlamaCppRuntime(gemma3_path, threads=1, context=256)
    assert runtime.limits.tokens_per_call == 512 and runtime.revision != forced
    assert has_amx() or not runtime.is_invariant()  # by tiles, a short text may come out the same
    runtime.shutdown()


@pytest.mark.parametrize("tiles", [False, True])
def test_tile_units_are_given_up_only_for_who_asks(tmp_path, monkeypatch, tiles):
    """llama.cpp repacks weights for tiles, which a lone row does not use: numbers would depend on the company."""
    tiny_path = write_tiny_llama(tmp_path / "tiny.gguf", dtype="Q8_0", dim=64)
    from likely.formats.gguf import read_header
    from likely.runtimes.llamacpp import options as llamacpp_options

    monkeypatch.setattr(llamacpp_options, "has_amx", lambda: tiles)
    options = {"context": None, "sequences": 8, "threads": 2, "kv_dtype": "f16"}
    default = llamacpp_options.choose_settings(read_header(tiny_path), invariant=None, **options)
    asked = llamacpp_options.choose_settings(read_header(tiny_path), invariant=True, **options)
    fast = llamacpp_options.choose_settings(read_header(tiny_path), invariant=False, **options)
    for plan in (default, asked):
        assert plan.ubatch == llamacpp_options.INVARIANT_ROWS and plan.repack != tiles
    assert fast.ubatch == llamacpp_options.FAST_ROWS and fast.repack


def test_rows_of_one_block_are_not_repacked_for_tiles(tiny_path, monkeypatch):
    """llama.cpp's tiles give other numbers there, for 32 tokens and more."""
    from likely.formats.gguf import read_header
    from likely.runtimes.llamacpp import options as llamacpp_options

    options = {"context": None, "sequences": 8, "threads": 2, "kv_dtype": "f16", "invariant": False}
    monkeypatch.setattr(llamacpp_options, "has_amx", lambda: True)
    assert not llamacpp_options.choose_settings(read_header(tiny_path), **options).repack
    fast = LlamaCppRuntime(tiny_path, threads=1, context=400, invariant=False)
    plain = LlamaCppRuntime(tiny_path, threads=1, context=400, invariant=True)
    rows = [
        runtime.forward([Work(runtime.open(), np.arange(1, 65), want=Want.ALL)])[0].logits for runtime in (fast, plain)
    ]
    assert np.abs(rows[0] - rows[1]).max() < 0.3
    fast.shutdown()
    plain.shutdown()


def test_ctrl_c_while_a_model_loads_is_not_lost(tiny_path, monkeypatch):
    """The log callback runs in between; an interrupt that arrived there would be dropped."""
    from likely.formats.gguf import read_header
    from likely.runtimes.llamacpp import library

    load, freed = library.lib.llama_model_load_from_file, []

    def interrupted(path, params):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return load(path, params)

    monkeypatch.setattr(library.lib, "llama_model_load_from_file", interrupted)
    free = library.lib.llama_model_free
    monkeypatch.setattr(library.lib, "llama_model_free", lambda pointer: (freed.append(pointer), free(pointer)))
    with pytest.raises(KeyboardInterrupt):
        library.LlamaModel(tiny_path, read_header(tiny_path))
    assert len(freed) == 1
