"""Counts of n-grams: a fixed trie of arrays for a corpus, dictionaries for the text that is being written."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from likely.decoding.drafting.memory_file import checked_ids, save_memory
from likely.errors import DataError
from likely.metrics.checks import Ints

FREQUENT = 8  # continuations of a context that a quick look considers


@dataclass(frozen=True)
class Continuations:
    """Tokens (n,), ascending, that follow one context, how often each does and all together, and up to FREQUENT of the
    most frequent."""

    tokens: Ints
    counts: Ints
    total: float
    frequent: frozenset[int]

    def counts_of(self, tokens: Ints) -> Ints:
        """How often each of these follows; 0 for tokens that never do."""
        place = np.minimum(np.searchsorted(self.tokens, tokens), len(self.tokens) - 1)
        return np.where(self.tokens[place] == tokens, self.counts[place], 0)


EMPTY = Continuations(np.empty(0, np.int64), np.empty(0, np.int64), 0.0, frozenset())


@dataclass(frozen=True)
class CorpusCounts:
    """How often each sequence of 1..order tokens occurs, as a trie: one layer of arrays per length.

    tokens[k]  (n_k,) last token of each sequence of k + 1 tokens, sorted within the same beginning
    counts[k]  (n_k,) how often it occurs
    places[k]  (n_(k-1) + 1,) the sequences that continue sequence i of k tokens are places[k][i]:places[k][i + 1]
    """

    tokens: tuple[Ints, ...]
    counts: tuple[Ints, ...]
    places: tuple[Ints, ...]
    _rows: dict[tuple[int, int], Continuations] = field(
        default_factory=dict, compare=False
    )  # long ones, once looked at

    @property
    def order(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]], *, order: int, vocab_size: int) -> CorpusCounts:
        """Counts within each text; no n-gram spans two."""
        lists = [np.asarray(text, np.int64) for text in texts]
        flat = np.concatenate([*lists, np.empty(0, np.int64)])
        if flat.size and (flat.min() < 0 or flat.max() >= vocab_size):
            raise ValueError(f"token ids must lie in 0..{vocab_size - 1}, got {flat.min()}..{flat.max()}")
        left = np.concatenate([np.arange(len(one), 0, -1) for one in lists] + [np.empty(0, np.int64)])
        start, node = np.arange(len(flat)), np.zeros(len(flat), np.int64)
        tokens, counts, places = [], [], []
        parents = 1
        for k in range(order):
            keep = left[start] > k
            start, node = start[keep], node[keep]
            keys, node, count = np.unique(
                node * vocab_size + flat[start + k], return_inverse=True, return_counts=True
            )  # a sequence and its next token as one number: sorted by beginning, then by token
            tokens.append(keys % vocab_size)
            counts.append(count.astype(np.int64))
            places.append(np.searchsorted(keys // vocab_size, np.arange(parents + 1)).astype(np.int64))
            parents = len(keys)
        return cls(tuple(tokens), tuple(counts), tuple(places))

    def after(self, context: Sequence[int]) -> Continuations:
        """What follows a context of fewer than `order` tokens."""
        if not self.tokens[0].size:
            return EMPTY
        node = 0
        for k, token in enumerate(context):
            low, high = self.places[k][node : node + 2].tolist()
            node = bisect_left(self.tokens[k], token, low, high)  # for one token quicker than searchsorted
            if node == high or self.tokens[k][node] != token:
                return EMPTY
        k = len(context)
        low, high = self.places[k][node : node + 2].tolist()
        row = self._rows.get((k, low))
        if row is None:
            tokens, counts = self.tokens[k][low:high], self.counts[k][low:high]
            chosen = tokens if high - low <= FREQUENT else tokens[np.argpartition(-counts, FREQUENT)[:FREQUENT]]
            row = Continuations(tokens, counts, float(counts.sum()), frozenset(chosen.tolist()))
            if high - low > FREQUENT:
                self._rows[k, low] = row
        return row

    def save(self, path: str | Path, *, tokenizer: str, settings: Mapping[str, str]) -> None:
        arrays = {}
        for k in range(self.order):
            arrays[f"tokens{k}"] = self.tokens[k].astype(np.int32)
            arrays[f"counts{k}"] = self.counts[k].astype(np.int32)
            arrays[f"places{k}"] = self.places[k].astype(np.int32)
        save_memory(path, "ngram", arrays, tokenizer=tokenizer, settings=settings)

    @classmethod
    def checked(
        cls, path: str | Path, arrays: Mapping[str, np.ndarray], *, order: int, vocab_size: int
    ) -> CorpusCounts:
        """The counts of a file; DataError unless they are a trie over the vocabulary."""
        tokens, counts, places = [], [], []
        parents = 1
        for k in range(order):
            ids, count, place = (arrays[f"{name}{k}"].astype(np.int64) for name in ("tokens", "counts", "places"))
            checked_ids(path, f"tokens{k}", ids, vocab_size)
            shaped = ids.shape == count.shape == (ids.size,) and place.shape == (parents + 1,)
            if not (shaped and place[0] == 0 and place[-1] == ids.size and (np.diff(place) >= 0).all()):
                raise DataError(f"{path}: places{k} does not divide tokens{k}: build the memory again")
            rising = np.diff(ids) > 0
            rising[place[1:-1][(place[1:-1] > 0) & (place[1:-1] < ids.size)] - 1] = True
            if not rising.all() or (count < 1).any():
                raise DataError(f"{path}: layer {k} is not sorted or holds a count below 1: build the memory again")
            tokens.append(ids)
            counts.append(count)
            places.append(place)
            parents = ids.size
        return cls(tuple(tokens), tuple(counts), tuple(places))


class TextCounts:
    """The same for one growing text, with exact undo: context -> token -> how often it followed, contexts of
    0..order - 1 tokens."""

    def __init__(self, order: int):
        self.order = order
        self.tokens: list[int] = []
        self._follows: dict[tuple[int, ...], dict[int, int]] = {}

    def add(self, token: int) -> None:
        end = len(self.tokens)
        for n in range(min(self.order - 1, end) + 1):
            row = self._follows.setdefault(tuple(self.tokens[end - n :]), {})
            row[token] = row.get(token, 0) + 1
        self.tokens.append(token)

    def remove(self) -> int:
        """Undo the last `add`; gives its token."""
        token, end = self.tokens.pop(), len(self.tokens)
        for n in range(min(self.order - 1, end) + 1):
            key = tuple(self.tokens[end - n :])
            row = self._follows[key]
            row[token] -= 1
            if not row[token]:
                del row[token]
                if not row:
                    del self._follows[key]
        return token

    def after(self, context: tuple[int, ...]) -> dict[int, int]:
        """token -> how often it followed the context."""
        return self._follows.get(context, {})

    def copy(self) -> TextCounts:
        twin = TextCounts(self.order)
        twin.tokens = self.tokens.copy()
        twin._follows = {key: row.copy() for key, row in self._follows.items()}
        return twin
