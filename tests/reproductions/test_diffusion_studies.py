"""The studies of FreeDave and Prophet on networks that learnt nothing: what they count, and what must hold anyway."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripts import script as load_script
from tiny_gguf import write_tiny_llama

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


@pytest.mark.slow
def test_text_is_judged_by_bounds_and_by_a_causal_twin(cache, tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(cache))
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    script = load_script("diffusion_text")
    size = replace(script.SMOKE, model=str(write_tiny_llama(tmp_path / "tiny.gguf")))
    cells = script.Cells(cache / "text.jsonl", {}, lambda line: None)
    found = script.study(size, cells, full=False)
    assert len(found.checks) == 4 and len(found.data) == 1 and len(found.models) == 1
    held = {check.statement.split(":")[0]: check for check in found.checks}
    assert held["bounds of 8 characters, enumerated and estimated"].holds
    bits = {f.subject: f.value for f in found.figures if f.quantity == "bits per character"}
    assert 5 < bits[script.TWIN] < 7 and 5 < bits[script.DIFFUSION] < 7  # of 67 tokens, nearly untrained
    assert bits["frequencies of characters"] == pytest.approx(4.78, abs=0.01)
    nats = {f.subject: f.value for f in found.figures if f.quantity == "nats per token"}
    assert set(nats) == {script.CAUSAL, script.BEFORE, script.AFTER, script.COLD}
    monkeypatch.setattr(script, "characters", lambda *_: pytest.fail("measured again"))
    assert script.study(size, cells, full=False).checks == found.checks


def test_the_twin_s_nats_are_those_of_prefixes_one_by_one():
    import torch

    from likely.training.diffusion import Shakespeare, TinySettings
    from likely.training.diffusion.tiny import new_network

    script, torch_ids = load_script("diffusion_text"), torch.randint(2, 5, (3, 7))
    task = Shakespeare(prompt_length=3, answer_length=4, text="abc")
    network = new_network(task, TinySettings(steps=1, width=16, layers=2, heads=2)).eval()
    with torch.inference_mode():
        found = script.causal_nats(network, torch_ids, 3)
        slow = [
            -network(torch_ids[:, :end], attend=script.causal_mask(end))[:, -1].log_softmax(-1)
            .gather(1, torch_ids[:, end : end + 1])[:, 0]
            for end in range(3, 7)
        ]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(slow).mean(0), atol=1e-5, rtol=1e-5)
