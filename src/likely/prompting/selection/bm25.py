"""Which texts share words with a query: demonstrations for a prompt, tools for a question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence


class BM25:
    """Texts, each a list of words, that queries are scored against.

    score = Σ over words of the query in the text: log(1 + (N − n + ½) / (n + ½)) · c (k1 + 1) / (c + norm), with
    norm = k1 (1 − b + b length / mean length), where the text has the word c times, and n of N texts have it.
    Robertson and Zaragoza 2009, "The probabilistic relevance framework", equation 3.15.
    """

    def __init__(self, texts: Iterable[Sequence[str]], *, k1: float = 1.2, b: float = 0.75):
        self._k1, self._b = k1, b
        self._counts = [Counter(words) for words in texts]
        among = Counter(word for counts in self._counts for word in counts)
        n = len(self._counts)
        self._weights = {word: math.log1p((n - held + 0.5) / (held + 0.5)) for word, held in among.items()}
        self._mean = sum(map(Counter.total, self._counts)) / max(1, n) or 1.0

    def scores(self, query: Collection[str]) -> list[float]:
        """One per text; a word counts once, however often the query has it."""
        wanted = set(query)
        return [self._score(wanted, counts) for counts in self._counts]

    def _score(self, wanted: set[str], counts: Counter[str]) -> float:
        norm = self._k1 * (1 - self._b + self._b * counts.total() / self._mean)
        return math.fsum(  # whatever the order of the words
            self._weights[word] * counts[word] * (self._k1 + 1) / (counts[word] + norm)
            for word in wanted & counts.keys()
        )
