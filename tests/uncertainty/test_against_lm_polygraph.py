"""The same statistics give the same values in lm-polygraph (`pip install --no-deps lm-polygraph`), where it is there.

Its package imports spaCy and models of sentences at once, so only the modules of its estimators are loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest

from likely.uncertainty import likelihood
from likely.uncertainty import samples as sampling
from likely.uncertainty.clusters import EXACT
from likely.uncertainty.samples import eccentricity, eigenvalue_sum, lexical_similarity, missing_degree
from likely.uncertainty.semantic import discrete_semantic_entropy, semantic_entropy
from likely.uncertainty.types import Gathered, GenerationScores


@pytest.fixture
def polygraph(monkeypatch):
    found = importlib.util.find_spec("lm_polygraph")
    if found is None:
        pytest.skip("lm-polygraph is not installed")
    [root] = found.submodule_search_locations
    for name in ("", ".estimators", ".utils"):
        package = types.ModuleType(f"lm_polygraph{name}")
        package.__path__ = [root + name.replace(".", "/")]
        monkeypatch.setitem(sys.modules, package.__name__, package)

    def load(module: str, name: str, *needs: str):
        for needed in needs:
            pytest.importorskip(needed)
        return getattr(importlib.import_module(f"lm_polygraph.estimators.{module}"), name)

    return load


@pytest.fixture
def made():
    """Three prompts, four samples each, log-probabilities from a generator; meanings equally large where it matters."""
    rng = np.random.default_rng(0)
    texts = [["Paris", "paris", "Rome", "rome"], ["a cat", "a dog", "a cat", "one cow"], ["x", "y", "z", "w"]]

    def rows(n):
        return [-rng.exponential(1.0, rng.integers(1, 6)) for _ in range(n)]

    greedy = GenerationScores(rows(3), ["g"] * 3, ["stop"] * 3, np.arange(3))
    greedy = GenerationScores(
        greedy.token_logprobs, greedy.texts, greedy.finish_reasons, greedy.prompt_ids,
        [rng.exponential(1.0, len(row)) for row in greedy.token_logprobs],
    )  # fmt: skip
    samples = GenerationScores(rows(12), [t for row in texts for t in row], ["stop"] * 12, np.repeat(np.arange(3), 4))
    return Gathered(["?"] * 3, greedy, samples)


def classes(gathered):
    groups = [EXACT.groups("?", [gathered.samples.texts[k] for k in gathered.samples.of(i)]) for i in range(3)]
    return groups, {
        "sample_to_class": [dict(enumerate(row)) for row in groups],
        "class_to_sample": [[[j for j, c in enumerate(row) if c == k] for k in range(max(row) + 1)] for row in groups],
    }


def test_of_the_greedy_text(polygraph, made):
    stats = {"greedy_log_likelihoods": made.greedy.token_logprobs, "entropy": made.greedy.token_entropies}
    for module, name, ours in (
        ("max_probability", "MaximumSequenceProbability", likelihood.g_nll),
        ("perplexity", "Perplexity", likelihood.mean_nll),
        ("token_entropy", "MeanTokenEntropy", likelihood.token_entropy),
    ):
        np.testing.assert_allclose(ours(made.greedy).values, polygraph(module, name)()(stats), rtol=1e-12)


def test_of_samples(polygraph, made):
    own = [made.samples.of(i) for i in range(3)]
    stats = {
        "sample_log_probs": [made.samples.logprobs[k].tolist() for k in own],
        "sample_tokens": [[list(made.samples.token_logprobs[j]) for j in k] for k in own],
        "sample_texts": [[made.samples.texts[j] for j in k] for k in own],
    }
    for module, name, ours in (
        ("monte_carlo_sequence_entropy", "MonteCarloSequenceEntropy", sampling.predictive_entropy),
        ("monte_carlo_normalized_sequence_entropy", "MonteCarloNormalizedSequenceEntropy",
         sampling.ln_predictive_entropy),
    ):  # fmt: skip
        np.testing.assert_allclose(ours(made.samples, 3).values, polygraph(module, name)()(stats), rtol=1e-12)
    groups, stats["semantic_classes_entail"] = classes(made)
    counted = polygraph("semantic_entropy", "SemanticEntropy")(class_probability_estimation="frequency")(stats)
    np.testing.assert_allclose(discrete_semantic_entropy(made, clusterer=EXACT).values, counted, rtol=1e-12)
    theirs = polygraph("semantic_entropy", "SemanticEntropy")()(stats)
    older = semantic_entropy(made, clusterer=EXACT, form="older", dedup=False).values
    equally_large = [len(set(np.bincount(g))) == 1 for g in groups]
    assert equally_large == [True, False, True]
    # theirs is the mean over samples, the paper's over meanings: equal where the meanings have as many samples
    np.testing.assert_allclose(older[equally_large], theirs[equally_large], rtol=1e-12)
    assert abs(older[1] - theirs[1]) > 1e-3


def test_of_graphs(polygraph):
    texts = ["a b c", "a b", "c d", "a b c d"]
    jaccard = importlib.import_module("lm_polygraph.estimators.common").compute_sim_score(texts, None, "Jaccard_score")
    stats = {"sample_texts": [texts]}
    for module, name, ours in (
        ("eig_val_laplacian", "EigValLaplacian", eigenvalue_sum),
        ("deg_mat", "DegMat", missing_degree),
        ("eccentricity", "Eccentricity", eccentricity),
    ):
        theirs = polygraph(module, name)(similarity_score="Jaccard_score")(stats)
        assert ours(jaccard) == pytest.approx(theirs[0], abs=1e-9)


def test_of_shared_words(polygraph, made):
    theirs = polygraph("lexical_similarity", "LexicalSimilarity", "rouge_score", "nltk", "absl")()
    texts = [[made.samples.texts[k] for k in made.samples.of(i)] for i in range(3)]
    np.testing.assert_allclose(lexical_similarity(made.samples, 3).values, -theirs({"sample_texts": texts}), atol=1e-9)
