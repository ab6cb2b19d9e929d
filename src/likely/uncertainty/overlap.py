"""How much two texts share, word by word, and what that says of S samples."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from likely.uncertainty.sampling import any_cut, samples_of
from likely.uncertainty.types import Floats, GenerationScores, Uncertainty

_WORD = re.compile(r"\w+")


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
    """Mean ROUGE-L over all pairs of a prompt's samples (S >= 2): higher is surer.  Fomicheva et al. 2020."""
    values = np.empty(n)
    for i in range(n):
        own = samples_of(samples, i, least=2)
        pairs = similarities([samples.texts[k] for k in own])
        values[i] = pairs[np.triu_indices(len(own), 1)].mean()
    return Uncertainty(values, "score", "more_certain", "lexical_similarity", truncated=any_cut(samples, n))
