"""The h-calibration loss against slow forms of its definition, its noise floor, its power, its gradients."""

from __future__ import annotations

import numpy as np
import pytest

from likely.calibration.h.loss import cluster_ends, fitting_window, hcal_loss, resampling_floor, windowed

torch = pytest.importorskip("torch")
FAR = 5.2  # standard errors: a false alarm in fewer than 1e-6 runs


def rows(n, k, seed=0, spread=2.0):
    """(n, k) probabilities and labels drawn from them."""
    rng = np.random.default_rng(seed)
    z = spread * rng.standard_normal((n, k))
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return probs, drawn_from(probs, rng)


def drawn_from(probs, rng):
    return np.minimum((rng.random((len(probs), 1)) > probs.cumsum(axis=1)).sum(axis=1), probs.shape[1] - 1)


def loss(probs, labels, **how):
    return float(hcal_loss(torch.as_tensor(probs), torch.as_tensor(labels), **how))


def slow_loss(probs, labels, window, eps, weighting, clusters=15):
    """The definition, one event after another."""
    k = probs.shape[1]
    events = sorted(((q, j == y) for row, y in zip(probs, labels, strict=True) for j, q in enumerate(row)))
    assert len({q for q, _ in events}) == len(events) == len(labels) * k  # no ties: the order is one
    off = []
    for i in range(len(events)):
        near = events[max(0, i - window // 2) : i + window // 2 + 1]
        off.append(max(0.0, abs(sum(q - b for q, b in near)) / (window + 1) - eps))
    if weighting == "uniform":
        return np.mean(off)
    owner = slow_clusters([q for q, _ in events], clusters)
    return np.mean([np.mean([t for t, c in zip(off, owner, strict=True) if c == one]) for one in set(owner)])


def slow_clusters(values, clusters):
    """k-means with every distance computed; a value in the middle belongs to the upper centre."""
    low, high = min(values), max(values)
    centres = [low + (high - low) * (c + 0.5) / clusters for c in range(clusters)]
    while True:
        owner = [max(range(clusters), key=lambda c: (-abs(v - centres[c]), c)) for v in values]
        mine = [[v for v, o in zip(values, owner, strict=True) if o == c] for c in range(clusters)]
        moved = [np.mean(m) if m else centre for m, centre in zip(mine, centres, strict=True)]
        if np.allclose(moved, centres, rtol=0, atol=1e-15):
            return owner
        centres = moved


@pytest.mark.parametrize("weighting", ["cluster", "uniform"])
@pytest.mark.parametrize("eps", [0.0, 0.02])
def test_it_is_its_definition(weighting, eps):
    probs, labels = rows(60, 3)
    expected = slow_loss(probs, labels, 10, eps, weighting)
    assert expected > 0.01
    assert loss(probs, labels, window=10, eps=eps, weighting=weighting) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weighting", ["cluster", "uniform"])
def test_zero_for_predictions_that_are_the_outcomes_and_never_below(weighting):
    labels = np.array([0, 1, 2, 1] * 5)
    assert loss(np.eye(3)[labels], labels, window=4, weighting=weighting) == 0
    for seed in range(5):
        probs, labels = rows(50, 4, seed)
        assert loss(probs, labels, window=20, weighting=weighting) > 0
        assert loss(probs, labels, window=20, eps=1.0, weighting=weighting) == 0  # everything is tolerated


def test_order_of_rows_and_names_of_classes_do_not_matter():
    probs, labels = rows(300, 5)
    rng = np.random.default_rng(1)
    order, names = rng.permutation(300), rng.permutation(5)
    renamed = np.empty_like(probs)
    renamed[:, names] = probs
    here = loss(probs, labels, window=40)
    assert loss(probs[order], labels[order], window=40) == pytest.approx(here, abs=1e-13)
    assert loss(renamed, names[labels], window=40) == pytest.approx(here, abs=1e-13)


def test_a_constant_added_to_a_row_of_logits_changes_nothing():
    probs, labels = rows(200, 4)
    logits = np.log(probs)
    shifted = logits + np.random.default_rng(2).uniform(-50, 50, (200, 1))
    found = [loss(torch.softmax(torch.as_tensor(z), dim=1), labels, window=30) for z in (logits, shifted)]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_cumulative_sums_are_a_convolution_with_zeros_beyond_the_ends():
    residuals = torch.as_tensor(np.random.default_rng(3).uniform(-1, 1, 5000))
    for window in (2, 10, 200, 12000):  # also wider than the data
        kernel = torch.ones(1, 1, window + 1, dtype=torch.float64) / (window + 1)
        slow = torch.nn.functional.conv1d(residuals[None, None], kernel, padding=window // 2)[0, 0]
        assert torch.allclose(windowed(residuals, window), slow, rtol=0, atol=1e-12)


def test_clusters_are_those_of_k_means_in_one_dimension():
    rng = np.random.default_rng(4)
    values = np.sort(np.concatenate([rng.normal(0.1, 0.02, 80), rng.uniform(0, 1, 40), [1.0]]))
    ends = cluster_ends(values, 7)
    assert np.repeat(np.arange(7), np.diff(ends)).tolist() == slow_clusters(values.tolist(), 7)
    assert cluster_ends(np.full(9, 0.3), 4)[[0, -1]].tolist() == [0, 9]  # all in one place: the others stay empty
    with pytest.raises(ValueError, match="clusters must be >= 1, got 0"):
        cluster_ends(values, 0)


def test_tied_probabilities():
    """Constant predictions: within a window, the two events of each row cancel but for the row that is cut."""
    probs, labels = np.full((50, 2), 0.5), np.array([0, 1] * 25)
    assert 0 < loss(probs, labels, window=20) <= 0.5 / 21
    assert loss(np.tile([0.9, 0.1], (50, 1)), labels, window=20) > 0.2


def test_labels_drawn_from_the_predictions_cost_the_resampling_floor():
    probs, _ = rows(800, 4)
    how = {"window": 100}
    floor = resampling_floor(probs, resamples=150, seed=1, **how)
    rng = np.random.default_rng(2)
    drawn = np.array([loss(probs, drawn_from(probs, rng), **how) for _ in range(150)])
    error = np.sqrt(floor.var(ddof=1) / len(floor) + drawn.var(ddof=1) / len(drawn))
    assert abs(drawn.mean() - floor.mean()) < FAR * error
    assert floor.mean() > 0.01  # noise alone is not nothing
    assert np.array_equal(resampling_floor(probs, resamples=3, seed=1, **how), floor[:3])


def test_a_wrong_temperature_is_seen_above_the_floor():
    probs, labels = rows(5000, 10)
    assert loss(probs, labels) < resampling_floor(probs, resamples=30).mean() * 1.25
    for temperature in (1.5, 1 / 1.5):
        flat = probs ** (1 / temperature)
        flat /= flat.sum(axis=1, keepdims=True)
        floor = resampling_floor(flat, resamples=30)
        assert loss(flat, labels) > floor.mean() + 10 * floor.std(ddof=1)


@pytest.mark.parametrize("weighting", ["cluster", "uniform"])
@pytest.mark.parametrize("loco", [False, True])
def test_gradients_are_finite_differences(weighting, loco):
    probs, labels = rows(20, 3, seed=5)
    q = torch.as_tensor(probs).requires_grad_()
    gaps = np.diff(np.sort(probs.ravel()))
    assert gaps.min() > 1e-5  # the steps of 1e-6 change no order
    fixed = torch.as_tensor(labels)

    def objective(q):
        return hcal_loss(q, fixed, window=6, weighting=weighting, loco=loco, clusters=5)

    assert torch.autograd.gradcheck(objective, (q,), eps=1e-6, atol=1e-7)


def test_float32_in_float64_sums():
    probs, labels = rows(3000, 5)
    single = torch.as_tensor(probs, dtype=torch.float32).requires_grad_()
    value = hcal_loss(single, torch.as_tensor(labels))
    value.backward()
    assert value.dtype == torch.float64 and single.grad.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(loss(probs, labels), abs=1e-5)


def test_leaving_classes_out_is_the_mean_over_classes_that_have_rows():
    probs, labels = rows(150, 4)
    labels = np.where(labels == 3, 0, labels)  # no row of class 3
    how = {"window": 20}
    each = [loss(probs[labels != e], labels[labels != e], **how) for e in range(3)]
    assert loss(probs, labels, loco=True, **how) == pytest.approx(np.mean(each), abs=1e-13)
    assert loss(probs, labels, loco=[3, 1], **how) == pytest.approx(each[1], abs=1e-13)
    with pytest.raises(ValueError, match="no class can be left out"):
        loss(probs, labels, loco=[3], **how)
    with pytest.raises(ValueError, match="no class can be left out"):
        loss(probs, np.zeros(150, int), loco=True, **how)


def lowest_at(probs, labels, loco):
    """The inverse temperature at which the loss is lowest; the truth is 1."""
    betas = (0.5, 0.7, 1.0, 1.4, 2.0)
    powers = [np.exp(b * np.log(probs)) for b in betas]
    return betas[np.argmin([loss(p / p.sum(axis=1, keepdims=True), labels, loco=loco) for p in powers])]


@pytest.mark.parametrize("classes, loco, true", [(2, False, True), (5, False, True), (5, True, True), (2, True, False)])
def test_of_unequal_classes_the_truth_is_lowest_unless_one_of_two_is_left_out(classes, loco, true):
    rng = np.random.default_rng(0)
    z = 2 * rng.standard_normal((4000, classes)) + np.linspace(1.5, -1.5, classes)
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert (lowest_at(probs, drawn_from(probs, rng), loco) == 1.0) is true


def test_window_of_few_pairs():
    assert [fitting_window(200, pairs) for pairs in (10, 200, 239, 240, 3999, 4000)] == [10, 10, 10, 12, 198, 200]
    assert fitting_window(4, 10) == fitting_window(4, 10**6) == 4


@pytest.mark.parametrize(
    "how, said",
    [
        ({"window": 7}, "window must be an even number >= 2, got 7"),
        ({"window": 0}, "window must be an even number"),
        ({"eps": -0.1}, "eps must be >= 0, got -0.1"),
        ({"eps": float("nan")}, "eps must be >= 0"),
        ({"weighting": "clusters"}, 'unknown weighting "clusters"; did you mean "cluster"'),
    ],
)
def test_settings_that_are_not_allowed(how, said):
    probs, labels = rows(20, 3)
    with pytest.raises(ValueError, match=said):
        loss(probs, labels, **how)


def test_shapes_that_do_not_fit():
    probs, labels = rows(20, 3)
    for p, y in ((probs[0], labels), (probs, labels[:-1])):
        with pytest.raises(ValueError, match=r"probs must be \(N, K\) and labels \(N,\)"):
            loss(p, y)
