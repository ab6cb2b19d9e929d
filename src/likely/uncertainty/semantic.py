"""Uncertainty over what S samples mean instead of over their words: semantic entropy, and agreement.

Kuhn et al. 2023, arXiv:2302.09664; Farquhar et al. 2024, Nature 630.  Functions of arrays take one prompt's samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from likely.metrics.checks import Floats, Ints
from likely.uncertainty.clusters import NUMBER, Clusterer
from likely.uncertainty.samples import any_cut, samples_of
from likely.uncertainty.types import Gathered, GenerationScores, Uncertainty
from likely.uncertainty.verbal import stated_confidences, without_confidence

EntropyForm = Literal["rao_blackwell", "older"]


def cluster_logprobs(logprobs: Floats, clusters: Sequence[int]) -> Floats:
    """(C,) log Σ_{s in c} e^{l_s} of each cluster, not normalised.  logprobs (S,), clusters (S,) numbered 0..C-1."""
    groups = np.asarray(clusters)
    return np.array([np.logaddexp.reduce(logprobs[groups == c]) for c in range(int(groups.max()) + 1)])


def semantic_entropy_of(logprobs: Floats, clusters: Sequence[int], *, form: EntropyForm = "rao_blackwell") -> float:
    """Entropy over C meanings of S different texts, in nats.

    logprobs  (S,)  log p(y^s | x), or per token (length-normalised)
    form      rao_blackwell: −Σ_c P(c) log P(c), P(c) the share Σ_{s in c} e^{l_s} / Σ_s e^{l_s}.  In [0, log C].
              older: −(1/C) Σ_c log P̃(c), P̃ not normalised (Kuhn et al., eq. 4); inf where a meaning has none
    A text of probability 0 adds nothing (0 log 0 = 0).  ValueError where all of them are such.
    """
    if not len(logprobs) or len(logprobs) != len(clusters):
        raise ValueError(
            f"{len(logprobs)} log-probabilities for {len(clusters)} texts: each needs one, and there must be one"
        )
    masses = cluster_logprobs(np.asarray(logprobs, np.float64), clusters)
    if np.isneginf(masses).all():
        raise ValueError("every text has probability 0: nothing can be said of their meanings")
    if form == "older":
        return float(-masses.mean())
    shares = masses - np.logaddexp.reduce(masses)
    shares = shares[shares > -np.inf]
    return max(0.0, float(-(np.exp(shares) * shares).sum()))


def discrete_entropy_of(clusters: Sequence[int]) -> float:
    """−Σ_c (|c|/S) log(|c|/S): entropy of how often each meaning was sampled; needs no log-probabilities."""
    if not len(clusters):
        raise ValueError("no texts: one at least is needed")
    shares = np.bincount(np.asarray(clusters)) / len(clusters)
    return max(0.0, float(-(shares * np.log(shares)).sum()))


def distinct(texts: Sequence[str], logprobs: Floats) -> list[int]:
    """Numbers of the samples to keep so that each text counts once: of equal ones the most likely."""
    best: dict[str, int] = {}
    for i, text in enumerate(texts):
        if text not in best or logprobs[i] > logprobs[best[text]]:
            best[text] = i
    return sorted(best.values())


def semantic_entropy(
    gathered: Gathered,
    *,
    clusterer: Clusterer = NUMBER,
    length_normalised: bool = False,
    form: EntropyForm = "rao_blackwell",
    dedup: bool = True,
) -> Uncertainty:
    """`semantic_entropy_of` each prompt's samples; the note says which clusterer was used.

    dedup  count a text that was sampled twice once: its probability weighs it already
    """
    samples = gathered.texts("samples")
    weights = samples.mean_logprobs if length_normalised else samples.logprobs

    def one(own: Ints, texts: list[str], clusters: list[int]) -> float:
        keep = distinct(texts, weights[own]) if dedup else list(range(len(own)))
        kept = np.unique([clusters[k] for k in keep], return_inverse=True)[1].tolist()
        return semantic_entropy_of(weights[own][keep], kept, form=form)

    name = ("ln_" if length_normalised else "") + "semantic_entropy" + ("_older" if form == "older" else "")
    return _over_prompts(gathered, samples, clusterer, one, name)


def discrete_semantic_entropy(gathered: Gathered, *, clusterer: Clusterer = NUMBER) -> Uncertainty:
    """`discrete_entropy_of` each prompt's samples."""
    return _over_prompts(
        gathered, gathered.texts("samples"), clusterer, lambda own, texts, clusters: discrete_entropy_of(clusters),
        "discrete_semantic_entropy",
    )  # fmt: skip


def _over_prompts(
    gathered: Gathered,
    samples: GenerationScores,
    clusterer: Clusterer,
    one: Callable[[Ints, list[str], list[int]], float],
    name: str,
) -> Uncertainty:
    values = np.empty(gathered.n)
    for i, question in enumerate(gathered.prompts):
        own = samples_of(samples, i)
        texts = [samples.texts[k] for k in own]
        groups = clusterer.groups(question, texts)
        try:
            values[i] = one(own, texts, groups)
        except ValueError as error:
            raise ValueError(f"prompt {i}: {error}") from None
    return Uncertainty(
        values, "score", "less_certain", name, truncated=any_cut(samples, gathered.n),
        note=f"clusters: {clusterer.name}",
    )  # fmt: skip


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
