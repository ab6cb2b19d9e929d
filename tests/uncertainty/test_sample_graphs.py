"""Kernel language entropy, SentenceSAR, CoCoA, EigenScore: closed forms, bounds, and the plain formula beside each."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from likely.uncertainty.samples import (
    eigen_score_of,
    kernel_language_entropy,
    rouge_l,
    sentence_sar_of,
    similarities,
)
from likely.uncertainty.table import estimate
from likely.uncertainty.types import Gathered, GenerationScores


def matrix(seed, n=6):
    w = np.random.default_rng(seed).uniform(0, 1, (n, n))
    w = (w + w.T) / 2
    np.fill_diagonal(w, 1)
    return w


@pytest.mark.parametrize("seed", range(5))
def test_kernel_language_entropy_is_the_entropy_of_the_heat_kernel(seed):
    w = matrix(seed)
    kernel = scipy.linalg.expm(-0.3 * (np.diag(w.sum(axis=1)) - w))
    kernel /= np.sqrt(np.outer(np.diag(kernel), np.diag(kernel))) * len(w)
    expected = -np.trace(kernel @ scipy.linalg.logm(kernel)).real
    assert kernel_language_entropy(w) == pytest.approx(expected, abs=1e-9)
    order = np.random.default_rng(seed).permutation(len(w))
    assert kernel_language_entropy(w[np.ix_(order, order)]) == pytest.approx(expected, abs=1e-9)
    assert 0 <= expected <= np.log(len(w))


def test_kernel_language_entropy_at_its_ends():
    apart = np.eye(5)
    assert kernel_language_entropy(apart) == pytest.approx(np.log(5))
    alike = np.ones((5, 5))
    assert kernel_language_entropy(alike, t=50.0) == pytest.approx(0, abs=1e-9)
    two = np.kron(np.eye(2), np.ones((3, 3)))  # two meanings, equally often
    assert kernel_language_entropy(two, t=50.0) == pytest.approx(np.log(2), abs=1e-9)
    assert kernel_language_entropy(alike) < kernel_language_entropy(two) < kernel_language_entropy(np.eye(6))


@pytest.mark.parametrize("seed", range(3))
def test_sentence_sar_is_its_formula_and_does_not_underflow(seed):
    w, logprobs = matrix(seed), -np.random.default_rng(seed).exponential(3, 6)
    p = np.exp(logprobs)
    plain = [-np.log(p[i] + sum(w[i, j] * p[j] for j in range(6) if j != i) / 0.001) for i in range(6)]
    assert sentence_sar_of(logprobs, w) == pytest.approx(np.mean(plain))
    assert sentence_sar_of(logprobs - 2000, w) == pytest.approx(np.mean(plain) + 2000)
    assert sentence_sar_of(logprobs, np.eye(6)) == pytest.approx(-logprobs.mean())  # nothing alike: entropy of the text


def test_eigen_score_of_equal_and_of_orthogonal_states():
    one = np.array([3.0, -1.0, 0.0, -2.0])  # its mean is 0, |c|² = 14
    alike = (np.log(5 * 14 + 1e-3) + 4 * np.log(1e-3)) / 5
    assert eigen_score_of(np.tile(one, (5, 1))) == pytest.approx(alike)
    assert eigen_score_of(np.tile(one + 7, (5, 1))) == pytest.approx(alike)  # each state less its own mean
    apart = np.array([[1, -1, 0, 0], [0, 0, 1, -1], [1, 1, -1, -1]]) * np.array([[3], [3], [3 / np.sqrt(2)]])
    assert eigen_score_of(apart, alpha=0.5) == pytest.approx(np.log(18.5))
    assert eigen_score_of(apart) > eigen_score_of(apart[[0, 0, 0]])


@pytest.mark.parametrize("seed", range(3))
def test_eigen_score_is_the_mean_log_eigenvalue(seed):
    """As the official code computes it: features by samples, centred over features."""
    z = np.random.default_rng(seed).normal(size=(12, 5))  # (D, S)
    centring = np.eye(12) - np.ones((12, 12)) / 12
    expected = np.mean(np.log(np.linalg.eigvalsh(z.T @ centring @ z + 1e-3 * np.eye(5))))
    assert eigen_score_of(z.T) == pytest.approx(expected)
    assert eigen_score_of(z.T[::-1]) == pytest.approx(expected)


def gathered(greedy, texts, logprobs):
    one = GenerationScores([np.log([0.5, 0.5])], [greedy], ["stop"], np.array([0]))
    rows = [np.array([value]) for value in logprobs]
    many = GenerationScores(rows, texts, ["stop"] * len(texts), np.zeros(len(texts), int))
    return Gathered(["?"], greedy=one, samples=many)


def test_cocoa_multiplies_two_doubts():
    found = gathered("a b c d", ["a b c d", "a b", "x y"], [-1.0, -2.0, -3.0])
    unlike = np.mean([0, 1 - rouge_l("a b c d", "a b"), 1])
    values = estimate(found, ["cocoa", "ln_cocoa", "sentence_sar", "kernel_language_entropy"])
    assert values["cocoa"].values[0] == pytest.approx(2 * np.log(2) * unlike)
    assert values["ln_cocoa"].values[0] == pytest.approx(np.log(2) * unlike)
    assert values["sentence_sar"].values[0] == pytest.approx(
        sentence_sar_of(np.array([-1.0, -2.0, -3.0]), similarities(["a b c d", "a b", "x y"]))
    )
    assert {value.higher_is for value in values.values()} == {"less_certain"}
    agreed = estimate(gathered("a b", ["a b", "A b."], [-1.0, -1.0]), ["cocoa"])["cocoa"]
    assert agreed.values[0] == 0
