"""Agreement of sampled answers with one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from likely.uncertainty.clusters import NUMBER, Clusterer
from likely.uncertainty.samples import any_cut, samples_of
from likely.uncertainty.types import Floats, Gathered, Uncertainty
from likely.uncertainty.verbal import stated_confidences, without_confidence


def agreement(clusters: Sequence[int]) -> float:
    """CSC: the share of the S − 1 later answers that mean what the first does.  clusters (S,), S >= 2."""
    if len(clusters) < 2:
        raise ValueError(f"agreement needs 2 answers at least, got {len(clusters)}")
    return float(np.mean(np.asarray(clusters[1:]) == clusters[0]))


def weighted_agreement(agrees: NDArray[np.bool_], confidence: Floats) -> float:
    """CSA: Σ_s c_s·1[s agrees] / Σ_s c_s over the answers that state a confidence c_s; NaN if none does.

    agrees, confidence  (S,);  a confidence that is missing is NaN, and that answer does not count
    """
    known = ~np.isnan(confidence)
    total = confidence[known].sum()
    return float(confidence[known & agrees].sum() / total) if total > 0 else np.nan


def csc(gathered: Gathered, *, clusterer: Clusterer = NUMBER) -> Uncertainty:
    """`agreement` of each prompt's samples with the first one."""
    return _probability(gathered, "csc", clusterer, [agreement(c) for _, c in _clusters(gathered, clusterer, least=2)])


def csa(gathered: Gathered, *, clusterer: Clusterer = NUMBER) -> Uncertainty:
    """`weighted_agreement` of each prompt's later samples with the first, by the confidence that each states."""
    values = []
    for texts, clusters in _clusters(gathered, clusterer, least=2):
        agrees = np.asarray(clusters[1:]) == clusters[0]
        values.append(weighted_agreement(agrees, stated_confidences(texts[1:])))
    return _probability(gathered, "csa", clusterer, values)


def greedy_agreement(gathered: Gathered, *, clusterer: Clusterer = NUMBER) -> Uncertainty:
    """The share of a prompt's samples that mean what its greedy text does."""
    greedy = gathered.texts("greedy").texts
    values = []
    for i, (texts, _) in enumerate(_clusters(gathered, clusterer, least=1)):
        joined = [without_confidence(t) for t in (greedy[i], *texts)]
        values.append(agreement(clusterer.groups(gathered.prompts[i], joined)))
    return _probability(gathered, "greedy_agreement", clusterer, values)


def _clusters(gathered: Gathered, clusterer: Clusterer, *, least: int) -> list[tuple[list[str], list[int]]]:
    """Per prompt (its samples, their clusters by what they answer)."""
    samples = gathered.texts("samples")
    out = []
    for i, question in enumerate(gathered.prompts):
        texts = [samples.texts[k] for k in samples_of(samples, i, least=least)]
        out.append((texts, clusterer.groups(question, [without_confidence(t) for t in texts])))
    return out


def _probability(gathered: Gathered, name: str, clusterer: Clusterer, values: Sequence[float]) -> Uncertainty:
    return Uncertainty(
        np.array(values), "probability", "more_certain", name,
        truncated=any_cut(gathered.texts("samples"), gathered.n), note=f"clusters: {clusterer.name}",
    )  # fmt: skip
