"""Weights in the native runtime's form: made once, whole or not at all, from whatever file holds the model."""

from __future__ import annotations

import errno
import json
import mmap
import shutil
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from native_models import CONFIGS, forward, llama, tokens_of
from tiny_gguf import write_tiny_gemma3, write_tiny_llama
from tiny_torch import folder_of, module_of

from likely.errors import CapabilityError, LikelyError, ModelError
from likely.formats import weights
from likely.formats.families import FAMILIES
from likely.formats.safetensors_file import read_entries
from likely.runtimes.native import weights as native_weights
from likely.runtimes.native.architecture import MODEL_TYPES, Architecture
from likely.runtimes.native.library import DTYPES
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.native.source import ModelSource
from likely.runtimes.native.weights import load_weights, packed_path
from likely.runtimes.torch.runtime import TorchRuntime


class Watched:
    """The library, counting matrices that it packs; `fails` is raised at the third."""

    def __init__(self, library, fails=None):
        self.library, self.fails, self.packed = library, fails, 0

    def pack(self, kind, values):
        self.packed += 1
        if self.fails and self.packed == 3:
            raise self.fails
        return self.library.pack(kind, values)


@pytest.fixture
def library(native_library, tmp_path, monkeypatch):
    """In an empty cache folder."""
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))
    return Watched(native_library)


@pytest.fixture(scope="module")
def folder():
    return folder_of(module_of(llama(), std=0.15, vectors=0.2))


def packed(place, library, kind="int8", progress=None):
    """Copies of the weights: the file that they are mapped from is damaged here."""
    return {name: values.copy() for name, values in mapped(place, library, kind, progress).items()}


def mapped(place, library, kind="int8", progress=None):
    source = ModelSource.open(place)
    shape = Architecture.of_config(source.config)
    return load_weights(source, shape, kind, library, progress)


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name].view(np.uint8), other[name].view(np.uint8), err_msg=name)


def file_of(place, kind="int8"):
    return packed_path(ModelSource.open(place).sha256, kind)


def names_in(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "native").glob("*"))


# --- kept -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DTYPES)
def test_weights_are_packed_once(library, folder, kind, tmp_path):
    steps = []
    first = packed(folder, library, kind, lambda done, whole: steps.append((done, whole)))
    count = library.packed
    assert count == 3 * 4 + 2 and names_in(tmp_path) == [file_of(folder, kind).name]
    assert [d for d, _ in steps] == sorted(d for d, _ in steps)
    assert {w for _, w in steps} == {sum(v.nbytes for v in first.values())} == {steps[-1][0]}
    again = packed(folder, library, kind, lambda *_: pytest.fail("packed again"))
    assert library.packed == count
    same(again, first)


def test_arrays_begin_on_cache_lines(library, folder):
    for _ in range(2):
        assert all(v.ctypes.data % 64 == 0 for v in mapped(folder, library).values())


def test_kinds_and_models_have_files_of_their_own(library, folder, tmp_path):
    other = folder_of(module_of(llama(), seed=1))
    for place in (folder, other):
        for kind in DTYPES:
            packed(place, library, kind)
    assert len(names_in(tmp_path)) == 6


@pytest.mark.parametrize("damage", ["truncated", "longer", "garbage", "empty", "another header", "another model"])
def test_a_file_that_is_not_what_was_written_is_replaced(library, folder, damage):
    first, path = packed(folder, library), file_of(folder)
    raw = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(raw[:-100])
        case "longer":
            path.write_bytes(raw + b"\0" * 64)
        case "garbage":
            path.write_bytes(np.random.default_rng(0).bytes(len(raw)))
        case "empty":
            path.write_bytes(b"")
        case "another header":
            path.write_bytes(raw.replace(b'"final_norm"', b'"final_morn"', 1))
        case _:
            other = folder_of(module_of(CONFIGS["llama, heads of 8"]()))
            packed(other, library)
            path.write_bytes(file_of(other).read_bytes())
    count = library.packed
    same(packed(folder, library), first)
    assert library.packed == count + 14 or damage == "another model"
    assert path.read_bytes() == raw


def test_a_file_cut_while_it_is_read_is_packed_again(library, folder, monkeypatch):
    first, path = packed(folder, library), file_of(folder)
    entries = read_entries(path)
    path.write_bytes(path.read_bytes()[:-64])
    before, looked = native_weights.read_entries, []

    def once(of):
        looked.append(of)
        return entries if len(looked) == 1 else before(of)

    monkeypatch.setattr(native_weights, "read_entries", once)
    same(packed(folder, library), first)


@pytest.mark.parametrize("fails", [KeyboardInterrupt(), MemoryError()])
def test_what_stops_packing_leaves_nothing(library, folder, fails, tmp_path):
    with pytest.raises(type(fails)):
        packed(folder, Watched(library.library, fails))
    assert names_in(tmp_path) == []
    packed(folder, library)
    assert names_in(tmp_path) == [file_of(folder).name]


def test_where_the_cache_cannot_be_written_weights_are_packed_in_memory(library, folder, monkeypatch, tmp_path):
    expected = packed(folder, library)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"cannot be kept in .*: set LIKELY_CACHE"):
        same(packed(folder, library), expected)


def test_a_full_disk_is_no_reason_to_refuse_a_model(library, folder, tmp_path):
    full = Watched(library.library, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.warns(UserWarning, match="No space left on device"):
        found = packed(folder, full)
    assert names_in(tmp_path) == []
    same(packed(folder, library), found)


def test_any_flipped_bit_and_exchanged_tensors_are_found(library, folder):
    first, path = packed(folder, library), file_of(folder)
    raw, entries = path.read_bytes(), read_entries(path)
    rng = np.random.default_rng(0)
    damaged = []
    for entry in entries.values():
        flipped = bytearray(raw)
        flipped[rng.integers(entry.start, entry.end)] ^= 1 << int(rng.integers(8))
        damaged.append(flipped)
    one, other = (entries[f"layers.{i}.qkv"] for i in (0, 1))
    exchanged = bytearray(raw)
    exchanged[one.start : one.end] = raw[other.start : other.end]
    exchanged[other.start : other.end] = raw[one.start : one.end]
    for content in [*damaged, exchanged]:
        path.write_bytes(content)
        same(packed(folder, library), first)
        assert path.read_bytes() == raw


def owner(array: np.ndarray) -> object:
    """Whose memory an array is a view of."""
    base = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base


def test_processes_share_packed_weights(library, folder):
    found = mapped(folder, library)
    assert all(isinstance(owner(v), mmap.mmap) for v in found.values())
    assert not any(v.flags.writeable for v in found.values())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts pages as Linux does")
def test_two_processes_have_the_same_pages(library, folder):
    """With a second process on the model no page of the weights is one process's alone, and none is a copy."""
    before = mapped(folder, library)
    shutil.copy2(library.library._handle._name, file_of(folder).parent)  # else the other process compiles its own
    code = (
        "import sys; from likely.runtimes.native.runtime import NativeRuntime; "
        "one = NativeRuntime(sys.argv[1], dtype='int8', threads=1, tokens_held=64); print('open', flush=True); input()"
    )
    alone = pages_of(file_of(folder))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        together = pages_of(file_of(folder))
        other.communicate("\n")
    size = sum(values.nbytes for values in before.values())
    assert alone["Private"] >= 0.95 * size  # a negative control: one process's pages are its own
    assert together["Shared"] >= 0.95 * size and together["Private"] < 0.05 * size


def pages_of(path):
    """Bytes of this process's pages of a file, by what smaps calls them: Shared with other processes, or Private."""
    found, inside = {"Shared": 0, "Private": 0}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and name in ("Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty"):
            found[name.partition("_")[0]] += 1024 * int(rest.split()[0])
    return found


# --- one model in several files -------------------------------------------------------------------------------------


def _gguf(kind, path, dtype):
    if kind == "gemma3":
        return write_tiny_gemma3(path, dtype=dtype)
    return write_tiny_llama(path, arch=kind.split(",")[0], dtype=dtype, tied="tied" in kind)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", ["F32", "Q8_0", "F16", "BF16"])
@pytest.mark.parametrize("model", ["llama", "llama, tied", "qwen2", "qwen3", "gemma3"])
def test_a_gguf_file_and_a_folder_of_its_weights_pack_alike(library, tmp_path, model, dtype):
    """The folder is transformers' own writing of the module; of a quantised file, of what it stands for in fp32."""
    path = _gguf(model, tmp_path / "m.gguf", dtype)
    TorchRuntime.from_gguf(path, dtype="float32").module.save_pretrained(tmp_path / "folder")
    for kind in DTYPES:
        same(packed(path, library, kind), packed(tmp_path / "folder", library, kind))


def test_shards_and_half_precision_pack_as_the_whole_in_fp32(library, tmp_path):
    module = module_of(llama(), std=0.15, vectors=0.2).to(torch.bfloat16)
    module.save_pretrained(tmp_path / "half")
    module.float().save_pretrained(tmp_path / "whole")
    module.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for kind in DTYPES:
        whole = packed(tmp_path / "whole", library, kind)
        same(packed(tmp_path / "half", library, kind), whole)
        same(packed(tmp_path / "shards", library, kind), whole)


@pytest.mark.parametrize("kind", DTYPES)
def test_pieces_of_any_size_pack_alike(library, folder, monkeypatch, tmp_path, kind):
    """A large matrix passes through memory some rows at a time."""
    whole = packed(folder, library, kind)
    monkeypatch.setattr(weights, "_PIECE_VALUES", 72 * 7)
    monkeypatch.setattr(native_weights, "ROWS", 32)
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "other"))
    same(packed(folder, library, kind), whole)


@pytest.mark.parametrize("ahead", [10, 3000, 2**28])
@pytest.mark.parametrize("kind", ["int8", "file", "int4"])
def test_threads_pack_alike(native_library, folder, monkeypatch, tmp_path, kind, ahead):
    """Tensors come in their order, whoever makes them, and some may be too large to be made ahead."""
    monkeypatch.setattr(native_weights, "AHEAD_BYTES", ahead)
    source = ModelSource.open(folder)
    shape, found = Architecture.of_config(source.config), []
    for threads in (1, 3):
        monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / str(threads)))
        told: list = []
        tell = partial(lambda to, *of: to.append(of), told)
        packed = load_weights(source, shape, kind, native_library, tell, threads=threads)
        found.append(({name: values.copy() for name, values in packed.items()}, told))
    same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_what_stops_a_thread_stops_packing(library, folder, tmp_path):
    library.fails = ModelError("no number")
    source = ModelSource.open(folder)
    with pytest.raises(ModelError, match="no number"):
        load_weights(source, Architecture.of_config(source.config), "int8", library, threads=3)
    assert names_in(tmp_path) == []


def test_a_second_copy_of_tied_weights_is_no_stranger(library, tmp_path):
    module = module_of(llama(tie_word_embeddings=True))
    module.save_pretrained(tmp_path / "one")
    one = packed(tmp_path / "one", library)
    rewrite(tmp_path / "one", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    same(packed(tmp_path / "one", library), one)


def test_packing_needs_no_more_memory_than_the_packed_model_and_some_pieces(library, tmp_path, monkeypatch):
    """The table of tokens, the largest matrix, is 16 MiB in fp32 and is never there as a whole."""
    module = module_of(llama(vocab_size=65536, hidden_size=64, num_attention_heads=4, tie_word_embeddings=True))
    module.save_pretrained(tmp_path / "wide")
    del module
    monkeypatch.setattr(weights, "_PIECE_VALUES", 1 << 16)
    tracemalloc.start()
    try:
        found = packed(tmp_path / "wide", library)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = sum(v.nbytes for v in found.values())
    assert size < 6 << 20 and peak < size + (5 << 20)


# --- refused --------------------------------------------------------------------------------------------------------


def rewrite(folder, change):
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def refused(folder, library, *words, error=LikelyError):
    with pytest.raises(error) as found:
        packed(folder, library)
    text = str(found.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens", "lm_head", "model.norm", "model.layers.1.self_attn.k_proj", "model.layers.2.mlp.up_proj"],
)
def test_weights_that_are_no_numbers_are_refused(library, tmp_path, name, value):
    module = module_of(llama())
    with torch.no_grad():
        module.get_parameter(f"{name}.weight").view(-1)[7] = value
    module.save_pretrained(tmp_path / "m")
    refused(tmp_path / "m", library, "not a finite number", error=ModelError)
    assert names_in(tmp_path) == []


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {n: v for n, v in t.items() if n != NORM}, [NORM, "no tensor"]),
        (lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"}, ["lm_head.weight", "no tensor"]),
        (lambda t: t | {NORM: t[NORM][:-1].clone()}, [NORM, "(71,)", "(72,)"]),
        (lambda t: t | {"lm_head.weight": t["lm_head.weight"].T.contiguous()}, ["lm_head.weight", "shape"]),
        (lambda t: t | {"model.layers.0.self_attn.q_norm.weight": t[NORM].clone()}, ["q_norm", "runtime='torch'"]),
        (lambda t: t | {"model.layers.3.mlp.up_proj.weight": t[NORM].clone()}, ["layers.3", "no place"]),
        (lambda t: t | {NORM: t[NORM].to(torch.int32)}, [NORM, "I32"]),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(library, tmp_path, change, words):
    module_of(llama()).save_pretrained(tmp_path / "m")
    rewrite(tmp_path / "m", change)
    refused(tmp_path / "m", library, *words)
    assert names_in(tmp_path) == []


def test_biases_of_the_attention_output_are_not_dropped(library, tmp_path):
    """Llama with attention_bias has one that it does not add."""
    module_of(llama(attention_bias=True)).save_pretrained(tmp_path / "m")
    refused(tmp_path / "m", library, "o_proj.bias", "runtime='torch'")


def config_of(name):
    config = CONFIGS[name]() if isinstance(name, str) else name
    return json.loads(config.to_json_string(use_diff=False))


def changed(name, **changes):
    return config_of(name) | changes


ROPE = {"rope_theta": 10000.0}
UNKNOWN = {
    "an architecture": lambda: changed("llama", model_type="phi3"),
    "no architecture": lambda: {"hidden_size": 4},
    "an activation": lambda: changed("llama", hidden_act="relu"),
    "an activation of Gemma": lambda: changed("gemma3, short window", hidden_activation="gelu"),
    "biases of the feed-forward part": lambda: changed("llama", mlp_bias=True),
    "biases of Qwen 3": lambda: changed("qwen3", attention_bias=True),
    "a soft cap in attention": lambda: changed("gemma3, short window", attn_logit_softcapping=50.0),
    "both directions": lambda: changed("gemma3, short window", use_bidirectional_attention=True),
    "quantised weights": lambda: changed("llama", quantization_config={"bits": 4}),
    "a rotation": lambda: changed("llama", rope_parameters={**ROPE, "rope_type": "yarn", "factor": 4.0}),
    "part of a head rotated": lambda: changed("llama", rope_parameters={**ROPE, "partial_rotary_factor": 0.5}),
    "a kind of layer": lambda: changed("gemma3, short window", layer_types=["chunked_attention"] * 3),
    "too few kinds of layers": lambda: changed("gemma3, short window", layer_types=["full_attention"] * 2),
    "windows nobody knows": lambda: changed("qwen2", use_sliding_window=True, sliding_window=8, layer_types=None),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_it_does_not_compute_is_refused_and_names_torch(what):
    with pytest.raises(CapabilityError) as error:
        Architecture.of_config(UNKNOWN[what]())
    assert "\n" not in str(error.value) and "runtime='torch'" in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        lambda: changed("llama", hidden_size=0),
        lambda: changed("llama", vocab_size="101"),
        lambda: changed("llama", num_hidden_layers=None),
        lambda: changed("llama", num_key_value_heads=4),
        lambda: changed("llama", head_dim=11),
        lambda: changed("gemma3, short window", sliding_window=None),
    ],
)
def test_sizes_that_cannot_be_are_refused(config):
    with pytest.raises(ModelError, match=r"config\.json") as error:
        Architecture.of_config(config())
    assert "\n" not in str(error.value)


def test_every_family_of_gguf_files_is_known():
    assert set(MODEL_TYPES) == {CONFIGS[name]().model_type for name in CONFIGS}
    assert set(MODEL_TYPES) - {"mistral"} <= {f.model_type for f in FAMILIES}  # GGUF files call it llama


def test_rotations_are_those_of_transformers():
    """Frequencies bit for bit: angles are large, and another rounding would be seen far out in a text."""
    for name, make in CONFIGS.items():
        config = make()
        shape = Architecture.of_config(config_of(config))
        module = transformers.AutoModelForCausalLM.from_config(config)
        rotary = module.model.rotary_emb
        if shape.family == "gemma3_text":
            expected = [rotary.full_attention_inv_freq, rotary.sliding_attention_inv_freq]
        else:
            expected = [rotary.inv_freq] * 2
        for own, theirs in zip(shape.frequencies, expected, strict=True):
            np.testing.assert_allclose(own, theirs.numpy(), rtol=2.5e-7, err_msg=name)


def test_a_model_runs_from_a_gguf_file_as_from_its_folder(library, tmp_path):
    path = write_tiny_llama(tmp_path / "m.gguf", dtype="Q8_0")
    TorchRuntime.from_gguf(path, dtype="float32").module.save_pretrained(tmp_path / "folder")
    rows = []
    for place in (path, tmp_path / "folder"):
        runtime = NativeRuntime(place, dtype="int8", threads=1, tokens_held=100)
        rows.append(forward(runtime, runtime.open(), tokens_of(40)).logits)
        runtime.shutdown()
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head_dim", "64"), ("num_key_value_heads", [2]), ("num_key_value_heads", -1), ("hidden_size", 2**31),
        ("rms_norm_eps", "small"), ("rms_norm_eps", float("nan")), ("final_logit_softcapping", "x"),
        ("query_pre_attn_scalar", 0), ("query_pre_attn_scalar", {}), ("layer_types", "full_attention"),
        ("layer_types", [1, 2, 3]), ("sliding_window", "8"), ("sliding_window", True), ("sliding_window", 2**31),
        ("rope_parameters", [1]), ("rope_parameters", {"full_attention": 5}), ("hidden_activation", ["silu"]),
        ("rope_parameters", {"full_attention": {"rope_theta": "big"}}),
        ("rope_parameters", {"full_attention": {"rope_theta": -1.0}}),
        ("rope_parameters", {"full_attention": {"rope_type": "linear", "factor": "4"}}),
        ("rope_parameters", {"full_attention": {"rope_type": ["linear"]}}),
        ("rope_parameters", {"full_attention": {"rope_type": "llama3", "factor": 8.0}}),
    ],
)  # fmt: skip
def test_settings_of_another_kind_are_one_line(name, value):
    with pytest.raises((ModelError, CapabilityError)) as error:
        Architecture.of_config(changed("gemma3, short window", **{name: value}))
    assert "\n" not in str(error.value)


def test_a_window_beyond_the_context_sees_all_of_it():
    found = Architecture.of_config(changed("gemma3, short window", sliding_window=2**30))
    assert max(found.windows) == found.context_length == 512
