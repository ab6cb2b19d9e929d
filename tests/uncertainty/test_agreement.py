"""Agreement of samples, and graphs of their similarities."""

from __future__ import annotations

import numpy as np
import pytest

from likely.metrics.ranking import discrimination
from likely.uncertainty.samples import eccentricity, eigenvalue_sum, lexical_similarity, missing_degree
from likely.uncertainty.semantic import agreement, csa, csc, greedy_agreement, weighted_agreement
from likely.uncertainty.table import ESTIMATORS, check_names, estimate, needs_of
from likely.uncertainty.types import Gathered, GenerationScores


def gathered(samples, greedy=None):
    def texts(names):
        return GenerationScores(
            [np.array([-0.5, -0.1])] * len(names), names, ["stop"] * len(names), np.zeros(len(names), np.int64),
            [np.array([0.3, 0.2])] * len(names),
        )  # fmt: skip

    return Gathered(
        ["?"], texts([greedy]) if greedy is not None else None, texts(samples), texts([greedy or ""]),
        {"p_true": np.array([0.25]), "sample_states": np.random.default_rng(0).normal(size=(len(samples), 6))},
    )  # fmt: skip


def test_the_share_that_agrees_with_the_first():
    assert agreement([0, 0, 1, 0, 2]) == 0.5
    assert csc(gathered(["Paris", "paris", "Rome", "PARIS."])).values[0] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="needs 2 answers at least, got 1"):
        agreement([0])
    assert greedy_agreement(gathered(["Paris", "Rome"], "paris")).values[0] == 0.5
    assert greedy_agreement(gathered(["Paris", "Rome"], "Oslo")).values[0] == 0


def test_agreement_weighed_by_confidence():
    agrees, stated = np.array([True, False, True]), np.array([0.9, 0.3, np.nan])
    assert weighted_agreement(agrees, stated) == pytest.approx(0.75)
    assert np.isnan(weighted_agreement(agrees, np.full(3, np.nan)))
    texts = ["Paris", "Paris. Confidence: 90%", "Rome. Confidence: 30%", "Paris"]
    assert csa(gathered(texts)).values[0] == pytest.approx(0.75)
    assert csc(gathered(texts)).values[0] == pytest.approx(2 / 3)
    assert csa(gathered(["a", "b"])).missing.tolist() == [True]


def test_graphs_of_one_and_of_s_meanings():
    one, apart = np.ones((4, 4)), np.eye(4)
    assert eigenvalue_sum(one) == pytest.approx(1) and eigenvalue_sum(apart) == pytest.approx(4)
    assert missing_degree(one) == 0 and missing_degree(apart) == pytest.approx(0.75)
    assert eccentricity(one) == pytest.approx(0, abs=1e-9)
    two = np.kron(np.eye(2), np.ones((2, 2)))
    assert eigenvalue_sum(two) == pytest.approx(2) and missing_degree(two) == pytest.approx(0.5)
    assert eccentricity(two) == pytest.approx(1)
    with pytest.raises(ValueError, match="symmetric"):
        eigenvalue_sum(np.array([[1.0, 0.5], [0.1, 1.0]]))


def test_words_in_common():
    found = lexical_similarity(gathered(["a b", "a b", "c"]).samples, 1)
    assert found.values[0] == pytest.approx(1 / 3) and found.higher_is == "more_certain"


def test_every_estimator_has_its_name_its_direction_and_its_shape():
    found = estimate(gathered(["Paris 80%", "Paris. Confidence: 0.9", "Rome"], "Paris"), ESTIMATORS)
    for name, result in found.items():
        assert result.name == name and result.values.shape == (1,) and result.truncated.shape == (1,)
        assert result.higher_is == ESTIMATORS[name].higher_is
        if result.kind == "probability":
            assert np.isnan(result.values[0]) or 0 <= result.values[0] <= 1


def test_wrong_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match='unknown estimator "gnll"'):
        check_names(["gnll"])
    with pytest.raises(ValueError, match="no estimator was named"):
        check_names([])
    with pytest.raises(ValueError, match='unknown need "sample"'):
        needs_of(["sample"])
    assert needs_of(["g_nll", "token_entropy"]) == {"greedy", "token_entropy"}


@pytest.mark.parametrize("name", ["csc", "csa", "lexical_similarity", "eigv", "deg", "ecc"])
def test_what_compares_samples_needs_two(name):
    with pytest.raises(ValueError, match="prompt 0 has 1 samples, at least 2 are needed"):
        estimate(gathered(["a"], "a"), [name])


@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if "samples" in e.needs])
def test_samples_are_needed_by_what_says_so(name):
    found = gathered(["a", "b"], "a")
    with pytest.raises(ValueError, match="no samples were gathered"):
        estimate(Gathered(["?"], found.greedy), [name])


def test_discrimination_by_hand():
    found = discrimination([0.1, 0.2, None, 0.3, 0.4], [1, 1, 0, 0, 0], higher_is="less_certain")
    assert found["auroc"] == 1 and found["n"] == 4 and found["missing"] == 1 and found["prr"] == 1
    assert discrimination([0.1, 0.2, 0.3], [1, 0, 0], higher_is="more_certain")["auroc"] == 0
    assert discrimination([0.1, 0.2], [1, 1], higher_is="less_certain")["auroc"] is None
    assert discrimination([None], [1], higher_is="less_certain")["why_not"] == "no answer has a value"
    with pytest.raises(ValueError, match="2 values for 1"):
        discrimination([0.1, 0.2], [1], higher_is="less_certain")
