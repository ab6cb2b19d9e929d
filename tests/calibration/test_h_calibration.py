"""h-calibration fitted: never worse than temperature scaling where it compares, better where that is too stiff."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from likely.calibration.h import recalibrator as h_calibration
from likely.calibration.h.maps import HMap
from likely.calibration.h.recalibrator import MAPS, METRICS, HCalibrator
from likely.calibration.h.train import TRAINABLE, Setting, train_map
from likely.calibration.recalibrators.scaling import Temperature
from likely.calibration.recalibrators.table import from_dict, make
from likely.errors import DataError
from likely.metrics.bins import top_label_ece
from likely.metrics.checks import log_softmax, softmax

torch = pytest.importorskip("torch")


def data(n=400, k=4, seed=0, truth=None):
    """Over-sure logits, and labels drawn from truth(log p), by default a temperature of 2."""
    rng = np.random.default_rng(seed)
    z = log_softmax(4 * rng.standard_normal((n, k)))
    probs = softmax(z / 2) if truth is None else truth(z)
    return z, np.minimum((rng.random((n, 1)) > probs.cumsum(axis=1)).sum(axis=1), k - 1)


def quiet(**params):
    return HCalibrator(**{"window": 10, "max_steps": 30, **params})


@pytest.mark.parametrize("kind", sorted(TRAINABLE))
def test_training_starts_from_a_temperature_and_what_it_exports_is_what_it_trained(kind):
    z, _ = data(50)
    z[3, 1] = -np.inf
    z = log_softmax(z)
    made = TRAINABLE[kind](z, 0.6, torch.Generator().manual_seed(0))
    forward = made.forward(np.arange(50)).detach().numpy()
    assert np.allclose(forward, made.export().predict(z), rtol=0, atol=1e-12)
    if kind == "linear":  # temperatures from half to twice the one given
        assert made.export().values["inverse_temperatures"][[0, -1]] == pytest.approx([0.3, 1.2])
    else:
        assert np.allclose(forward, softmax(0.6 * z), rtol=0, atol=0.05)
        assert forward[3, 1] == 0


@pytest.mark.parametrize("kind", sorted(TRAINABLE))
def test_training_lowers_its_metric_and_never_keeps_a_worse_step(kind):
    z, labels = data(300, truth=lambda z: softmax(z))
    setting = Setting(METRICS["nll"], window=50, max_steps=60)
    started = TRAINABLE[kind](z, 0.3, torch.Generator().manual_seed(0)).export()
    trained = train_map(kind, z, labels, 0.3, setting)
    before, after = (METRICS["nll"](one.predict(z), labels) for one in (started, trained))
    assert after < before - 0.01
    stuck = train_map(kind, z, labels, 0.3, Setting(lambda probs, labels: 1.0, max_steps=20))
    assert np.array_equal(stuck.predict(z), started.predict(z))


@pytest.mark.parametrize("kind", sorted(TRAINABLE))
def test_classes_with_logit_minus_infinity_spoil_nothing(kind):
    z, labels = data(300)
    z[np.arange(300), (labels + 1) % 4] = -np.inf
    one = quiet(map=kind, select="nll").fit(z, labels)
    assert all(np.isfinite(value).all() for value in one.map_.values.values())
    probs = one.predict_proba(z)
    assert (probs[np.isneginf(z)] == 0).all() and np.allclose(probs.sum(axis=1), 1)


@pytest.mark.parametrize("kind", MAPS)
def test_no_row_changes_its_order_of_classes(kind):
    z, labels = data(300, 6)
    one = quiet(map=kind).fit(z, labels)
    probs = one.predict_proba(z)
    order = np.argsort(z, axis=1)
    assert (np.diff(np.take_along_axis(probs, order, axis=1), axis=1) >= 0).all()
    assert np.array_equal(probs.argmax(axis=1), z.argmax(axis=1))
    assert np.allclose(one.predict_proba(z + 7), probs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("select", sorted(METRICS))
def test_never_worse_than_temperature_by_the_metric_it_is_selected_by(select):
    z, labels = data(240, seed=3)
    one = quiet(select=select, max_steps=10).fit(z, labels)
    found = one.cross_validated_
    assert list(found) == list(MAPS) and one.map_.kind == min(found, key=found.get)
    assert found[one.map_.kind] <= found["temperature"]
    fold = np.random.default_rng(0).permutation(240) % 3
    held_out = np.empty_like(z)
    for k in range(3):
        held_out[fold == k] = Temperature().fit(z[fold != k], labels[fold != k]).predict_proba(z[fold == k])
    assert found["temperature"] == pytest.approx(METRICS[select](held_out, labels), abs=1e-9)


def test_maps_that_train_badly_are_not_returned(monkeypatch):
    def spoiled(kind, logp, labels, beta, setting):
        return HMap("temperature", {"inverse_temperatures": np.array([0.01])})

    monkeypatch.setattr(h_calibration, "train_map", spoiled)
    z, labels = data(300)
    one = quiet().fit(z, labels)
    assert one.map_.kind == "temperature"
    assert np.allclose(one.predict_proba(z), Temperature().fit(z, labels).predict_proba(z), rtol=0, atol=1e-12)


def test_the_truth_of_another_shape_is_found_where_a_temperature_cannot_be_right():
    """True slopes: 1 close to certainty, 0.05 away from it."""
    bent = HMap("piecewise", {"nodes": np.array([-100.0, -1.0, 0.0]), "density": np.array([0.05, 1.0])})
    z, labels = data(2000, truth=bent.predict)
    fresh, truth = data(20_000, seed=1, truth=bent.predict)
    bending = HCalibrator(map="nonlinear", select="nll", max_steps=150).fit(z, labels)
    stiff = Temperature().fit(z, labels)
    errors = [top_label_ece(one.predict_proba(fresh), truth) for one in (bending, stiff)]
    assert errors[0] < 0.8 * errors[1]


def test_where_a_temperature_is_true_it_is_found():
    z, labels = data(4000)
    one = HCalibrator(map="temperature").fit(z, labels)
    [beta] = one.map_.values["inverse_temperatures"]
    assert 1 / beta == pytest.approx(2, abs=0.25)
    assert one.floor_ > 0 and one.loss_ < 1.5 * one.floor_


def test_two_classes_and_probabilities_instead_of_logits():
    z, labels = data(300, 2)
    one = quiet(input="probs", map="piecewise").fit(np.exp(z), labels)
    assert one.map_classes_ == 2 and np.allclose(one.predict_proba(np.exp(z)).sum(axis=1), 1)
    same = quiet(map="piecewise").fit(z, labels)
    assert np.allclose(one.predict_proba(np.exp(z)), same.predict_proba(z), atol=1e-6)


@pytest.mark.parametrize("classes, loco", [(2, False), (3, True), (200, True), (201, False)])
def test_when_classes_are_left_out_by_themselves(classes, loco):
    one = HCalibrator(window=2)
    assert one._setting(50, classes).loco is loco
    assert one.set_params(loco=not loco)._setting(50, classes).loco is not loco


def test_labels_of_one_class_only():
    z, _ = data(100)
    probs = quiet(map="piecewise", loco=True).fit(z, np.zeros(100, int)).predict_proba(z)
    assert np.isfinite(probs).all()


def test_rows_that_are_drawn_may_miss_a_class(monkeypatch):
    monkeypatch.setattr("likely.calibration.h.train.PAIRS", 60)  # 10 rows of 6 classes in each step
    z, labels = data(200, 6)
    labels[labels == 5] = 0
    labels[0] = 5
    assert quiet(map="piecewise", loco=True, window=10).fit(z, labels).map_.kind == "piecewise"


def test_the_same_seed_gives_the_same_map():
    z, labels = data(200)
    one, other = (quiet(map="nonlinear", select="nll", seed=5).fit(z, labels) for _ in range(2))
    assert one.to_dict() == other.to_dict()


def test_few_rows_narrow_the_window_and_say_so():
    z, labels = data(90)
    with pytest.warns(UserWarning, match="h: a window of 18 instead of 200, since there are only 90 rows of 4 classes"):
        HCalibrator(map="piecewise", max_steps=5).fit(z, labels)
    z, labels = data(1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HCalibrator(map="piecewise", max_steps=5).fit(z, labels)


@pytest.mark.parametrize("kind", ["auto", *MAPS])
def test_saved_and_restored(kind):
    z, labels = data(120)
    one = quiet(map=kind, max_steps=10).fit(z, labels)
    again = from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False)))
    assert isinstance(again, HCalibrator) and again.get_params() == one.get_params()
    assert np.array_equal(again.predict_proba(z), one.predict_proba(z))
    assert (again.loss_, again.floor_, again.map_classes_) == (one.loss_, one.floor_, 4)
    assert again.cross_validated_ == one.cross_validated_


@pytest.mark.parametrize(
    "change, said",
    [
        ({"map_": {"kind": "bent"}}, "learned.map_.kind"),
        ({"map_classes_": 1}, "learned.map_classes_"),
        ({"loss_": -1}, "learned.loss_"),
        ({"cross_validated_": {"temperature": 0.1}}, "learned.cross_validated_.linear: is missing"),
        ({"extra_": 1}, "learned.extra_: unknown value"),
    ],
)
def test_damaged_records_name_the_field(change, said):
    z, labels = data(60)
    record = quiet(map="temperature").fit(z, labels).to_dict()
    record["learned"] |= change
    with pytest.raises(DataError, match=said):
        from_dict(record)
    for missing in ("map_", "cross_validated_", "floor_"):
        record = quiet(map="temperature").fit(z, labels).to_dict()
        del record["learned"][missing]
        with pytest.raises(DataError, match=f"learned.{missing}: is missing"):
            from_dict(record)


@pytest.mark.parametrize(
    "params, said",
    [
        ({"map": "piecewize"}, 'unknown map "piecewize"; did you mean "piecewise"'),
        ({"select": "ece"}, 'unknown select "ece"; did you mean "dece"'),
        ({"folds": 1}, r"folds must lie in 2..30 \(two rows each\), got 1"),
        ({"folds": 31}, r"folds must lie in 2..30"),
        ({"max_steps": 0}, "max_steps must be >= 1, got 0"),
        ({"window": 7}, "window must be an even number >= 2, got 7"),
        ({"eps": -1}, "eps must be >= 0, got -1"),
        ({"weighting": "mass"}, 'unknown weighting "mass"'),
    ],
)
def test_settings_that_are_not_allowed(params, said):
    z, labels = data(60)
    with pytest.raises(ValueError, match=said):
        HCalibrator(**params).fit(z, labels)


def test_rows_that_are_not_allowed():
    z, labels = data(60)
    with pytest.raises(ValueError, match="not fitted: call fit first"):
        HCalibrator().predict_proba(z)
    broken = z.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match="logits: row 7 is not a number"):
        quiet().fit(broken, labels)
    with pytest.raises(ValueError, match="labels: row 0 is 9"):
        quiet().fit(z, np.full(60, 9))
    one = quiet(map="temperature").fit(z, labels)
    with pytest.raises(ValueError, match="logits have 3 classes, h was fitted on 4"):
        one.predict_proba(z[:, :3])
    with pytest.raises(ValueError, match='has no parameter "mapp"; did you mean "map"'):
        make("h", mapp="piecewise")


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # as if it were not installed
from likely.calibration.recalibrators.table import from_dict, make
from likely.errors import CapabilityError
record, z = json.load(sys.stdin)
print(json.dumps(from_dict(record).predict_proba(z).tolist()))
try:
    make("h").fit(z, [0] * len(z))
except CapabilityError as error:
    print(error)
"""


def test_only_fitting_needs_torch():
    z, labels = data(60)
    one = quiet(map="piecewise", max_steps=5).fit(z, labels)
    given = json.dumps([one.to_dict(), z.tolist()])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], input=given, capture_output=True, text=True, check=True
    )
    probs, said = done.stdout.splitlines()
    assert np.array_equal(json.loads(probs), one.predict_proba(z))
    assert said == "torch is not installed. Run: pip install 'likely[torch]'"
