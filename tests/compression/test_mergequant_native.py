"""MergeQuant's models on the native runtime: its integer path gives what the simulated model gives."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from native_models import rows_of
from random_decoders import FAMILIES, calibration, random_decoder, windows
from tiny_gguf import write_tiny_llama
from tiny_torch import folder_of

from likely.compression.architecture import open_module
from likely.compression.mergequant.method import MergeQuant
from likely.compression.methods import check_target, compress
from likely.compression.packed_folder import merged_changes
from likely.compression.transforms.scaling import logits_of
from likely.errors import CapabilityError, ModelError
from likely.models.convert import rewrite
from likely.models.load import load_local
from likely.runtimes.native.runtime import NativeRuntime


@pytest.fixture(autouse=True)
def own_cache(native_library, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))


def exported(target, name="llama", **settings):
    """(the simulated model, the folder of its codes); steps are split where they differ little already."""
    decoder = random_decoder(name)
    original, source = copy.deepcopy(decoder.module), folder_of(decoder.module)
    codes = MergeQuant(**{"growth": 0.5, "threshold": 1.1, **settings}).fit(decoder, calibration())
    rewrite(source, target, merged_changes(decoder.module, codes, original, "{}"))
    return decoder.module, target


def runtime_of(folder, **options):
    return NativeRuntime(folder, **{"kv_dtype": "f32", "threads": 1, "tokens_held": 512, **options})


def divergence(before, after):
    p, q = (torch.log_softmax(torch.as_tensor(x).double(), -1) for x in (before, after))
    return float((p.exp() * (p - q)).sum(-1).mean())


def native_logits(folder, ids):
    runtime = runtime_of(folder)
    found = np.stack([rows_of(runtime, row) for row in ids])
    runtime.shutdown()
    return found


@pytest.mark.parametrize("other_inputs", ["dynamic", "static"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_integer_path_is_the_simulated_model(name, other_inputs, tmp_path):
    module, folder = exported(tmp_path / "out", name, w_bits=8, a_bits=8, other_inputs=other_inputs)
    ids = windows(4, 24)
    # tables of tokens have 8 bits there, and a code on the edge between two may fall to either side
    assert divergence(logits_of(module, ids), native_logits(folder, ids)) < 8e-3


def test_its_codes_are_no_module(tmp_path):
    _, folder = exported(tmp_path / "out", w_bits=4, a_bits=8)
    with pytest.raises(CapabilityError, match="MergeQuant's codes, which only the native runtime runs"):
        open_module(folder)


def test_four_bits_are_nibbles_and_the_same_model(tmp_path):
    module, folder = exported(tmp_path / "out", w_bits=4, a_bits=8)
    ids = windows(4, 24)
    assert divergence(logits_of(module, ids), native_logits(folder, ids)) < 5e-3
    runtime = runtime_of(folder)
    assert runtime.weights_format == "MQ4+Q8_0" and runtime.dtype == "file"
    runtime.shutdown()


def test_channels_that_stand_twice_count(tmp_path):
    """A negative control: with other channels in the further columns the model is another."""
    from safetensors.numpy import load_file, save_file

    module, folder = exported(tmp_path / "out", w_bits=8, a_bits=8)
    right = divergence(logits_of(module, windows(4, 24)), native_logits(folder, windows(4, 24)))
    tensors, ids = load_file(folder / "model.safetensors"), windows(4, 24)
    extra = [name for name in tensors if name.endswith("extra_columns")]
    assert len(extra) == 4 and all(len(tensors[name]) > 3 for name in extra)
    for name in extra:
        tensors[name] = (tensors[name] + 1) % 32
    save_file(tensors, folder / "model.safetensors")
    assert divergence(logits_of(module, ids), native_logits(folder, ids)) > 10 * right
    tensors[extra[0]][1] = 32
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"outside 0\.\.31"):
        runtime_of(folder)


@pytest.mark.parametrize("other_inputs", ["dynamic", "static"])
def test_rows_are_the_same_bits_in_any_company(other_inputs, tmp_path):
    _, folder = exported(tmp_path / "out", w_bits=4, a_bits=8, other_inputs=other_inputs)
    runtime, text = runtime_of(folder, tokens_per_call=256), windows(1, 150)[0]
    whole = rows_of(runtime, text)  # many rows: each thread takes some from product to product
    few = runtime_of(folder, tokens_per_call=1)
    np.testing.assert_array_equal(rows_of(few, text[:60]), whole[:60])
    for one in (runtime, few):
        one.shutdown()


def test_what_cannot_run_is_refused(tmp_path):
    decoder = random_decoder()
    original = copy.deepcopy(decoder.module)
    codes = MergeQuant(4, 8, other_inputs="float").fit(decoder, calibration())
    with pytest.raises(CapabilityError, match="dynamic or static"):
        merged_changes(decoder.module, codes, original, "{}")
    _, folder = exported(tmp_path / "out")
    with pytest.raises(CapabilityError, match=r"dtype='file'.*--candidate-runtime native"):
        runtime_of(folder, dtype="int8")
    with pytest.raises(CapabilityError, match="only the native runtime"):
        load_local(folder, runtime="torch")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["activation_bits"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="2 to 8"):
        runtime_of(folder)


def test_compress_writes_a_folder_that_load_runs(tmp_path):
    source = write_tiny_llama(tmp_path / "tiny.gguf")
    with pytest.raises(CapabilityError, match="holds floats"):
        check_target(source, tmp_path / "x.gguf", method="mergequant", scheme="w4a8", overwrite=False, packed=True)
    check_target(source, tmp_path / "out", method="mergequant", scheme="w4a8", overwrite=False, packed=True)
    made = compress(source, method="mergequant", scheme="w4a8", calibration=calibration())
    size = made.export(tmp_path / "out", packed=True)
    assert size < made.export(tmp_path / "floats")
    loaded = load_local(tmp_path / "out", kv_dtype="f32")
    assert (loaded.info.runtime, loaded.info.dtype, loaded.info.weights) == ("native", "file", "MQ4+Q8_0")
    ids = windows(1, 24)
    assert divergence(logits_of(made.module, ids)[0], rows_of(loaded.runtime, ids[0])) < 5e-3
    loaded.runtime.shutdown()
    record = json.loads((tmp_path / "out" / "likely_compression.json").read_text())
    assert record["method"] == "mergequant" and record["scheme"] == "w4a8"
