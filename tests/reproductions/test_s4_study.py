"""The study of S4 toy-sized: every cell runs, is kept, and the checks say what was measured."""

from __future__ import annotations

import pytest
from scripts import script as load_script

pytest.importorskip("torch")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def script():
    return load_script("s4")


def test_the_study_measures_every_cell_once(script, tmp_path):
    cells = script.Cells(tmp_path / "cells.jsonl", {}, lambda line: None)
    found = script.study(cells, script.SMOKE, full=False, timing=True, say=lambda line: None)
    quantities = {figure.quantity for figure in found.figures}
    assert quantities >= {"delay, normalised MSE", "digits in order", "digits permuted", "ListOps, small"}
    assert len(found.checks) == 9 and found.mode == "quick"
    held = {check.statement: check.holds for check in found.checks}
    assert not held[f"delay of 8: normalised MSE of {script.LEGS}"]  # six steps learn nothing
    kept = (tmp_path / "cells.jsonl").read_text()
    again = script.study(cells, script.SMOKE, full=False, timing=False, say=lambda line: None)
    assert (tmp_path / "cells.jsonl").read_text() == kept
    assert [figure.value for figure in again.figures] == [f.value for f in found.figures[: len(again.figures)]]
    assert "--timing" in again.not_shown[-1]


def test_training_that_runs_away_is_an_error(script):
    import torch

    from likely.bench.sequence import TASKS
    from likely.training.loop import TrainingDiverged

    examples = TASKS["copy"].examples(4, 0, "train")
    network = script.SmallNetwork(
        examples.meta.vocabulary, examples.meta.outputs, [torch.nn.LSTM(8, 8, batch_first=True)], width=8, tokens=True
    )
    assert len(script.fit(network, lambda step: examples, rate=1e-3, steps=3)) == 3
    with pytest.raises(TrainingDiverged, match="ran away"):
        script.fit(network, lambda step: examples, rate=float("inf"), steps=3)
