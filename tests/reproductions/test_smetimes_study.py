"""The study of SMETimes at toy size: every kind of forecaster, the leak, and that cells are measured once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripts import script as load_script
from toy_series import tiny_lm

pytest.importorskip("torch")


@pytest.mark.slow
def test_the_study_measures_every_forecaster(tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    script = load_script("smetimes")
    size = replace(script.SMOKE, rows=900)
    cells = script.Cells(tmp_path / "cells.jsonl", {}, lambda line: None)
    found = script.study(size, cells, lambda name: tiny_lm(), full=False)
    of = {(f.subject, f.quantity): f.value for f in found.figures}
    stats, top = f"{script.LM}, prompt stats", max(size.horizons)
    assert of[stats, f"MSE, {size.patch} steps"] == of[f"{stats} with the leak", f"MSE, {size.patch} steps"]
    assert of[stats, f"MSE, {top} steps"] != of[f"{stats} with the leak", f"MSE, {top} steps"]
    for name in ("ridge", "daily naive", "PatchTST, small", f"{script.LM}, {script.RANDOM}", f"{script.LM}, no model"):
        assert of[name, f"MSE, {top} steps"] > 0
    assert len(found.checks) == len(size.horizons) + 8 and found.mode == "quick"
    assert script.render(script.draw(found), ".png").startswith(b"\x89PNG")
    monkeypatch.setattr(script, "language_model", None)
    assert script.study(size, cells, tiny_lm, full=False).figures == found.figures


def test_standard_errors_are_of_the_paired_differences(data_dir, monkeypatch, tmp_path):
    """Two seeds whose prompts help by 0.1 and 0.3: mean -0.2, standard error 0.1."""
    script = load_script("smetimes")
    base = {"errors": {h: [1.0, 1.0] for h in ("12", "24")}, "coverage": {"12": 0.9, "24": 0.9}, "validation": 1.0}
    names = ("last value", "daily naive", "ridge")

    def measured(size, cells, seeds, open_model):
        lm = script.LM
        kinds = ("PatchTST, small", f"{lm}, {script.NOTHING}", f"{lm}, {script.PRETRAINED}", f"{lm}, {script.RANDOM}",
                 f"{lm}, {script.PRETRAINED}, {script.PUBLISHED}",
                 f"{lm}, prompt time", f"{lm}, prompt stats", f"{lm}, prompt stats with the leak")  # fmt: skip
        found = {name: [base] for name in names} | {name: [base, base] for name in kinds}
        found[f"{lm}, prompt stats"] = [
            {**base, "errors": {h: [1 - gain, 1.0] for h in ("12", "24")}} for gain in (0.1, 0.3)
        ]
        return found

    monkeypatch.setattr(script, "measured", measured)
    cells = script.Cells(tmp_path / "cells.jsonl", {}, lambda line: None)
    found = script.study(script.SMOKE, cells, tiny_lm, full=False)
    check = next(c for c in found.checks if c.statement.startswith("prompts: MSE at 24"))
    assert np.isclose(check.value, -0.2 + 2 * 0.1) and check.bound == 0.0
