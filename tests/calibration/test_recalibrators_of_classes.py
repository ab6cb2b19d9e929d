"""Vector, matrix, Dirichlet, one-vs-rest: the same objectives minimised by other means, and the accuracy told."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from likely.calibration.recalibrators.binning import Histogram
from likely.calibration.recalibrators.isotonic import Isotonic
from likely.calibration.recalibrators.one_vs_rest import OneVsRest
from likely.calibration.recalibrators.scaling import PENALTIES, Dirichlet, Matrix, Temperature, Vector
from likely.calibration.recalibrators.sigmoid import Beta, Platt
from likely.calibration.recalibrators.table import from_dict

K = 3
WEIGHTS, BIAS = np.array([0.4, 0.7, 0.5]), np.array([0.8, 0.0, -0.8])


def drawn(n, seed=0):
    """Logits, and labels drawn from softmax(w ∘ log p + b)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, K)) * 2
    p = softmax(WEIGHTS * log_softmax(z, axis=1) + BIAS, axis=1)
    return z, (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


def nll(scores, labels):
    return -log_softmax(scores, axis=1)[np.arange(len(scores)), labels].mean()


def lowest(objective, start):
    """By BFGS with numerical gradients: slow, and knows nothing of ours."""
    return minimize(objective, start, method="BFGS", options={"gtol": 1e-7}).x


def test_maps_are_what_their_formulas_say():
    p, accuracies = np.array([[0.2, 0.3, 0.5]]), {"accuracy_before_": 0.5, "accuracy_after_": 0.5}
    learned = {"weights_": [1, 2, 0], "bias_": [0, 0, np.log(0.1)]} | accuracies
    vector = from_dict({"method": "vector", "params": {"input": "probs"}, "learned": learned})
    assert vector.predict_proba(p) == pytest.approx(np.array([[0.2, 0.09, 0.1]]) / 0.39)
    learned = {"weights_": [[0, 1, 0], [1, 0, 0], [1, 1, 0]], "bias_": [0, 0, 0]} | accuracies  # rows are new classes
    matrix = from_dict({"method": "matrix", "params": {"input": "probs"}, "learned": learned})
    assert matrix.predict_proba(p) == pytest.approx(np.array([[0.3, 0.2, 0.06]]) / 0.56)


# --- vector and matrix ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_vector_minimises_its_objective(l2):
    z, labels = drawn(300)
    logp, beta = log_softmax(z, axis=1), 1 / Temperature().fit(z, labels).temperature_

    def objective(theta):
        w, b = theta[:K], theta[K:]
        return nll(w * logp + b, labels) + l2 / 2 * (((w - beta) ** 2).sum() + (b**2).sum())

    best = lowest(objective, np.ones(2 * K))
    fitted = Vector(l2=l2).fit(z, labels)
    assert np.concatenate([fitted.weights_, fitted.bias_]) == pytest.approx(best, abs=2e-4)


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_matrix_minimises_its_objective(l2):
    z, labels = drawn(300, seed=1)
    logp, beta = log_softmax(z, axis=1), 1 / Temperature().fit(z, labels).temperature_

    def objective(theta):
        w, b = theta[: K * K].reshape(K, K), theta[K * K :]
        return nll(logp @ w.T + b, labels) + l2 / 2 * (((w - beta * np.eye(K)) ** 2).sum() + (b**2).sum())

    best = lowest(objective, np.concatenate([np.eye(K).ravel(), np.zeros(K)]))
    fitted = Matrix(l2=l2).fit(z, labels)
    assert np.concatenate([fitted.weights_.ravel(), fitted.bias_]) == pytest.approx(best, abs=2e-4)


@pytest.mark.parametrize("make", [lambda: Matrix(l2=0.0), lambda: Dirichlet(penalty=1e-9, input="logits")])
def test_without_a_penalty_a_matrix_is_scikit_learns_logistic_regression(make):
    linear_model = pytest.importorskip("sklearn.linear_model")
    z, labels = drawn(1000, seed=2)
    logp = log_softmax(z, axis=1)
    theirs = linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000).fit(logp, labels)
    assert make().fit(z, labels).predict_proba(z) == pytest.approx(theirs.predict_proba(logp), abs=5e-4)


def test_vector_finds_the_map_that_labels_were_drawn_with():
    z, labels = drawn(50_000, seed=3)
    fitted = Vector().fit(z, labels)
    assert fitted.weights_ == pytest.approx(WEIGHTS, abs=0.06)
    assert fitted.bias_ - fitted.bias_.mean() == pytest.approx(BIAS, abs=0.1)


@pytest.mark.parametrize("make", [Vector, Matrix])
def test_a_strong_pull_leaves_temperature_scaling(make):
    z, labels = drawn(300, seed=4)
    expected = Temperature().fit(z, labels).predict_proba(z)
    assert make(l2=1e6).fit(z, labels).predict_proba(z) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="l2 must be >= 0, got -1"):
        make(l2=-1).fit(z, labels)


@pytest.mark.parametrize("make", [Vector, Matrix, lambda **how: Dirichlet(penalty=0.01, **how)])
def test_logits_and_probs_agree_and_a_constant_in_a_row_changes_nothing(make):
    z, labels = drawn(300, seed=5)
    expected = make(input="logits").fit(z, labels).predict_proba(z)
    moved = z + 100 * np.arange(300)[:, None]
    assert make(input="logits").fit(moved, labels).predict_proba(moved) == pytest.approx(expected, abs=1e-4)
    p = softmax(z, axis=1)
    assert make(input="probs").fit(p, labels).predict_proba(p) == pytest.approx(expected, abs=1e-4)


# --- Dirichlet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.05, 5.0])
def test_dirichlet_minimises_its_objective(penalty):
    z, labels = drawn(300, seed=6)
    p = softmax(z, axis=1)
    off = ~np.eye(K, dtype=bool)

    def objective(theta):
        w, b = theta[: K * K].reshape(K, K), theta[K * K :]
        return nll(np.log(p) @ w.T + b, labels) + penalty * ((w[off] ** 2).mean() + (b**2).mean())

    best = lowest(objective, np.concatenate([np.eye(K).ravel(), np.zeros(K)]))
    fitted = Dirichlet(penalty=penalty).fit(p, labels)
    assert np.concatenate([fitted.weights_.ravel(), fitted.bias_]) == pytest.approx(best, abs=5e-4)
    assert fitted.penalty_ == penalty


def test_the_penalty_is_chosen_by_held_out_loss():
    """Labels that only a bias explains want little of it; labels that say nothing of the classes want much."""
    z, labels = drawn(600, seed=7)
    p = softmax(z, axis=1)
    little = Dirichlet().fit(p, labels)
    assert little.penalty_ in PENALTIES[3:]
    noise = np.random.default_rng(8).dirichlet(np.ones(K), 60)
    much = Dirichlet().fit(noise, np.arange(60) % K)
    assert much.penalty_ > 10 * little.penalty_
    assert Dirichlet(seed=1).fit(p, labels).to_dict() == Dirichlet(seed=1).fit(p, labels).to_dict()
    by_hand = Dirichlet(penalty=little.penalty_).fit(p, labels)
    assert by_hand.weights_ == pytest.approx(little.weights_) and by_hand.bias_ == pytest.approx(little.bias_)


def test_dirichlet_settings_are_checked():
    p = softmax(drawn(30)[0], axis=1)
    for bad in (0, -1.0, "best", None, float("nan")):
        with pytest.raises(ValueError, match='penalty must be > 0 or "auto", got'):
            Dirichlet(penalty=bad).fit(p, [0, 1, 2] * 10)
    with pytest.raises(ValueError, match='penalty="auto" needs at least 3 rows, got 2'):
        Dirichlet().fit(p[:2], [0, 1])


# --- what happens to accuracy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [Vector, Matrix, lambda: Dirichlet(penalty=0.01, input="logits"), lambda: OneVsRest(Beta(), input="logits")],
    ids=["vector", "matrix", "dirichlet", "one_vs_rest"],
)
def test_accuracy_without_and_with_the_map_is_told(make):
    z, labels = drawn(2000, seed=9)
    fitted = make().fit(z, labels)
    assert fitted.accuracy_before_ == (z.argmax(axis=1) == labels).mean()
    assert fitted.accuracy_after_ == (fitted.predict_proba(z).argmax(axis=1) == labels).mean()
    assert fitted.accuracy_after_ > fitted.accuracy_before_ + 0.02  # the bias was learned
    assert fitted.to_dict()["learned"]["accuracy_after_"] == fitted.accuracy_after_


# --- one-vs-rest ------------------------------------------------------------------------------------------------------


def test_one_vs_rest_is_a_map_for_each_class_divided_by_the_sum():
    z, labels = drawn(400, seed=10)
    p = softmax(z, axis=1)
    each = np.stack([Platt().fit(p[:, k], labels == k).predict_proba(p[:, k]) for k in range(K)], axis=1)
    fitted = OneVsRest(Platt()).fit(p, labels)
    assert fitted.predict_proba(p) == pytest.approx(each / each.sum(axis=1, keepdims=True), abs=1e-12)
    assert "a_" not in vars(fitted.base)  # copies are fitted


def test_one_vs_rest_isotonic_as_scikit_learn():
    isotonic = pytest.importorskip("sklearn.isotonic")
    z, labels = drawn(1200, seed=11)
    p = softmax(z, axis=1)
    theirs = [isotonic.IsotonicRegression(out_of_bounds="clip").fit(p[:, k], labels == k) for k in range(K)]
    each = np.stack([one.predict(column) for one, column in zip(theirs, p.T, strict=True)], axis=1)
    assert OneVsRest(Isotonic()).fit(p, labels).predict_proba(p) == pytest.approx(
        each / each.sum(axis=1, keepdims=True), abs=1e-12
    )


def test_a_row_of_zeros_becomes_uniform():
    """A histogram says 0 of every class where no row with such a confidence was of that class."""
    p = np.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.01, 0.01, 0.98], [0.3, 0.3, 0.4]] * 50)
    labels = np.array([0, 1, 2, 0] * 50)
    fitted = OneVsRest(Histogram(bins=10, binning="width")).fit(p, labels)
    zero = fitted.predict_proba([[0.001, 0.001, 0.998], [0.98, 0.01, 0.01]])
    assert zero[0] == pytest.approx([0, 0, 1]) and zero[1] == pytest.approx([1, 0, 0])
    for one in fitted.maps_:
        one.values_ = np.zeros(10)
    assert fitted.predict_proba([[0.2, 0.3, 0.5]]) == pytest.approx(1 / 3)


def test_one_vs_rest_says_once_what_its_maps_warn_of_and_wants_confidences():
    z, labels = drawn(300, seed=12)
    with pytest.warns(UserWarning) as caught:
        OneVsRest(Isotonic(), input="logits").fit(z, labels)
    assert [str(w.message)[:43] for w in caught] == ["one-vs-rest: isotonic was fitted on 300 rows"[:43]]
    with pytest.raises(ValueError, match='temperature takes logits; one-vs-rest needs a map with input "confidence"'):
        OneVsRest(Temperature(), input="logits").fit(z, labels)
    with pytest.raises(ValueError, match='platt takes score; one-vs-rest needs a map with input "confidence"'):
        OneVsRest(Platt(input="score"), input="logits").fit(z, labels)
