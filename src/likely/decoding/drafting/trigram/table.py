"""Trigram tables: for each pair of tokens, what followed it in a corpus and how often, as sorted arrays.

A pair (a, b) is one integer, a·2²¹ + b; three tokens fit 63 bits, so a whole corpus is counted by sorting integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from likely.runtimes.protocol import IntArray

BITS = 21
MASK = (1 << 2 * BITS) - 1  # the last two of three packed tokens
TOP = 12
_LOWEST = 2.0**-24  # the smallest fp16: no successor loses its weight to rounding
_CHUNK = 4_000_000  # trigrams counted at a time
_CACHED = 1 << 16  # pairs kept as Python objects

Successors = tuple[tuple[int, ...], tuple[float, ...]]  # tokens and their weights, heaviest first
NONE: Successors = ((), ())


def pair_of(a: int, b: int) -> int:
    """The integer that stands for two neighbouring tokens."""
    return a << BITS | b


def next_pair(pair: int, token: int) -> int:
    """The pair after `token` was appended: (a, b), c -> (b, c)."""
    return (pair << BITS & MASK) | token


class TrigramTable:
    """P pairs with S successors in all, never changed.

    pairs    (P,) int64, increasing
    offsets  (P + 1,) uint32: the successors of pair i are offsets[i]..offsets[i + 1]
    tokens   (S,) int32; weights (S,) fp16, of each pair the heaviest first
    """

    def __init__(self, pairs: IntArray, offsets: NDArray, tokens: NDArray, weights: NDArray):
        self.pairs, self.offsets, self.tokens, self.weights = pairs, offsets, tokens, weights
        self.successors = lru_cache(maxsize=_CACHED)(self._successors)

    def _successors(self, pair: int) -> Successors:
        i = int(self.pairs.searchsorted(np.int64(pair)))
        if i == len(self.pairs) or self.pairs[i] != pair:
            return NONE
        part = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        found = dict(zip(self.tokens[part].tolist(), self.weights[part].tolist(), strict=True))  # a file may err
        return tuple(found), tuple(found.values())

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.pairs, self.offsets, self.tokens, self.weights))


EMPTY = TrigramTable(np.empty(0, np.int64), np.zeros(1, np.uint32), np.empty(0, np.int32), np.empty(0, np.float16))


def count_trigrams(texts: Iterable[Sequence[int]], *, vocab_size: int = 1 << BITS) -> tuple[IntArray, IntArray]:
    """(trigrams (n,) packed and increasing, how often each occurred (n,)); no trigram crosses two texts."""
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    waiting: list[IntArray] = []
    size = 0
    for text in texts:
        ids = np.asarray(text, np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= min(vocab_size, 1 << BITS)):
            wrong = int(ids.min() if ids.min() < 0 else ids.max())
            raise ValueError(f"the corpus holds the token {wrong}, allowed are 0..{min(vocab_size, 1 << BITS) - 1}")
        if len(ids) < 3:
            continue
        waiting.append(ids[:-2] << 2 * BITS | ids[1:-1] << BITS | ids[2:])
        size += len(waiting[-1])
        if size >= _CHUNK:
            keys, counts = _merge(keys, counts, np.concatenate(waiting))
            waiting, size = [], 0
    return _merge(keys, counts, np.concatenate(waiting)) if waiting else (keys, counts)


def _merge(keys: IntArray, counts: IntArray, new: IntArray) -> tuple[IntArray, IntArray]:
    found, times = np.unique(new, return_counts=True)
    merged, place = np.unique(np.concatenate([keys, found]), return_inverse=True)
    total = np.zeros(len(merged), np.int64)
    np.add.at(total, place, np.concatenate([counts, times]))
    return merged, total


def table_of(trigrams: IntArray, counts: IntArray, *, top: int = TOP, min_count: int = 1) -> TrigramTable:
    """Weight of c after (a, b) = count(a, b, c) / Σ_c' count(a, b, c'), for the `top` most frequent c of each pair.

    min_count  pairs that occurred less often are left out
    """
    if top < 1:
        raise ValueError(f"top must be >= 1, got {top}")
    if not len(trigrams):
        return EMPTY
    all_pairs, tokens = trigrams >> BITS, trigrams & (1 << BITS) - 1
    order = np.lexsort((tokens, -counts, all_pairs))
    all_pairs, tokens, counts = all_pairs[order], tokens[order], counts[order]
    pairs, starts, sizes = np.unique(all_pairs, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, starts)
    rank = np.arange(len(tokens)) - np.repeat(starts, sizes)
    keep = (rank < top) & np.repeat(totals >= min_count, sizes)
    weights = np.maximum(counts / np.repeat(totals, sizes), _LOWEST)[keep].astype(np.float16)
    return _grouped(pairs[totals >= min_count], np.minimum(sizes, top)[totals >= min_count], tokens[keep], weights)


def _grouped(pairs: IntArray, sizes: IntArray, tokens: IntArray, weights: NDArray) -> TrigramTable:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)
    return TrigramTable(pairs, offsets, tokens.astype(np.int32), weights)


def replaced(table: TrigramTable, learned: dict[int, Successors]) -> TrigramTable:
    """The table with the successors of some pairs put in place of its own (or added)."""
    if not learned:
        return table
    keep = ~np.isin(table.pairs, np.fromiter(learned, np.int64, len(learned)))
    ends = table.offsets.astype(np.int64)
    sizes: IntArray = ends[1:] - ends[:-1]
    rows = np.repeat(keep, sizes)
    pairs = np.concatenate([table.pairs[keep], np.fromiter(learned, np.int64, len(learned))])
    all_sizes = np.concatenate([sizes[keep], [len(tokens) for tokens, _ in learned.values()]])
    tokens = np.concatenate([table.tokens[rows], *(np.array(t, np.int32) for t, _ in learned.values())])
    weights = np.concatenate([table.weights[rows], *(np.array(w, np.float16) for _, w in learned.values())])
    order = np.argsort(pairs, kind="stable")
    member = np.argsort(np.repeat(np.argsort(order), all_sizes), kind="stable")
    return _grouped(pairs[order], all_sizes[order], tokens[member], weights[member])
