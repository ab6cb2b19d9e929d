"""The benchmark of controls per second on a tiny model: both ways give the same losses and tokens."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_trees_and_batches_agree(monkeypatch, native_library, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.import_module("protocol"), "RESULTS", tmp_path)
    bench = importlib.import_module("reach_candidates")
    path = write_tiny_llama(tmp_path / "tiny.gguf", dim=128)
    monkeypatch.setattr(bench, "find_model", lambda name: path)
    monkeypatch.setattr(bench, "STATES", (6,))
    monkeypatch.setattr(bench, "LENGTHS", (3,))
    monkeypatch.setattr(bench, "cores", lambda: 1)
    bench.main(["--even-if-busy", "--rounds", "1"])
    [row] = json.loads((tmp_path / "reach_candidates.json").read_text())["rows"]
    assert row["tokens"]["native file"] < row["tokens"]["torch"]
    assert max(row["largest_loss_difference_nats"].values()) < 0.2
    assert min(row["same_top_token"].values()) > 0.8
