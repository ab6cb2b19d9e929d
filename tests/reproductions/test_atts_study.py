"""The study of ATTS on tiny models and made-up scores: its rates, its policies, its clock."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.evidence import Source

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def study():
    return script("atts")


@pytest.fixture(scope="module")
def simulation():
    return script("atts_simulation")


def rows_of(study, rng, *, shift=0.0, questions=60):
    return [
        {
            "calibration": [rng.normal(loc=q, size=8).tolist(), rng.normal(loc=q + shift, size=8).tolist()],
            "chains": [rng.normal(loc=q, size=8).tolist(), rng.normal(loc=q + shift, size=5).tolist()],
        }
        for q in rng.normal(size=questions)
    ]


def test_rates_of_exchangeable_scores_hold_and_drift_is_seen(study):
    figures, checks, said = study.rates(rows_of(study, np.random.default_rng(0), shift=3.0))
    values = {(f.subject, f.quantity): f.value for f in figures}
    assert [c.holds for c in checks] == [True, True] and "marginal, round 1" in said
    for rate in study.RATES:
        name = f"rejected, nominal {rate:g}"
        assert values["marginal, later rounds, scores of round 1", name] < rate - 0.1
        for way in ("marginal", "conditional"):
            assert abs(values[f"{way}, later rounds, scores of the same round", name] - rate) < 0.08


def test_calibration_on_other_scores_is_noticed(study):
    rows = rows_of(study, np.random.default_rng(1))
    for row in rows:
        row["chains"][0] = [s + 1 for s in row["chains"][0]]
    assert [c.holds for c in study.rates(rows)[1]] == [False, False]


def test_policies_by_hand(study):
    rng = np.random.default_rng(2)
    right = (rng.random((50, 8)) < 0.5).astype(float)
    told = study.Drafts(right * 5 + rng.normal(size=(50, 8)), right, np.full((50, 8), 0.8))
    blind = study.Drafts(rng.normal(size=(50, 8)), right, np.full((50, 8), 0.8))
    for found, gains in ((told, True), (blind, False)):
        over = study.taken_over(found, 0.5)
        assert over["worst B of each question"].sum(axis=1).tolist() == [4] * 50
        assert abs(over["conformal"].mean() - 0.5) < 0.02
        better = study.accuracy_of(found, over["conformal"]) - study.random_accuracy(found, over["conformal"])
        assert better.mean() > 0.15 if gains else abs(better.mean()) < 0.05
    _, checks, _ = study.usefulness({"told": told, "blind": blind})
    assert [c.holds for c in checks] == [True, True]
    assert [c.holds for c in study.usefulness({"blind": blind})[1]][1] is False


def test_without_spread_nobody_waits(simulation):
    """Turns of one length, as many slots as chains: both ways take the same, up to who is taken over."""
    setting = simulation.Setting(8, 3, (8, 8), 0.0)
    found = simulation.times(setting, 0)
    draft, target, score = simulation.DRAFT_S, simulation.TARGET_S, simulation.SCORE_S
    assert found.barrier_s == pytest.approx(3 * (draft + score + target))
    assert found.asynchronous_s <= found.barrier_s + 1e-6
    assert found.waiting_s == pytest.approx(3 * target * (8 - round(0.4 * 8)) / 8)


def test_barriers_cost_more_the_more_chains_there_are(simulation):
    mean = {
        m: np.mean([simulation.times(simulation.Setting(m, 6, (m, m), 0.8), seed).ratio for seed in range(4)])
        for m in (2, 24)
    }
    assert 1 < mean[2] < mean[24] < math.inf


def test_the_study_runs_and_goes_on_where_it_ended(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 20)
    monkeypatch.setattr(study, "same_text", lambda text, answer: len(text) % 2 == 0)
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=1024)
    size = study.Size(3, 99, 2, 4, samples=3, asked=4, simulated=1)
    said: list[str] = []

    def opened():
        return likely.load(str(path), runtime="llamacpp", threads=1)

    rows = tmp_path / "rows.jsonl"
    settings = {"rows": rows, "full": False, "sources": [Source(name="tiny", sha256="0" * 64)]}
    found = study.study(opened, opened, ["a", "b", "c"], size, report=said.append, **settings)
    assert found.id == "atts" and len(found.checks) == 7 and len(said) == 3
    before = rows.read_bytes()
    assert before.count(b"\n") == 4
    rows.write_bytes(b"".join(before.splitlines(keepends=True)[:3]))
    with opened() as lm, opened() as other:
        again = study.rate_rows(lm, other, ["a", "b", "c"], size, rows)
    assert len(again) == 3 and rows.read_bytes().splitlines()[:3] == before.splitlines()[:3]
