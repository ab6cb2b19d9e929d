"""The study of layers on copying and recall with a few steps: its cells, checks and figures."""

from __future__ import annotations

import pytest
from scripts import script

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def study():
    return script("mamba_360")


def test_every_layer_is_compared_and_kept(study, tmp_path, monkeypatch):
    kept, plot = tmp_path / "cells.jsonl", tmp_path / "curves.png"
    found = study.study(study.TOY, kept=kept, plot=plot, said=lambda line: None)
    subjects = {f.subject for f in found.figures}
    assert {f"{task}: {row}" for task in study.TOY.tasks for row in study.ROWS} <= subjects
    assert len(found.checks) == 5 and len(kept.read_text().splitlines()) == 2 * 3 * 3
    assert plot.read_bytes().startswith(b"\x89PNG") and all(f.n == 2 for f in found.figures)
    monkeypatch.setattr("likely.bench.sequence.comparison.learn", lambda *a, **b: pytest.fail("computed again"))
    again = study.study(study.TOY, kept=kept, said=lambda line: None)
    assert [f.value for f in again.figures] == [f.value for f in found.figures]
    leads = {f.subject: f.value for f in found.figures if f.quantity == "difference of accuracy"}
    named = {check.statement: check.value for check in found.checks}
    assert named["recall: accuracy of S4D less Mamba-2's"] == -leads["mqar: mamba2 less s4d"]


def test_states_hold_what_they_say(study):
    assert study.state_errors(study.TOY.training) == {row: [0, 0] for row in study.ROWS}
