"""Pruned models as files: torch, llama.cpp and the native runtime load them and say the same; settings of compress."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama
from window_sets import random_windows

import likely
from likely.compression import compare_all, compress
from likely.compression.architecture import DecoderMap, open_module
from likely.compression.export import RECORD
from likely.compression.pruning.plan import PruningPlan
from likely.formats.gguf import read_header
from likely.models.convert import convert

pytest.importorskip("llama_cpp")
TEXT = random_windows(count=2, length=24, vocab=300)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("whole") / "tiny.gguf", layers=3, heads=8, kv_heads=4, ffn=64)


def pruned_of(source, **options):
    settings = {"method": "magnitude", "sparsity": 0.4, "gamma": 1.0, "multiple_of": 8} | options
    return compress(source, **settings)


def divergences(pruned, path):
    """KL of each engine that loads the file to the pruned module in memory."""
    with likely.load(path, runtime="torch", dtype="float32") as torch_model:
        models = {"torch": torch_model}
        if path.suffix != ".gguf":
            return {n: r.kl for n, r in compare_all(pruned, models, TEXT).items()}
        f32 = path.with_name("f32.gguf")
        convert(path, f32, to="f32", verify=False, overwrite=True)
        with (
            likely.load(f32, runtime="llamacpp") as llama_cpp,
            likely.load(path, runtime="native", dtype="float32") as native,
        ):
            found = compare_all(pruned, models | {"llama.cpp": llama_cpp, "native": native}, TEXT)
            return {name: one.kl for name, one in found.items()}


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_every_engine_says_of_the_file_what_torch_says_in_memory(source, tmp_path, allocation):
    pruned = pruned_of(source, allocation=allocation)
    assert pruned.plan.uniform == (allocation == "uniform")
    pruned.export(tmp_path / "small.gguf")
    found = divergences(pruned, tmp_path / "small.gguf")
    assert set(found) == {"torch", "llama.cpp", "native"} and max(found.values()) < 1e-3
    header = read_header(tmp_path / "small.gguf")
    record = json.loads(header.metadata["likely.compression"])
    assert record["method"] == "magnitude" and record["pruning"]["removed"] == pruned.plan.sparsity
    assert header.hparam("attention.key_length") == header.hparam("rope.dimension_count") == 4
    if allocation == "uniform":
        sizes = header.hparam("attention.head_count_kv"), header.hparam("feed_forward_length")
        assert sizes == (len(pruned.plan.groups[0]), len(pruned.plan.neurons[0])) < (4, 64)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_folders_say_the_same(source, tmp_path, allocation):
    pruned = pruned_of(source, allocation=allocation)
    pruned.export(tmp_path / "small")
    assert divergences(pruned, tmp_path / "small")["torch"] < 1e-3
    assert json.loads((tmp_path / "small" / RECORD).read_text())["pruning"]["removed"] == pruned.plan.sparsity
    # and a folder is as good a source as a file
    convert(tmp_path / "small", tmp_path / "again.gguf", to="f32", verify=False)
    assert max(divergences(pruned, tmp_path / "again.gguf").values()) < 1e-3


def test_a_folder_becomes_a_pruned_file(source, tmp_path):
    convert(source, tmp_path / "whole", to="safetensors", verify=False)
    pruned = pruned_of(tmp_path / "whole")
    pruned.export(tmp_path / "small.gguf")
    pruned.export(tmp_path / "small")
    assert max(divergences(pruned, tmp_path / "small.gguf").values()) < 1e-3
    assert divergences(pruned, tmp_path / "small")["torch"] < 1e-3


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_other_families_too(tmp_path, architecture):
    source = write_tiny_llama(tmp_path / "whole.gguf", arch=architecture, layers=2, heads=4, kv_heads=2, ffn=32)
    pruned = pruned_of(source, sparsity=0.5 if architecture == "qwen3" else 0.3)
    assert len(pruned.plan.groups[0]) == (1 if architecture == "qwen3" else 2) and len(pruned.plan.neurons[0]) < 32
    pruned.export(tmp_path / "small.gguf")
    assert max(divergences(pruned, tmp_path / "small.gguf").values()) < 1e-3


def test_a_pruned_file_is_pruned_and_quantised_further(source, tmp_path):
    first = pruned_of(source, sparsity=0.25, multiple_of=32, gamma=float("inf"))
    first.export(tmp_path / "one.gguf")
    again = pruned_of(tmp_path / "one.gguf", sparsity=0.25)
    assert again.plan.parameter_count() < first.plan.parameter_count()
    rounded = compress(tmp_path / "one.gguf", method="rtn", scheme="w8g32-sym")
    rounded.export(tmp_path / "two.gguf")
    assert read_header(tmp_path / "two.gguf").hparam("feed_forward_length") == 32
    with likely.load(tmp_path / "two.gguf", runtime="torch", dtype="float32") as there:
        assert compare_all(rounded, {"there": there}, TEXT)["there"].kl < 1e-3


def test_nirvana_by_its_settings(source):
    found = compress(
        source, method="nirvana", sparsity=0.3, calibration="random_tokens", windows=4, length=16, gamma=2.0,
        allocation="global", objective="loss", multiple_of=8, protect_layers=(0,),
    )  # fmt: skip
    assert found.quantized == {} and len(found.plan.neurons[0]) == 64 and found.plan.sparsity >= 0.3
    assert found.settings["pruning"]["gamma"] == 2.0 and found.settings["calibration"]["length"] == 16
    assert found.plan.parameter_count() == sum(p.numel() for p in found.module.parameters())
    assert found.nbytes == 2 * found.plan.parameter_count()
    # the same settings, the same plan, and it is a plan of the source
    again = PruningPlan.from_json(found.plan.to_json())
    module = again.apply(open_module(source)[1])
    assert [b.gate.out_features for b in DecoderMap.of(module).blocks] == found.settings["pruning"]["neurons"]


def test_the_calibration_set_is_selected_among_as_many_as_asked(source):
    settings = {"sparsity": 0.3, "calibration": "random_tokens", "windows": 3, "length": 16, "multiple_of": 8}
    found = compress(source, method="nirvana", select_calibration=3, **settings)
    assert found.settings["calibration"]["windows"] == 12 and found.settings["pruning"]["select_calibration"] == 3


def test_recovery_comes_nearer_to_the_whole_model(source):
    pytest.importorskip("peft")
    settings = {
        "sparsity": 0.3, "calibration": "random_tokens", "windows": 4, "length": 16, "gamma": float("inf"),
        "multiple_of": 8,
    }  # fmt: skip
    plain = compress(source, method="nirvana", **settings)
    better = compress(source, method="nirvana", recovery="distill", recovery_steps=40, recovery_windows=32, **settings)
    assert better.plan == plain.plan and better.settings["pruning"]["recovery"] == "distill"
    change = better.module.model.layers[0].mlp.up_proj.weight - plain.module.model.layers[0].mlp.up_proj.weight
    assert np.linalg.matrix_rank(change.detach().numpy(), tol=1e-6) <= 8 and float(change.detach().abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "rtn", "gamma": 2.0}, "rtn rounds: gamma is a setting of pruning"),
        ({"method": "nirvana", "gama": 2.0}, 'unknown setting "gama"; did you mean "gamma"'),
        ({"method": "nirvana", "scheme": "w4g64"}, "takes a sparsity and no scheme"),
        ({"method": "rtn", "sparsity": 0.2}, "takes a scheme and no sparsity"),
        ({"method": "magnitude", "objective": "loss"}, "magnitude looks at no text"),
        ({"method": "magnitude", "sparsity": 1.0}, r"sparsity must lie in \[0, 1\)"),
        ({"method": "nirvana", "select_calibration": 0}, "select_calibration must be at least 1"),
        ({"method": "nirvana", "recovery": "teach", "calibration": "random_tokens"}, 'unknown target "teach"'),
    ],
)
def test_wrong_settings_are_errors(source, settings, words):
    with pytest.raises(ValueError, match=words):
        compress(source, windows=2, length=8, **settings)
