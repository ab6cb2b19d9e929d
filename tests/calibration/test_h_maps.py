"""The maps of h-calibration: identities, order of classes, agreement of training and prediction, what is read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.integrate import quad

from likely.calibration.h.maps import LOWEST, HMap, cells, dense_nodes, integral
from likely.errors import DataError
from likely.metrics.checks import log_softmax, softmax


def logits(n=200, k=5, seed=0, spread=6.0):
    return log_softmax(spread * np.random.default_rng(seed).standard_normal((n, k)))


def piecewise(slopes):
    return HMap(
        "piecewise", {"nodes": np.linspace(LOWEST, 0, len(slopes) + 1), "density": np.array(slopes, np.float64)}
    )


def nonlinear(density):
    return HMap("nonlinear", {"nodes": dense_nodes(len(density)), "density": np.array(density, np.float64)})


def some_maps():
    rng = np.random.default_rng(7)
    return [
        HMap("temperature", {"inverse_temperatures": np.array([0.3])}),
        HMap("linear", {"inverse_temperatures": rng.uniform(0.1, 4, 16), "weights": np.full(16, 1 / 16)}),
        piecewise(rng.uniform(0.01, 3, 10)),
        piecewise(rng.uniform(0.01, 3, 100)),
        nonlinear(rng.uniform(0.01, 3, 65)),
    ]


@pytest.mark.parametrize("segments", [1, 10, 100])
def test_slopes_of_one_are_the_identity(segments):
    z = logits()
    assert np.allclose(piecewise([1.0] * segments).predict(z), np.exp(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.2, 1.7])
def test_equal_slopes_are_a_temperature(beta):
    z = logits()
    expected = softmax(beta * z)
    for one in (
        piecewise([beta] * 10),
        nonlinear([beta] * 65),
        HMap("temperature", {"inverse_temperatures": np.array([beta])}),
        HMap("linear", {"inverse_temperatures": np.array([beta, beta]), "weights": np.array([0.4, 0.6])}),
    ):
        assert np.allclose(one.predict(z), expected, rtol=0, atol=1e-12)


def test_a_mixture_never_exceeds_one():
    weights = np.array([0.5, 0.5 + 2**-52])
    assert weights.sum() == 1 + 2**-52  # rounding, as learned weights have
    mixed = HMap("linear", {"inverse_temperatures": np.ones(2), "weights": weights})
    assert mixed.predict(np.array([[0.0, -np.inf]])).tolist() == [[1, 0]]


def test_a_mixture_is_the_mean_of_its_parts():
    z = logits()
    mixed = HMap("linear", {"inverse_temperatures": np.array([0.5, 2.0]), "weights": np.array([0.25, 0.75])})
    assert np.allclose(mixed.predict(z), 0.25 * softmax(0.5 * z) + 0.75 * softmax(2 * z), rtol=0, atol=1e-12)


def test_the_integral_is_the_area_below_the_density():
    nodes = np.array([LOWEST, -20.0, -3.0, -0.5, 0.0])
    g = np.array([0.5, 2.0, 0.1, 3.0, 1.0])
    for z in (-100.0, -50.0, -20.0, -1.0, -0.25, 0.0):
        at = cells(nodes, np.array([z]))
        straight = integral(nodes, g[:-1], g[1:], *at)[0]
        assert straight == pytest.approx(-quad(lambda x: np.interp(x, nodes, g), z, 0, points=nodes[1:-1])[0], abs=1e-6)
        steps = integral(nodes, g[:-1], g[:-1], *at)[0]
        inside = [(max(low, z), high, h) for low, high, h in zip(nodes, nodes[1:], g, strict=False) if high > z]
        assert steps == pytest.approx(-sum((high - low) * h for low, high, h in inside), abs=1e-9)


@pytest.mark.parametrize("which", range(5))
def test_no_row_changes_its_order_of_classes(which):
    z = logits(2000, 8)
    z[:50] = log_softmax(200 * z[:50])  # some beyond the clip at -100
    probs = some_maps()[which].predict(z)
    assert np.allclose(probs.sum(axis=1), 1)
    assert np.array_equal(probs.argmax(axis=1), z.argmax(axis=1))
    order = np.argsort(z, axis=1)
    assert (np.diff(np.take_along_axis(probs, order, axis=1), axis=1) >= 0).all()
    free = (z > LOWEST).all(axis=1) & (z.min(axis=1) > -30)
    assert free.sum() > 500
    assert np.array_equal(np.argsort(probs[free], axis=1), order[free])


@pytest.mark.parametrize("which", range(5))
def test_what_cannot_be_stays_impossible_and_changes_nothing_else(which):
    z = logits(50, 4)
    wider = np.column_stack([z, np.full(50, -np.inf)])
    probs = some_maps()[which].predict(wider)
    assert (probs[:, 4] == 0).all() and np.isfinite(probs).all()
    assert np.allclose(probs[:, :4], some_maps()[which].predict(z), rtol=0, atol=1e-12)


def test_log_probabilities_below_the_range_are_clipped():
    low = np.array([[0.0, -150.0, -1000.0]])
    at = np.array([[0.0, -100.0, -100.0]])
    assert np.array_equal(piecewise([0.01] * 10).predict(low), piecewise([0.01] * 10).predict(at))


def test_saved_and_read_back():
    z = logits()
    for one in some_maps():
        again = HMap.from_dict(json.loads(json.dumps(one.to_dict())), "map")
        assert again.kind == one.kind and np.array_equal(again.predict(z), one.predict(z))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"kind": "piecewize"}, "map.kind: 'piecewize' is none of .*did you mean \"piecewise\""),
        ({"density": [1.0]}, "map.density: has 1 entries for 11 nodes"),
        ({"density": [-1.0] * 10}, "map.density: .*outside the allowed"),
        ({"nodes": list(range(-10, 1))}, "map.nodes: must run from -100 to 0"),
        ({"nodes": [-100.0, -50.0, -50.0, *range(-7, 1)]}, "map.nodes: must increase"),
        ({"weights": [1.0]}, "map.weights: unknown value"),
    ],
)
def test_damaged_records_name_the_field(change, said):
    record = piecewise([1.0] * 10).to_dict() | change
    with pytest.raises(DataError, match=said):
        HMap.from_dict(record, "map")
    with pytest.raises(DataError, match=r"map\.kind"):
        HMap.from_dict(None, "map")
