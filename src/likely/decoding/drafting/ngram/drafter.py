"""An n-gram language model that drafts: counts of a corpus and of the running text, with a true q > 0 everywhere.

The cheapest drafter with a known q: under rejection it draws like a small model would.  With keyed verification no q is
needed, and it drafts the best tree of the tokens that have been seen after the last one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from likely.decoding.drafting.memory_file import load_memory
from likely.decoding.drafting.ngram.counts import Continuations, CorpusCounts, TextCounts
from likely.decoding.drafting.protocol import NO_DRAFT, Draft, DraftDistribution, SamplingContext
from likely.decoding.drafting.trees.growth import grow_with
from likely.decoding.drafting.trees.shapes import Chain, DraftShape
from likely.decoding.sampling import gumbel, processed_logprobs
from likely.errors import DataError, ModelError
from likely.metrics.checks import Floats, Ints
from likely.runtimes.protocol import FloatArray

ContextCounts = tuple[Ints, Floats]  # (tokens, ascending; how often each followed one context)

CHILDREN = 3  # most guesses after one node of a keyed draft
FLOOR = 0.1  # a node that is less likely to be kept is not worth its microseconds
TEXT_WEIGHT = 4.0  # of an n-gram of the running text beside one of the corpus; of 1, 2, 4, 16 best on recorded chats


class NgramModel:
    """DraftSource: q(w | h) by interpolated absolute discounting, orders 1 to `order`.

    q_n(w | h) = max(c(h w) - d, 0) / c(h) + d N(h) / c(h) · q_(n-1)(w | h without its first token),  q_0 = 1 / V
    c = corpus count + TEXT_WEIGHT · count in this text;  N(h): how many tokens follow h;  d = `discount`
    (Ney, Essen and Kneser 1994, "On structuring probabilistic dependences in stochastic language modelling".)

    shape   how drafts grow from q; None: with keyed verification the likeliest tree, else a chain of draws.  A shape
            works on whole rows (V,), the likeliest tree only on tokens seen after the last one
    Drafts follow the request's temperature and truncation, not its penalties and bias.
    At V = 49,152 a likeliest tree of 16 nodes takes 0.2 to 1 ms of processor time; a drawn token about 1.1 ms, with
    truncation about 2 ms.
    """

    name = "ngram"
    free = True

    def __init__(
        self,
        vocab_size: int,
        *,
        order: int = 4,
        discount: float = 0.75,
        corpus: CorpusCounts | None = None,
        shape: DraftShape | None = None,
    ):
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be >= 1, got {vocab_size}")
        if not 1 <= order <= 8:
            raise ValueError(f"order must lie in 1..8, got {order}")
        if not 0 < discount < 1:
            raise ValueError(f"discount must lie between 0 and 1, got {discount}")
        self.vocab_size, self.order, self.discount, self.shape = vocab_size, order, discount, shape
        self.corpus = corpus if corpus is not None else CorpusCounts.of([], order=order, vocab_size=vocab_size)
        if self.corpus.order != order:
            raise ValueError(f"the corpus has counts of order {self.corpus.order}, the model {order}")
        self.distributions = frozenset({DraftDistribution.FIXED}) | (shape or Chain()).distributions
        self.unigrams = np.zeros(vocab_size)
        self.unigrams[self.corpus.tokens[0]] = self.corpus.counts[0]
        self.commonest, self.total = int(self.unigrams.argmax()), float(self.unigrams.sum())

    @classmethod
    def from_texts(
        cls, texts: Iterable[Sequence[int]], *, vocab_size: int, order: int = 4, discount: float = 0.75
    ) -> NgramModel:
        """A model of texts, each a list of token ids."""
        corpus = CorpusCounts.of(texts, order=order, vocab_size=vocab_size)
        return cls(vocab_size, order=order, discount=discount, corpus=corpus)

    def save(self, path: str | Path, *, tokenizer: str) -> None:
        """Write the corpus counts; `tokenizer` is the fingerprint of the tokenizer whose ids they hold."""
        settings = {"order": str(self.order), "discount": repr(self.discount), "vocab_size": str(self.vocab_size)}
        self.corpus.save(path, tokenizer=tokenizer, settings=settings)

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: str, vocab_size: int) -> NgramModel:
        """A model that `save` wrote for the same tokenizer."""
        arrays, settings = load_memory(path, "ngram", tokenizer=tokenizer, names=("tokens0", "counts0", "places0"))
        try:
            order, discount = int(settings["order"]), float(settings["discount"])
            cls(vocab_size, order=order, discount=discount)
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}: its settings are damaged ({error}): build the memory again") from None
        missing = [f"{name}{k}" for k in range(order) for name in ("tokens", "counts", "places")]
        missing = [name for name in missing if name not in arrays]
        if missing:
            raise DataError(f"{path}: the array {missing[0]} is missing: build the memory again")
        corpus = CorpusCounts.checked(path, arrays, order=order, vocab_size=vocab_size)
        return cls(vocab_size, order=order, discount=discount, corpus=corpus)

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> NgramDrafter:
        drafter = NgramDrafter(self, context, TextCounts(self.order))
        drafter.observe(prompt)
        return drafter


class NgramDrafter:
    """The model as it stands after one text."""

    def __init__(self, model: NgramModel, context: SamplingContext, text: TextCounts):
        self._model, self._context, self._text = model, context, text
        self._unseen = 0  # tokens of the text that the corpus lacks
        self._commonest = self._find_commonest()

    def observe(self, tokens: Sequence[int]) -> None:
        for token in map(int, tokens):
            if not 0 <= token < self._model.vocab_size:
                raise ModelError(f"ngram: token {token} is outside 0..{self._model.vocab_size - 1}")
            self._unseen += token not in self._text.after(()) and not self._model.unigrams[token]
            self._text.add(token)
            best = self._commonest
            if best is None or (self._count(token), -token) > (self._count(best), -best):
                self._commonest = token

    def rollback(self, n: int) -> None:
        for _ in range(n):
            token = self._text.remove()
            self._unseen -= token not in self._text.after(()) and not self._model.unigrams[token]
        self._commonest = self._find_commonest()

    def fork(self, context: SamplingContext) -> NgramDrafter:
        twin = NgramDrafter(self._model, context, self._text.copy())
        twin._unseen, twin._commonest = self._unseen, self._commonest
        return twin

    def end(self) -> None:
        self._text, self._unseen = TextCounts(self._model.order), 0
        self._commonest = self._find_commonest()

    # --- the distribution -----------------------------------------------------------------------------------------

    def log_q(self, path: Sequence[int] = ()) -> FloatArray:
        """log q (V,) of the token after the text and `path`."""
        model, levels = self._model, self._levels(self._history(path))
        counts = model.unigrams.copy()
        own = self._text.after(())
        if own:
            counts[np.fromiter(own, np.int64, len(own))] += TEXT_WEIGHT * np.fromiter(
                own.values(), np.float64, len(own)
            )
        q = self._unigram(counts)
        for ids, count in levels:
            kept, rest = self._discounted(count)
            q *= rest
            q[ids] += kept
        return np.log(q).astype(np.float32)

    def likely_next(self, path: Sequence[int] = ()) -> tuple[Ints, Floats]:
        """(tokens, their q): all that this text had after the last token, the corpus's most frequent ones after each
        context, and the most frequent one of all.  Tokens ascend.

        Without a corpus the most likely token is always among them.
        """
        history, d = self._history(path), self._model.discount
        rows: list[tuple[Continuations, dict[int, int]]] = []
        candidates = set() if self._commonest is None else {self._commonest}
        for n in range(1, len(history) + 1):
            tail = history[len(history) - n :]
            row, own = self._model.corpus.after(tail), self._text.after(tail)
            if not own and not len(row.tokens):
                break
            rows.append((row, own))
            candidates |= row.frequent
        candidates.update(rows[0][1] if rows else ())  # what followed more tokens followed the last one, too
        ids = sorted(candidates)
        array = np.array(ids, np.int64)
        text = self._text.after(())
        counts = self._model.unigrams[array] + [TEXT_WEIGHT * text.get(i, 0) for i in ids]
        q = self._unigram(counts).tolist()
        for row, own in rows:
            seen = row.counts_of(array).tolist() if len(row.tokens) else [0] * len(ids)
            known = dict(zip(ids, seen, strict=True))
            total = row.total + TEXT_WEIGHT * sum(own.values())
            rest = d * (len(row.tokens) + sum(not known[token] for token in own)) / total
            for i, (token, count) in enumerate(known.items()):
                count += TEXT_WEIGHT * own.get(token, 0)
                q[i] = rest * q[i] + ((count - d) / total if count else 0.0)
        return array, np.array(q)

    def _history(self, path: Sequence[int]) -> tuple[int, ...]:
        most = self._model.order - 1
        recent = self._text.tokens[-most:] if most else []
        return (*recent, *path)[-most:] if most else ()

    def _levels(self, history: tuple[int, ...]) -> list[ContextCounts]:
        """What followed the last 1, 2, ... tokens, as far as something did."""
        levels = []
        for n in range(1, len(history) + 1):
            tail = history[len(history) - n :]
            level = _merged(self._model.corpus.after(tail), self._text.after(tail))
            if not len(level[0]):
                break
            levels.append(level)
        return levels

    def _unigram(self, counts: Floats) -> Floats:
        """q_1 of tokens with these counts."""
        model, d = self._model, self._model.discount
        total = model.total + TEXT_WEIGHT * len(self._text.tokens)
        if not total:
            return np.full(len(counts), 1 / model.vocab_size)
        distinct = len(model.corpus.tokens[0]) + self._unseen
        return np.maximum(counts - d, 0.0) / total + d * distinct / total / model.vocab_size

    def _discounted(self, counts: Floats) -> tuple[Floats, float]:
        """(what the counts give their tokens, the share left to the shorter context)."""
        total = float(counts.sum())
        return (counts - self._model.discount) / total, self._model.discount * len(counts) / total

    def _find_commonest(self) -> int | None:
        """The most frequent token, the smallest id of equals; None before any."""
        model, own = self._model, self._text.after(())
        candidates = [*own, *([model.commonest] if model.corpus.tokens[0].size else [])]
        return min(candidates, key=lambda token: (-self._count(token), token), default=None)

    def _count(self, token: int) -> float:
        return float(self._model.unigrams[token]) + TEXT_WEIGHT * self._text.after(()).get(token, 0)

    # --- drafts -----------------------------------------------------------------------------------------------------

    def propose(self, budget: int) -> Draft:
        if budget <= 0:
            return NO_DRAFT
        context, shape = self._context, self._model.shape
        if context.verification == "keyed" and shape is None:
            return self._likeliest_tree(budget)

        def row(path: tuple[int, ...]) -> FloatArray:
            log_q = self.log_q(path)
            return log_q if context.sampling.greedy else processed_logprobs(log_q, context.sampling)

        return grow_with((shape or Chain()).grow(context, len(self._text.tokens), budget), row)

    def _likeliest_tree(self, budget: int) -> Draft:
        """Nodes in the order of their probability to be kept, each after its parent, until it falls below FLOOR."""
        tokens: list[int] = []
        parents: list[int] = []
        expected = 0.0
        heap: list[tuple[float, int, int, tuple[int, ...]]] = []
        self._push(heap, -1, (), 1.0)
        while heap and len(tokens) < budget:
            chance, _, parent, path = heapq.heappop(heap)
            tokens.append(path[-1])
            parents.append(parent)
            expected -= chance
            if len(tokens) < budget:
                self._push(heap, len(tokens) - 1, path, -chance)
        return Draft(np.array(tokens, np.int64), np.array(parents, np.int64), expected=expected)

    def _push(
        self, heap: list[tuple[float, int, int, tuple[int, ...]]], node: int, path: tuple[int, ...], chance: float
    ) -> None:
        """Queue the best guesses after a node that is kept with this chance."""
        ids, q = self.likely_next(path)
        sampling = self._context.sampling
        if not sampling.greedy:
            place = len(self._text.tokens) + len(path)
            values = np.log(q)
            if sampling.top_k or sampling.top_p < 1 or sampling.min_p or sampling.typical_p < 1:
                values = processed_logprobs(values.astype(np.float32), sampling).astype(np.float64)
            else:
                values = values / sampling.temperature
            values = values + gumbel(self._context.noise, self._context.sample, place, ids)
            q = np.exp(values - values.max(initial=-np.inf))
            q /= q.sum()
        for i in np.argsort(-q, kind="stable")[:CHILDREN].tolist():
            if chance * q[i] >= FLOOR:
                heapq.heappush(heap, (-chance * float(q[i]), len(path), node, (*path, int(ids[i]))))


def _merged(row: Continuations, own: dict[int, int]) -> ContextCounts:
    """Counts of the corpus and of the text after one context."""
    keys = np.fromiter(own, np.int64, len(own))
    both = np.union1d(row.tokens, keys)
    merged = np.zeros(len(both))
    merged[np.searchsorted(both, row.tokens)] += row.counts
    merged[np.searchsorted(both, keys)] += TEXT_WEIGHT * np.fromiter(own.values(), np.float64, len(own))
    return both, merged
