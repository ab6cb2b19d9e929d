"""All estimators by name: what each needs, and the function of what was gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from likely.errors import nearest
from likely.uncertainty import consistency, graph, likelihood, overlap, sampling, semantic, verbal
from likely.uncertainty.clusters import NUMBER, Clusterer
from likely.uncertainty.p_true import p_true
from likely.uncertainty.types import Gathered, Uncertainty

NEEDS = ("greedy", "samples", "token_entropy", "beams", "p_true")
BRAINSTORMED = 5  # samples that P(True) shows


@dataclass(frozen=True)
class Estimator:
    """needs: names of NEEDS;  of(gathered, clusterer): its values."""

    about: str
    needs: tuple[str, ...]
    of: Callable[[Gathered, Clusterer], Uncertainty]


def _greedy(of: Callable[..., Uncertainty]) -> Callable[[Gathered, Clusterer], Uncertainty]:
    return lambda gathered, _: of(gathered.texts("greedy"))


def _samples(of: Callable[..., Uncertainty]) -> Callable[[Gathered, Clusterer], Uncertainty]:
    return lambda gathered, _: of(gathered.texts("samples"), gathered.n)


ESTIMATORS: dict[str, Estimator] = {
    "g_nll": Estimator("-log p of the greedy text", ("greedy",), _greedy(likelihood.g_nll)),
    "greedy_probability": Estimator("p of the greedy text", ("greedy",), _greedy(likelihood.greedy_probability)),
    "mean_nll": Estimator("nats per token of the greedy text", ("greedy",), _greedy(likelihood.mean_nll)),
    "perplexity": Estimator("exp of mean_nll", ("greedy",), _greedy(likelihood.perplexity)),
    "max_nll": Estimator("its least expected token", ("greedy",), _greedy(likelihood.max_nll)),
    "token_entropy": Estimator(
        "mean entropy of the next token along it", ("token_entropy",), _greedy(likelihood.token_entropy)
    ),
    "m_nll": Estimator(
        "-log p of the most likely text found by beams",
        ("greedy", "beams"),
        lambda gathered, _: likelihood.m_nll(gathered.texts("greedy"), gathered.texts("beams")),
    ),
    "predictive_entropy": Estimator("mean -log p of samples", ("samples",), _samples(sampling.predictive_entropy)),
    "ln_predictive_entropy": Estimator(
        "mean nats per token of samples", ("samples",), _samples(sampling.ln_predictive_entropy)
    ),
    "semantic_entropy": Estimator(
        "entropy over meanings, weighed by p",
        ("samples",),
        lambda gathered, clusterer: semantic.semantic_entropy(gathered, clusterer=clusterer),
    ),
    "ln_semantic_entropy": Estimator(
        "the same, weighed by p per token",
        ("samples",),
        lambda gathered, clusterer: semantic.semantic_entropy(gathered, clusterer=clusterer, length_normalised=True),
    ),
    "semantic_entropy_older": Estimator(
        "the same in its first form, not normalised",
        ("samples",),
        lambda gathered, clusterer: semantic.semantic_entropy(gathered, clusterer=clusterer, form="older"),
    ),
    "discrete_semantic_entropy": Estimator(
        "entropy over meanings, counted",
        ("samples",),
        lambda gathered, clusterer: semantic.discrete_semantic_entropy(gathered, clusterer=clusterer),
    ),
    "lexical_similarity": Estimator("words that samples share", ("samples",), _samples(overlap.lexical_similarity)),
    "eigv": Estimator(
        "soft number of meanings", ("samples",), lambda g, _: graph.graph_score(g, graph.eigenvalue_sum, "eigv")
    ),
    "deg": Estimator(
        "mean dissimilarity of samples", ("samples",), lambda g, _: graph.graph_score(g, graph.missing_degree, "deg")
    ),
    "ecc": Estimator(
        "spread of samples in their graph", ("samples",), lambda g, _: graph.graph_score(g, graph.eccentricity, "ecc")
    ),
    "csc": Estimator(
        "samples that agree with the first",
        ("samples",),
        lambda gathered, clusterer: consistency.csc(gathered, clusterer=clusterer),
    ),
    "csa": Estimator(
        "the same, weighed by the confidence that each states",
        ("samples",),
        lambda gathered, clusterer: consistency.csa(gathered, clusterer=clusterer),
    ),
    "greedy_agreement": Estimator(
        "samples that agree with the greedy text",
        ("greedy", "samples"),
        lambda gathered, clusterer: consistency.greedy_agreement(gathered, clusterer=clusterer),
    ),
    "p_true": Estimator("p that the answer is true, when asked", ("p_true",), lambda gathered, _: p_true(gathered)),
    "stated_confidence": Estimator("what the text itself states", ("greedy",), _greedy(verbal.stated)),
}


def check_names(names: Iterable[str]) -> list[str]:
    """The names of estimators, each once; ValueError for an unknown one."""
    found = list(dict.fromkeys(names))
    for name in found:
        if name not in ESTIMATORS:
            known = ", ".join(ESTIMATORS)
            raise ValueError(f'unknown estimator "{name}"{nearest(name, ESTIMATORS)} (allowed: {known})')
    if not found:
        raise ValueError(f"no estimator was named (allowed: {', '.join(ESTIMATORS)})")
    return found


def needs_of(names: Iterable[str], *, brainstormed: int = BRAINSTORMED) -> frozenset[str]:
    """The union of what these need, with what that rests on; names of estimators or of needs.

    brainstormed  samples that P(True) shows; without any it needs no samples
    """
    wanted: set[str] = set()
    for name in names:
        if name in NEEDS:
            wanted.add(name)
        elif name in ESTIMATORS:
            wanted |= set(ESTIMATORS[name].needs)
        else:
            allowed = (*NEEDS, *ESTIMATORS)
            raise ValueError(f'unknown need "{name}"{nearest(name, allowed)} (allowed: {", ".join(allowed)})')
    if wanted & {"token_entropy", "beams", "p_true"}:
        wanted.add("greedy")
    if "p_true" in wanted and brainstormed:
        wanted.add("samples")
    return frozenset(wanted)


def estimate(gathered: Gathered, names: Iterable[str], *, clusterer: Clusterer = NUMBER) -> dict[str, Uncertainty]:
    """The named estimators on what was gathered: arithmetic only, unless the clusterer asks a model."""
    return {name: ESTIMATORS[name].of(gathered, clusterer) for name in check_names(names)}
