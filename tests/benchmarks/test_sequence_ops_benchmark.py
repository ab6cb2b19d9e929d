"""The benchmark of sequence kernels compares forms that compute the same, and counts what layers hold."""

from __future__ import annotations

import pytest
import torch
from scripts import script

OPS = script("sequence_ops", folder="benchmarks")


def test_the_forms_that_are_timed_agree():
    for forms in OPS.kernels(37, batch=1, heads=2, size=8).values():
        chunked = forms["chunked"]()
        torch.testing.assert_close(chunked, forms["by steps"](), rtol=1e-3, atol=1e-3)
        if "transformers" in forms:
            torch.testing.assert_close(chunked * 8**-0.5, forms["transformers"](), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_steps_are_timed_at_each_length():
    rows = OPS.time_steps([8, 16], 1, width=32)
    held = {name: [r["state_bytes"] for r in rows if r["layer"] == name] for name in OPS.STEPPED}
    trained = OPS.time_training([8, 16], 1, width=16)
    assert {row["layer"] for row in trained} == set(OPS.TRAINED)
    assert all(row["per_token"]["median_s"] > 0 for row in trained)
    assert held["attention"][0] < held["attention"][1] and held["mamba2"][0] == held["mamba2"][1]
