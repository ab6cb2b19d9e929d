"""The studies of FreeDave and Prophet on networks that learnt nothing: what they count, and what must hold anyway."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script as load_script

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_freedave_counts_calls_and_compares_answers(cache, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(cache))
    script = load_script("freedave")
    cells = script.Cells(cache / "freedave.jsonl", {}, lambda line: None)
    found = script.study(script.SMOKE, cells, full=False, timing=True)
    assert len(found.checks) == 10 and found.verdict in ("reproduced", "partly reproduced", "not reproduced")
    held = {check.statement: check for check in found.checks}
    for name in script.TASKS:
        assert held[f"{name}: answers that differ from static decoding's, worst way of drafting"].holds
        assert held[f"{name}: calls more than static decoding's, worst puzzle and way"].holds
        calls = {f.subject: f.value for f in found.figures if f.quantity == "calls" and f.subject.startswith(name)}
        assert calls[f"{name}: {script.STATIC}"] == (16 if name == "sudoku" else 48)
        assert calls[f"{name}: FreeDave, 8 drafts"] <= calls[f"{name}: FreeDave, 2 drafts"]
        assert abs(calls[f"{name}: {script.EXIT}"] - calls[f"{name}: {script.OURS}"]) < 0.5
    assert {f.unit for f in found.figures if f.quantity == "ms per puzzle"} == {"ms"}
    monkeypatch.setattr(script, "decoded", lambda *_: pytest.fail("measured again"))
    again = script.study(script.SMOKE, cells, full=False)
    assert again.checks == found.checks and "Wall time" in " ".join(again.not_shown)


def test_prophet_follows_answers_and_stops_them(cache, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("LIKELY_CACHE", str(cache))
    script = load_script("prophet")
    cells = script.Cells(cache / "prophet.jsonl", {}, lambda line: None)
    found = script.study(script.SMOKE, cells, full=False, plot=tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(found.checks) == 1 + 2 + 2 * 4
    at_end = [f for f in found.figures if f.quantity == "right at end"]
    assert len(at_end) == 6
    calls = {f.subject: f.value for f in found.figures if f.quantity == "calls"}
    assert calls[f"sudoku: {script.STATIC}"] == 16 and calls[f"addition: {script.STATIC}"] == 32  # 16 are pinned
    assert calls[f"sudoku: {script.HALF}"] == 8 and calls[f"addition: {script.HALF}"] == 16
    assert abs(calls[f"sudoku: {script.EXIT}"] - calls[f"sudoku: {script.FITTED}"]) < 0.5


def test_fixed_exits_have_the_mean_that_was_asked_for():
    tasks = load_script("diffusion_tasks")
    for mean in (1.0, 3.25, 7.9):
        steps = tasks.steps_with_mean(mean, 40)
        assert steps.mean() == pytest.approx(mean, abs=0.02) and set(np.abs(steps - mean) < 1) == {True}
    assert tasks.puzzles("addition", 2, 5).suffix.keys() == set(range(26, 42))
