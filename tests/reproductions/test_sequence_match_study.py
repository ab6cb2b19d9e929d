"""The study of SequenceMatch at toy size: every method and both parts, and that cells are measured once."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script as load_script

pytest.importorskip("torch")


def letters(texts):
    """Toy features: how often each letter stands there."""
    return np.array([[text.lower().count(c) for c in "aeiosthn "] for text in texts], float) + 0.1


@pytest.mark.slow
def test_the_study_measures_every_method(tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    script = load_script("sequence_match")
    cells = script.Cells(tmp_path / "cells.jsonl", {}, lambda line: None)
    found = script.study(script.SMOKE, cells, letters, full=False)
    assert len(found.checks) == 5 and found.mode == "quick"
    of = {(f.subject, f.quantity): f.value for f in found.figures}
    for method in script.METHODS:
        assert 0 <= of[f"text: {method}", "score like MAUVE"] <= 1
        may_delete = method in (script.CLONED, script.FULL_METHOD)
        assert (of[f"sums: {method}", "deletes a wrong digit"] > 0) == may_delete
    monkeypatch.setattr(script, "trained", None)
    assert script.study(script.SMOKE, cells, letters, full=False).figures == found.figures


def test_sums_are_right_and_split():
    script = load_script("sequence_match")
    train, test = script.sums(np.random.default_rng(0))
    assert not set(train) & set(test) and len(train) + len(test) == 1955
    for line in (*train[:50], *test[:50]):
        asked, answer = line.rstrip(";").split("=")
        assert eval(asked) == int(answer)
        assert script.as_trajectory(line).finished
