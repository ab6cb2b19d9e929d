"""A compressed model, written and read again by every engine: the same numbers as before."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from tiny_gguf import write_tiny_gemma3, write_tiny_llama

import likely
from likely.compression import compare, compress
from likely.compression.architecture import DecoderMap, open_module
from likely.compression.calibration_set import calibration_set
from likely.errors import CapabilityError, ModelError
from likely.formats.gguf import read_header
from likely.models.convert import convert

MODELS = {
    "llama": lambda path: write_tiny_llama(path, dim=64, ffn=128, heads=4),
    "tied": lambda path: write_tiny_llama(path, dim=64, ffn=128, tied=True, dtype="Q8_0"),
    "qwen2": lambda path: write_tiny_llama(path, dim=64, ffn=128, arch="qwen2"),
    "gemma3": lambda path: write_tiny_gemma3(path, dim=64, ffn=128),
}


@pytest.fixture(scope="module", params=MODELS)
def source(request, tmp_path_factory):
    return MODELS[request.param](tmp_path_factory.mktemp("models") / f"{request.param}.gguf")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logits(module):
    with torch.no_grad():
        return module(torch.arange(40)[None] + 5).logits[0].numpy()


@pytest.mark.parametrize("scheme", ["w4g32", "w4g64-sym", "w5g32", "w5g32-sym", "w8"])
def test_a_gguf_file_holds_the_codes(source, scheme, tmp_path):
    made = compress(source, scheme=scheme)
    size = made.export(tmp_path / "made.gguf")
    assert size == (tmp_path / "made.gguf").stat().st_size
    _, again, _ = open_module(tmp_path / "made.gguf")
    for name, parameter in made.module.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name]), name
    header = read_header(tmp_path / "made.gguf")
    assert json.loads(header.metadata["likely.compression"])["scheme"] == scheme
    kinds = {
        t.name.split(".")[2]: t.type
        for t in header.tensors
        if t.name.startswith("blk.0.") and t.name.endswith("weight")
    }
    assert kinds["ffn_up"] == kinds["attn_q"] == {"w4g32": "Q4_1", "w4g64-sym": "Q4_0", "w5g32": "Q5_1",
                                                  "w5g32-sym": "Q5_0", "w8": "Q8_0"}[scheme]  # fmt: skip


def test_engines_agree_on_it(source, tmp_path):
    made = compress(source, scheme="w8")
    made.export(tmp_path / "made.gguf")
    data = calibration_set("random_tokens", made.tokenizer, windows=2, length=24)
    for runtime, dtype, bound in (("native", "float32", 1e-6), ("llamacpp", None, 2e-2)):
        with likely.load(str(tmp_path / "made.gguf"), runtime=runtime, dtype=dtype, threads=1) as lm:
            assert compare(made, lm, data).kl < bound


def test_a_folder_for_transformers(source, tmp_path):
    made = compress(source, scheme="w3g32")
    made.export(tmp_path / "made")
    assert json.loads((tmp_path / "made/likely_compression.json").read_text())["scheme"] == "w3g32"
    _, again, _ = open_module(tmp_path / "made")
    assert np.allclose(logits(again), logits(made.module), atol=2e-2)  # matrices are F16


def test_from_a_folder_to_a_file(tmp_path):
    source = write_tiny_llama(tmp_path / "source.gguf", dim=64, ffn=128)
    convert(source, tmp_path / "folder", to="safetensors", verify=False)
    for from_, to in (("folder", "a.gguf"), ("folder", "a"), ("source.gguf", "b.gguf")):
        compress(tmp_path / from_, scheme="w4g32").export(tmp_path / to)
    found = [logits(open_module(tmp_path / name)[1]) for name in ("a.gguf", "a", "b.gguf")]
    assert np.allclose(found[0], found[2], atol=1e-2) and np.allclose(found[1], found[2], atol=2e-2)


def test_nothing_is_written_over_or_left_half(source, tmp_path, monkeypatch):
    made = compress(source, scheme="w4g32")
    made.export(tmp_path / "made.gguf")
    before = (tmp_path / "made.gguf").read_bytes()
    with pytest.raises(ModelError, match="exists already"):
        made.export(tmp_path / "made.gguf")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.export(tmp_path / "made.gguf", overwrite=True, progress=stop)
    assert (tmp_path / "made.gguf").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(ModelError, match=r"other.gguf: \d+ MB needed, 0 MB free"):
        made.export(tmp_path / "other.gguf")
    monkeypatch.undo()
    monkeypatch.setattr("likely.models.convert._sync", lambda path: os.fstat(-1))  # an error while it is written
    with pytest.raises(ModelError, match=r"cannot write .*other.gguf: Bad file descriptor"):
        made.export(tmp_path / "other.gguf")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ModelError, match=r"cannot write .*other.gguf: the folder .* is read-only"):
        made.export(tmp_path / "other.gguf")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ModelError, match="lie inside"):
        made.export(source, overwrite=True)


def test_wrong_settings_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match='unknown method "gtpq"'):
        compress(source, method="gtpq")
    with pytest.raises(ValueError, match="takes a scheme and no sparsity"):
        compress(source, sparsity=0.2)
    with pytest.raises(CapabilityError, match="no GGUF type"):
        compress(source, scheme="w3g32").export(tmp_path / "made.gguf")
    with pytest.raises(ModelError, match=r"parts of Linear are not known here \(known: Llama"):
        DecoderMap.of(torch.nn.Linear(2, 2))


def test_the_map_names_every_matrix_of_the_blocks(source):
    _, module, _ = open_module(source)
    decoder = DecoderMap.of(module)
    names = [name for name, *_ in decoder.linears()]
    expected = [n for n, p in module.named_parameters() if ".layers." in n and p.ndim == 2]
    assert sorted(names) == sorted(expected) and len(names) == 7 * len(decoder.blocks)
    scale = decoder.norm_scale(decoder.blocks[0].input_norm).clone()
    decoder.set_norm_scale(decoder.blocks[0].input_norm, scale)
    assert torch.allclose(decoder.norm_scale(decoder.blocks[0].input_norm), scale, atol=1e-6)
