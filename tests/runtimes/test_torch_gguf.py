"""GGUF files as torch modules, against llama.cpp on the same file."""

from __future__ import annotations

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from tiny_gguf import write_tiny_gemma3, write_tiny_llama

from likely.errors import ModelError
from likely.runtimes.llamacpp.library import on_tile_thread
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.protocol import Want, Work
from likely.runtimes.rows import log_softmax
from likely.runtimes.torch.runtime import TorchRuntime

TEXT = (
    b"The history of the town goes back to the twelfth century, when monks built a small abbey beside the river. "
    b"In 1342 the abbot granted market rights, and merchants from three counties came each spring to sell wool, "
    b"salt and iron. The square still keeps its old shape, and on market days the stalls reach as far as the bridge."
)


def llama_cpp_logits(path, tokens):
    """(n, V) from llama.cpp with keys and values in fp32: an implementation that shares no code with ours."""
    import ctypes

    import llama_cpp

    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    model = llama_cpp.Llama(
        str(path), n_ctx=1024, n_batch=1024, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0,
        swa_full=True,
    )  # fmt: skip
    on_tile_thread(model.eval, [int(t) for t in tokens])  # torch has used this thread
    logits = np.array(model.scores[: len(tokens)], np.float32)
    model.close()
    return logits


def _silent_callback():
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


_SILENT = _silent_callback()


def torch_logits(path, tokens, **settings):
    runtime = TorchRuntime.from_gguf(path, tokens_held=1024, **settings)
    assert runtime.cached
    return runtime.forward([Work(runtime.open(), np.asarray(tokens), want=Want.ALL)])[0].logits


def agree(path, n=60, vocab=320, tolerance=5e-4):
    tokens = np.random.default_rng(1).integers(3, vocab, n)
    found, expected = torch_logits(path, tokens), llama_cpp_logits(path, tokens)
    np.testing.assert_allclose(found, expected, atol=tolerance * expected.std(), rtol=0)


def agree_gemma(path):
    """llama.cpp reads GELU from a table in half precision: strict only without the feed-forward part."""
    agree(path, tolerance=5e-3)
    agree(rewritten(path, path.with_suffix(".attention.gguf"), change=_without_feed_forward))


def _without_feed_forward(name, values):
    return np.zeros_like(values) if "ffn_down" in name else values


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_fp32_logits_equal_llama_cpp(tmp_path, arch, tied):
    agree(write_tiny_llama(tmp_path / "model.gguf", arch=arch, tied=tied, layers=3))


def test_gemma3_logits_equal_llama_cpp_beyond_the_window(tmp_path):
    """Norms plus one, two rotary bases, window 8 on five layers of six, scaled embeddings, tied head."""
    agree_gemma(write_tiny_gemma3(tmp_path / "model.gguf"))


def rewritten(source, target, *, arch=None, fields=(), tensors=(), change=lambda _name, values: values):
    """A copy of a tiny GGUF file with more fields (name, kind, value) and tensors (name, values).

    change(name, values) gives the new values of a tensor, or None to leave it out
    """
    reader = gguf.GGUFReader(source)
    old = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, arch or old)
    replaced = {"general.architecture", *(name for name, *_ in fields)}
    for field in reader.fields.values():
        name = field.name.replace(f"{old}.", f"{arch or old}.")
        if not name.startswith("GGUF.") and name not in replaced:
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for name, kind, value in fields:
        writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        if (values := change(tensor.name, np.array(tensor.data))) is not None:
            writer.add_tensor(tensor.name, values)
    for name, values in tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


FLOAT, TEXT_KIND, INT = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32


def scaling(arch, kind="linear", factor=4.0):
    return [(f"{arch}.rope.scaling.type", TEXT_KIND, kind), (f"{arch}.rope.scaling.factor", FLOAT, factor)]


def test_linear_rotary_scaling_is_kept(tmp_path):
    plain = write_tiny_llama(tmp_path / "plain.gguf")
    scaled = rewritten(plain, tmp_path / "scaled.gguf", fields=scaling("llama"))
    agree(scaled)
    tokens = np.arange(3, 60)
    assert np.abs(torch_logits(plain, tokens) - torch_logits(scaled, tokens)).max() > 0.01


@pytest.mark.slow
def test_gemma3_scales_only_the_layers_that_see_everything(tmp_path):
    plain = write_tiny_gemma3(tmp_path / "plain.gguf")
    agree_gemma(rewritten(plain, tmp_path / "scaled.gguf", fields=scaling("gemma3", factor=8.0)))


def test_rotary_factors_of_llama_3_are_kept(tmp_path):
    plain = write_tiny_llama(tmp_path / "plain.gguf")
    factors = np.linspace(1, 8, 4, dtype=np.float32)
    agree(rewritten(plain, tmp_path / "factors.gguf", tensors=[("rope_freqs.weight", factors)]))


@pytest.mark.slow
def test_gemma2_logits_equal_llama_cpp_and_the_native_runtimes(native_library, tmp_path):
    """Softcaps on scores and logits, every other layer slides."""
    caps = [("gemma2.attn_logit_softcapping", FLOAT, 5.0), ("gemma2.final_logit_softcapping", FLOAT, 3.0)]
    path = rewritten(
        write_tiny_gemma3(tmp_path / "gemma3.gguf", layers=4),
        tmp_path / "gemma2.gguf",
        arch="gemma2",
        fields=caps,
        change=lambda name, values: None if "_q_norm" in name or "_k_norm" in name else values,
    )
    agree_gemma(path)
    native = NativeRuntime(path, dtype="float32", threads=1, tokens_held=100)
    rows = native.forward([Work(native.open(), np.arange(3, 60), want=Want.ALL)])[0].logits
    native.shutdown()
    assert np.abs(log_softmax(rows) - log_softmax(torch_logits(path, np.arange(3, 60)))).max() < 1e-4


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0"])
def test_quantised_weights_are_those_of_the_file(tmp_path, dtype):
    path = write_tiny_llama(tmp_path / "model.gguf", dtype=dtype)
    runtime = TorchRuntime.from_gguf(path, tokens_held=64)
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, parameter in (
        ("token_embd.weight", runtime.module.model.embed_tokens.weight),
        ("blk.1.ffn_down.weight", runtime.module.model.layers[1].mlp.down_proj.weight),
        ("blk.0.attn_v.weight", runtime.module.model.layers[0].self_attn.v_proj.weight),
    ):
        tensor = stored[name]
        np.testing.assert_array_equal(parameter.detach().numpy(), gguf.dequantize(tensor.data, tensor.tensor_type))


def test_bfloat16_is_close_to_fp32(tmp_path):
    path, tokens = write_tiny_llama(tmp_path / "model.gguf"), np.arange(3, 60)
    found, expected = torch_logits(path, tokens, dtype="bfloat16"), torch_logits(path, tokens)
    assert 0 < np.abs(found - expected).mean() < 0.05 * expected.std()


def test_what_would_be_read_wrongly_is_refused(tmp_path):
    plain = write_tiny_llama(tmp_path / "plain.gguf")
    for name, fields, tensors, message in (
        ("yarn", scaling("llama", "yarn"), (), "yarn"),
        ("experts", [("llama.expert_count", INT, 4)], (), "expert_count"),
        ("partial", [("llama.rope.dimension_count", INT, 4)], (), "rotate"),
        ("extra", (), [("blk.0.attn_sinks.weight", np.ones(4, np.float32))], "attn_sinks"),
        ("layers", [("llama.block_count", INT, 3)], (), "no weights"),
        ("absurd", [("llama.block_count", INT, 1 << 30)], (), "block_count is 1073741824, and the file has 21 tensors"),
        ("shape", [("llama.feed_forward_length", INT, 96)], (), "shape"),
    ):
        path = rewritten(plain, tmp_path / f"{name}.gguf", fields=fields, tensors=tensors)
        with pytest.raises(ModelError, match=message) as error:
            TorchRuntime.from_gguf(path)
        assert "\n" not in str(error.value) and name in str(error.value)
    for pattern in (0, 1 << 40):
        fields = [("gemma3.attention.sliding_window_pattern", INT if pattern == 0 else FLOAT, pattern)]
        with pytest.raises(ModelError, match="sliding_window_pattern must be a positive number"):
            TorchRuntime.from_gguf(
                rewritten(write_tiny_gemma3(tmp_path / "gemma.gguf"), tmp_path / "pattern.gguf", fields=fields)
            )
    with pytest.raises(ModelError, match="dtype must be"):
        TorchRuntime.from_gguf(plain, dtype="int8")
    with pytest.raises(ModelError, match="no such file"):
        TorchRuntime.from_gguf(tmp_path / "nothing.gguf")


def compare_real(path, add_bos):
    import llama_cpp

    llama_cpp.llama_log_set(_SILENT, None)
    vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    tokens = vocabulary.tokenize(TEXT, add_bos=add_bos)
    vocabulary.close()
    found, expected = log_softmax(torch_logits(path, tokens)), log_softmax(llama_cpp_logits(path, tokens))
    kl = (np.exp(expected) * (expected - found)).sum(-1)
    next_ = np.arange(len(tokens) - 1), np.asarray(tokens[1:])
    assert kl.mean() < 0.01
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.9
    assert abs(found[next_].mean() - expected[next_].mean()) < 0.05
    return tokens


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_agrees_with_llama_cpp(smollm2_path):
    """llama.cpp quantises activations: single logits differ by tenths, averages by hundredths."""
    compare_real(smollm2_path, add_bos=False)


@pytest.mark.slow
@pytest.mark.real
def test_gemma3_agrees_with_llama_cpp(gemma3_path):
    compare_real(gemma3_path, add_bos=True)


MEASURE = """
import json, resource, sys
import accelerate, gguf, numpy, torch, transformers
from transformers import Gemma3ForCausalLM, LlamaForCausalLM
from likely.runtimes.torch.runtime import TorchRuntime
from likely.runtimes.protocol import Want, Work
from likely.runtimes.llamacpp.library import on_tile_thread
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.set_num_threads(1)
before = peak()
runtime = TorchRuntime.from_gguf(sys.argv[1], tokens_held=1024)
weights = sum(p.numel() * p.element_size() for p in runtime.module.parameters())
tokens = numpy.arange(200)
pairs = numpy.stack([tokens, tokens], axis=1)
runtime.forward([Work(runtime.open(), tokens, want=Want(rows="none", pairs=pairs))])
print(json.dumps({"peak": peak() - before, "weights": weights, "kv": 1024 * runtime.kv_bytes_per_token}))
"""


@pytest.mark.slow
@pytest.mark.real
def test_loading_holds_the_weights_once(smollm2_path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(smollm2_path)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["peak"] < 1.5 * (found["weights"] + found["kv"])


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """As a file and as a folder, by the runtime and by whatever changes weights."""
    from likely.compression.methods import compress
    from likely.runtimes import machine

    path = write_tiny_llama(tmp_path / "tiny.gguf")
    TorchRuntime.from_gguf(path, dtype="float32").module.save_pretrained(tmp_path / "folder")
    monkeypatch.setattr(machine, "_memory", lambda: {"MemAvailable": 4096})
    monkeypatch.setattr("likely.formats.weights.read_values", lambda stored: pytest.fail("weights were read"))
    for opened in (TorchRuntime.from_gguf, TorchRuntime.from_pretrained):
        place = path if opened == TorchRuntime.from_gguf else tmp_path / "folder"
        with pytest.raises(ModelError, match=r"its weights take .* are free"):
            opened(place, dtype="float32")
    with pytest.raises(ModelError, match="its weights take"):
        compress(path, scheme="w8")
