"""The study of RSO in the smallest lab: which pairs are made, what is counted, and that a stopped run goes on."""

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
    return load_script("rso")


@pytest.fixture(scope="module")
def lab(script, lab_folder, data_dir):
    laboratory = load_script("sentiment_lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELY_DATA", str(data_dir))
        return laboratory.open_lab(lab_folder, laboratory.SMALLEST)


@pytest.fixture(scope="module")
def size(script):
    return replace(script.TOY, seeds=1)


@pytest.fixture(scope="module")
def kept(script, lab, size):
    values = KeptValues(None)
    script.run_seed(lab, size, 0, values)
    return values


def test_the_study_counts_what_was_measured(script, lab, size, kept):
    found = script.study(size, lab, kept, full=False, threads=1, plot=None)
    assert found.mode == "quick" and len(found.checks) == 6 and "1 seeds; 8 training prompts" in found.samples
    rows = {(f.subject, f.quantity): f for f in found.figures}
    assert rows["rso, γ 0.1 1", "KL"].n == 12 and rows["reference", "KL"].value == 0
    assert rows["best-of 2", "bound of KL"].value == pytest.approx(np.log(2) - 0.5)
    assert rows["best-of 8", "proxy reward"].value > rows["best-of 2", "proxy reward"].value
    assert {f.subject for f in found.figures if "equal KL" in f.quantity} == {
        "rso less direct", "rso less sft", "rso less best-of-n"
    }  # fmt: skip


def test_a_stopped_run_goes_on(script, lab, size, kept, monkeypatch):
    monkeypatch.setattr(script, "sources", lambda *_: pytest.fail("drawn again"))
    script.run_seed(lab, size, 0, kept)
    other = script.pool(kept, size)
    assert list(other.sweeps) == [f"{method}, γ 0.1" for method in script.METHODS]


def test_accepted_candidates_have_more_reward(kept):
    found = kept["0 candidates"]
    assert found["rso proxy"] > found["sft proxy"] and 0 < found["acceptance rate"] < 1


def test_pairs_are_disjoint_and_the_larger_reward_wins(script, lab):
    rows = lab.sample(lab.reference, lab.prompts[:3], 8, seed=0)
    rewards = np.arange(24.0)
    pairs = script.disjoint_pairs(rows, rewards, np.random.default_rng(0))
    both = [*pairs.winners, *pairs.losers]
    assert len(pairs.winners) == 12 and sorted(both) == list(range(24))
    assert (rewards[pairs.winners] > rewards[pairs.losers]).all()
    assert (rows.prompt[pairs.winners] == rows.prompt[pairs.losers]).all()
    assert not len(script.disjoint_pairs(rows, np.zeros(24), np.random.default_rng(0)).winners)


def test_the_loss_starts_at_that_of_no_margin(script, lab):
    """Log-ratios of the reference to itself are 0: the logistic loss begins at log 2."""
    rows = lab.sample(lab.reference, lab.prompts[:3], 8, seed=0)
    pairs = script.disjoint_pairs(rows, np.arange(24.0), np.random.default_rng(0))
    margins = []

    def link(margin):
        margins.append(margin.detach())
        return torch.nn.functional.softplus(-margin)

    one_step = replace(script.TOY, checkpoints=(1,))
    script.train_on_pairs(lab, pairs, link, True, one_step, 0, lambda policy, step: None)
    assert margins[0].abs().max() < 1e-4
    script.train_on_pairs(lab, pairs, link, False, one_step, 0, lambda policy, step: None)
    assert margins[1].abs().max() > 1e-2
