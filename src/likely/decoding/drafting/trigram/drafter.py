"""ADED: a table of trigrams that learns from every decoded token, searched as a tree for drafts.

Liu et al. 2025, "Adaptive draft-verification for efficient large language model decoding", arXiv:2407.12021.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from likely.decoding.drafting.memory_file import checked_ids, load_memory, save_memory
from likely.decoding.drafting.protocol import FIXED_ONLY, NO_DRAFT, Draft, SamplingContext
from likely.decoding.drafting.trigram.table import (
    BITS,
    EMPTY,
    TOP,
    Successors,
    TrigramTable,
    count_trigrams,
    next_pair,
    pair_of,
    replaced,
    table_of,
)
from likely.errors import DataError

Look = Callable[[int], Successors]
Found = tuple[list[int], list[int], list[float]]
Scope = Literal["all", "request"]
ARRAYS = ("pairs", "offsets", "tokens", "weights")
# weight of what the table does not know, so that a trigram seen once is a weaker guess than an established one; chosen
# on replays of HumanEval (1.68 emitted per call instead of 1.66), confirmed on GSM8K (1.95 instead of 1.94)
DOUBT = 1.0


def best_first(look: Look, pair: int, *, budget: int, depth: int = 4) -> Found:
    """(tokens, parents, shares) of the `budget` nodes of largest share below a pair, the largest first.

    look   pair -> tokens that may follow and their weights, heaviest first
    depth  nodes are at most depth + 1 tokens deep
    A node's share estimates the probability of its path: the product down to it of weight / (Σ weights of the siblings
    + DOUBT).  It only falls on the way down, so that the search is exact, and any first n nodes are the best n.
    """
    tokens: list[int] = []
    parents: list[int] = []
    shares: list[float] = []
    # (-share, age, parent, its share, level, pair, successors, which of them, Σ); siblings enter one after another
    queue: list[tuple[float, int, int, float, int, int, Successors, int, float]] = []
    age = 0

    def push(parent: int, above: float, level: int, pair: int, found: Successors, i: int, whole: float) -> None:
        nonlocal age
        age += 1
        heapq.heappush(queue, (-above * found[1][i] / whole, age, parent, above, level, pair, found, i, whole))

    found = look(pair)
    if found[0]:
        push(-1, 1.0, 1, pair, found, 0, sum(found[1]) + DOUBT)
    while queue and len(tokens) < budget:
        minus, _, parent, above, level, pair, found, i, whole = heapq.heappop(queue)
        node, token = len(tokens), found[0][i]
        tokens.append(token)
        parents.append(parent)
        shares.append(-minus)
        if i + 1 < len(found[0]):
            push(parent, above, level, pair, found, i + 1, whole)
        if level <= depth:
            below = next_pair(pair, token)
            found = look(below)
            if found[0]:
                push(node, -minus, level + 1, below, found, 0, sum(found[1]) + DOUBT)
    return tokens, parents, shares


class Adaptation:
    """Weights that were learned while running, over a table that stays as it is.

    below  successors of a pair that nothing was learned about
    most   pairs remembered, the least recently reinforced forgotten first, each with at most 2·TOP successors; None:
           as many as were seen, and then `undo` is exact
    """

    def __init__(self, below: Callable[[int], Successors], *, rate: float, cap: float, most: int | None):
        self._below, self.rate, self.cap, self._most = below, rate, cap, most
        self._weights: dict[int, dict[int, float]] = {}
        self._sorted: dict[int, Successors] = {}
        self.lock = threading.RLock()

    def reinforce(self, pair: int, token: int) -> float | None:
        """weight := min(weight + rate, cap), never lower than it was; returns the weight before, None for a new one."""
        weights = self._weights.pop(pair, None)
        if weights is None:
            weights = dict(zip(*self._below(pair), strict=True))
        before = weights.get(token)
        weights[token] = max(before or 0.0, min((before or 0.0) + self.rate, self.cap))
        self._weights[pair] = weights
        self._sorted.pop(pair, None)
        if self._most is not None:
            if len(weights) > 2 * TOP:
                del weights[min((t for t in weights if t != token), key=weights.__getitem__)]
            if len(self._weights) > self._most:
                oldest = next(iter(self._weights))
                del self._weights[oldest]
                self._sorted.pop(oldest, None)
        return before

    def undo(self, pair: int, token: int, before: float | None) -> None:
        """Take the latest `reinforce` of this trigram back."""
        weights = self._weights[pair]
        if before is None:
            del weights[token]
        else:
            weights[token] = before
        self._sorted.pop(pair, None)

    def successors(self, pair: int) -> Successors:
        found = self._sorted.get(pair)
        if found is None:
            with self.lock:
                weights = self._weights.get(pair)
                if weights is None:
                    return self._below(pair)
                order = sorted(weights, key=lambda token: (-weights[token], token))
                found = self._sorted[pair] = tuple(order), tuple(weights[token] for token in order)
        return found

    def learned(self) -> dict[int, Successors]:
        return {pair: self.successors(pair) for pair in self._weights}

    def copy(self) -> Adaptation:
        other = Adaptation(self._below, rate=self.rate, cap=self.cap, most=self._most)
        other._weights = {pair: weights.copy() for pair, weights in self._weights.items()}
        return other


class TrigramMemory:
    """DraftSource: what follows the last two tokens, by a table and by what was decoded since.

    table       corpus counts; empty by default, so that all is learned while running
    depth       tokens of a searched sentence; drafts go one deeper
    rate, cap   each observed trigram gains `rate` weight up to `cap`; 0: the table stays as it is
    scope       "all": requests learn from one another, and what a rolled-back text taught stays;
                "request": each begins with the table as it is, and a rollback takes back what was learned
    most        pairs that adaptation remembers in scope "all", about 0.7 kB each

    The search is `best_first`, where the paper has Monte Carlo tree search: HumanEval, emitted per call at 8 / 24 / 64
    nodes: 1.59 / 1.68 / 1.71, MCTS 1.58 / 1.67 / 1.68 at many times the cost (reproductions/aded.py).
    The paper adds 0.04 per proposal for each of the last 16 tokens, about 0.3 to 0.6 in all; `rate` does it at once.
    """

    name = "trigram"
    distributions, free = FIXED_ONLY, True

    def __init__(
        self,
        table: TrigramTable = EMPTY,
        *,
        depth: int = 4,
        rate: float = 0.32,
        cap: float = 3.0,
        scope: Scope = "all",
        most: int = 100_000,
    ):
        for name, number in (("depth", depth), ("most", most)):
            if number < 1:
                raise ValueError(f"{name} must be >= 1, got {number}")
        if rate < 0 or cap <= 0:
            raise ValueError(f"rate must be >= 0 and cap > 0, got rate {rate} and cap {cap}")
        if scope not in get_args(Scope):
            raise ValueError(f'scope must be one of {", ".join(get_args(Scope))}, got "{scope}"')
        self.table, self.depth, self.scope = table, depth, scope
        self._shared = Adaptation(table.successors, rate=rate, cap=cap, most=most)

    # --- making, files ------------------------------------------------------------------------------------------------

    @classmethod
    def from_texts(
        cls, texts: Iterable[Sequence[int]], *, top: int = TOP, min_count: int = 1, vocab_size: int = 1 << BITS
    ) -> TrigramMemory:
        """Count a corpus of token lists; `top` successors per pair are kept, pairs seen less than `min_count` not."""
        trigrams, counts = count_trigrams(texts, vocab_size=vocab_size)
        return cls(table_of(trigrams, counts, top=top, min_count=min_count))

    def save(self, path: str | Path, *, tokenizer: str) -> None:
        """Table and what was learned since, in one file; `tokenizer` is the fingerprint of the one that made them."""
        with self._shared.lock:
            table = replaced(self.table, self._shared.learned())
        arrays = {name: getattr(table, name) for name in ARRAYS}
        save_memory(path, self.name, arrays, tokenizer=tokenizer, settings={})

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: str, vocab_size: int) -> TrigramMemory:
        found, _ = load_memory(path, cls.name, tokenizer=tokenizer, names=ARRAYS)
        pairs, offsets, tokens, weights = (found[name] for name in ARRAYS)
        sizes = np.diff(offsets.astype(np.int64))
        if len(offsets) != len(pairs) + 1 or (sizes < 1).any() or offsets[0] or offsets[-1] != len(tokens):
            raise DataError(f"{path}: offsets do not fit pairs and tokens: build the memory again")
        if len(weights) != len(tokens) or not (weights > 0).all() or (np.diff(pairs) <= 0).any():
            raise DataError(f"{path}: weights must be > 0, one per token, and pairs increasing: build the memory again")
        checked_ids(path, "tokens", tokens, vocab_size)
        return cls(TrigramTable(pairs, offsets, tokens, weights))

    # --- drafting -----------------------------------------------------------------------------------------------------

    def observe(self, tokens: Sequence[int]) -> None:
        """Learn a text."""
        TrigramDrafter(self, self._shared, []).observe(tokens)

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> TrigramDrafter:
        shared = self._shared
        learned = shared
        if self.scope == "request":
            learned = Adaptation(shared.successors, rate=shared.rate, cap=shared.cap, most=None)
        drafter = TrigramDrafter(self, learned, [])
        drafter.observe(prompt)
        return drafter

    def find(self, look: Look, pair: int, place: int, budget: int) -> Found:
        """The draft after `pair`, which stands at the end of a text of `place` tokens."""
        return best_first(look, pair, budget=budget, depth=self.depth)


class TrigramDrafter:
    """The text of one sequence, and the weights it reads and teaches."""

    def __init__(self, memory: TrigramMemory, learned: Adaptation, tokens: list[int]):
        self._memory, self._learned, self._tokens = memory, learned, tokens
        self._own = learned is not memory._shared
        self._log: list[float | None] = []  # weights before each token from the third on, where they can be taken back

    def propose(self, budget: int) -> Draft:
        if budget <= 0 or len(self._tokens) < 2:
            return NO_DRAFT
        pair = pair_of(*self._tokens[-2:])
        with self._learned.lock:
            tokens, parents, shares = self._memory.find(self._learned.successors, pair, len(self._tokens), budget)
        if not tokens:
            return NO_DRAFT
        return Draft(np.array(tokens, np.int64), np.array(parents, np.int64), match=2, expected=sum(shares))

    def observe(self, tokens: Sequence[int]) -> None:
        learned = self._learned
        with learned.lock:
            for token in tokens:
                if len(self._tokens) >= 2 and learned.rate:
                    before = learned.reinforce(pair_of(*self._tokens[-2:]), int(token))
                    if self._own:
                        self._log.append(before)
                self._tokens.append(int(token))

    def rollback(self, n: int) -> None:
        with self._learned.lock:
            for _ in range(n):
                token = self._tokens.pop()
                if len(self._tokens) >= 2 and self._log:
                    self._learned.undo(pair_of(*self._tokens[-2:]), token, self._log.pop())

    def fork(self, context: SamplingContext) -> TrigramDrafter:
        with self._learned.lock:
            learned = self._learned.copy() if self._own else self._learned
            copy = TrigramDrafter(self._memory, learned, self._tokens.copy())
            copy._log = self._log.copy()
        return copy

    def end(self) -> None:
        self._tokens, self._log = [], []
