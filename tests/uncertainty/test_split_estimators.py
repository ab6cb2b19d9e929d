"""SplitPointRegressor and SplitPointClassifier: what they learn, their contract, their files, bad input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from likely.errors import DataError
from likely.metrics.ranking import auroc
from likely.uncertainty.split_point.classifier import SplitPointClassifier
from likely.uncertainty.split_point.regressor import SplitPointRegressor
from likely.uncertainty.split_point.residuals import self_consistency_gap

pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("split point estimators")]


def skewed(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """y = 5 + 2x + a centred exponential of scale 1 + x: MAR, U and D are known at every x."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, n)
    return x[:, None], 5 + 2 * x + (1 + x) * (rng.exponential(size=n) - 1)


def true_mean(X: np.ndarray) -> np.ndarray:
    return 5 + 2 * X[:, 0]


@pytest.fixture(scope="module")
def regressor() -> SplitPointRegressor:
    X, y = skewed(4000, 0)
    return SplitPointRegressor(true_mean, hidden=16, epochs=30, learning_rate=5e-3).fit(X, y)


def test_heads_find_the_sides_of_a_skewed_law(regressor):
    """At the mean: U = 1+x, MAR = (1+x)·2/e, D = MAR/(2(1−1/e)); the quantiles of y given its side are known too."""
    X = np.linspace(0.1, 0.9, 9)[:, None]
    scale = 1 + X[:, 0]
    heads = regressor.heads(X)
    assert np.abs(heads.upper / scale - 1).max() < 0.15
    assert np.abs(heads.mar / scale - 0.735759).max() < 0.1
    assert np.abs(heads.lower / scale - 0.581977).max() < 0.1
    assert np.abs(heads.quantile_up / scale - -np.log(0.05)).max() < 0.6
    assert regressor.predict(X).sds.max() < 0.1


def test_intervals_cover_as_their_level_says(regressor):
    X, y = skewed(4000, 1)
    found = regressor.predict(X)
    assert found._fields == ("v", "low", "high", "sds", "aleatoric") and np.array_equal(found.v, true_mean(X))
    assert abs(((found.low <= y) & (y <= found.high)).mean() - 0.95) < 0.025
    above, below = y > found.v, y < found.v
    assert abs((y <= found.high)[above].mean() - 0.95) < 0.04 and abs((y >= found.low)[below].mean() - 0.95) < 0.04
    heads = regressor.heads(X)
    assert np.allclose(found.aleatoric, heads.upper + heads.lower) and (found.sds >= 0).all()


@pytest.fixture(scope="module")
def wrong() -> SplitPointRegressor:
    """A base that is right for x < ½ and too low above."""
    X, y = skewed(2000, 3)
    base = SplitPointRegressor(
        lambda X: true_mean(X) - 1.0 * (X[:, 0] > 0.5),
        gap="product",
        hidden=16,
        epochs=40,
        learning_rate=5e-3,
        batch=64,
    )
    return base.fit(X, y)


def test_recalibration_only_widens(wrong):
    X, _ = skewed(200, 2)
    plain = wrong.predict(X)
    found, factors = wrong.set_params(recalibrate=True).predict(X), wrong.factors(X)
    wrong.set_params(recalibrate=False)
    assert np.allclose(found.high - found.v, (plain.high - plain.v) * factors.up)
    assert np.allclose(found.v - found.low, (plain.v - plain.low) * factors.down)
    assert (factors.up >= 1).all() and (np.maximum(factors.up, factors.down) > 1).any()


def test_a_wrong_prediction_shows(wrong):
    X, _ = skewed(1000, 8)
    found = wrong.predict(X)
    assert auroc(found.sds, (X[:, 0] > 0.5).astype(int)) > 0.9
    heads = wrong.heads(X)
    for gap in ("product", "root", "relative"):
        expected = self_consistency_gap(*heads[:3], gap=gap)
        assert np.array_equal(wrong.set_params(gap=gap).predict(X).sds, expected)
    assert found.uncertainty.higher_is == "less_certain" and found.uncertainty.kind == "score"


def test_units_of_y_do_not_matter():
    X, y = skewed(300, 4)
    small, large = (
        SplitPointRegressor(base_hidden=(8,), hidden=8, epochs=20, seed=3).fit(X, y * unit).predict(X)
        for unit in (1.0, 1024.0)
    )
    assert np.allclose(large.v, 1024 * small.v, rtol=1e-3) and np.allclose(large.high, 1024 * small.high, rtol=1e-3)
    assert np.allclose(large.sds, small.sds, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"held_out": 0.3}, {"base_hidden": (8, 8)}])
def test_with_its_own_base_and_again_from_a_file(tmp_path, settings):
    X, y = skewed(200, 5)
    made = SplitPointRegressor(**{"base_hidden": (8,), "hidden": 8, "epochs": 5} | settings)
    assert made.fit(X, y) is made
    again = SplitPointRegressor(**made.get_params()).fit(X, y)
    assert all(np.array_equal(a, b) for a, b in zip(made.predict(X), again.predict(X), strict=True))
    made.save(tmp_path / "split.safetensors")
    loaded = SplitPointRegressor.load(tmp_path / "split.safetensors")
    assert loaded.get_params() == made.get_params()
    assert all(np.array_equal(a, b) for a, b in zip(made.predict(X), loaded.predict(X), strict=True))


def test_rows_held_out_are_not_seen_by_the_base():
    X, y = skewed(200, 6)
    made = SplitPointRegressor(base_hidden=(8,), hidden=8, epochs=3, held_out=0.5).fit(X, y)
    order = np.random.default_rng(0).permutation(200)
    changed = y.copy()
    changed[order[:50]] += 7
    again = SplitPointRegressor(base_hidden=(8,), hidden=8, epochs=3, held_out=0.5).fit(X, changed)
    assert np.array_equal(made.predict(X).v, again.predict(X).v)
    assert not np.allclose(made.predict(X).high, again.predict(X).high)


def test_a_base_of_another_library(tmp_path):
    linear = pytest.importorskip("sklearn.linear_model")
    sklearn = pytest.importorskip("sklearn.base")
    X, y = skewed(300, 7)
    base = linear.LinearRegression().fit(X, y)
    made = SplitPointRegressor(base, lambda X: np.hstack([X, X**2]), hidden=8, epochs=5).fit(X, y)
    assert np.array_equal(made.predict(X).v, base.predict(X)) and made.heads_.inputs == 2 and made.base_ is None
    made.save(tmp_path / "heads")
    with pytest.raises(DataError, match="base= and features="):
        SplitPointRegressor.load(tmp_path / "heads")
    loaded = SplitPointRegressor.load(tmp_path / "heads", base=base, features=made.features)
    assert np.array_equal(loaded.predict(X).high, made.predict(X).high)
    copy = sklearn.clone(made)
    assert not hasattr(copy, "heads_") and copy.get_params()["hidden"] == 8


@pytest.mark.parametrize(
    "settings, y, message",
    [
        ({}, np.ones(20), "y is constant"),
        ({"base": lambda X: np.full(len(X), 9.0)}, np.arange(10.0).repeat(2), "none of 20 rows lies above"),
        ({"base": lambda X: np.zeros(3)}, np.arange(20.0), "predicts 3 values for 20 rows"),
        ({"tau": 1.0}, np.arange(20.0), "tau must lie between"),
        ({"gap": "squared"}, np.arange(20.0), 'unknown gap "squared"'),
        ({"held_out": 1.0}, np.arange(20.0), "held_out must be"),
        ({"held_out": 0.01}, np.arange(20.0), "held_out 0.01 of 20 rows leaves none for the heads"),
        ({"held_out": 0.2, "base": true_mean}, np.arange(20.0), "held_out is for the network"),
        ({"hidden": 0}, np.arange(20.0), "at least 1 unit"),
        ({}, np.arange(19.0), "y has 19 rows, X has 20"),
        ({}, np.array([np.inf, *range(19)]), "row 0 is inf"),
    ],
)
def test_bad_regressions_are_refused(settings, y, message):
    X = np.arange(20.0)[:, None] / 20
    with pytest.raises(ValueError, match=message):
        SplitPointRegressor(**{"epochs": 1} | settings).fit(X, y)


def test_use_before_and_beside_fit(regressor):
    with pytest.raises(ValueError, match="not fitted"):
        SplitPointRegressor().predict([[1.0]])
    with pytest.raises(ValueError, match=r"has no parameter \"taus\"; did you mean \"tau\""):
        SplitPointRegressor().set_params(taus=0.9)
    with pytest.raises(ValueError, match="has 2 columns, this was fitted on 1"):
        regressor.predict([[1.0, 2.0]])
    with pytest.raises(ValueError, match="row 1 holds a number"):
        regressor.predict([[1.0], [np.inf]])


# --- classes ----------------------------------------------------------------------------------------------------------


def overconfident(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(features, p, π, labels): two features name the law π; the classifier's p is π³ normalised."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 2))
    logits = features @ np.array([[1.0, -1.0, 0.2], [0.3, 0.5, -1.0]])
    pi = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = pi**3 / (pi**3).sum(axis=1, keepdims=True)
    labels = (rng.random((n, 1)) > pi.cumsum(axis=1)).sum(axis=1)
    return features, p, pi, labels


@pytest.fixture(scope="module")
def classifier() -> SplitPointClassifier:
    features, p, _, labels = overconfident(4000, 0)
    return SplitPointClassifier(hidden=32, epochs=40, learning_rate=3e-3).fit(features, p, labels)


def test_corrected_probabilities_come_near_the_truth(classifier):
    features, p, pi, _ = overconfident(2000, 1)
    found = classifier.predict(features, p)
    assert found._fields == ("probs", "sds", "entropy")
    assert np.abs(found.probs - pi).mean() < 0.5 * np.abs(p - pi).mean()
    assert np.abs(found.probs.sum(axis=1) - 1).max() < 1e-12 and (found.probs >= 0).all()
    assert (found.sds >= 0).all() and found.uncertainty.name == "sds"


@pytest.mark.slow
def test_sds_sees_where_the_probabilities_are_wrong(classifier):
    """SDS against what it would be with perfect heads, Σ|π−p||1−2p|."""
    features, p, pi, _ = overconfident(2000, 2)
    ideal = (np.abs(pi - p) * np.abs(1 - 2 * p)).sum(axis=1)
    assert np.corrcoef(classifier.predict(features, p).sds, ideal)[0, 1] > 0.8
    _, _, _, labels = overconfident(4000, 0)
    honest = SplitPointClassifier(hidden=32, epochs=40, learning_rate=3e-3)
    honest.fit(overconfident(4000, 0)[0], overconfident(4000, 0)[2], labels)
    assert honest.predict(features, pi).sds.mean() < 0.5 * classifier.predict(features, p).sds.mean()


def test_a_classifier_from_a_file(tmp_path, classifier):
    features, p, _, _ = overconfident(50, 3)
    classifier.save(tmp_path / "heads")
    loaded = SplitPointClassifier.load(tmp_path / "heads")
    assert loaded.get_params() == classifier.get_params() and loaded.classes_ == 3
    expected = classifier.predict(features, p)
    assert all(np.array_equal(a, b) for a, b in zip(expected, loaded.predict(features, p), strict=True))


def test_files_that_are_not_ours_are_refused(tmp_path, classifier, regressor):
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "heads"
    classifier.save(path)
    with pytest.raises(DataError, match="holds no split-point regressor"):
        SplitPointRegressor.load(path)
    (tmp_path / "code").write_bytes(pickle.dumps({"a": 1}))
    for wrong in (tmp_path / "code", tmp_path / "nothing"):
        with pytest.raises(DataError, match="cannot read"):
            SplitPointClassifier.load(wrong)
    arrays = load_file(path)
    good = {"format": "likely-split-point-1", "kind": "classifier", "params": "{}", "learned": '{"classes": 3}'}
    save_file(arrays, path, good)
    assert SplitPointClassifier.load(path).classes_ == 3
    for change, message in (
        ({"params": '{"hiden": 3}'}, "is damaged"),
        ({"params": '{"epochs": "many"}'}, "is damaged"),
        ({"params": "["}, "is damaged"),
        ({"learned": '{"classes": 4}'}, "do not fit"),
        ({"learned": "{}"}, "is damaged"),
    ):
        save_file(arrays, path, good | change)
        with pytest.raises(DataError, match=message):
            SplitPointClassifier.load(path)
    save_file({k: v for k, v in arrays.items() if k != "above.1.bias"}, path, good)
    with pytest.raises(DataError, match=r"above.1.bias: is missing"):
        SplitPointClassifier.load(path)


@pytest.mark.parametrize(
    "settings, change, message",
    [
        ({}, {"y": [1, 1, 1, 1]}, "all 4 rows are of class 1"),
        ({}, {"y": [0, 1, 2, 3]}, "row 3 is 3"),
        ({}, {"probs": [[0.5, 0.3, 0.2]] * 3, "y": [0, 1, 2]}, "features have 4 rows, probs 3"),
        ({}, {"probs": [[0.5, 0.3, 0.1]] * 4}, "row 0 sums to"),
        ({}, {"features": [[0.0], [1.0], [np.nan], [2.0]]}, "row 2"),
        ({"hidden": 0}, {}, "hidden must be at least 1"),
        ({"tolerance": -1.0}, {}, "tolerance must be >= 0"),
        ({"epochs": 0}, {}, "epochs must be >= 1"),
    ],
)
def test_bad_classifications_are_refused(settings, change, message):
    given = {"features": [[0.0], [1.0], [2.0], [3.0]], "probs": [[0.5, 0.3, 0.2]] * 4, "y": [0, 1, 2, 0]} | change
    with pytest.raises(ValueError, match=message):
        SplitPointClassifier(**{"epochs": 1} | settings).fit(given["features"], given["probs"], given["y"])


def test_other_numbers_of_classes_and_features_are_refused(classifier):
    with pytest.raises(ValueError, match="have 2 classes, this was fitted on 3"):
        classifier.predict([[0.0, 1.0]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match="has 1 columns, this was fitted on 2"):
        classifier.predict([[0.0]], [[0.5, 0.3, 0.2]])
    with pytest.raises(ValueError, match="not fitted"):
        SplitPointClassifier().predict([[0.0]], [[0.5, 0.5]])
