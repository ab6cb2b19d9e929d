"""TF-IDF: texts as sparse vectors of their words and word pairs, kept as plain numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_array

from likely.calibration.inputs import Floats

_WORD = re.compile(r"\w\w+|[^\w\s]")


class TfIdf:
    """(1 + ln count) · (ln((1 + N) / (1 + document frequency)) + 1), rows of length 1; terms are words and pairs.

    words      longest terms, in words;  at_least: texts that a term must occur in;  most: so many terms, the commonest
    Words are runs of at least two letters or digits and single punctuation marks, in lower case.  Weights as those of
    scikit-learn's TfidfVectorizer(sublinear_tf=True).
    """

    def __init__(self, *, words: int = 2, at_least: int = 2, most: int = 5000):
        self.words, self.at_least, self.most = words, at_least, most

    def fit(self, texts: Sequence[str]) -> Self:
        if not len(texts):
            raise ValueError("no texts: at least one is needed")
        found: Counter[str] = Counter()
        for text in texts:
            found.update(set(self.terms(text)))
        kept = sorted(((-n, term) for term, n in found.items() if n >= self.at_least))[: self.most]
        if not kept:
            raise ValueError(f"no term occurs in {self.at_least} of the {len(texts)} texts: lower at_least")
        chosen = sorted((term, -n) for n, term in kept)
        self.terms_ = [term for term, _ in chosen]
        self.idf_ = np.log((1 + len(texts)) / (1 + np.array([n for _, n in chosen], np.float64))) + 1
        return self

    def terms(self, text: str) -> list[str]:
        words = _WORD.findall(text.lower())
        return [" ".join(words[i : i + n]) for n in range(1, self.words + 1) for i in range(len(words) - n + 1)]

    def transform(self, texts: Sequence[str]) -> Any:
        """(N, D) sparse, a row of zeros for a text without a known term."""
        place = {term: i for i, term in enumerate(self.terms_)}
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            counts = Counter(place[term] for term in self.terms(text) if term in place)
            weights: Floats = np.array([1 + np.log(n) for n in counts.values()]) * self.idf_[list(counts)]
            rows += [row] * len(counts)
            columns += list(counts)
            values += (weights / max(float(np.linalg.norm(weights)), 1e-12)).tolist()
        return csr_array((values, (rows, columns)), shape=(len(texts), len(self.terms_)), dtype=np.float64)
