"""The study of BRAIn in the smallest lab: its loss on lists of samples, and what is counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripts import script as load_script

from likely.io.kept import KeptValues

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("vaderSentiment")

pytestmark = pytest.mark.xdist_group("sentiment lab")


@pytest.fixture(scope="module")
def script():
    return load_script("brain")


@pytest.fixture(scope="module")
def lab(script, lab_folder, data_dir):
    laboratory = load_script("sentiment_lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELY_DATA", str(data_dir))
        return laboratory.open_lab(lab_folder, laboratory.SMALLEST)


@pytest.fixture(scope="module")
def size(script):
    return replace(script.TOY, seeds=1)


def test_the_study_counts_what_was_measured(script, lab, size, monkeypatch):
    kept = KeptValues(None)
    found = script.study(size, lab, kept, full=False, threads=1, plot=None)
    assert found.mode == "quick" and len(found.checks) == 7 and "8 training prompts of 4 candidates" in found.samples
    compared = {f.subject for f in found.figures if f.quantity == "proxy reward at equal KL"}
    assert compared == {f"brain 0.3 less {name}" for name in ("brain, no baseline", "dpo", "rso", "raft")}
    assert found.figures[-1].n == 3 and found.figures[-1].value > 1  # the baseline takes variance away
    monkeypatch.setattr(script, "draw_lists", lambda *_: pytest.fail("drawn again"))
    script.run_seed(lab, size, 0, kept)


def test_the_loss_at_the_start_is_the_entropy_to_even_weights(script, lab, size):
    """The reference drew the candidates: b is 1/n, so that the loss is log n and its gradient −(α − 1/n)."""
    lists = script.draw_lists(lab, size, 0)
    found = script.list_loss(lab.policy(), lists, np.arange(8), 0.3, True)
    assert found.item() == pytest.approx(np.log(lists.n), abs=1e-4)
    assert lists.rewards.shape == (8, 4) and lists.rows.prompt.tolist() == [i for i in range(8) for _ in range(4)]


def test_batches_cover_all_rows_before_any_comes_again(script):
    batches = script.shuffled(6, 2, 5, np.random.default_rng(0))
    assert len(batches) == 5 and sorted(np.concatenate(batches[:3]).tolist()) == list(range(6))
