"""Models that run from their file's own codes, and in 4 bits: against their numbers, in memory, from damaged files."""

from __future__ import annotations

import numpy as np
import pytest
from coded_rows import CODED
from native_models import forward, rows_of, tokens_of
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import CapabilityError, ModelError
from likely.formats.gguf import read_header
from likely.runtimes.native import runtime as native_runtime
from likely.runtimes.native.codes import rotated
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.native.source import ModelSource
from likely.runtimes.native.weights import packed_path
from likely.runtimes.rows import log_softmax

TEXT = tokens_of(90, seed=8, vocab=300)
WIDE = {"dim": 256, "ffn": 512, "heads": 8, "kv_heads": 2, "layers": 2, "context": 512}


@pytest.fixture(scope="module")
def files(native_cache, tmp_path_factory):
    """(type or types by tensor) -> a file whose matrices have them; each written once."""
    known = {}

    def get(kind):
        if kind not in known:
            path = tmp_path_factory.mktemp("coded") / "m.gguf"
            of = kind if callable(kind) else lambda _, kind=kind: kind
            known[kind] = write_tiny_llama(path, dtype=of, tied=kind == "Q6_K", **WIDE)
        return known[kind]

    return get


def opened(path, dtype, **options):
    return NativeRuntime(path, dtype=dtype, **{"threads": 1, "tokens_held": 600, "tokens_per_call": 64, **options})


def logits_of(path, dtype, **options):
    runtime = opened(path, dtype, **options)
    try:
        return rows_of(runtime, TEXT)
    finally:
        runtime.shutdown()


def divergence(p, q):
    """Mean KL(p || q) of rows, nats."""
    p, q = log_softmax(p).astype(np.float64), log_softmax(q).astype(np.float64)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def mixed(tensor):
    """As files of "Q4_K_M": several types within one layer, and floats."""
    types = {"attn_v": "Q6_K", "attn_k": "Q5_0", "ffn_up": "Q5_K", "attn_output": "F16", "token_embd": "Q8_0"}
    return next((kind for name, kind in types.items() if name in tensor), "Q4_K")


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*CODED, mixed, "F16", "BF16"])
def test_a_model_follows_the_numbers_of_its_file(files, kind):
    """The reference computes in fp32 on what the codes stand for: only activations are rounded, to 8 bits."""
    path = files(kind)
    exact, found = logits_of(path, "float32"), logits_of(path, "file")
    noise = np.sqrt(((found - exact) ** 2).mean() / exact.var())
    assert noise < (0.01 if kind in ("F16", "BF16") else 0.08)  # keys and values are bf16
    assert divergence(exact, found) < 5e-3
    if kind in ("Q4_K", mixed):  # a second rounding, of the weights to int8, would be seen; so would 4 bits
        assert divergence(exact, found) < 0.5 * divergence(exact, logits_of(path, "int4"))


def test_int4_is_one_rounding_of_rotated_weights(files):
    path = files("F16")
    exact, found = logits_of(path, "float32"), logits_of(path, "int4")
    assert 1e-3 < divergence(exact, found) < 0.3


def test_a_quantisers_codes_run_in_place_of_the_nearest(files):
    path = files("F16")
    plain = logits_of(path, "int4")

    class Zero:
        """The nearest codes, but all of one matrix are zero."""

        fingerprint, name = "zero", "model.layers.1.mlp.down_proj.weight"

        def codes(self, name, weights):
            if name != self.name:
                return None
            return np.zeros(weights.shape, np.int8), np.ones((len(weights), weights.shape[1] // 64), np.float32)

    runtime = opened(path, "int4", rounding=Zero())
    found = rows_of(runtime, TEXT)
    sequence = runtime.open()
    assert "int4-" in runtime.revision and not np.array_equal(found, plain)
    runtime.close(sequence)
    runtime.shutdown()
    assert np.array_equal(plain, logits_of(path, "int4"))


def test_the_rotation_is_its_own_inverse():
    weights = np.random.default_rng(0).standard_normal((5, 128)).astype(np.float32)
    np.testing.assert_allclose(rotated(rotated(weights)), weights, atol=1e-5)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Q4_0", mixed])
def test_rows_are_the_same_bits_in_every_cut_and_on_every_number_of_threads(files, kind, monkeypatch):
    monkeypatch.setattr("likely.runtimes.machine.processors", lambda: 3)
    path, text = files(kind), tokens_of(300, seed=1, vocab=300)
    one = opened(path, "file", tokens_per_call=512)
    expected = rows_of(one, text)
    one.shutdown()
    for threads, most in ((1, 37), (2, 512), (3, 64)):
        runtime = opened(path, "file", threads=threads, tokens_per_call=most)
        np.testing.assert_array_equal(rows_of(runtime, text), expected)
        sequence, at = runtime.open(), 0
        for n in (1, 2, 3, 5, 8, 64, 90):
            rows = forward(runtime, sequence, text[at : at + n], np.arange(n) - 1).logits
            runtime.commit([(sequence, range(n))])
            np.testing.assert_array_equal(rows, expected[at : at + n])
            at += n
        runtime.shutdown()


# --- memory and names -------------------------------------------------------------------------------------------------


def test_memory_is_that_of_the_file(files):
    path = files(mixed)
    runtime = opened(path, "file")
    tensors = sum(tensor.nbytes for tensor in read_header(path).tensors)
    assert runtime.weights_bytes < 1.1 * tensors
    assert runtime.weights_format == "F16+Q4_K+Q5_0+Q5_K+Q6_K+Q8_0"
    runtime.shutdown()


def test_what_runs_is_told(files):
    path = files("Q4_K")
    for dtype, weights in (("file", "Q4_K"), ("int4", "Q4_0+Q8_0"), ("int8", "int8")):
        with likely.load(str(path), runtime="native", dtype=dtype, threads=1, context=99) as lm:
            assert (lm.info.dtype, lm.info.weights) == (dtype, weights)
            assert f"dtype='{dtype}'" in repr(lm) and (dtype == "int8" or weights in repr(lm))
    with likely.load(str(path), dtype="file", threads=1, context=99) as lm:
        assert lm.info.runtime == "native"


def test_large_files_keep_their_codes_by_default(files, monkeypatch):
    path = files(mixed)
    assert native_runtime.default_dtype(ModelSource.open(path)) == "int8"
    monkeypatch.setattr(native_runtime, "MOST_INT8_BYTES", 10_000)
    assert native_runtime.default_dtype(ModelSource.open(path)) == "file"
    assert native_runtime.default_dtype(ModelSource.open(files("F16"))) == "int8"
    with likely.load(str(path), threads=1, context=99) as lm:
        assert (lm.info.runtime, lm.info.dtype) == ("native", "file")


# --- files that are not what they should be ---------------------------------------------------------------------------


def test_a_cut_or_changed_packed_file_repairs_itself(files):
    path = files(mixed)
    expected = logits_of(path, "file")
    kept = packed_path(ModelSource.open(path).sha256, "file")
    raw = kept.read_bytes()
    for damaged in (raw[: len(raw) // 2], raw[:-1], raw[:-100] + bytes(100), b""):
        kept.write_bytes(damaged)
        np.testing.assert_array_equal(logits_of(path, "file"), expected)
        assert kept.read_bytes() == raw


def test_a_file_with_a_scale_that_is_not_finite_is_refused(files, tmp_path):
    path = files("Q5_K")
    header = read_header(path)
    tensor = next(t for t in header.tensors if t.name == "blk.1.ffn_down.weight")
    raw = bytearray(path.read_bytes())
    raw[header.data_offset + tensor.offset : header.data_offset + tensor.offset + 2] = b"\x00\x7c"
    (tmp_path / "bad.gguf").write_bytes(raw)
    with pytest.raises(ModelError, match="not a finite number"):
        opened(tmp_path / "bad.gguf", "file")
    (tmp_path / "cut.gguf").write_bytes(raw[:-1000])
    with pytest.raises(ModelError, match="cut"):
        opened(tmp_path / "cut.gguf", "file")


def test_types_without_a_kernel_are_refused_by_name(files, monkeypatch):
    monkeypatch.setattr("likely.runtimes.native.codes.TYPES", ("Q8_0",))
    with pytest.raises(CapabilityError, match="not of Q4_1: use dtype='int8'"):
        opened(files("Q4_1"), "file")
