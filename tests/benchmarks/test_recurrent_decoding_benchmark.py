"""The benchmark of decoding with a state, on models of one layer."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_row_has_every_way_and_the_bytes_of_a_text(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    bench = importlib.import_module("recurrent_decoding")
    theirs = bench.state_space_model(64, 1)
    attention = bench.attention_model(64, 1, bench.parameters(theirs), 256)
    assert abs(bench.parameters(attention) / bench.parameters(theirs) - 1) < 0.05
    model = bench.from_transformers(theirs)
    runtimes = {
        "recurrent": bench.RecurrentRuntime(model, tokens_held=512),
        "steps in torch": bench.RecurrentRuntime(model, tokens_held=512),
        "torch": bench.TorchRuntime(attention, tokens_held=512),
    }
    runtimes["steps in torch"].compiled = False
    assert bench.largest_difference(runtimes["recurrent"], theirs) < 1e-3
    rows = [bench.measured(length, runtimes, theirs, rounds=1) for length in (32, 96)]
    monkeypatch.setattr(bench, "OTHERS_READ", 50)
    assert set(bench.measured(60, runtimes, theirs, rounds=1)["tokens_per_s"]) == {"recurrent", "steps in torch"}
    for row in rows:
        assert set(row["tokens_per_s"]) == {"recurrent", "steps in torch", "torch", "transformers"}
        assert set(row["read_tokens_per_s"]) == {"recurrent", "torch"}
    short, long = (row["bytes_per_sequence"] for row in rows)
    assert (
        long["torch"] == 3 * short["torch"]
        and long["recurrent"] - short["recurrent"] <= 2 * runtimes["recurrent"].state_bytes
    )
