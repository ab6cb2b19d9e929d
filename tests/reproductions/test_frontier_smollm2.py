"""The frontier of a real model, toy-sized: what is counted, and that a run that was stopped goes on."""

from __future__ import annotations

import pytest
from scripts import script as load_script

from likely.io.kept import KeptValues

pytest.importorskip("peft")
pytest.importorskip("vaderSentiment")


@pytest.mark.slow
def test_the_study_counts_what_was_measured_and_goes_on(tmp_path, data_dir, monkeypatch):
    from tiny_gguf import write_tiny_llama

    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    script, model = load_script("frontier_smollm2"), str(write_tiny_llama(tmp_path / "tiny.gguf", dim=32))
    monkeypatch.setattr(script, "SentimentReward", script_reward)
    kept = KeptValues(tmp_path / "cells.jsonl")
    found = script.study(script.TOY, kept, tmp_path, model=model)
    assert found.mode == "quick" and len(found.checks) == 4 and "1 seeds; pairs of 4 samples" in found.samples
    rows = {(f.subject, f.quantity): f for f in found.figures}
    assert rows["dpo 2", "KL"].n == 6 and rows["best-of 4", "reward"].value > rows["best-of 2", "reward"].value
    monkeypatch.setattr(script, "sample_policy", lambda *_, **__: pytest.fail("drawn again"))
    again = script.study(script.TOY, KeptValues(tmp_path / "cells.jsonl"), tmp_path, model=model)
    assert [f.value for f in again.figures] == [f.value for f in found.figures]


def script_reward():
    """Counts letters, which a random model's texts have more or fewer of."""
    import numpy as np

    return lambda completions: np.array([float(sum(map(str.isalpha, c.text))) / 10 for c in completions])
