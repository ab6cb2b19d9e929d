"""Estimates from samples: against exact entropies by enumeration, and known answers."""

from __future__ import annotations

import numpy as np
import pytest
from toy_language import bigram, every_text

from likely.uncertainty.clusters import EXACT, NUMBER
from likely.uncertainty.planner import gather
from likely.uncertainty.samples import ln_predictive_entropy, predictive_entropy
from likely.uncertainty.semantic import (
    discrete_entropy_of,
    discrete_semantic_entropy,
    distinct,
    semantic_entropy,
    semantic_entropy_of,
)
from likely.uncertainty.table import estimate
from likely.uncertainty.types import Gathered, GenerationScores


def gathered(texts, probabilities, prompts=1):
    rows = [np.log([p]) for p in probabilities]
    per = len(texts) // prompts
    samples = GenerationScores(rows, texts, ["stop"] * len(texts), np.repeat(np.arange(prompts), per))
    return Gathered(["?"] * prompts, samples=samples)


def test_two_of_three_agree():
    found = gathered(["a", "a", "b"], [0.6, 0.6, 0.3])
    expected = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert expected == pytest.approx(0.6365, abs=1e-4)
    assert discrete_semantic_entropy(found).values[0] == pytest.approx(expected)
    assert semantic_entropy(found).values[0] == pytest.approx(expected)
    counted_twice = semantic_entropy(found, dedup=False).values[0]
    shares = np.array([1.2, 0.3]) / 1.5
    assert counted_twice == pytest.approx(-(shares * np.log(shares)).sum()) and counted_twice < expected


def test_one_meaning_has_no_entropy_and_s_meanings_have_log_s():
    same = gathered(["Paris", "paris.", "the Paris"], [0.5, 0.2, 0.1])
    assert semantic_entropy(same).values[0] == 0 and discrete_semantic_entropy(same).values[0] == 0
    apart = gathered(list("abcdef"), [0.1] * 6)
    assert semantic_entropy(apart).values[0] == pytest.approx(np.log(6))
    assert discrete_semantic_entropy(apart).values[0] == pytest.approx(np.log(6))


def test_the_older_form_is_the_mean_of_unnormalised_masses():
    logprobs = np.log([0.3, 0.2, 0.1])
    assert semantic_entropy_of(logprobs, [0, 0, 1], form="older") == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2)
    found = gathered(["a", "A", "b"], [0.3, 0.2, 0.1])
    assert semantic_entropy(found, form="older").values[0] == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2)
    assert semantic_entropy(found, form="older").name == "semantic_entropy_older"


def test_very_unlikely_texts_do_not_underflow():
    logprobs = np.array([-2000.0, -2000.0, -2001.0])
    weights = np.array([2.0, np.exp(-1)]) / (2 + np.exp(-1))
    assert semantic_entropy_of(logprobs, [0, 0, 1]) == pytest.approx(-(weights * np.log(weights)).sum())


def test_a_text_that_cannot_be_adds_nothing_and_is_not_certainty():
    logprobs = np.array([np.log(0.5), -np.inf, np.log(0.25), -np.inf])
    shares = np.array([2, 1]) / 3
    assert semantic_entropy_of(logprobs, [0, 1, 2, 2]) == pytest.approx(-(shares * np.log(shares)).sum())
    assert semantic_entropy_of(logprobs, [0, 1, 2, 2], form="older") == np.inf
    rows = [np.array([value]) for value in (-1.0, -2.0, -np.inf, -np.inf)]
    samples = GenerationScores(rows, list("abab"), ["stop"] * 4, np.repeat([0, 1], 2))
    for form in ("rao_blackwell", "older"):
        with pytest.raises(ValueError, match="prompt 1: every text has probability 0"):
            semantic_entropy(Gathered(["?", "?"], samples=samples), form=form)


def test_length_normalised_weights_are_means():
    samples = GenerationScores([np.log([0.5, 0.5]), np.log([0.25])], ["a", "b"], ["stop"] * 2, np.zeros(2, np.int64))
    found = Gathered(["?"], samples=samples)
    shares = np.array([2, 1]) / 3
    assert semantic_entropy(found, length_normalised=True).values[0] == pytest.approx(-(shares * np.log(shares)).sum())
    assert semantic_entropy(found).values[0] == pytest.approx(np.log(2))


def test_of_equal_texts_the_most_likely_counts():
    assert distinct(["a", "b", "a"], np.array([-3.0, -1.0, -2.0])) == [1, 2]


def test_the_order_of_samples_does_not_matter():
    rng = np.random.default_rng(0)
    texts, p = [str(i % 4) for i in range(12)], rng.uniform(0.01, 0.5, 4)
    order = rng.permutation(12)
    one, other = (
        gathered([texts[i] for i in o], [p[i % 4] for i in o]) for o in (np.arange(12), order)
    )  # fmt: skip
    for of in (semantic_entropy, discrete_semantic_entropy):
        assert of(one).values[0] == pytest.approx(of(other).values[0])


def test_the_note_names_the_clusterer():
    found = gathered(["12", "12.0"], [0.5, 0.5])
    assert semantic_entropy(found).note == "clusters: number" and semantic_entropy(found).values[0] == 0
    exact = semantic_entropy(found, clusterer=EXACT)
    assert exact.note == "clusters: exact" and exact.values[0] == pytest.approx(np.log(2))
    assert NUMBER.name == "number"


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="prompt 1 has 0 samples"):
        discrete_semantic_entropy(Gathered(["?", "?"], samples=gathered(["a"], [0.5]).samples))
    with pytest.raises(ValueError, match="no samples were gathered"):
        semantic_entropy(Gathered(["?"]))
    with pytest.raises(ValueError, match="there must be one"):
        semantic_entropy_of(np.array([]), [])
    with pytest.raises(ValueError, match="one at least"):
        discrete_entropy_of([])


@pytest.fixture(scope="module")
def many():
    lm = bigram(5)
    return lm, gather(lm, [""], needs=["samples", "greedy"], max_tokens=8, samples=3000, seed=11)


def test_predictive_entropy_estimates_the_entropy(many):
    lm, found = many
    texts = dict(every_text(lm))
    exact = -sum(np.exp(p) * p for p in texts.values())
    normalised = -sum(np.exp(p) * p / len(tokens) for tokens, p in texts.items())
    error = found.samples.logprobs.std(ddof=1) / np.sqrt(len(found.samples.logprobs))
    assert 0 < error < 0.05
    assert abs(predictive_entropy(found.samples, 1).values[0] - exact) < 5.5 * error  # false alarm < 4e-8
    assert abs(ln_predictive_entropy(found.samples, 1).values[0] - normalised) < 5.5 * error


def test_samples_follow_the_language(many):
    """Chi-square over the texts that are expected often enough; false alarm 1e-7."""
    from scipy.stats import chi2

    lm, found = many
    letters = {"".join("abc"[t] for t in tokens[:-1]): np.exp(p) for tokens, p in every_text(lm)}
    counts = {text: 0 for text in letters}
    for text in found.samples.texts:
        counts[text] += 1
    often = [text for text, p in letters.items() if 3000 * p >= 5]
    expected = np.array([3000 * letters[t] for t in often])
    seen = np.array([counts[t] for t in often])
    rest = 3000 - expected.sum()
    statistic = ((seen - expected) ** 2 / expected).sum() + (3000 - seen.sum() - rest) ** 2 / max(rest, 1e-9)
    assert statistic < chi2.ppf(1 - 1e-7, len(often))


def test_greedy_is_deterministic_and_ten_samples_are_not():
    lm = bigram(5)
    runs = [gather(lm, [""], needs=["g_nll", "samples"], max_tokens=8, samples=10, seed=s) for s in range(12)]
    found = [estimate(run, ["g_nll", "predictive_entropy"]) for run in runs]
    assert len({f["g_nll"].values[0] for f in found}) == 1
    assert np.std([f["predictive_entropy"].values[0] for f in found]) > 0.05
