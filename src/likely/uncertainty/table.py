"""All estimators by name: what each says, what it needs, how it is computed, and what a higher value means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from likely.errors import check_choice
from likely.metrics.checks import Floats
from likely.uncertainty import likelihood, samples, semantic, verbal
from likely.uncertainty.clusters import NUMBER, Clusterer
from likely.uncertainty.p_true import p_true
from likely.uncertainty.types import Direction, Gathered, Uncertainty

NEEDS = ("greedy", "samples", "sample_states", "token_entropy", "beams", "p_true")
BRAINSTORMED = 5  # samples that P(True) shows


@dataclass(frozen=True)
class Estimator:
    """about: one line of help;  needs: names of NEEDS;  of(gathered, clusterer): its values, see `Uncertainty`."""

    about: str
    needs: tuple[str, ...]
    of: Callable[[Gathered, Clusterer], Uncertainty]
    higher_is: Direction = "less_certain"


def _greedy(of: Callable[..., Uncertainty]) -> Callable[[Gathered, Clusterer], Uncertainty]:
    return lambda gathered, _: of(gathered.texts("greedy"))


def _samples(of: Callable[..., Uncertainty]) -> Callable[[Gathered, Clusterer], Uncertainty]:
    return lambda gathered, _: of(gathered.texts("samples"), gathered.n)


def _meanings(of: Callable[..., Uncertainty], **settings: Any) -> Callable[[Gathered, Clusterer], Uncertainty]:
    return lambda gathered, clusterer: of(gathered, clusterer=clusterer, **settings)


def _graph(of: Callable[[Floats], float], name: str) -> Callable[[Gathered, Clusterer], Uncertainty]:
    return lambda gathered, _: samples.graph_score(gathered, of, name)


def _m_nll(gathered: Gathered, _: Clusterer) -> Uncertainty:
    return likelihood.m_nll(gathered.texts("greedy"), gathered.texts("beams"))


def _cocoa(gathered: Gathered, _: Clusterer, *, length_normalised: bool = False) -> Uncertainty:
    return samples.cocoa(gathered, length_normalised=length_normalised)


def _p_true(gathered: Gathered, _: Clusterer) -> Uncertainty:
    return p_true(gathered)


_G, _S = ("greedy",), ("samples",)
_MORE: Direction = "more_certain"
_SE = semantic.semantic_entropy
ESTIMATORS: dict[str, Estimator] = {
    "g_nll": Estimator("-log p of the greedy text", _G, _greedy(likelihood.g_nll)),
    "greedy_probability": Estimator("p of the greedy text", _G, _greedy(likelihood.greedy_probability), _MORE),
    "mean_nll": Estimator("nats per token of the greedy text", _G, _greedy(likelihood.mean_nll)),
    "perplexity": Estimator("exp of mean_nll", _G, _greedy(likelihood.perplexity)),
    "max_nll": Estimator("its least expected token", _G, _greedy(likelihood.max_nll)),
    "token_entropy": Estimator("mean entropy of its tokens", ("token_entropy",), _greedy(likelihood.token_entropy)),
    "m_nll": Estimator("-log p of the most likely text that beams find", ("greedy", "beams"), _m_nll),
    "predictive_entropy": Estimator("mean -log p of samples", _S, _samples(samples.predictive_entropy)),
    "ln_predictive_entropy": Estimator("nats per token of samples", _S, _samples(samples.ln_predictive_entropy)),
    "semantic_entropy": Estimator("entropy over meanings, weighed by p", _S, _meanings(_SE)),
    "ln_semantic_entropy": Estimator("the same, by p per token", _S, _meanings(_SE, length_normalised=True)),
    "semantic_entropy_older": Estimator("the same in its first form", _S, _meanings(_SE, form="older")),
    "discrete_semantic_entropy": Estimator(
        "entropy over meanings, counted", _S, _meanings(semantic.discrete_semantic_entropy)
    ),
    "lexical_similarity": Estimator("words that samples share", _S, _samples(samples.lexical_similarity), _MORE),
    "eigv": Estimator("soft number of meanings", _S, _graph(samples.eigenvalue_sum, "eigv")),
    "deg": Estimator("mean dissimilarity of samples", _S, _graph(samples.missing_degree, "deg")),
    "ecc": Estimator("spread of samples in their graph", _S, _graph(samples.eccentricity, "ecc")),
    "kernel_language_entropy": Estimator(
        "entropy of that graph's heat kernel", _S, _graph(samples.kernel_language_entropy, "kernel_language_entropy")
    ),
    "sentence_sar": Estimator(
        "-log p of samples with what is like them", _S, lambda gathered, _: samples.sentence_sar(gathered)
    ),
    "cocoa": Estimator("-log p of the greedy text, times how unlike the samples it is", (*_G, *_S), _cocoa),
    "ln_cocoa": Estimator("the same, by nats per token", (*_G, *_S), partial(_cocoa, length_normalised=True)),
    "eigen_score": Estimator(
        "log-volume that the hidden states of samples span",
        ("samples", "sample_states"),
        lambda gathered, _: samples.eigen_score(gathered),
    ),
    "csc": Estimator("samples that agree with the first", _S, _meanings(semantic.csc), _MORE),
    "csa": Estimator("the same, weighed by what each states", _S, _meanings(semantic.csa), _MORE),
    "greedy_agreement": Estimator(
        "samples that agree with the greedy text", (*_G, *_S), _meanings(semantic.greedy_agreement), _MORE
    ),
    "p_true": Estimator("p that the answer is true, when asked", ("p_true",), _p_true, _MORE),
    "stated_confidence": Estimator("what the text itself states", _G, _greedy(verbal.stated), _MORE),
}


def check_names(names: Iterable[str]) -> list[str]:
    """The names of estimators, each once; ValueError for an unknown one."""
    found = list(dict.fromkeys(names))
    for name in found:
        check_choice("estimator", name, ESTIMATORS)
    if not found:
        raise ValueError(f"no estimator was named (allowed: {', '.join(ESTIMATORS)})")
    return found


def needs_of(names: Iterable[str], *, brainstormed: int = BRAINSTORMED) -> frozenset[str]:
    """The union of what these need, with what that rests on; names of estimators or of needs.

    brainstormed  samples that P(True) shows; without any it needs no samples
    """
    wanted: set[str] = set()
    for name in names:
        check_choice("need", name, (*NEEDS, *ESTIMATORS))
        wanted |= {name} if name in NEEDS else set(ESTIMATORS[name].needs)
    if wanted & {"token_entropy", "beams", "p_true"}:
        wanted.add("greedy")
    if "sample_states" in wanted or ("p_true" in wanted and brainstormed):
        wanted.add("samples")
    return frozenset(wanted)


def estimate(gathered: Gathered, names: Iterable[str], *, clusterer: Clusterer = NUMBER) -> dict[str, Uncertainty]:
    """The named estimators on what was gathered: arithmetic only, unless the clusterer asks a model."""
    once = _remembering(clusterer)
    return {name: ESTIMATORS[name].of(gathered, once) for name in check_names(names)}


def _remembering(clusterer: Clusterer) -> Clusterer:
    """The same, asked about the same texts only once: it may be a model."""
    known: dict[tuple[str, ...], list[int]] = {}

    def groups(question: str, texts: Sequence[str]) -> list[int]:
        key = (question, *texts)
        if key not in known:
            known[key] = clusterer.groups(question, texts)
        return known[key]

    return Clusterer(clusterer.name, groups)
