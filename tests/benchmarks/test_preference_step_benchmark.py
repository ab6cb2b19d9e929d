"""The benchmark of a training step against trl's, on a tiny model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

pytest.importorskip("trl")
pytest.importorskip("peft")


@pytest.mark.slow
def test_both_have_the_same_loss(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    bench = importlib.import_module("preference_step")
    row = bench.measured(str(write_tiny_llama(tmp_path / "tiny.gguf")), 2, 4, 4, rounds=1)
    assert row["losses"]["likely"] == pytest.approx(row["losses"]["trl"], abs=1e-5)
    assert all(rate > 0 for rate in row["tokens_per_second"].values()) and row["peak_bytes"] > 1e6
