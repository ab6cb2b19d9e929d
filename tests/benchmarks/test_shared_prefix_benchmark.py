"""The benchmarks of shared prefixes and of formats of keys and values, on a tiny model."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("bench") / "tiny.gguf", dim=128, context=512)


@pytest.fixture
def script(monkeypatch, native_library, tmp_path):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.import_module("protocol"), "RESULTS", tmp_path)
    return importlib.import_module


def test_a_prefix_is_read_once_and_bits_are_the_same(script, path, monkeypatch):
    bench = script("shared_prefix")
    monkeypatch.setattr(bench, "find_model", lambda name: path)
    row = bench.measured("q8_0", 128, 4, rounds=1, threads=1, repeats=1)
    assert row["same_bits"]
    heads_and_layers = 2 * 2
    assert row["columns"]["apart"] == heads_and_layers * 4 * (128 + 33)
    assert row["columns"]["together"] == heads_and_layers * (128 + 4 * 33)


def test_formats_are_rows_of_a_file(script, path, monkeypatch, tmp_path):
    bench = script("kv_formats")
    monkeypatch.setattr(bench.quality, "MODELS", (str(path),))
    monkeypatch.setattr(bench.quality, "POSITIONS", 48)
    monkeypatch.setattr(bench.quality, "text_of", lambda name, file: "the cat sat on the mat " * 100)
    bench.main(["--windows", "2", "--only", "bfp12, sorted"])
    bench.main(["--windows", "2", "--only", "q8_0", "bf16"])
    [found] = json.loads((tmp_path / "kv_formats.json").read_text())["models"].values()
    kl = {name: row["kl_nats"] for name, row in found["rows"].items()}
    assert list(kl) == ["bf16", "q8_0", "bfp12, sorted"] and 0 < kl["q8_0"] < kl["bfp12, sorted"]
    assert found["kv_bytes_per_token"]["q8_0"] == found["kv_bytes_per_token"]["f32"] * 34 / 128
    assert found["bytes_of_8192_tokens"]["q8_0"] == 8192 * found["kv_bytes_per_token"]["q8_0"]


@pytest.mark.slow
def test_static_codes_are_timed_on_four_forms_of_a_model(script, monkeypatch, tmp_path):
    """On a model of two layers: every form runs, and its table can be written."""
    bench = script("static_codes")
    monkeypatch.setattr(script("packed_weights"), "PREFILL", 80)
    bench.main(["--shape", "tiny", "--rounds", "2", "--even-if-busy"])
    record = json.loads((tmp_path / "static_codes.json").read_text())
    model = record["model"]
    assert set(model["weights"].values()) == {"Q4_0+Q8_0", "MQ4+Q8_0"}
    sizes = model["weights_bytes"]
    assert sizes["static"] == sizes["per token, dynamic"] < sizes["per 32, dynamic"]
    assert {len(found["speedups"]) for found in model["columns"].values()} == {4}
    monkeypatch.setattr(sys, "path", [str(FOLDER.parent / "docs"), *sys.path])
    table = importlib.import_module("native_tables").static_codes(record, lambda head, rows: f"{len(head)} {len(rows)}")
    assert table.startswith("5 5")
