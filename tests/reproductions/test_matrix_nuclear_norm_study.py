"""The study of the matrix nuclear norm on a tiny model: what it measures, and that cells are measured once."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script as load_script
from tiny_gguf import write_tiny_llama

from likely.audit.spectral import matrix_entropy

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def script():
    return load_script("matrix_nuclear_norm")


def test_the_study_measures_size_compression_and_speed(script, tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    model = str(write_tiny_llama(tmp_path / "tiny.gguf", dim=64, ffn=128))
    cells = script.Cells(tmp_path / "cells.jsonl", {}, lambda line: None)
    found = script.study(model, script.SMOKE, cells, full=False, timing=True, data="python_stdlib")
    statements = [check.statement for check in found.checks]
    assert len(statements) == 3 and statements[2].startswith("speed")
    kl = {f.subject: f.value for f in found.figures if f.quantity == "KL"}
    assert 0 < kl["rtn:w4g32"] < kl["rtn:w3g32"]
    random = {f.subject: f.value for f in found.figures if f.quantity == "random states"}
    assert random["width 64, N = 16"] < random["width 32, N = 16"]  # N below d: the shape alone makes it fall
    assert random["width 64, N = 48"] > random["width 32, N = 48"] * 0.99
    monkeypatch.setattr(script, "trained_spectra", None)  # everything is known now
    monkeypatch.setattr(script, "variant_numbers", None)
    again = script.study(model, script.SMOKE, cells, full=False, timing=False, data="python_stdlib")
    assert [f for f in again.figures if "ms" not in f.quantity][:10] == found.figures[:10]
    assert "not measured" in again.ours and len(again.checks) == 2


def test_entropy_as_published_is_the_same_number(script):
    states = np.random.default_rng(0).normal(size=(9, 20))
    assert script.published_entropy(states) == pytest.approx(matrix_entropy(states), abs=1e-9)
