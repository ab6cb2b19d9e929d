"""What S samples at temperature 1 say by themselves: the entropy of the text, shared words, their graph, their states.

The graph has the samples as nodes and their similarities W (S, S) as edges: symmetric, in [0, 1], 1 on the diagonal;
D = diag(W·1); L = I − D^(−1/2) W D^(−1/2).  Lin et al. 2023, arXiv:2305.19187.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from likely.metrics.checks import Floats, Ints
from likely.uncertainty.types import Gathered, GenerationScores, Uncertainty

_WORD = re.compile(r"\w+")
ECCENTRIC_BELOW = 0.9  # eigenvalues of L whose eigenvectors are coordinates of the samples


def predictive_entropy(samples: GenerationScores, n: int) -> Uncertainty:
    """PE: −(1/S) Σ_s log p(y^s | x), an unbiased estimate of the entropy of the text.

    n  number of prompts, N.  Malinin and Gales 2021, arXiv:2002.07650, eq. 5
    """
    return _mean_over_samples(samples, n, -samples.logprobs, "predictive_entropy")


def ln_predictive_entropy(samples: GenerationScores, n: int) -> Uncertainty:
    """LN-PE: −(1/S) Σ_s (1/L_s) log p(y^s | x), each text's nats per token."""
    return _mean_over_samples(samples, n, -samples.mean_logprobs, "ln_predictive_entropy")


def samples_of(samples: GenerationScores, prompt: int, *, least: int = 1) -> Ints:
    """The numbers of a prompt's samples; ValueError if there are fewer than `least`."""
    own = samples.of(prompt)
    if len(own) < least:
        raise ValueError(f"prompt {prompt} has {len(own)} samples, at least {least} are needed")
    return own


def any_cut(samples: GenerationScores, n: int) -> np.ndarray:
    """(N,) whether any of a prompt's samples was cut."""
    return np.array([bool(samples.truncated[samples.of(i)].any()) for i in range(n)])


def _mean_over_samples(samples: GenerationScores, n: int, each: Floats, name: str) -> Uncertainty:
    values = np.array([each[samples_of(samples, i)].mean() for i in range(n)])
    return Uncertainty(values, "score", "less_certain", name, truncated=any_cut(samples, n), note=samples.note)


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters, digits and underscores."""
    return _WORD.findall(text.lower())


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, O(len(a)·len(b))."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            kept, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
            before = kept
    return row[-1]


def rouge_l(a: str, b: str) -> float:
    """F1 of the longest common subsequence of words, in [0, 1].  Two texts without words: 1 if equal, else 0.

    Lin 2004, "ROUGE", section 3; without stemming.
    """
    one, other = words(a), words(b)
    if not one or not other:
        return float(a.strip() == b.strip())
    shared = common_length(one, other)
    return 2 * shared / (len(one) + len(other))


def similarities(texts: Sequence[str]) -> Floats:
    """(S, S) ROUGE-L of every pair, symmetric, 1 on the diagonal."""
    out = np.eye(len(texts))
    for i, j in itertools.combinations(range(len(texts)), 2):
        out[i, j] = out[j, i] = rouge_l(texts[i], texts[j])
    return out


def lexical_similarity(samples: GenerationScores, n: int) -> Uncertainty:
    """Mean ROUGE-L over all pairs of a prompt's samples (S >= 2): higher is more certain.  Fomicheva et al. 2020."""
    values = np.empty(n)
    for i in range(n):
        own = samples_of(samples, i, least=2)
        pairs = similarities([samples.texts[k] for k in own])
        values[i] = pairs[np.triu_indices(len(own), 1)].mean()
    return Uncertainty(values, "score", "more_certain", "lexical_similarity", truncated=any_cut(samples, n))


def eigenvalue_sum(w: Floats) -> float:
    """EigV: Σ_k max(0, 1 − λ_k) over the eigenvalues of L, a soft number of meanings: 1 if all agree, S if none."""
    return float(np.maximum(0.0, 1 - np.linalg.eigvalsh(_laplacian(w))).sum())


def missing_degree(w: Floats) -> float:
    """Deg: trace(S·I − D) / S², the mean of 1 − W over all pairs: 0 if all agree."""
    return float((len(w) - w.sum(axis=1)).sum() / len(w) ** 2)


def eccentricity(w: Floats) -> float:
    """Ecc: the Frobenius norm of the samples' coordinates (eigenvectors of L with λ < 0.9) less their mean."""
    values, vectors = np.linalg.eigh(_laplacian(w))
    coordinates = vectors[:, values < ECCENTRIC_BELOW]
    return float(np.linalg.norm(coordinates - coordinates.mean(axis=0)))


def kernel_language_entropy(w: Floats, *, t: float = 0.3) -> float:
    """KLE: −Σ λ log λ over the eigenvalues of K / S, in nats: from 0, where all agree and t is large, to log S.

    K = exp(−t (D − W)), scaled to 1 on its diagonal; t: how far the heat spreads, the paper's .3.
    Nikitin et al. 2024, arXiv:2405.20003.  (lm-polygraph 0.5 has the other sign in the exponent.)
    """
    _check_similarities(w)
    values, vectors = np.linalg.eigh(np.diag(w.sum(axis=1)) - w)
    kernel = (vectors * np.exp(-t * values)) @ vectors.T
    scale = np.sqrt(np.diag(kernel))
    shares = np.linalg.eigvalsh(kernel / np.outer(scale, scale) / len(w))
    shares = shares[shares > 0]
    return max(0.0, float(-(shares * np.log(shares)).sum()))


def sentence_sar_of(logprobs: Floats, w: Floats, *, t: float = 0.001) -> float:
    """SentenceSAR: −(1/S) Σ_s log(p_s + (1/t) Σ_{j≠s} w_sj p_j), the text's probability with that of texts like it.

    logprobs  (S,) log p_s;  t: the paper's .001.  Duan et al. 2024, arXiv:2307.01379.
    """
    with np.errstate(divide="ignore"):
        weights = np.log(w / t)
    np.fill_diagonal(weights, 0.0)
    terms = weights + logprobs
    most = terms.max(axis=1)
    return float(-(most + np.log(np.exp(terms - most[:, None]).sum(axis=1))).mean())


def sentence_sar(gathered: Gathered) -> Uncertainty:
    """`sentence_sar_of` per prompt, with ROUGE-L as similarity (S >= 2)."""
    samples = gathered.texts("samples")
    values = np.empty(gathered.n)
    for i in range(gathered.n):
        own = samples_of(samples, i, least=2)
        values[i] = sentence_sar_of(samples.logprobs[own], similarities([samples.texts[k] for k in own]))
    note = "similarity: ROUGE-L"
    return Uncertainty(
        values, "score", "less_certain", "sentence_sar", truncated=any_cut(samples, gathered.n), note=note
    )


def cocoa(gathered: Gathered, *, length_normalised: bool = False) -> Uncertainty:
    """CoCoA: −log p(y | x) · (1/S) Σ_s (1 − ROUGE-L(y, y^s)), y the greedy text: unlikely, and unlike the samples.

    length_normalised  nats per token instead of nats.  Vashurin et al. 2025, arXiv:2502.04964.
    """
    greedy, samples = gathered.texts("greedy"), gathered.texts("samples")
    confidence = -(greedy.mean_logprobs if length_normalised else greedy.logprobs)
    unlike, cut = np.empty(gathered.n), any_cut(samples, gathered.n)
    for i in range(gathered.n):
        [own] = greedy.of(i)
        texts = [samples.texts[k] for k in samples_of(samples, i)]
        unlike[i] = np.mean([1 - rouge_l(greedy.texts[own], text) for text in texts])
        cut[i] |= greedy.truncated[own]
    name = "ln_cocoa" if length_normalised else "cocoa"
    return Uncertainty(confidence * unlike, "score", "less_certain", name, truncated=cut, note="similarity: ROUGE-L")


def eigen_score_of(states: Floats, *, alpha: float = 0.001) -> float:
    """EigenScore: (1/S) log det(C Cᵀ + α I), C the states less their own means: the log-volume that samples span.

    states  (S, D), one of each sample;  alpha: the paper's .001.  S equal states: (log(S |c|² + α) + (S−1) log α) / S.
    Chen et al. 2024 (INSIDE), arXiv:2402.03744.
    """
    centred = states - states.mean(axis=1, keepdims=True)
    covariance = centred @ centred.T + alpha * np.eye(len(states))
    return float(np.linalg.slogdet(covariance).logabsdet / len(states))


def eigen_score(gathered: Gathered) -> Uncertainty:
    """`eigen_score_of` per prompt (S >= 2), of the last layer's state, after the final norm, at each sample's end.

    The paper reads a middle layer, which only torch could give.
    """
    samples, states = gathered.texts("samples"), gathered.extra.get("sample_states")
    if states is None:
        raise ValueError('no hidden states were gathered: gather(..., needs=["eigen_score"])')
    values = np.array([eigen_score_of(states[samples_of(samples, i, least=2)]) for i in range(gathered.n)])
    note = "hidden states: last layer"
    return Uncertainty(
        values, "score", "less_certain", "eigen_score", truncated=any_cut(samples, gathered.n), note=note
    )


def _check_similarities(w: Floats) -> None:
    if w.ndim != 2 or w.shape[0] != w.shape[1] or not np.allclose(w, w.T):
        raise ValueError(f"similarities must be a symmetric (S, S) matrix, got shape {w.shape}")


def _laplacian(w: Floats) -> Floats:
    _check_similarities(w)
    scale = 1 / np.sqrt(w.sum(axis=1))
    return np.eye(len(w)) - scale[:, None] * w * scale


def graph_score(gathered: Gathered, of: Callable[[Floats], float], name: str) -> Uncertainty:
    """One of the scores above per prompt, with ROUGE-L as similarity (S >= 2)."""
    samples = gathered.texts("samples")
    values = np.empty(gathered.n)
    for i in range(gathered.n):
        values[i] = of(similarities([samples.texts[k] for k in samples_of(samples, i, least=2)]))
    return Uncertainty(
        values, "score", "less_certain", name, truncated=any_cut(samples, gathered.n), note="similarity: ROUGE-L"
    )
