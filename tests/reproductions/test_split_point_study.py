"""The study of split points on made-up data: its parts, its baselines against closed forms, and what its checks see."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def study():
    return script("split_point")


def line(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """y = 2x + noise whose spread is 0.1 + x."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (n, 2))
    return x, 2 * x[:, 0] + (0.1 + x[:, 0]) * rng.normal(size=n)


def clusters(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Three intents that overlap, and queries from elsewhere."""
    rng = np.random.default_rng(seed)
    centres = 2 * np.eye(3, 6)
    labels = {part: np.arange(n) % 3 for part, n in (("train", 90), ("val", 60), ("test", 60))}
    x = {part: centres[y] + rng.normal(0, 0.8, (len(y), 6)) for part, y in labels.items()}
    return {**x, "oos": rng.normal(0, 0.8, (40, 6)) + 2 * np.eye(6)[5]}, labels


def test_the_study_runs(study):
    size = study.Size(1, 1, 20, 2, 3, 3, 8, 3, 2, 3, 5)
    found = study.study(
        {"a": line(120, 0), "b": line(150, 1)}, *clusters(0), size, full=False,
        report=lambda text: None,
    )  # fmt: skip
    assert found.id == "split_point" and len(found.checks) == 9 and not found.models
    subjects = {f.subject for f in found.figures}
    assert {f"{name}: {method}" for name in "ab" for method in study.METHODS} <= subjects
    assert {f"intents: {study.SDS}", "intents: energy", "intents: probabilities temperature"} <= subjects
    assert all(f.low <= f.value <= f.high for f in found.figures)


def test_interval_scores_by_hand(study):
    y = np.array([0.5, -0.1, 1.2])
    scores = study.interval_scores(y, np.zeros(3), np.ones(3))
    assert scores == pytest.approx([1.0, 1 + 40 * 0.1, 1 + 40 * 0.2])


def test_members_become_one_law(study):
    """Two members at ±1 with variance 2: mean 0, variance 2 + 1."""
    raw = np.log(np.expm1(2 - 1e-4))
    found = study.gaussian(np.array([[1.0], [-1.0]]), np.full((2, 1), raw))
    assert found.v == pytest.approx(0) and found.score == pytest.approx(np.sqrt(3))
    assert found.high == pytest.approx(1.959964 * np.sqrt(3))


@pytest.mark.parametrize("make", ["split_points", "quantiles", "ensemble", "dropout"])
def test_every_method_covers_about_as_much_as_it_says(study, make):
    size = study.Size(steps=400, table_epochs=25, table_rate=3e-3, members=2, passes=10)
    (X, y), (tried, truth) = line(500, 2), line(1000, 3)
    for name, found in getattr(study, make)(X, y, tried, size, 0).items():
        covered = ((found.low <= truth) & (truth <= found.high)).mean()
        assert 0.85 < covered <= 1, name
        assert np.corrcoef(found.score, tried[:, 0])[0, 1] > 0.5, name  # all see where the noise is


def test_a_score_that_ranks_nothing_fails_its_check(study, monkeypatch):
    rng = np.random.default_rng(0)

    def blind(X, y, tried, size, seed):
        return {
            m: study.Predicted(*np.broadcast_arrays(np.zeros(len(tried)), -0.1, 0.1), rng.random(len(tried)))
            for m in (study.SPC, study.SPC_WIDE, study.SPC_HELD)
        }

    size = study.Size(splits=2, steps=80, table_epochs=9, table_rate=3e-3, members=2, passes=3, resamples=5)
    sets = {"a": line(600, 4)}
    assert study.tables_part(sets, size)[1][1].holds
    monkeypatch.setattr(study, "split_points", blind)
    checks = study.tables_part(sets, size)[1]
    assert not checks[0].holds and not checks[1].holds


def test_bags_of_words(study):
    texts = {"train": ["Book a flight", "book a hotel, a room", "play"], "test": ["BOOK it", "zzz"]}
    found = study.bags(texts)  # "a" and "book" stand twice
    idf = np.log(4 / 3) + 1
    assert found["train"][1] == pytest.approx(np.array([2, 1]) / np.sqrt(5)) and found["train"].shape == (3, 2)
    assert idf > 1 and found["test"].tolist() == [[0, 1], [0, 0]] and not found["train"][2].any()
