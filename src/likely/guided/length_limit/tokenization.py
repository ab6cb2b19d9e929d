"""The fewest tokens that write given bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from likely.guided.vocabulary import Vocabulary

UNWRITABLE = 2**30
KEPT = 20_000  # texts remembered
SHORT = 256  # bytes of a text whose every suffix is remembered


class ShortestTokenization:
    """Counts by dynamic programming from the end; what is known of a text holds for each of its suffixes, too."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._known: dict[bytes, int] = {b"": 0}
        self._long: tuple[bytes, list[int]] = (b"", [0])  # the last long text, and the count of each of its suffixes

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(256,) bytes that some token writes alone."""
        return np.array([bytes([b]) in self.vocabulary.ids_of for b in range(256)])

    def fewest_tokens(self, text: bytes) -> int:
        """Number of tokens, UNWRITABLE if no tokens write this text.

        If token t begins a shortest tokenization, fewest_tokens(text after t) = fewest_tokens(text) - 1.
        """
        if len(text) > SHORT:
            return self._of_long(text)
        if text in self._known:
            return self._known[text]
        if len(self._known) > KEPT:
            self._known = {b"": 0}
        known, pieces, longest = self._known, self.vocabulary.ids_of, self.vocabulary.longest
        for at in range(len(text) - 1, -1, -1):
            rest = text[at:]
            if rest not in known:
                known[rest] = min(
                    (known[rest[n:]] + 1 for n in range(1, min(longest, len(rest)) + 1) if rest[:n] in pieces),
                    default=UNWRITABLE,
                )
        return min(known[text], UNWRITABLE)

    def _of_long(self, text: bytes) -> int:
        whole, counts = self._long
        if not whole.endswith(text):
            counts, pieces, longest = [0], self.vocabulary.ids_of, self.vocabulary.longest
            for at in range(len(text) - 1, -1, -1):
                fits = (n for n in range(1, min(longest, len(text) - at) + 1) if text[at : at + n] in pieces)
                counts.append(min((counts[len(text) - at - n] + 1 for n in fits), default=UNWRITABLE))
            self._long = text, counts
        return min(counts[len(text)], UNWRITABLE)

    def first_token(self, text: bytes) -> bytes:
        """The bytes of the first token of a shortest tokenization; the longest of several."""
        total = self.fewest_tokens(text)
        for n in range(min(self.vocabulary.longest, len(text)), 0, -1):
            if text[:n] in self.vocabulary.ids_of and self.fewest_tokens(text[n:]) == total - 1:
                return text[:n]
        raise ValueError(f"no tokens write {text[:40]!r}")
