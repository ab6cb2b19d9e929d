"""Members' opinions combined: known cases, Jensen's inequality, order of members, ties."""

from __future__ import annotations

import numpy as np
import pytest

from likely.metrics.checks import softmax
from likely.metrics.proper import brier, nll
from likely.prompting.ensembles.combining import COMBINATIONS, combine_members, geometric

TWO = np.array([[[0.9, 0.1]], [[0.2, 0.8]]])


def opinions(seed=0, members=5, n=40, k=3):
    return softmax(np.random.default_rng(seed).normal(0, 2, (members, n, k)))


def test_known_cases_by_hand():
    np.testing.assert_allclose(combine_members(TWO, "max").probs, [[0.9 / 1.7, 0.8 / 1.7]])
    np.testing.assert_allclose(combine_members(TWO, "mean").probs, [[0.55, 0.45]])
    np.testing.assert_allclose(combine_members(TWO, "vote").probs, [[0.5, 0.5]])
    a, b = np.sqrt(0.9 * 0.2), np.sqrt(0.1 * 0.8)
    np.testing.assert_allclose(combine_members(TWO, "geometric").probs, [[a / (a + b), b / (a + b)]])
    assert combine_members(TWO, "max").confidence[0] == pytest.approx(0.9 / 1.7)


@pytest.mark.parametrize("how", ["mean", "max", "geometric"])
def test_an_ensemble_of_one_is_its_member(how):
    P = opinions(members=1)
    np.testing.assert_allclose(combine_members(P, how).probs, P[0], atol=1e-12)
    assert np.array_equal(combine_members(P, how).answers, P[0].argmax(1))


def test_a_vote_of_one_is_certain():
    P = opinions(members=1)
    assert (combine_members(P, "vote").confidence == 1).all() and (combine_members(P, "vote").disagreement == 0).all()


@pytest.mark.parametrize("how", COMBINATIONS)
def test_the_order_of_members_does_not_matter_and_classes_move_along(how):
    P, rng = opinions(), np.random.default_rng(1)
    plain, order, classes = combine_members(P, how), rng.permutation(5), rng.permutation(3)
    moved = combine_members(P[order], how)
    np.testing.assert_allclose(moved.probs, plain.probs, atol=1e-12)
    assert np.array_equal(moved.answers, plain.answers)
    np.testing.assert_allclose(combine_members(P[:, :, classes], how).probs, plain.probs[:, classes], atol=1e-12)
    np.testing.assert_allclose(plain.probs.sum(1), 1)


@pytest.mark.parametrize("seed", range(10))
def test_the_mean_is_no_worse_than_the_mean_member(seed):
    """Jensen's inequality, exact on any data and any labels."""
    P, labels = opinions(seed), np.random.default_rng(seed).integers(0, 3, 40)
    for metric in (brier, nll):
        members = np.mean([metric(p, labels) for p in P])
        assert metric(combine_members(P, "mean").probs, labels) < members
        same = np.repeat(P[:1], 4, axis=0)
        assert metric(combine_members(same, "mean").probs, labels) == pytest.approx(metric(P[0], labels))


def test_the_geometric_mean_is_no_worse_in_nll():
    P, labels = opinions(3), np.random.default_rng(3).integers(0, 3, 40)
    assert nll(combine_members(P, "geometric").probs, labels) < np.mean([nll(p, labels) for p in P])


def test_votes_are_shares_and_ties_go_to_the_higher_mean():
    P = opinions(members=4)
    found = combine_members(P, "vote")
    assert set(np.round(found.confidence * 4).astype(int)) <= {1, 2, 3, 4}
    np.testing.assert_allclose(found.confidence * 4, np.round(found.confidence * 4))
    tied = np.array([[[0.51, 0.49]], [[0.1, 0.9]]])
    assert combine_members(tied, "vote").answers[0] == 1 and combine_members(tied, "vote").confidence[0] == 0.5
    three = np.array([[[0.4, 0.35, 0.25]], [[0.1, 0.3, 0.6]], [[0.2, 0.5, 0.3]]])
    assert combine_members(three, "vote").answers[0] == three.mean(0)[0].argmax()
    majority = np.array([[[0.51, 0.49]], [[0.51, 0.49]], [[0.0, 1.0]]])
    assert combine_members(majority, "vote").answers[0] == 0 and combine_members(majority, "mean").answers[0] == 1


def test_disagreement_counts_pairs():
    votes = np.array([0, 0, 1, 2])
    P = np.full((4, 1, 3), 0.2) + 0.4 * np.eye(3)[votes][:, None]
    assert combine_members(P, "mean").disagreement[0] == pytest.approx(5 / 6)  # of six pairs only the first two agree
    assert combine_members(P[:2], "mean").disagreement[0] == 0 and combine_members(P[1:], "mean").disagreement[0] == 1


def test_an_impossible_answer_is_not_nan():
    P = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(geometric(P), [[0.5, 0.5]])
    np.testing.assert_allclose(combine_members(P, "max").probs, [[0.5, 0.5]])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: combine_members(opinions()[0]), "got shape"),
        (lambda: combine_members(opinions()[:0]), "got shape"),
        (lambda: combine_members(opinions(k=1)), "member 0 has 1 column"),
        (lambda: combine_members([[[0.5, 0.5]], [[0.5, np.nan]]]), "member 1: row 0 is not a number"),
        (lambda: combine_members([[[0.5, 0.5]], [[0.5, 0.9]]]), "member 1: row 0 sums to 1.4"),
        (
            lambda: combine_members(opinions(), "maks"),
            'unknown combination "maks"; did you mean|unknown combination "maks"',
        ),
        (lambda: combine_members([["a"]]), "must be numbers"),
    ],
)
def test_what_cannot_be_combined_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
