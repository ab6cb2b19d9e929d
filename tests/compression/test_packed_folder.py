"""compressed-tensors folders: their words are the package's own, and transformers computes the same logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_gguf import write_tiny_llama

from likely.compression.calibration_set import CalibrationSet
from likely.compression.evaluate import compare
from likely.compression.methods import compress
from likely.compression.packed_folder import quantization_config, tensor_steps
from likely.compression.quantized import round_to_nearest
from likely.compression.schemes import parse_scheme
from likely.errors import CapabilityError
from likely.models.load import load_local


@pytest.mark.parametrize("scheme", ["w4g16-sym", "w8g32-sym", "w3g32-sym", "w4-sym"])
def test_words_are_those_of_the_package(scheme):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    weights = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    tensor = round_to_nearest(weights, parse_scheme(scheme))
    words, shape, scale = tensor_steps("name", tensor, packed=True)
    ours = words.source.data.view("<i4").reshape(words.shape)
    theirs = helpers.pack_to_int32(torch.from_numpy(tensor.codes).to(torch.int8), tensor.scheme.bits)
    assert np.array_equal(ours, theirs.numpy())
    assert shape.source.data.view("<i8").tolist() == [6, 64] and scale.shape == tensor.grid.scales.shape


@pytest.mark.parametrize("scheme", ["w4g32-sym", "w8a8", "w8a8-static"])
def test_the_folder_loads_and_gives_the_fake_quantised_logits(scheme, tmp_path):
    pytest.importorskip("compressed_tensors")
    source = write_tiny_llama(tmp_path / "tiny.gguf")
    ids = np.random.default_rng(0).integers(3, 300, (8, 24))
    made = compress(source, method="rtn", scheme=scheme, calibration=CalibrationSet(ids, "made up", "random ids"))
    size = made.export(tmp_path / "packed", packed=True)
    assert size < made.export(tmp_path / "floats")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    loaded = load_local(tmp_path / "packed", runtime="torch", dtype="float32")
    report = compare(made, loaded, CalibrationSet(ids[:2], "made up", "random ids"))
    # what was not rounded is fp16 in the folder; scales of tokens are max|x| / 127.5 in the package, 127 here
    assert report.kl < (5e-3 if "a8" in scheme else 1e-5) and report.top1 > 0.9


def test_schemes_without_a_place_are_refused():
    for scheme, instead in (("w4g64", "w4g64-sym"), ("w8-asym", "w8")):
        with pytest.raises(CapabilityError, match=f"choose {instead}$"):
            quantization_config(parse_scheme(scheme))
    tensor = round_to_nearest(np.ones((2, 12), np.float32), parse_scheme("w3g4-sym"))
    with pytest.raises(CapabilityError, match="32-bit words"):
        tensor_steps("name", tensor, packed=True)
