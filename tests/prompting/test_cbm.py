"""CBM, CC and PMI on arrays: identities, traps, and the recalibrator."""

from __future__ import annotations

import json

import numpy as np
import pytest

from likely.metrics.checks import softmax
from likely.prompting.selection.answer_bias import CBM, cbm, cbm_ratio, contextual, pmi
from likely.uncertainty.types import OptionScores

T, N, K = 4, 50, 3


def tensor(seed=0, shape=(T, N, K), bias=2.0):
    rng = np.random.default_rng(seed)
    return softmax(rng.normal(0, 1.5, shape) + bias * rng.normal(0, 1, (*shape[:-2], 1, shape[-1])))


def test_the_ratio_has_mean_1_over_inputs():
    np.testing.assert_allclose(cbm_ratio(tensor()).mean(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(cbm_ratio(tensor()[0]).mean(axis=0), 1, atol=1e-12)


def test_the_ratio_by_hand():
    P = np.array([[[0.8, 0.2], [0.6, 0.4]]])
    np.testing.assert_allclose(cbm_ratio(P), [[[0.8 / 0.7, 0.2 / 0.3], [0.6 / 0.7, 0.4 / 0.3]]])
    r = 0.8 / 0.7 / (0.8 / 0.7 + 0.2 / 0.3)
    np.testing.assert_allclose(cbm(P)[0, 0], [r, 1 - r])
    np.testing.assert_allclose(cbm(P, norm="softmax")[0, 0, 0], 1 / (1 + np.exp(0.2 / 0.3 - 0.8 / 0.7)))


@pytest.mark.parametrize("norm", ["mean", "softmax"])
def test_the_answer_does_not_depend_on_the_normalisation(norm):
    P = tensor()
    out = cbm(P, norm=norm)
    np.testing.assert_allclose(out.sum(-1), 1)
    assert np.array_equal(out.argmax(-1), cbm_ratio(P).argmax(-1))


def test_nothing_changes_where_the_marginal_is_uniform():
    P = tensor(shape=(N, K))
    balanced = np.concatenate([P, P[:, [1, 2, 0]], P[:, [2, 0, 1]]])
    np.testing.assert_allclose(cbm(balanced), balanced, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_again_and_again_the_marginal_comes_closer_to_uniform(seed):
    P = tensor(seed, shape=(N, K))

    def off(p):
        return np.abs(p.mean(axis=0) - 1 / K).max()

    once = cbm(P)
    twice = cbm(once)
    assert off(once) < off(P) and off(twice) < off(once)
    assert np.abs(twice - once).max() > 1e-6  # not idempotent
    for _ in range(300):
        once = cbm(once)
    assert off(once) < 1e-6


def accuracy(P, labels):
    return (P.argmax(1) == labels).mean()


def test_a_constant_bias_of_the_answers_is_taken_out():
    """Labels balanced, scores shifted by a constant: CBM finds most of what the shift hid, CC is told the shift."""
    rng = np.random.default_rng(0)
    labels = np.arange(3000) % 3
    clean = rng.normal(0, 1, (3000, 3)) + 2.0 * np.eye(3)[labels]
    shift = np.array([3.0, 0, -1.5])
    P = softmax(clean + shift)
    hidden = accuracy(softmax(clean), labels) - accuracy(P, labels)
    assert hidden > 0.2 and accuracy(cbm(P), labels) - accuracy(P, labels) > hidden / 2
    np.testing.assert_allclose(contextual(P, shift[None]), softmax(clean), atol=1e-9)


def test_where_labels_are_not_balanced_a_true_difference_is_taken_for_a_bias():
    rng = np.random.default_rng(0)
    labels = (np.arange(3000) % 20 == 0).astype(int)  # 5 % of class 1
    P = softmax(rng.normal(0, 1, (3000, 2)) + 1.5 * np.eye(2)[labels] + np.log([0.95, 0.05]))
    assert accuracy(cbm(P), labels) < accuracy(P, labels) - 0.05


def test_order_of_inputs_and_names_of_classes():
    P, rng = tensor(), np.random.default_rng(1)
    inputs, classes = rng.permutation(N), rng.permutation(K)
    np.testing.assert_allclose(cbm(P[:, inputs]), cbm(P)[:, inputs], atol=1e-12)
    np.testing.assert_allclose(cbm(P[:, :, classes]), cbm(P)[:, :, classes], atol=1e-12)


def test_contextual_calibration_by_hand():
    free = np.log([[[0.1, 0.3]], [[0.05, 0.05]]])  # not normalised over the two answers
    mean = np.array([0.075, 0.175])
    P = np.array([[[0.8, 0.2], [0.4, 0.6]]])
    expected = P / (mean / mean.sum())
    np.testing.assert_allclose(contextual(P, free), expected / expected.sum(-1, keepdims=True))
    np.testing.assert_allclose(contextual(P[0], free[:, 0]), contextual(P, free)[0])
    tiny = free - 2000.0  # long answers: the probabilities themselves are 0 in floating point
    np.testing.assert_allclose(contextual(P, tiny), contextual(P, free))


def test_pmi_does_not_see_a_constant_per_answer():
    rng = np.random.default_rng(2)
    z, free, shift = rng.normal(-5, 2, (T, N, K)), rng.normal(-4, 1, (T, K)), rng.normal(0, 3, (T, K))
    np.testing.assert_allclose(pmi(z + shift[:, None], free + shift), pmi(z, free), atol=1e-12)
    assert np.abs(pmi(z + shift[:, None], free) - pmi(z, free)).max() > 0.1


def test_pmi_is_that_of_option_scores():
    rng = np.random.default_rng(3)
    z, free = rng.normal(-5, 2, (N, K)), rng.normal(-4, 1, K)
    ones = np.ones((N, K), np.int64)
    scores = OptionScores(z, ones, ones, ones.astype(bool), np.broadcast_to(free, (N, K)))
    np.testing.assert_allclose(pmi(z, free), scores.probs("pmi"), atol=1e-14)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cbm(np.ones((3, 1))), "at least 2 are needed"),
        (lambda: cbm([[0.5, 0.5]]), "has 1 input"),
        (lambda: cbm([[0.5, 0.5], [np.nan, 0.5]]), "input 1 is not a number"),
        (lambda: cbm([[1.0, 0.0], [1.0, 0.0]]), "answer 1 has probability 0 everywhere"),
        (lambda: cbm([[[0.5, 0.5]] * 2, [[0.0, 1.0]] * 2]), "answer 0 of prompt 1"),
        (lambda: cbm([[0.5, 0.5]] * 2, norm="max"), 'unknown norm "max"'),
        (lambda: contextual(tensor(), np.zeros((T, K))), r"shape \(C, 4, 3\)"),
        (lambda: pmi(np.zeros((T, N, K)), np.zeros(K)), r"shape \(4, 3\)"),
        (lambda: pmi(np.zeros((2, 2)), [0, -np.inf]), r"entry \(1,\) is not a finite"),
        (lambda: pmi([[0, np.inf], [0, 0]], [0, 0]), r"input 0 holds \+inf"),
        (lambda: pmi([[0, 0], [-np.inf, -np.inf]], [0, 0]), "input 1 gives every answer probability 0"),
    ],
)
def test_what_cannot_be_calibrated_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# --- the recalibrator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["mean", "softmax"])
def test_fit_and_predict_are_cbm(norm):
    P = tensor(shape=(N, K))
    fitted = CBM(norm=norm).fit(P)
    np.testing.assert_allclose(fitted.predict_proba(P), cbm(P, norm=norm), atol=1e-12)
    assert fitted.count_ == N and fitted.fit(P) is fitted and fitted.count_ == N
    other = CBM(**fitted.get_params()).restore(json.loads(json.dumps(fitted.to_dict()))["learned"])
    assert np.array_equal(other.predict_proba(P), fitted.predict_proba(P))
    assert fitted.to_dict()["method"] == "cbm"


def test_labels_are_not_looked_at():
    P = tensor(shape=(N, K))
    assert np.array_equal(CBM().fit(P, np.zeros(N)).marginal_, CBM().fit(P).marginal_)


@pytest.mark.parametrize("prior", [0.0, 5.0])
def test_seen_piece_by_piece_is_seen_at_once(prior):
    P = tensor(shape=(N, K))
    whole, pieces = CBM(prior=prior).fit(P), CBM(prior=prior)
    for start in range(0, N, 7):
        pieces.partial_fit(P[start : start + 7])
    np.testing.assert_allclose(pieces.marginal_, whole.marginal_, atol=1e-14)
    np.testing.assert_allclose(whole.marginal_, (prior / K + P.sum(0)) / (prior + N), atol=1e-14)


def test_a_prior_begins_at_the_identity():
    P = tensor(shape=(N, K))
    early = CBM(prior=1e9).partial_fit(P[:1])
    np.testing.assert_allclose(early.predict_proba(P), P, atol=1e-6)
    late = CBM(prior=1.0).partial_fit(np.tile(P, (200, 1)))
    np.testing.assert_allclose(late.predict_proba(P), cbm(P), atol=1e-3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: CBM().fit([[0.5, 0.5]]), "at least 2"),
        (lambda: CBM().predict_proba([[0.5, 0.5]]), "not fitted"),
        (lambda: CBM().partial_fit([[0.4, 0.6]]).predict_proba([[0.5, 0.5]]), "one input says nothing"),
        (lambda: CBM(prior=-1).fit([[0.5, 0.5]] * 2), "prior must be >= 0"),
        (lambda: CBM().fit([[1.0], [1.0]]), "2 classes"),
        (lambda: CBM().fit([[1.0, 0]] * 2).predict_proba([[1.0, 0]]), "answer 1 had probability 0"),
        (lambda: CBM().fit([[0.5, 0.5]] * 2).predict_proba([[0.2, 0.2, 0.6]]), "has 3 answers, the marginal 2"),
        (lambda: CBM().fit([[0.5, 0.5]] * 2).partial_fit([[0.2, 0.2, 0.6]]), "so far there were 2"),
        (lambda: CBM().fit([[0.5, 0.5], [0.5, np.nan]]), "row 1"),
    ],
)
def test_errors_of_the_recalibrator(call, said):
    with pytest.raises(ValueError, match=said):
        call()
