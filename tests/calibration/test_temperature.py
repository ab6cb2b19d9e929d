"""Temperature scaling against other minimisers, on data whose temperature is known, and where fits run away."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from likely.calibration.recalibrators.scaling import Temperature


def drawn(n, classes=5, true=2.0, spread=3.0, seed=0):
    """Logits, and labels drawn from softmax(z / true)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * spread
    return z, (softmax(z / true, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


def nll(z, labels, temperature):
    return -log_softmax(z / temperature, axis=1)[np.arange(len(z)), labels].mean()


@pytest.mark.parametrize("true", [0.5, 1.0, 2.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(true):
    # the standard error of T is about 0.02 at T = 2
    assert Temperature().fit(*drawn(20_000, true=true)).temperature_ == pytest.approx(true, abs=0.05 * true)


@pytest.mark.parametrize(("classes", "spread"), [(2, 0.3), (5, 3.0), (30, 20.0)])
def test_as_a_bounded_search_over_the_nll(classes, spread):
    z, labels = drawn(500, classes, spread=spread, seed=1)
    found = minimize_scalar(
        lambda log_t: nll(z, labels, np.exp(log_t)), bounds=(-5, 5), method="bounded", options={"xatol": 1e-10}
    )
    fitted = Temperature().fit(z, labels)
    assert fitted.temperature_ == pytest.approx(np.exp(found.x), rel=1e-5) and fitted.at_bound_ is False
    assert nll(z, labels, fitted.temperature_) <= found.fun + 1e-14


def test_as_scikit_learn():
    pytest.importorskip("sklearn", minversion="1.8")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Says(ClassifierMixin, BaseEstimator):
        """A classifier whose logits are its features."""

        def fit(self, x, y):
            return self

        def __sklearn_is_fitted__(self):
            return True

        def decision_function(self, x):
            return x

        def predict(self, x):
            return x.argmax(axis=1)

    z, labels = drawn(800, seed=2)
    says = Says()
    says.classes_ = np.arange(5)
    theirs = CalibratedClassifierCV(FrozenEstimator(says), method="temperature").fit(z, labels)
    assert Temperature().fit(z, labels).predict_proba(z) == pytest.approx(theirs.predict_proba(z), abs=1e-6)


@pytest.mark.parametrize("scale", [0.01, 3.0, 40.0])
def test_logits_times_c_have_c_times_the_temperature(scale):
    z, labels = drawn(500, seed=3)
    one, scaled = Temperature().fit(z, labels), Temperature().fit(scale * z, labels)
    assert scaled.temperature_ == pytest.approx(scale * one.temperature_, rel=1e-9)
    assert scaled.predict_proba(scale * z) == pytest.approx(one.predict_proba(z), abs=1e-10)


def test_what_is_added_to_a_row_changes_nothing_and_probs_are_as_good_as_logits():
    z, labels = drawn(500, seed=4)
    fitted = Temperature().fit(z, labels)
    assert Temperature().fit(z + 1000 * np.arange(500)[:, None], labels).temperature_ == pytest.approx(
        fitted.temperature_, rel=1e-9
    )
    of_probs = Temperature(input="probs").fit(softmax(z, axis=1), labels)
    assert of_probs.temperature_ == pytest.approx(fitted.temperature_, rel=1e-9)
    assert of_probs.predict_proba(softmax(z, axis=1)) == pytest.approx(fitted.predict_proba(z), abs=1e-9)


def test_confident_logits_do_not_make_it_run_away():
    """Right in 95 of 100, margins of 60: a Newton or L-BFGS step that trusts the curvature at β = 1 goes nowhere."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(2000, 10)) * 2
    labels = rng.integers(0, 10, 2000)
    z[np.arange(2000), labels] += np.where(rng.random(2000) < 0.95, 60.0, -60.0)
    fitted = Temperature().fit(z, labels)
    assert not fitted.at_bound_ and 10 < fitted.temperature_ < 100
    around = [nll(z, labels, fitted.temperature_ * factor) for factor in (0.99, 1.0, 1.01)]
    assert around[1] < min(around[0], around[2]) < nll(z, labels, 1.0) - 2


@pytest.mark.slow
def test_half_precision_logits_are_computed_in_double():
    z, labels = drawn(5000, classes=100, seed=6)
    half = (z + 300).astype(np.float16)  # a quarter is the step between numbers there
    exact = half.astype(np.float64)
    assert Temperature().fit(half, labels).temperature_ == Temperature().fit(exact, labels).temperature_
    p = Temperature().fit(half, labels).predict_proba(half)
    assert p == pytest.approx(softmax(exact / Temperature().fit(exact, labels).temperature_, axis=1), abs=1e-12)


def test_labels_without_a_finite_temperature_give_an_end_of_the_range_and_say_so():
    z, _ = drawn(100, seed=7)
    right = Temperature().fit(z, z.argmax(axis=1))
    wrong = Temperature().fit(z, z.argmin(axis=1))
    assert (right.temperature_, right.at_bound_) == (pytest.approx(1e-3), True)
    assert (wrong.temperature_, wrong.at_bound_) == (pytest.approx(1e3), True)


def test_no_order_of_classes_changes():
    z, labels = drawn(300, seed=8)
    p = Temperature().fit(z, labels).predict_proba(z)
    assert np.array_equal(p.argsort(axis=1), z.argsort(axis=1))
